"""What goes in and what comes out: inputs, states, results.

Inputs are strict (a wrong type is refused, not coerced); answers are read tolerantly by `api.protocol`, which
fills the models below and keeps the whole answer in `raw`. Nothing here performs I/O.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SkipValidation

from flux_klein_async.api.urls import host_of, is_public, parsed
from flux_klein_async.errors import FluxKleinError, InvalidResponseError

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


class RequestState(StrEnum):
    """Where a request stands. `UNKNOWN` is a word nobody documented: it is waited out, never an end."""

    IN_QUEUE = "in_queue"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"

    @classmethod
    def read(cls, word: object) -> "RequestState":
        """The state that a word on the wire stands for, in any case."""
        if not isinstance(word, str):
            return cls.UNKNOWN
        return _STATES.get(word) or _STATES.get(word.strip().lower(), cls.UNKNOWN)

    @property
    def final(self) -> bool:
        """Whether nothing can follow."""
        return self in _FINAL


# docs/wire.md, "States": the documented words first, then those observed in the vendor's clients.
_STATES = {
    "in_queue": RequestState.IN_QUEUE,
    "in_progress": RequestState.IN_PROGRESS,
    "completed": RequestState.COMPLETED,
    "cancelled": RequestState.CANCELLED,
    "succeeded": RequestState.COMPLETED,
    "failed": RequestState.FAILED,
    "canceled": RequestState.CANCELLED,
    "pending": RequestState.IN_QUEUE,
    "waiting": RequestState.IN_QUEUE,
    "starting": RequestState.IN_PROGRESS,
    "processing": RequestState.IN_PROGRESS,
}
_FINAL = frozenset({RequestState.COMPLETED, RequestState.FAILED, RequestState.CANCELLED})


_TEXT = 40  # characters of a prompt, and of any other text of a user's
_ADDRESS = 120  # characters of a URL: it is of no use without its end, but signatures are long


class _Bare(str):
    """Text that is shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class BriefModel(BaseModel):
    """A model whose `repr` leaves out what is not known, and shortens what is long."""

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        return ((name, shortened(value)) for name, value in super().__repr_args__() if not _unknown(value))


def brief_repr(value: object, facts: Mapping[str, Any]) -> str:
    """The `repr` of anything else, from its facts."""
    shown = (f"{name}={shortened(fact)!r}" for name, fact in facts.items() if not _unknown(fact))
    return f"{type(value).__name__}({', '.join(shown)})"


def _unknown(value: object) -> bool:
    return value is None or value == ()


def shortened(value: Any) -> Any:
    """What to show in place of a value."""
    if isinstance(value, Enum):
        return _Bare(value.value)
    if isinstance(value, datetime):
        return _Bare(value.isoformat())
    if isinstance(value, float):
        return float(f"{value:.6g}")  # seconds and dollars: what is behind that is the clock's own noise
    if isinstance(value, str):
        return _cut(value, _ADDRESS if value.startswith(("https://", "http://")) and " " not in value else _TEXT)
    if type(value).__module__.startswith("flux_klein_async."):  # each is short by itself
        return value
    return _Bare(_cut(repr(value), _ADDRESS))


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


# --- inputs


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


class TextToImageInput(BriefModel):
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
        steps: Denoising steps, 1 to 100; None: the service's own choice.
    """

    default_model: ClassVar[str] = KLEIN_9B_TEXT_TO_IMAGE

    steps: Annotated[int, Field(ge=1, le=100)] | None = None


class HostedFile(BriefModel):
    """A file that the service fetches itself, for inputs that take one.

    Attributes:
        url: HTTPS, on a public host, without credentials.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    url: Annotated[str, AfterValidator(_public_https)]

    def __init__(self, url: str, **data: Any) -> None:
        super().__init__(url=url, **data)


Input = str | TextToImageInput | TextToImage9BInput | Mapping[str, Any]


_Answer = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())  # "model_" is the service's own word
_Raw = Annotated[Mapping[str, Any], SkipValidation]  # parsed JSON: there is nothing to validate


class RequestStatus(BriefModel):
    """One poll a request (source: docs/wire.md, "Endpoints" and "States").

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


class GenerationOutput(BriefModel):
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
        queued: From there to the first poll that no longer saw it queued.
        running: From there to the poll that saw the end.
        fetch: The result's own round trip, with repeats.
        lag_max: From the last poll that said "not yet" to the one that saw the end: no end can have been
            noticed later than this.
        polls: How many times the status was asked for.
    """

    submit: float | None = None
    queued: float | None = None
    running: float | None = None
    fetch: float | None = None
    lag_max: float | None = None
    polls: int = 0

    def __repr__(self) -> str:
        return brief_repr(self, {name: getattr(self, name) for name in self.__slots__})


class GenerationResult(BriefModel):
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


class CancelOutcome(BriefModel):
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


class ModelInfo(BriefModel):
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
        from_journal: Nothing was submitted for it this time: the client's journal knew what became of it.
    """

    index: int
    item: T
    result: GenerationResult | None = None
    error: FluxKleinError | None = None
    files: tuple[SavedFile, ...] = ()
    from_journal: bool = False

    @property
    def paths(self) -> "tuple[Path, ...]":
        """Where its files are."""
        return tuple(file.path for file in self.files)

    def __repr__(self) -> str:
        # Not the item: it is the user's own, of any length, and may be private.
        ends = {
            "result": self.result,
            "error": self.error,
            "paths": self.paths,
            "from_journal": self.from_journal or None,
        }
        return brief_repr(self, {"index": self.index, **ends})
