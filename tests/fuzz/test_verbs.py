"""Every verb, against a service that answers with anything: the promises of `world.assert_promises` hold."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.models import GenerationOutput

from .strategies import TOKENS, answers, connections, echoing_replies, examples, fates, urls
from .world import VERBS, Case, assert_promises, play

_outputs = st.none() | st.builds(GenerationOutput, images=st.lists(urls, max_size=3).map(tuple))


@st.composite
def cases(draw: st.DrawFn, name: str, *, only_echoes: bool = False) -> Case:
    token = draw(st.sampled_from(TOKENS))
    endpoints, known, _ = VERBS[name]
    trouble = echoing_replies(token) if only_echoes else answers(token)
    accepted = st.none() | fates
    scripts = {}
    faults = {}
    for endpoint in endpoints:
        # Half of the submits are accepted at once: else all that comes after would hardly be seen.
        good = endpoint == "submit" and len(endpoints) > 2 and draw(st.booleans())
        scripts[endpoint] = draw(st.lists(accepted if good else trouble, min_size=int(only_echoes), max_size=3))
        faults[endpoint] = None if good else draw(st.none() | trouble)
    scripts["connect"] = draw(st.lists(connections, max_size=2))
    return Case(
        token=token,
        timeout=draw(st.sampled_from([0.01, 0.5, 3.0, 30.0, 100.0])),
        on_abandon=draw(st.sampled_from(["cancel", "leave"])),
        scripts=scripts,
        faults=faults,
        output=draw(_outputs) if known else None,
    )


def holds(name: str, case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert_promises(name, case, play(name, case, Path(folder)))
        assert {path.name for path in Path(folder).iterdir()} <= {"out"}, "written outside of the directory"
        assert list(Path(folder).rglob("*.part")) == [], "something half done was left behind"


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_keeps_its_promises_whatever_the_service_does(name):
    examples(40)(given(cases(name))(lambda case: holds(name, case)))()


@examples(80)
@given(st.sampled_from(sorted(VERBS)).flatmap(lambda name: st.tuples(st.just(name), cases(name, only_echoes=True))))
def test_no_echo_of_the_token_is_told(played):
    holds(*played)
