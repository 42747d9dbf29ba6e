"""The emulated service's models: what they cost, what they take, what they return.

Pure. The prices, and the models under `emulator/`, are invented: do not budget by them.
"""

import base64
import re
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

__all__ = ["HOSTED", "MODELS", "Field", "Model", "categories", "describe", "find", "output_of", "refusals"]


@dataclass(frozen=True, slots=True)
class Field:
    """One input field of a model."""

    name: str
    type: Literal["string", "integer", "float", "boolean", "image_uri", "image_uris", "video_uri", "audio_uri"]
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    default: float | str | None = None
    enum: tuple[str, ...] | None = None

    def schema(self) -> dict[str, Any]:
        """Describe the field in the service's dialect of JSON Schema."""
        facts = {name: getattr(self, name) for name in ("type", "minimum", "maximum", "default")}
        facts["enum"] = None if self.enum is None else list(self.enum)
        kind = self.type.partition("_")[0]
        if kind in _MOST_BYTES:
            facts.update(type="string", format=self.type, validations={"max_file_size": _MOST_BYTES[kind]})
        if self.type == "image_uris":
            facts.update(type="array", items={"type": "string"})
        return {key: value for key, value in facts.items() if value is not None}

    def refusal(self, value: Any, own: str) -> tuple[str, str] | None:
        """Say as (type, sentence) why a value is refused; None if it is fine. `own`: how URLs of own files begin.

        As in the service, booleans are not integers and floats are not rounded.
        """
        kind = self.type.partition("_")[0]
        if kind in _MOST_BYTES:
            files = value if self.type == "image_uris" else [value]
            if not isinstance(files, list) or not files:
                return "list_type", "Input should be a list of at least one file"
            return next((wrong for file in files if (wrong := _file_refusal(kind, file, own))), None)
        if isinstance(value, bool) is not (kind == "boolean") or not isinstance(value, _TYPES[kind]):
            return f"{kind}_type", f"Input should be a valid {kind}"
        low, high = self.minimum, self.maximum
        checks = (
            (isinstance(value, str) and not value.strip(), "string_too_short", "String should not be empty"),
            (self.enum is not None and value not in self.enum, "enum", f"Input should be one of {self.enum}"),
            (low is not None and value < low, "greater_than_equal", f"Input should be greater than or equal to {low}"),
            (high is not None and value > high, "less_than_equal", f"Input should be less than or equal to {high}"),
        )
        return next(((word, sentence) for wrong, word, sentence in checks if wrong), None)


_TYPES: dict[str, Any] = {"string": str, "integer": int, "float": int | float, "boolean": bool}
# What files a field takes: by kind, how they begin and how large they may be.
_BEGIN = {
    "image": re.compile(
        rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8|RIFF....WEBP|BM|II\*\0|MM\0\*|....ftyp(avi[fs]|he[iv]|mif1)", re.DOTALL
    ),
    "video": re.compile(rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ", re.DOTALL),
    "audio": re.compile(rb"RIFF....WAVE|ID3|\xff[\xe2-\xfb]|OggS|fLaC|....ftypM4A", re.DOTALL),
}
_MOST_BYTES = {"image": 6 * 2**20, "video": 32 * 2**20, "audio": 32 * 2**20}
_MOST_PIXELS = 32_000_000


def _file_refusal(kind: str, value: Any, own: str) -> tuple[str, str] | None:
    declared, comma, text = str(value).partition(";base64,")
    if not isinstance(value, str) or not (comma and declared.startswith("data:")):
        plain = isinstance(value, str) and value.startswith(("https://", own))
        return None if plain else ("url_type", "Input should be an HTTPS URL or a base64 data URI")
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return "base64_decode", "The data URI is not valid base64"
    width, height = (int.from_bytes(data[at : at + 4]) for at in (16, 20))
    checks = (
        (not _BEGIN[kind].match(data), "file_type", f"The file is not of a known {kind} type"),
        (len(data) > _MOST_BYTES[kind], "file_too_large", f"The file is larger than {_MOST_BYTES[kind] >> 20} MiB"),
        (data.startswith(b"\x89PNG") and width * height > _MOST_PIXELS, "image_too_large", "More than 32 megapixels"),
    )
    return next(((word, sentence) for wrong, word, sentence in checks if wrong), None)


@dataclass(frozen=True, slots=True)
class Model:
    """One entry of the catalogue; without `fields` it takes any mapping."""

    model_id: str
    display_name: str
    kind: str
    category: str
    price: float
    unit: str = "output"
    gives: Literal["image", "images", "video", "audio"] = "image"
    fields: tuple[Field, ...] = ()


_PROMPT = Field("prompt", "string", required=True)
_WIDTH = Field("width", "integer", minimum=64, maximum=2048, default=1024)
_HEIGHT = Field("height", "integer", minimum=64, maximum=2048, default=1024)
_STEPS = Field("steps", "integer", minimum=1, maximum=100, default=25)

_SEED = Field("seed", "integer", minimum=0)
_IMAGE_URL = Field("image_url", "image_uri", required=True)
_SECONDS = Field("duration", "float", minimum=1, maximum=10.5, default=5)
_RATIO = Field("aspect_ratio", "string", default="16:9", enum=("16:9", "9:16", "1:1"))

_KLEIN, _FLUX = "blackforestlabs/flux-2-klein", "blackforestlabs/flux-2"
_IMAGE = ("image", "text-to-image")
_edit = partial(
    Model,
    kind="image",
    category="image-to-image",
    fields=(_PROMPT, Field("image_urls", "image_uris", required=True), _SEED),
)
_CLIP = (_PROMPT, _IMAGE_URL, _SECONDS, _RATIO)
_STYLE = (_PROMPT, Field("video_url", "video_uri", required=True), Field("keep_audio", "boolean", default=True))
_VOICE = (_PROMPT, Field("speed", "float", minimum=0.5, maximum=2, default=1))
_ECHO = (Field("audio_url", "audio_uri", required=True),)
_MODELS = (
    Model(f"{_KLEIN}/4b/text-to-image", "FLUX.2 [klein] 4B", *_IMAGE, 0.01, fields=(_PROMPT, _WIDTH, _HEIGHT)),
    Model(f"{_KLEIN}/9b/text-to-image", "FLUX.2 [klein] 9B", *_IMAGE, 0.02, fields=(_PROMPT, _WIDTH, _HEIGHT, _STEPS)),
    Model("emulator/any/image-to-images", "Emulated pair", "image", "image-to-image", 0.03, gives="images"),
    Model("emulator/any/text-to-video", "Emulated video", "video", "text-to-video", 0.05, "second", "video"),
    _edit(f"{_FLUX}/dev/edit", "FLUX.2 [dev] Edit", price=0.025),
    _edit(f"{_FLUX}/pro/edit", "FLUX.2 [pro] Edit", price=0.045, unit="megapixel"),
    _edit(f"{_FLUX}/flex/edit", "FLUX.2 [flex] Edit", price=0.06, unit="megapixel"),
    _edit(f"{_FLUX}/flash/edit", "FLUX.2 [flash] Edit", price=0.015),
    Model("emulator/clip/image-to-video", "Emulated clip", "video", "image-to-video", 0.08, "second", "video", _CLIP),
    Model(
        "emulator/clip/video-to-video", "Emulated restyle", "video", "video-to-video", 0.1, "second", "video", _STYLE
    ),
    Model(
        "emulator/voice/text-to-speech", "Emulated voice", "audio", "text-to-speech", 0.001, "second", "audio", _VOICE
    ),
    Model("emulator/voice/audio-to-audio", "Emulated echo", "audio", "audio-to-audio", 0.002, "second", "audio", _ECHO),
)
# How the names of a generation's files end.
HOSTED = {"image": (".png",), "images": (".1.png", ".2.png"), "video": (".mp4",), "audio": (".wav",)}
MODELS: dict[str, Model] = {model.model_id: model for model in _MODELS}


def refusals(model: Model, given: Any, own: str = "https://") -> list[dict[str, Any]]:
    """List what is wrong with an input, each entry pointing at its field; empty if nothing is.

    `own`: how the URLs of the emulator's own files begin, which on a port are no HTTPS URLs.
    """
    if not isinstance(given, dict):
        return [_detail((), "model_type", "Input should be a JSON object")]
    wrong = []
    for field in model.fields:
        if field.name not in given:
            if field.required:
                wrong.append(_detail((field.name,), "missing", "Field required"))
        elif refusal := field.refusal(given[field.name], own):
            wrong.append(_detail((field.name,), *refusal))
    return wrong


def _detail(where: tuple[str, ...], kind: str, message: str) -> dict[str, Any]:
    return {"loc": ["body", *where], "msg": message, "type": kind}


def describe(model: Model, *, schema: bool) -> dict[str, Any]:
    """Write a catalogue entry as the service does."""
    entry: dict[str, Any] = {
        "model_id": model.model_id,
        "display_name": model.display_name,
        "kind": model.kind,
        "categories": [model.category],
        "base_price_usd": model.price,
        "price_unit": model.unit,
        "pricing_note": "The emulator's own price: nothing is charged.",
    }
    if schema:
        entry["input_schema"] = {
            "type": "object",
            "properties": {field.name: field.schema() for field in model.fields},
            "required": [field.name for field in model.fields if field.required],
        }
    return entry


def find(search: str = "", category: str = "", kind: str = "") -> list[Model]:
    """List the models with every word of `search` in id or name, and with the category and kind, if given."""
    wanted = search.casefold().split()
    return [
        model
        for model in MODELS.values()
        if all(word in f"{model.model_id} {model.display_name}".casefold() for word in wanted)
        and category in ("", model.category)
        and kind in ("", model.kind)
    ]


def categories() -> list[str]:
    """List the categories of all models, each once."""
    return list(dict.fromkeys(model.category for model in MODELS.values()))


def output_of(model: Model, address: str, request_id: str) -> dict[str, Any]:
    """Return the output of a completed generation: the URLs of its files, made of `address`, id and suffix."""
    urls = [address.format(request_id, suffix) for suffix in HOSTED[model.gives]]
    return {model.gives: urls if model.gives == "images" else urls[0]}
