"""What goes in and what comes out: inputs, states, results.

Inputs are strict: a wrong type is refused, not converted. `api.responses` reads answers tolerantly into the models
below and keeps the whole answer in `raw`.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from enum import Enum, StrEnum
from operator import index
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SkipValidation, ValidationError

from flux_klein_async import KLEIN_4B_TEXT_TO_IMAGE, KLEIN_9B_TEXT_TO_IMAGE
from flux_klein_async.api.urls import host_of, is_public, parsed
from flux_klein_async.errors import FluxKleinError, GenerationFailedError, InvalidInputError
from flux_klein_async.schema import InputField, input_fields
from flux_klein_async.text import cut

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic_core import ErrorDetails

__all__ = [
    "KLEIN_4B_TEXT_TO_IMAGE",
    "KLEIN_9B_TEXT_TO_IMAGE",
    "CancelOutcome",
    "GenerationOutput",
    "GenerationResult",
    "HostedFile",
    "Input",
    "ModelInfo",
    "Outcome",
    "RequestState",
    "RequestStatus",
    "SavedFile",
    "TextToImage9BInput",
    "TextToImageInput",
    "Timings",
]

T = TypeVar("T")
_NEAR = 0.9  # of difflib's ratio: other models of the same owner reach 0.87


class RequestState(StrEnum):
    """Where a request stands. `UNKNOWN` stands for any undocumented word; the client keeps waiting."""

    IN_QUEUE = "in_queue"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"

    @classmethod
    def read(cls, word: object) -> "RequestState":
        """The state for a word on the wire, whatever its case."""
        return _STATES.get(word.strip().lower(), cls.UNKNOWN) if isinstance(word, str) else cls.UNKNOWN

    @property
    def final(self) -> bool:
        """Whether the request has ended."""
        return self in _FINAL


_FINAL = frozenset({RequestState.COMPLETED, RequestState.FAILED, RequestState.CANCELLED})
# docs/wire.md, "States": the documented words, and the aliases seen in the vendor's clients.
_STATES = {
    **{state.value: state for state in RequestState},
    **dict.fromkeys(("pending", "waiting"), RequestState.IN_QUEUE),
    **dict.fromkeys(("starting", "processing"), RequestState.IN_PROGRESS),
    "succeeded": RequestState.COMPLETED,
    "canceled": RequestState.CANCELLED,
}

_TEXT = 40  # characters of a prompt, and of any other text, in a repr
_SAID = 2000  # characters of what the service says, in an error
_SHOWN = 300  # characters of an output without a file, in an error
_URL = 120  # characters of a URL: useless without its end, but signatures are long


class _Bare(str):
    """Text shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class BriefModel(BaseModel):
    """A model with a short `repr`, whose fields are given by name."""

    if not TYPE_CHECKING:  # pragma: no branch

        def __new__(cls, *unnamed: object, **_: object) -> Self:
            """Say the names of fields that were given without one."""
            if unnamed and cls.__init__ is BaseModel.__init__:
                pairs = zip(cls.model_fields, unnamed, strict=False)
                named = ", ".join(f"{name}={shortened(value)!r}" for name, value in pairs)
                raise TypeError(f"The fields are given by name: {cls.__name__}({named})")
            return super().__new__(cls)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        return ((name, shortened(value)) for name, value in super().__repr_args__() if value not in (None, ()))


def brief_repr(value: object, facts: Mapping[str, Any]) -> str:
    """The `repr` of any other object: the facts that are known, shortened."""
    shown = (f"{name}={shortened(fact)!r}" for name, fact in facts.items() if fact not in (None, ()))
    return f"{type(value).__name__}({', '.join(shown)})"


def shortened(value: Any) -> Any:
    """What a `repr` shows in place of a value."""
    if isinstance(value, Enum):
        return _Bare(value.value)
    if isinstance(value, datetime):
        return _Bare(value.isoformat())
    if isinstance(value, float):
        return float(f"{value:.6g}")  # more digits of seconds and dollars are noise
    if type(value).__module__.startswith("flux_klein_async."):  # also what was shortened before
        return value
    if isinstance(value, str):
        return cut(value, _URL if value.startswith(("https://", "http://")) and " " not in value else _TEXT)
    return _Bare(cut(repr(value), _URL))


# --- inputs


def findings(error: ValidationError) -> dict[str, str]:
    """What pydantic finds wrong, by field: the value, bounded, and what is wrong with it."""
    return {".".join(map(str, found["loc"])): _finding(found) for found in error.errors(include_url=False)}


def _finding(found: "ErrorDetails") -> str:
    words = _FINDINGS.get(found["type"])
    if words is None:
        return found["msg"].removeprefix("Value error, ")  # our own sentences need no such title
    return words.format_map({**found.get("ctx", {}), "value": cut(repr(found["input"]), _TEXT)})


# By pydantic's type of error; what is not here says what pydantic says.
_FINDINGS = {
    "greater_than_equal": "{value} is less than {ge}",
    "less_than_equal": "{value} is more than {le}",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "{value} is not a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "{value} is not a number"),
    "string_type": "{value} is not text",
    "enum": "{value} is not one of {expected}",
    "missing": "missing",
    "extra_forbidden": "the model has no such field",
}


def whole(value: object) -> object:
    """A whole number of another type, such as numpy's, as an int; anything else as it is."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return value
    try:
        return index(value)
    except TypeError:  # classes and arrays have the method too
        return value


def from_float(value: float | str) -> int | float:
    """A number with a point or an exponent; a whole one is an integer, as data frames mean 1024.0."""
    number = float(value)
    return int(number) if number.is_integer() else number


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("the prompt is blank")
    return text


def _public_https(url: str) -> str:
    """Refuse anything but HTTPS on a public host: the service could not, or should not, fetch it."""
    try:
        address = parsed(url)
        host = host_of(address)
    except ValueError as error:
        raise ValueError(f"not a URL: {error}") from None
    if address.scheme != "https" or host is None:
        raise ValueError("a hosted file needs an https:// URL")
    if address.user is not None or address.password is not None:
        raise ValueError("a hosted file's URL may not hold credentials")
    if not is_public(host):
        raise ValueError(f"{host} is not a public host; the service itself fetches the file")
    return url


def _from_table(value: object) -> object:
    return from_float(value) if isinstance(value, float) else whole(value)


_Pixels = Annotated[int, Field(ge=64, le=2048, description="pixels"), BeforeValidator(_from_table)]


class _StrictModel(BriefModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextToImageInput(_StrictModel):
    """Input of FLUX.2 [klein] 4B text to image (source: docs/wire.md, "Input").

    Attributes:
        prompt: What to paint; not blank. Quality falls past about 512 tokens.
        width: Pixels, 64 to 2048.
        height: Pixels, 64 to 2048.
    """

    default_model: ClassVar[str] = KLEIN_4B_TEXT_TO_IMAGE

    prompt: Annotated[str, AfterValidator(_not_blank)]
    width: _Pixels = 1024
    height: _Pixels = 1024


class TextToImage9BInput(TextToImageInput):
    """Input of the 9B model: the same plus `steps` (source: docs/wire.md, "Input").

    Attributes:
        steps: Denoising steps, 1 to 100 (25).
    """

    default_model: ClassVar[str] = KLEIN_9B_TEXT_TO_IMAGE

    steps: Annotated[int, Field(ge=1, le=100), BeforeValidator(_from_table)] = 25


class HostedFile(_StrictModel):
    """A file that the service fetches itself, for inputs that take one.

    Attributes:
        url: HTTPS, on a public host, without credentials.
    """

    url: Annotated[str, AfterValidator(_public_https)]

    def __init__(self, url: str, **data: Any) -> None:
        super().__init__(**{"url": url, **data})


Input = str | TextToImageInput | TextToImage9BInput | Mapping[str, Any]


_Raw = Annotated[Mapping[str, Any], SkipValidation]  # parsed JSON, nothing to validate


class _AnswerModel(BriefModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())  # "model_" is the service's word


_A = TypeVar("_A", bound=_AnswerModel)


def read_fields(kind: type[_A], fields: dict[str, Any]) -> _A:
    """As the constructor, which takes half as long again: it looks for unnamed arguments."""
    made: _A = kind.__pydantic_validator__.validate_python(fields)
    return made


class RequestStatus(_AnswerModel):
    """What one poll saw (source: docs/wire.md, "Endpoints" and "States").

    Attributes:
        request_id: The service's id.
        state: Where the request stands; the service's own word is in `raw["status"]`.
        queue_position: Its place in the queue, as the service counts (the emulator: from 0, the next to start); None
            outside the queue.
        instance_id: The machine that runs it, or None.
        raw: The whole answer.
    """

    request_id: str
    state: RequestState
    queue_position: int | None = None
    instance_id: str | None = None
    raw: _Raw = Field(default_factory=dict, repr=False)


class GenerationOutput(_AnswerModel):
    """The files of a generation, as URLs; each model fills other fields (source: docs/wire.md, "Output").

    A URL begins with `https://`, or is a data URI that holds the file itself. (Plain `http://` is taken from this
    machine and the base URL's own origin alone.)

    Attributes:
        image: One image.
        video: One video.
        images: Several images.
        videos: Several videos.
        others: Every other file, such as audio.
        not_taken: The first addresses in the output that are no such URL, for error messages.
    """

    image: str | None = None
    video: str | None = None
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    not_taken: tuple[str, ...] = Field(default=(), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time went, in seconds; None is unknown.

    As the polls saw it: how long the service took is `finished_at - created_at` of the result.

    Attributes:
        submit: From the call to the known request id.
        queued: From there to the first poll that no longer saw the request queued.
        running: From there to the poll that saw the end.
        fetch: The fetch of the result, repeats included.
        lag_max: From the last poll that said "not yet" to the one that saw the end: the largest possible delay
            between the end and the poll that noticed it.
        polls: Number of polls.
    """

    submit: float | None = None
    queued: float | None = None
    running: float | None = None
    fetch: float | None = None
    lag_max: float | None = None
    polls: int = 0

    def __repr__(self) -> str:
        return brief_repr(self, {name: getattr(self, name) for name in self.__slots__})


class GenerationResult(_AnswerModel):
    """A finished generation (source: docs/wire.md, "Endpoints" and "Output").

    Attributes:
        request_id: The service's id. The service keeps the result for 7 days.
        state: `completed`.
        output: Its files.
        created_at: When the service accepted it, by the service's clock.
        finished_at: When it ended, by the service's clock.
        cost_usd: What it cost in USD, or None if the service does not say.
        missing: How many files it lacks, as far as the output shows gaps or a count, or has fewer pictures than the
            `num_images` of an input that this client submitted. None: unknown.
        timings: Where the time went, as the client saw it.
        raw: The whole answer.
    """

    request_id: str
    state: RequestState
    output: GenerationOutput
    created_at: datetime | None = None
    finished_at: datetime | None = None
    cost_usd: float | None = None
    missing: int | None = None
    timings: Timings = Timings()
    raw: _Raw = Field(default_factory=dict, repr=False)

    @property
    def urls(self) -> list[str]:
        """The URL of every file, images first, without duplicates.

        A file that came inside the answer is a data URI, as long as the file. `download` saves both.
        """
        out = self.output
        every = (out.image, *out.images, out.video, *out.videos, *out.others)
        return list(dict.fromkeys(url for url in every if url))

    @property
    def image_url(self) -> str:
        """The first image's URL.

        Raises:
            GenerationFailedError: The result has no image (see `urls` and `raw`).
        """
        for url in (self.output.image, *self.output.images):
            if url:
                return url
        raise without_file(self, "an image")


def not_saved() -> InvalidInputError:
    """The error where the saved files of an outcome are wanted, and it has none."""
    return InvalidInputError(
        "The outcome has no files: await client.download(outcome.result, directory) saves them; generate_many and "
        "generate_all do with directory="
    )


def without_file(result: GenerationResult, what: str = "a file") -> GenerationFailedError:
    """The error of a completed generation without a file: it is charged, and only its result may be asked for again."""
    output = result.raw.get("output")
    places = (result.raw, output) if isinstance(output, Mapping) else (result.raw,)
    words = (place.get(key) for place in places for key in ("error_message", "message", "error", "detail"))
    said = next((text for text in words if text), None)
    causes = [] if said is None else [str(said)[:_SAID]]
    if result.output.not_taken:
        causes.append(f"no https:// URL: {', '.join(map(repr, result.output.not_taken))}")
    elif said is None and output:
        causes.append(f"the output is {str(output)[:_SHOWN]}")
    return GenerationFailedError(
        f"The generation completed without {what}, and is charged; fetch the result of request {result.request_id} "
        "again later, do not submit again",
        request_id=result.request_id,
        detail=said,
        charged="yes",
        cause="; ".join(causes) or None,
        raw=result.raw,
        cost_usd=result.cost_usd,
    )


def missing_files(result: GenerationResult) -> str:
    """A sentence about a result that has files and lacks others."""
    missing, there = result.missing or 0, len(result.urls)
    lacks = f"{missing:,} {'file is' if missing == 1 else 'files are'} missing"
    return f"{lacks}, {there:,} {'is' if there == 1 else 'are'} there (request {result.request_id})"


def model_advice(
    model: str,
    listed: str = "client.list_models() lists them",
    among: Collection[str] = (KLEIN_4B_TEXT_TO_IMAGE, KLEIN_9B_TEXT_TO_IMAGE),
) -> str:
    """Where to find the id of a model that the service does not know, and which one `among` these may be meant."""
    others = [name for name in among if name != model]
    ends = [name for name in others if model and name.endswith(f"/{model}")]  # the owner was left out
    near = ends[:1] or get_close_matches(model, others, 1, _NEAR)
    return "; ".join([listed, *(f"did you mean {name!r}?" for name in near)])


def brief_url(url: str) -> str:
    """A URL for people and logs: a data URI without its data."""
    head, comma, data = url.partition(",")
    return f"{head},... ({len(data):,} characters)" if comma and head[:5].lower() == "data:" else url


class CancelOutcome(_AnswerModel):
    """The outcome of a cancel (source: docs/wire.md, "Endpoints").

    Attributes:
        request_id: The service's id.
        cancelled: True: it will not run. False: too late; it is running or has ended, and is charged.
        state: Where the request stands, if the answer says so; else `unknown`.
        raw: The whole answer.
    """

    request_id: str
    cancelled: bool
    state: RequestState = RequestState.UNKNOWN
    raw: _Raw = Field(default_factory=dict, repr=False)


class ModelInfo(_AnswerModel):
    """A model's catalogue entry (source: docs/wire.md, "Endpoints").

    Attributes:
        model_id: The id that `model=` takes.
        display_name: Its name for people.
        categories: What it does, such as `text-to-image`.
        base_price_usd: USD per `price_unit`, or None if the service gives no number.
        price_unit: What the price is for, e.g. `output` or `second`, or None.
        pricing_note: The service's remarks on the price, or None.
        input_schema: JSON schema of the input, or None: entries of a list come without it.
        raw: The whole entry.
    """

    model_id: str
    display_name: str | None = None
    categories: tuple[str, ...] = ()
    base_price_usd: float | None = None
    price_unit: str | None = None
    pricing_note: str | None = None
    input_schema: Mapping[str, Any] | None = Field(default=None, repr=False)
    raw: _Raw = Field(default_factory=dict, repr=False)

    @property
    def input_fields(self) -> tuple[InputField, ...]:
        """The fields of `input_schema`, at most 200; () without a schema."""
        return input_fields(self.input_schema)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedFile:
    """A downloaded file.

    Attributes:
        path: Where it is.
        sha256: The SHA-256 of its bytes, in hexadecimal digits.
        size: Bytes.
    """

    path: "Path"
    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[T]):
    """The outcome of one item of a fan-out: exactly one of `result` and `error` is set.

    Attributes:
        index: The item's number, from 0.
        item: The item as you passed it.
        result: Its result, or None.
        error: Its error, or None.
        files: Its saved files, if you gave the fan-out a directory.
        from_journal: Whether an earlier run had submitted the item, as the journal knows, so that nothing was submitted
            this time.
    """

    index: int
    item: T
    result: GenerationResult | None = None
    error: FluxKleinError | None = None
    files: tuple[SavedFile, ...] = ()
    from_journal: bool = False

    @property
    def paths(self) -> "tuple[Path, ...]":
        """The paths of its files."""
        return tuple(file.path for file in self.files)

    @property
    def request_id(self) -> str | None:
        """The id of its request, or None if none is known."""
        known = self.result or self.error
        return None if known is None else known.request_id

    @property
    def cost_usd(self) -> float | None:
        """What its generation cost in USD, also if it gave no file; None if that is not known, or nothing was made."""
        cost: float | None = getattr(self.result or self.error, "cost_usd", None)
        return cost

    def __repr__(self) -> str:
        facts = {"index": self.index, "item": shortened(self.item)}  # here already: an array compares with nothing
        facts |= {name: getattr(self, name) for name in ("result", "error", "paths")}
        return brief_repr(self, {**facts, "from_journal": self.from_journal or None})
