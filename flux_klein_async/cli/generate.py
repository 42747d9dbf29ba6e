"""`flux-klein generate`: pictures of one prompt."""

import asyncio
import json
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import suppress
from difflib import get_close_matches
from itertools import islice, starmap
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, NoReturn

import typer

from flux_klein_async.batch.rows import Row, check_prompt, local_file, with_files
from flux_klein_async.cli import connect, run, signals
from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.cli.output import Nowhere, Screen
from flux_klein_async.client import FluxKleinClient
from flux_klein_async.errors import APIConnectionError, AuthenticationError, FluxKleinError, InvalidInputError
from flux_klein_async.models import KLEIN_9B_TEXT_TO_IMAGE, model_advice
from flux_klein_async.operations.inputs import check_files
from flux_klein_async.operations.names import slug
from flux_klein_async.operations.submit import TYPED, made_input, prepare
from flux_klein_async.options import Limits
from flux_klein_async.polling.adaptive import AdaptivePolling
from flux_klein_async.schema import InputField, every_name, misfit
from flux_klein_async.text import clipped

__all__ = ["CatalogueFields", "catalogue_fields", "checked_fields", "generate"]

_READ_WITHIN: Final = 10.0  # seconds for the catalogue entry before the first submit
_LISTED_WITHIN: Final = 5.0  # seconds for the names of all models
_LONGEST: Final = 60  # characters of a field's name in a message
_MOST_TOLD: Final = 5  # fields of an input that are not listed
_MOST_COMPARED: Final = 200  # names of the catalogue, for one that is near


def generate(
    *, prompt: str | None, given: list[str] | None, count: int, allow_unlisted: bool, **shared: Any
) -> ExitCode:
    """Generate pictures of one prompt."""
    options = run.Options(**shared)
    if prompt == "-" and sys.stdin is None:
        raise typer.BadParameter("standard input is closed", param_hint="PROMPT")
    if options.no_download and isinstance(sys.stdout, Nowhere):
        raise typer.BadParameter("standard output is closed: the URLs would be lost", param_hint="--no-download")
    text = _decoded("The prompt on standard input", sys.stdin.buffer.read()) if prompt == "-" else prompt
    if prompt is not None:  # what is no UTF-8 comes as lone surrogates
        _decoded("The prompt", prompt.encode("utf-8", "surrogateescape"))
    inputs = _inputs(given or [])
    checked = checked_fields(options.model, inputs, text, options.fields)
    if not options.no_download:
        run.check_writable(options.output_dir)

    async def body(screen: Screen, stop: signals.Stop) -> ExitCode:
        totals = run.Totals(total=count, charged=not options.emulator)
        async with (
            connect.connected(screen, options.base_url, emulator=options.emulator) as service,
            options.client(service, totals, polling=AdaptivePolling(store=service.store)) as client,
        ):
            fields = checked
            if options.model not in TYPED:
                entry = await catalogue_fields(client, options.model, screen, allow_unlisted=allow_unlisted)
                entry.check(checked)
                fields = entry.with_lists(checked)
            size = " of {width} x {height}".format_map(fields) if {"width", "height"} <= fields.keys() else ""
            pictures = f"{count} pictures" if count > 1 else "1 picture"
            screen.say(f"Generating {pictures}{size}: {clipped(str(fields.get('prompt', '')), 36)}")
            return await run.Run(
                client=client,
                totals=totals,
                screen=screen,
                stop=stop,
                options=options,
                to_name=lambda _: slug(text or "") or "picture",
                label=lambda row, what: f"Picture {row.line} of {count}" if count > 1 else what,
                resume=None if options.emulator else _resume(options.directory, options.base_url),
                local_file=lambda name, text: (
                    f"{name}: a text goes as it is; to send a local file write --input {shlex.quote(f'{name}=@{text}')}"
                ),
            ).generate(_rows(fields, count))

    return signals.run(body, quiet=options.quiet, stopped="Nothing was submitted.")


def _decoded(what: str, data: bytes) -> str:
    """A prompt in UTF-8, without the one line end that editors and `echo` add."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{what} is not UTF-8: byte {error.start} is 0x{data[error.start]:02X}, as in another encoding; convert it "
            "first, for example with iconv -f WINDOWS-1252 -t UTF-8"
        ) from None
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def _inputs(given: list[str]) -> dict[str, Any]:
    """The fields that `--input` sets; one that is given several times is a list."""
    values: dict[str, list[Any]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise _bad_input(f"{text!r:.80} is no field and value: write FIELD=VALUE")
        values.setdefault(name, []).append(_value(name, value))
    return {name: several if len(several) > 1 else several[0] for name, several in values.items()}


def _value(name: str, text: str) -> Any:
    if text.startswith("@@"):
        return text[1:]
    if text.startswith("@"):
        return local_file(text[1:], Path())
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        if text.lstrip()[:1] in {"{", "[", '"'}:
            raise _bad_input(
                f"{name}: {text!r:.80} is no JSON; a text that begins so is written as a JSON string"
            ) from None
        return text
    return with_files(value, Path())


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _bad_input(sentence: str) -> typer.BadParameter:
    return typer.BadParameter(sentence, param_hint="--input")


def checked_fields(model: str, inputs: dict[str, Any], prompt: str | None, given: dict[str, int]) -> dict[str, Any]:
    """What is posted for each picture, checked as far as it can be here."""
    options: dict[str, Any] = given if prompt is None else {"prompt": prompt, **given}
    check_prompt(options.get("prompt", inputs.get("prompt")))
    if twice := options.keys() & inputs.keys():
        raise _bad_input(f"{min(twice)} is given twice")
    if "prompt" not in options and not inputs:
        raise typer.BadParameter("give a prompt, or --input for a model that takes none", param_hint="PROMPT")
    if "steps" in options and model != KLEIN_9B_TEXT_TO_IMAGE:
        raise typer.BadParameter(f"{model} takes no steps; --model {KLEIN_9B_TEXT_TO_IMAGE} does", param_hint="--steps")
    if (typed := TYPED.get(model)) is not None:
        checked = made_input({**options, **inputs}, lambda fields: typed(**fields))
        return dict(
            json.loads(prepare(checked, model=model, width=None, height=None, default_model=model).body.template)
        )
    if not inputs:  # a prompt is not blank
        prepare(options["prompt"], model=None, width=None, height=None, default_model=model)
    fields = {**options, **inputs}
    check_files(prepare(fields, model=None, width=None, height=None, default_model=model).body, Limits())
    return fields


class CatalogueFields(NamedTuple):
    """What the catalogue says of the fields of a model.

    Attributes:
        names: All of them; empty if that is not known.
        described: What it says of some of them, by name.
        allows_others: What it does not say is sent too.
    """

    names: Collection[str] = ()
    described: Mapping[str, InputField] = MappingProxyType({})
    allows_others: bool = False

    def problem(self, given: Mapping[str, Any]) -> str | None:
        """What is wrong with the fields: the service may ignore a name that it does not know, and charge."""
        if self.allows_others:
            return None
        unlisted = [name for name in given if name not in self.names] if self.names else []
        if not unlisted:
            return "; ".join(filter(None, starmap(self._misfit, given.items()))) or None
        said = "; ".join(f"{clipped(name, _LONGEST)}: {self._no_such(name)}" for name in unlisted[:_MOST_TOLD])
        return f"{said}. It lists {clipped(', '.join(self.names))}; --allow-unlisted sends other fields too"

    def _no_such(self, name: str) -> str:
        near = "".join(get_close_matches(name[:_LONGEST], islice(self.names, _MOST_COMPARED), 1))
        hint = f" (did you mean {clipped(near, _LONGEST)}?)" if near else ""
        return f"the catalogue lists no such field of this model{hint}"

    def _misfit(self, name: str, value: Any) -> str | None:
        field = self.described.get(name)
        if field is None or (found := misfit(field, value)) is None:
            return None
        hint = '; a local file is {"file": "in.png"}' if field.file is not None else ""
        return f"{clipped(name, _LONGEST)}: takes {clipped(field.type, _LONGEST)}, not {found}{hint}"

    def lacking(self, given: Mapping[str, Any]) -> str | None:
        """Which fields are missing that the service must have."""
        needed = [field.name for field in self.described.values() if field.required and field.default is None]
        missing = [] if self.allows_others else [name for name in needed if given.get(name) is None]
        return "; ".join(f"{clipped(name, _LONGEST)}: is missing" for name in missing[:_MOST_TOLD]) or None

    def check(self, given: Mapping[str, Any], *, is_whole: bool = True) -> None:
        """Refuse fields that are not listed, or cannot be what the field takes; and a whole input that lacks one.

        Raises:
            InvalidInputError: There is one.
        """
        if (problem := self.problem(given) or (self.lacking(given) if is_whole else None)) is not None:
            raise InvalidInputError(problem)

    def fitted(self, row: Row) -> Row:
        """A row as it is submitted, or with what is wrong with its fields."""
        if row.problem is not None:
            return row
        if (problem := self.problem(row.fields) or self.lacking(row.fields)) is not None:
            return row._replace(
                fields={"prompt": row.fields["prompt"]} if "prompt" in row.fields else {}, problem=problem
            )
        return row._replace(fields=self.with_lists(row.fields))

    def with_lists(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields, with a single value as a list of one where the field takes a list."""

        def many(name: str) -> bool:
            return (field := self.described.get(name)) is not None and field.many

        return {
            name: [value] if many(name) and not isinstance(value, list) else value for name, value in fields.items()
        }


async def catalogue_fields(
    client: FluxKleinClient, model: str, screen: Screen, *, allow_unlisted: bool
) -> CatalogueFields:
    """What the catalogue says of a model.

    Raises:
        InvalidInputError: It has no such model, and what is not listed is not allowed.
        APIConnectionError, AuthenticationError: As every submit would.
    """
    try:
        info = await client.get_model(timeout=_READ_WITHIN)
    except (APIConnectionError, AuthenticationError):
        raise
    except FluxKleinError as error:
        connect.advise(error)
        if connect.is_of_model(error) and not allow_unlisted:
            advice = model_advice(model, connect.listing(model), await _listed(client))
            raise InvalidInputError(
                f"Unknown model {clipped(model, _LONGEST)!r}; {advice}; --allow-unlisted submits to it all the same"
            ) from None
        screen.note(f"The catalogue does not say which fields the model takes, and they go as they are: {error}")
        return CatalogueFields()
    described = {field.name: field for field in info.input_fields}
    return CatalogueFields(every_name(info.input_schema), described, allow_unlisted)


async def _listed(client: FluxKleinClient) -> list[str]:
    """The ids of the catalogue's models, as far as they are known soon."""
    ids = list(TYPED)
    with suppress(FluxKleinError, TimeoutError):
        async with asyncio.timeout(_LISTED_WITHIN):
            ids += [info.model_id async for info in client.list_models()]
    return ids


def _resume(directory: Path | None, base_url: str | None) -> Callable[[str], str]:
    """The `flux-klein result` command for a request of this run."""
    options = ["--output-dir", str(directory)] if directory is not None else []
    options += ["--base-url", base_url] if base_url is not None else []

    def command(request_id: str) -> str:
        named = ["--", request_id] if request_id.startswith("-") else [request_id]
        return shlex.join(["flux-klein", "result", *options, *named])

    return command


async def _rows(fields: dict[str, Any], count: int) -> AsyncIterator[Row]:
    for index in range(count):
        yield Row(index + 1, fields, number=index)
