"""Whatever bytes an answer holds, its reader returns a model or raises one of the errors that it documents."""

import pickle
from collections.abc import Callable
from math import inf
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.api.messages import Response
from flux_klein_async.api.responses import (
    ModelPage,
    excerpt,
    read_cancel,
    read_error,
    read_model,
    read_models,
    read_result,
    read_status,
    read_submit,
    request_id_in,
)
from flux_klein_async.errors import (
    APIStatusError,
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    InvalidResponseError,
    ResultNotReadyError,
)
from flux_klein_async.models import CancelOutcome, GenerationResult, ModelInfo, RequestState, RequestStatus

from .strategies import REQUEST_ID, bodies, examples, headers, statuses

REFUSALS = (APIStatusError, InvalidResponseError)
# reader, what it returns, what it raises
READERS: list[tuple[Callable[[Response], Any], tuple[type, ...], tuple[type[FluxKleinError], ...]]] = [
    (read_submit, (str,), REFUSALS),
    (lambda answer: read_status(answer, REQUEST_ID), (RequestStatus,), REFUSALS),
    (
        lambda answer: read_result(answer, REQUEST_ID),
        (GenerationResult,),
        (*REFUSALS, ResultNotReadyError, GenerationFailedError, GenerationCancelledError),
    ),
    (lambda answer: read_cancel(answer, REQUEST_ID), (CancelOutcome,), REFUSALS),
    (read_model, (ModelInfo,), REFUSALS),
    (read_models, (ModelPage,), REFUSALS),
    (lambda answer: read_error(answer, request_id=REQUEST_ID), REFUSALS, ()),
    (excerpt, (str, type(None)), ()),
    (request_id_in, (str, type(None)), ()),
]


def sane(value: Any) -> bool:
    """Whether the facts of a model are what its types and its documentation say."""
    if isinstance(value, RequestStatus):
        position = value.queue_position
        return (position is None or (type(position) is int and position >= 0)) and type(value.state) is RequestState
    if isinstance(value, GenerationResult):
        urls = all(type(url) is str and url.startswith(("https://", "http://")) for url in value.urls)
        return urls and _amount(value.cost_usd) and value.state is RequestState.COMPLETED
    if isinstance(value, ModelInfo):
        fields = value.input_fields
        assert all(len(field.type) + len(field.range) < 20_000 for field in fields)
        return _amount(value.base_price_usd) and all(type(name) is str for name in value.categories)
    if isinstance(value, ModelPage):
        return all(map(sane, value.models)) and value.size >= len(value.models) and (value.total or 0) >= 0
    return not isinstance(value, CancelOutcome) or type(value.cancelled) is bool


def _amount(value: object) -> bool:
    return value is None or (type(value) is float and 0 <= value < inf)


def lower(given: dict[str, str]) -> dict[str, str]:
    """Names as a `Response` is asked for them."""
    return {name.lower(): value for name, value in given.items()}


@examples(400)
@given(st.builds(Response, status=st.just(200) | statuses, headers=headers.map(lower), body=bodies))
def test_a_reader_returns_its_model_or_raises_what_it_documents(response):
    for read, returns, raises in READERS:
        try:
            value = read(response)
        except raises as refusal:
            value = refusal
        assert isinstance(value, (*returns, *raises))
        assert sane(value)
        if isinstance(value, FluxKleinError):
            assert pickle.loads(pickle.dumps(value)).args == value.args
            assert len(str(value)) < 5000, "a sentence that nobody could read"
