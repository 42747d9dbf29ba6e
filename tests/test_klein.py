"""The ids of the klein models."""

from flux_klein_async.api.urls import checked_model_id
from flux_klein_async.klein import KLEIN_4B_TEXT_TO_IMAGE, KLEIN_9B_TEXT_TO_IMAGE
from flux_klein_async.models import TextToImage9BInput, TextToImageInput
from flux_klein_async.operations.submit import TYPED


def test_the_ids_are_those_of_the_typed_inputs() -> None:
    assert {KLEIN_4B_TEXT_TO_IMAGE: TextToImageInput, KLEIN_9B_TEXT_TO_IMAGE: TextToImage9BInput} == TYPED
    assert [checked_model_id(model) for model in TYPED] == list(TYPED)
