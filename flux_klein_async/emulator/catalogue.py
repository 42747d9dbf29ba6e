"""The emulated service's models: what they cost, what they take, what they give back.

Pure. Must not know requests, queues or time. The
prices are the emulator's inventions: nobody should budget by them.
"""

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["MODELS", "Field", "Model", "describe", "find", "output_of", "refusals"]


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
        """Write the field in JSON Schema's words."""
        facts = {"type": self.type, "minimum": self.minimum, "maximum": self.maximum, "default": self.default}
        return {key: value for key, value in facts.items() if value is not None}

    def refusal(self, value: Any) -> tuple[str, str] | None:
        """Say as (type, sentence) why a value is refused; `None` if it is fine.

        Python counts booleans as integers; the service does not, and neither does it round floats.
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

_ENTRIES = (
    Model(
        "blackforestlabs/flux-2-klein/4b/text-to-image",
        "FLUX.2 [klein] 4B",
        "image",
        "text-to-image",
        0.01,
        fields=(_PROMPT, _WIDTH, _HEIGHT),
    ),
    Model(
        "blackforestlabs/flux-2-klein/9b/text-to-image",
        "FLUX.2 [klein] 9B",
        "image",
        "text-to-image",
        0.02,
        fields=(_PROMPT, _WIDTH, _HEIGHT, _STEPS),
    ),
    Model("emulator/any/image-to-images", "Emulated pair", "image", "image-to-image", 0.03, gives="images"),
    Model("emulator/any/text-to-video", "Emulated film", "video", "text-to-video", 0.05, "second", "video"),
)
MODELS: dict[str, Model] = {model.model_id: model for model in _ENTRIES}


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
    """List the models whose id or name holds `search`; a category or kind that is named must fit too."""
    wanted = search.casefold()
    return [
        model
        for model in MODELS.values()
        if wanted in f"{model.model_id} {model.display_name}".casefold()
        and category in ("", model.category)
        and kind in ("", model.kind)
    ]


def output_of(model: Model, files_url: str, request_id: str) -> dict[str, Any]:
    """Name the hosted files of one finished generation."""
    stem = f"{files_url}/files/{request_id}"
    if model.gives == "images":
        return {"images": [f"{stem}.1.png", f"{stem}.2.png"]}
    return {"video": f"{stem}.mp4"} if model.gives == "video" else {"image": f"{stem}.png"}
