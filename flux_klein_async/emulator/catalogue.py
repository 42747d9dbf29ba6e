"""The emulated service's models: what they cost, what they take, what they return.

Pure. The prices are invented: do not budget by them.
"""

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["HOSTED", "MODELS", "Field", "Model", "categories", "describe", "find", "output_of", "refusals"]


@dataclass(frozen=True, slots=True)
class Field:
    """One input field of a model."""

    name: str
    type: Literal["string", "integer"]
    required: bool = False
    minimum: int | None = None
    maximum: int | None = None
    default: int | None = None

    def schema(self) -> dict[str, Any]:
        """Describe the field in JSON Schema."""
        facts = {"type": self.type, "minimum": self.minimum, "maximum": self.maximum, "default": self.default}
        return {key: value for key, value in facts.items() if value is not None}

    def refusal(self, value: Any) -> tuple[str, str] | None:
        """Say as (type, sentence) why a value is refused; None if it is fine.

        As in the service, booleans are not integers and floats are not rounded.
        """
        if isinstance(value, bool) or not isinstance(value, str if self.type == "string" else int):
            return f"{self.type}_type", f"Input should be a valid {self.type}"
        if isinstance(value, str):
            return None if value.strip() else ("string_too_short", "String should not be empty")
        if self.minimum is not None and value < self.minimum:
            return "greater_than_equal", f"Input should be greater than or equal to {self.minimum}"
        if self.maximum is not None and value > self.maximum:
            return "less_than_equal", f"Input should be less than or equal to {self.maximum}"
        return None


@dataclass(frozen=True, slots=True)
class Model:
    """One entry of the catalogue; without `fields` it takes any mapping."""

    model_id: str
    display_name: str
    kind: str
    category: str
    price: float
    unit: str = "output"
    gives: Literal["image", "images", "video"] = "image"
    fields: tuple[Field, ...] = ()


_PROMPT = Field("prompt", "string", required=True)
_WIDTH = Field("width", "integer", minimum=64, maximum=2048, default=1024)
_HEIGHT = Field("height", "integer", minimum=64, maximum=2048, default=1024)
_STEPS = Field("steps", "integer", minimum=1, maximum=100, default=25)

_KLEIN = "blackforestlabs/flux-2-klein"
_IMAGE = ("image", "text-to-image")
_MODELS = (
    Model(f"{_KLEIN}/4b/text-to-image", "FLUX.2 [klein] 4B", *_IMAGE, 0.01, fields=(_PROMPT, _WIDTH, _HEIGHT)),
    Model(f"{_KLEIN}/9b/text-to-image", "FLUX.2 [klein] 9B", *_IMAGE, 0.02, fields=(_PROMPT, _WIDTH, _HEIGHT, _STEPS)),
    Model("emulator/any/image-to-images", "Emulated pair", "image", "image-to-image", 0.03, gives="images"),
    Model("emulator/any/text-to-video", "Emulated video", "video", "text-to-video", 0.05, "second", "video"),
)
# How the names of a generation's files end.
HOSTED = {"image": (".png",), "images": (".1.png", ".2.png"), "video": (".mp4",)}
MODELS: dict[str, Model] = {model.model_id: model for model in _MODELS}


def refusals(model: Model, given: Any) -> list[dict[str, Any]]:
    """List what is wrong with an input, each entry pointing at its field; empty if nothing is."""
    if not isinstance(given, dict):
        return [_detail((), "model_type", "Input should be a JSON object")]
    wrong = []
    for field in model.fields:
        if field.name not in given:
            if field.required:
                wrong.append(_detail((field.name,), "missing", "Field required"))
        elif refusal := field.refusal(given[field.name]):
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
    """List the models whose id or name contains `search` and that have the given category and kind, if any."""
    wanted = search.casefold()
    return [
        model
        for model in MODELS.values()
        if wanted in f"{model.model_id} {model.display_name}".casefold()
        and category in ("", model.category)
        and kind in ("", model.kind)
    ]


def categories() -> list[str]:
    """List the categories of all models, each once."""
    return list(dict.fromkeys(model.category for model in MODELS.values()))


def output_of(model: Model, files_url: str, request_id: str) -> dict[str, Any]:
    """Return the output of a completed generation: the URLs of its files."""
    urls = [f"{files_url}/files/{request_id}{suffix}" for suffix in HOSTED[model.gives]]
    return {model.gives: urls if model.gives == "images" else urls[0]}
