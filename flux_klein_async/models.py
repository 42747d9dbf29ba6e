"""What goes in and what comes out: inputs, states, results.

Inputs are strict (a wrong type is refused, not coerced); answers are read tolerantly by `api.protocol`, which
fills the models below and keeps the whole answer in `raw`. Nothing here performs I/O.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, SkipValidation

from flux_klein_async.errors import FluxKleinError, InvalidResponseError
from flux_klein_async.hosts import host_of, is_public, parsed
from flux_klein_async.reprs import Brief, known
from flux_klein_async.schemas import ModelInput, input_model
from flux_klein_async.states import RequestState

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "KLEIN_4B_TEXT_TO_IMAGE",
    "KLEIN_9B_TEXT_TO_IMAGE",
    "CancelOutcome",
    "GenerationOutput",
    "GenerationResult",
    "HostedFile",
    "Input",
    "ModelInfo",
    "ModelInput",
    "Outcome",
    "RequestState",
    "RequestStatus",
    "SavedFile",
    "TextToImage9BInput",
    "TextToImageInput",
    "Timings",
]

KLEIN_4B_TEXT_TO_IMAGE = "blackforestlabs/flux-2-klein/4b/text-to-image"
KLEIN_9B_TEXT_TO_IMAGE = "blackforestlabs/flux-2-klein/9b/text-to-image"

T = TypeVar("T")


def _not_blank(text: str) -> str:
    if not text.strip():
        msg = "the prompt is blank"
        raise ValueError(msg)
    return text


def _public_https(url: str) -> str:
    """Refuse what the service could not, or should not, fetch: anything but HTTPS on a public host."""
    try:
        address = parsed(url)
        host = host_of(address)
    except ValueError as error:
        msg = f"not a URL: {error}"
        raise ValueError(msg) from None
    if address.scheme != "https" or host is None:
        msg = "a hosted file needs an https:// URL"
        raise ValueError(msg)
    if address.user is not None or address.password is not None:
        msg = "a hosted file's URL may not hold credentials"
        raise ValueError(msg)
    if not is_public(host):
        msg = f"{host} is not a public host; the service itself fetches the file"
        raise ValueError(msg)
    return url


_Pixels = Annotated[int, Field(ge=64, le=2048, description="pixels")]


class TextToImageInput(Brief):
    """Input of FLUX.2 [klein] 4B text to image (source: docs/wire.md, "Input").

    Attributes:
        prompt: What to paint; not blank. Past about 512 tokens quality falls.
        width: Pixels, 64 to 2048.
        height: Pixels, 64 to 2048.
    """

    # Written out in each class: pydantic's mypy plugin reads no variable, and would let misspelt fields pass.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    default_model: ClassVar[str] = KLEIN_4B_TEXT_TO_IMAGE

    prompt: Annotated[str, AfterValidator(_not_blank)]
    width: _Pixels = 1024
    height: _Pixels = 1024


class TextToImage9BInput(TextToImageInput):
    """Input of the 9B sibling: the same, and `steps` (source: docs/wire.md, "Input").

    Attributes:
        steps: Denoising steps, 4 to 50; None: the service's own choice.
    """

    default_model: ClassVar[str] = KLEIN_9B_TEXT_TO_IMAGE

    steps: Annotated[int, Field(ge=4, le=50)] | None = None


class HostedFile(Brief):
    """A file that the service fetches itself, for inputs that take one.

    Attributes:
        url: HTTPS, on a public host, without credentials.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    url: Annotated[str, AfterValidator(_public_https)]

    def __init__(self, url: str, **data: Any) -> None:
        super().__init__(url=url, **data)


Input = str | TextToImageInput | TextToImage9BInput | ModelInput | Mapping[str, Any]


_Answer = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())  # "model_" is the service's own word
_Raw = Annotated[Mapping[str, Any], SkipValidation]  # parsed JSON: there is nothing to validate


class RequestStatus(Brief):
    """One look at a request (source: docs/wire.md, "Endpoints" and "States").

    Attributes:
        request_id: The service's id.
        state: Where it stands; an unknown word is in `raw["status"]`.
        queue_position: Its place while in the queue, as the service counts; else None.
        instance_id: The machine that runs it, where the service says so.
        raw: The whole answer.
    """

    model_config = _Answer

    request_id: str
    state: RequestState
    queue_position: int | None = None
    instance_id: str | None = None
    raw: _Raw = Field(default_factory=dict, repr=False)


class GenerationOutput(Brief):
    """The files of a generation, as URLs; which are there is the model's affair (source: docs/wire.md, "Output").

    Attributes:
        image: One image.
        video: One video.
        images: Several images.
        videos: Several videos.
    """

    model_config = _Answer

    image: str | None = None
    video: str | None = None
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time went, in seconds; None is unknown.

    Attributes:
        submit: From the call to the known request id.
        queued: From there to the first look that no longer saw it queued.
        running: From there to the look that saw the end.
        fetch: The result's own round trip, with repeats.
        lag_max: From the last look that said "not yet" to the one that saw the end: no end can have been
            noticed later than this.
        looks: How many times the status was asked for.
    """

    submit: float | None = None
    queued: float | None = None
    running: float | None = None
    fetch: float | None = None
    lag_max: float | None = None
    looks: int = 0

    def __repr__(self) -> str:
        return known(self, {name: getattr(self, name) for name in self.__slots__})


class GenerationResult(Brief):
    """A finished generation (source: docs/wire.md, "Endpoints" and "Output").

    Attributes:
        request_id: The service's id, by which the result is kept for 7 days.
        state: `completed`.
        output: Its files.
        created_at: When the service took it, on the service's clock.
        finished_at: When it ended, on the service's clock.
        cost_usd: What it cost in USD, where the service says so.
        timings: Where the time went, as seen from here.
        raw: The whole answer.
    """

    model_config = _Answer

    request_id: str
    state: RequestState
    output: GenerationOutput
    created_at: datetime | None = None
    finished_at: datetime | None = None
    cost_usd: float | None = None
    timings: Timings = Timings()
    raw: _Raw = Field(default_factory=dict, repr=False)

    @property
    def urls(self) -> list[str]:
        """Every file's URL, images first, none twice."""
        out = self.output
        return list(dict.fromkeys(url for url in (out.image, *out.images, out.video, *out.videos) if url))

    @property
    def image_url(self) -> str:
        """The first image's URL.

        Raises:
            InvalidResponseError: There is no image in this result (see `urls` and `raw`).
        """
        if self.output.image:
            return self.output.image
        if self.output.images:
            return self.output.images[0]
        raise InvalidResponseError("The result holds no image", request_id=self.request_id)


class CancelOutcome(Brief):
    """What became of a cancel (source: docs/wire.md, "Endpoints").

    Attributes:
        request_id: The service's id.
        cancelled: True: it will not run. False: it could not be cancelled, goes on and is charged.
        state: Where the request stands, as far as the answer says; else `unknown`.
        raw: The whole answer.
    """

    model_config = _Answer

    request_id: str
    cancelled: bool
    state: RequestState = RequestState.UNKNOWN
    raw: _Raw = Field(default_factory=dict, repr=False)


class ModelInfo(Brief):
    """A model's catalogue entry (source: docs/wire.md, "Endpoints").

    Attributes:
        model_id: The id that `model=` takes.
        display_name: Its name for people.
        categories: What it does, such as `text-to-image`.
        base_price_usd: USD for one `price_unit`; None where the service names no number.
        price_unit: What the price is for, e.g. `output` or `second`; None where the service does not say.
        pricing_note: What the service says of the price besides.
        input_schema: JSON schema of the input, where the entry has one.
        raw: The whole entry.
    """

    model_config = _Answer

    model_id: str
    display_name: str | None = None
    categories: tuple[str, ...] = ()
    base_price_usd: float | None = None
    price_unit: str | None = None
    pricing_note: str | None = None
    input_schema: Mapping[str, Any] | None = Field(default=None, repr=False)
    raw: _Raw = Field(default_factory=dict, repr=False)

    def input_model(self) -> type[ModelInput]:
        """A class of inputs for this model, made from `input_schema`; keep it, each call makes another.

        It checks types, required fields, ranges, lengths and choices as far as the schema says them plainly, and
        goes to its own model: `await client.generate(Kind(prompt="..."))`.

        Raises:
            InvalidInputError: The entry names no fields.
        """
        return input_model(self.input_schema, self.model_id)


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
    """What became of one item of a fan-out: exactly one of `result` and `error` is set.

    Attributes:
        index: The item's number, from 0.
        item: The item itself, as it was given.
        result: Its result, or None.
        error: Its error, or None.
        files: What was saved, if the fan-out was given a directory.
        recalled: Nothing was submitted for it this time: the client's journal knew what became of it.
    """

    index: int
    item: T
    result: GenerationResult | None = None
    error: FluxKleinError | None = None
    files: tuple[SavedFile, ...] = ()
    recalled: bool = False

    @property
    def paths(self) -> "tuple[Path, ...]":
        """Where its files are."""
        return tuple(file.path for file in self.files)

    def __repr__(self) -> str:
        # Not the item: it is the user's own, of any length, and may be private.
        ends = {"result": self.result, "error": self.error, "paths": self.paths, "recalled": self.recalled or None}
        return known(self, {"index": self.index, **ends})
