"""What is kept of a generation, and for how long."""

from opentelemetry.sdk.trace import TracerProvider

from flux_klein_async.events import Retrying
from flux_klein_async.integrations.spans import Open, bounded, model_facts, retry_facts

from .traces import happened


def test_what_happens_is_noted_in_the_wait_once_there_is_one():
    tracer = TracerProvider().get_tracer("test")
    generation, wait = tracer.start_span("generation"), tracer.start_span("wait")
    record = Open(generation, 1_000_000_000, 0.0, 0.0, None)
    record.note("before", 1.0, {})
    record.wait = wait
    record.note("during", 2.0, {"look": 3})
    assert (happened(generation), happened(wait)) == (["before"], ["during"])
    assert (wait.events[0].timestamp, wait.events[0].attributes) == (3_000_000_000, {"look": 3})


def test_the_oldest_go_first():
    mapping = dict.fromkeys("abc")
    bounded(mapping, 2)
    assert list(mapping) == ["b", "c"]


def test_a_model_that_is_not_known_is_not_told():
    assert (model_facts(None), model_facts("m")) == ({}, {"gen_ai.request.model": "m"})


def test_a_repeat_is_told_in_one_line():
    assert retry_facts(Retrying(at=0.0, attempt=2, seconds=0.5, error="a\nb")) == {
        "flux_klein.attempt": 2,
        "flux_klein.delay": 0.5,
        "error.message": "a b",
    }
