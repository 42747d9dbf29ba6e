"""Inputs are strict, states are read tolerantly, results are easy to use."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flux_klein_async.errors import InvalidResponseError
from flux_klein_async.models import (
    KLEIN_4B_TEXT_TO_IMAGE,
    KLEIN_9B_TEXT_TO_IMAGE,
    GenerationOutput,
    GenerationResult,
    HostedFile,
    Outcome,
    RequestState,
    TextToImage9BInput,
    TextToImageInput,
)

KINDS = [TextToImageInput, TextToImage9BInput]


def test_an_input_has_the_documented_defaults() -> None:
    assert [kind(prompt="a").model_dump() for kind in KINDS] == [
        {"prompt": "a", "width": 1024, "height": 1024},
        {"prompt": "a", "width": 1024, "height": 1024, "steps": None},
    ]


def test_an_input_names_its_own_model() -> None:
    assert [kind.default_model for kind in KINDS] == [KLEIN_4B_TEXT_TO_IMAGE, KLEIN_9B_TEXT_TO_IMAGE]


@pytest.mark.parametrize("value", [64, 65, 1024, 2047, 2048])
@pytest.mark.parametrize("side", ["width", "height"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_input_takes_sizes_from_64_to_2048(kind: type[TextToImageInput], side: str, value: int) -> None:
    assert getattr(kind.model_validate({"prompt": "a", side: value}), side) == value


@pytest.mark.parametrize("value", [63, 2049, 0, -64, 10**400, True, False, 512.0, 512.5, "512", b"512", None, [512]])
@pytest.mark.parametrize("side", ["width", "height"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_input_refuses_every_other_size(kind: type[TextToImageInput], side: str, value: object) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate({"prompt": "a", side: value})


@pytest.mark.parametrize("steps", [1, 100, None])
def test_the_9b_input_takes_1_to_100_steps_or_none(steps: int | None) -> None:
    assert TextToImage9BInput(prompt="a", steps=steps).steps == steps


@pytest.mark.parametrize("steps", [0, 101, True, 4.0, "4"])
def test_the_9b_input_refuses_other_steps(steps: Any) -> None:
    with pytest.raises(ValidationError):
        TextToImage9BInput(prompt="a", steps=steps)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": ""},
        {"prompt": "  \n\t\u00a0\u2003"},
        {"prompt": None},
        {"prompt": b"a"},
        {"prompt": 5},
        {"prompt": "a", "seed": 1},
        {"prompt": "a", "Width": 512},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_input_refuses_a_blank_or_foreign_prompt_and_unknown_fields(
    kind: type[TextToImageInput], fields: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(fields)


def test_the_4b_input_refuses_steps() -> None:
    with pytest.raises(ValidationError):
        TextToImageInput.model_validate({"prompt": "a", "steps": 4})


@pytest.mark.parametrize(
    ("model", "field"),
    [(TextToImageInput(prompt="a"), "prompt"), (HostedFile("https://files.example.com/a.png"), "url")],
)
def test_an_input_cannot_be_changed(model: Any, field: str) -> None:
    with pytest.raises(ValidationError):
        setattr(model, field, "b")


@pytest.mark.parametrize(
    "url",
    [
        "https://files.example.com/a.png",
        "HTTPS://FILES.EXAMPLE.COM/a.png",
        "https://files.example.com:8443/a.png?signature=x#y",
        "https://files.example.com./a.png",
        "https://8.8.8.8/a.png",
        "https://[2001:4860:4860::8888]/a.png",
        "https://b\u00fccher.example.com/a.png",
        "https://0x7f.example.com/a.png",
    ],
)
def test_a_hosted_file_keeps_a_public_https_url_as_it_is(url: str) -> None:
    assert HostedFile(url).url == url


@pytest.mark.parametrize(
    "url",
    [
        # no HTTPS URL
        "",
        "files.example.com/a.png",
        "//files.example.com/a.png",
        "http://files.example.com/a.png",
        "ftp://files.example.com/a.png",
        "file:///etc/passwd",
        "data:image/png;base64,iVBORw0KGgo=",
        "https:",
        "https:///a.png",
        "https:files.example.com/a.png",
        "https://files.example.com:99999/a.png",
        "https://files.example.com:443a/a.png",
        "https://[::1/a.png",
        # credentials
        "https://user@files.example.com/a.png",
        "https://user:password@files.example.com/a.png",
        "https://:password@files.example.com/a.png",
        # no public host
        "https://localhost/a.png",
        "https://LOCALHOST./a.png",
        "https://a.localhost/a.png",
        "https://printer.local/a.png",
        "https://metadata.google.internal/a.png",
        "https://example.invalid/a.png",
        "https://intranet/a.png",
        "https://127.0.0.1/a.png",
        "https://127.0.0.1./a.png",
        "https://10.0.0.1/a.png",
        "https://172.16.0.1/a.png",
        "https://192.168.0.1/a.png",
        "https://169.254.169.254/latest/meta-data",
        "https://100.64.0.1/a.png",
        "https://0.0.0.0/a.png",
        "https://255.255.255.255/a.png",
        "https://[::1]/a.png",
        "https://[::]/a.png",
        "https://[fe80::1]/a.png",
        "https://[fd00::1]/a.png",
        "https://[::ffff:127.0.0.1]/a.png",
        # such an address in disguise
        "https://127.1/a.png",
        "https://0x7f.1/a.png",
        "https://0x7F000001/a.png",
        "https://2130706433/a.png",
        "https://0177.0.0.1/a.png",
        "https://127.0.0.0x1/a.png",
        "https://0x7f.1./a.png",
        "https://\uff11\uff12\uff17.0.0.1/a.png",
        "https://127\u30020\u30020\u30021/a.png",
        "https://files.example.com\\@127.0.0.1/a.png",
    ],
)
def test_a_hosted_file_refuses_what_the_service_cannot_or_should_not_fetch(url: str) -> None:
    with pytest.raises(ValidationError):
        HostedFile(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1\0.example.com/a.png",  # resolvers written in C stop at the NUL
        "https://files example.com/a.png",
        "https://127.0.0.1%2f.example.com/a.png",
        "https://127.0.0.1%23.example.com/a.png",
        "https://files..example.com/a.png",
        "https://.example.com/a.png",
    ],
)
def test_a_hosted_file_refuses_a_host_that_is_no_host_name(url: str) -> None:
    with pytest.raises(ValidationError):
        HostedFile(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://224.0.0.1/a.png",  # multicast
        "https://[ff02::1]/a.png",
        "https://[64:ff9b::7f00:1]/a.png",  # NAT64 of 127.0.0.1
        "https://[2002:7f00:1::]/a.png",  # 6to4 of 127.0.0.1
    ],
)
def test_a_hosted_file_refuses_addresses_that_only_python_calls_global(url: str) -> None:
    with pytest.raises(ValidationError):
        HostedFile(url)


@pytest.mark.parametrize("url", [None, 5, b"https://files.example.com/a.png", ["https://files.example.com/a.png"]])
def test_a_hosted_file_refuses_what_is_no_string(url: Any) -> None:
    with pytest.raises(ValidationError):
        HostedFile(url)


def test_a_hosted_file_refuses_unknown_fields() -> None:
    with pytest.raises(ValidationError):
        HostedFile("https://files.example.com/a.png", name="a")


@given(st.text())
def test_a_hosted_file_is_made_or_refused_whatever_the_text(text: str) -> None:
    try:
        assert HostedFile("https://" + text).url == "https://" + text
    except ValidationError:
        return


def result(**output: Any) -> GenerationResult:
    return GenerationResult(request_id="r-1", state=RequestState.COMPLETED, output=GenerationOutput(**output))


@pytest.mark.parametrize(
    ("output", "urls"),
    [
        ({}, []),
        ({"image": "a"}, ["a"]),
        ({"images": ["a", "b"]}, ["a", "b"]),
        ({"video": "v", "image": "a"}, ["a", "v"]),
        ({"images": ["b", "a", "b"], "image": "a", "videos": ["w", "v"], "video": "v"}, ["a", "b", "v", "w"]),
        ({"image": "", "images": [""]}, []),
    ],
)
def test_a_result_lists_its_urls_images_first_and_none_twice(output: dict[str, Any], urls: list[str]) -> None:
    assert result(**output).urls == urls


@pytest.mark.parametrize(
    ("output", "url"),
    [({"image": "a", "images": ["b"]}, "a"), ({"images": ["b", "c"]}, "b"), ({"image": "", "images": ["b"]}, "b")],
)
def test_a_result_knows_its_first_image(output: dict[str, Any], url: str) -> None:
    assert result(**output).image_url == url


@pytest.mark.parametrize("output", [{}, {"video": "v"}, {"videos": ["v"]}])
def test_a_result_without_image_says_so(output: dict[str, Any]) -> None:
    with pytest.raises(InvalidResponseError, match=r"^The result holds no image \(request r-1\)$"):
        _ = result(**output).image_url


def test_a_result_does_not_show_the_whole_answer() -> None:
    whole = GenerationResult(
        request_id="r-1", state=RequestState.COMPLETED, output=GenerationOutput(), raw={"secret": "s3cr3t"}
    )
    assert "s3cr3t" not in repr(whole)


def test_an_outcome_does_not_show_its_item() -> None:
    assert "s3cr3t" not in repr(Outcome(index=0, item="s3cr3t"))


@pytest.mark.parametrize("spell", [str, str.upper, str.title, lambda word: f"  {word}\n"])
@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("in_queue", "in_queue"),
        ("pending", "in_queue"),
        ("waiting", "in_queue"),
        ("in_progress", "in_progress"),
        ("starting", "in_progress"),
        ("processing", "in_progress"),
        ("completed", "completed"),
        ("succeeded", "completed"),
        ("failed", "failed"),
        ("cancelled", "cancelled"),
        ("canceled", "cancelled"),
        ("unknown", "unknown"),
        ("paused", "unknown"),
        ("", "unknown"),
    ],
)
def test_reads_every_word_for_a_state_in_any_case(word: str, state: str, spell: Any) -> None:
    assert RequestState.read(spell(word)) == state


@pytest.mark.parametrize("word", [None, 1, True, b"completed", ["completed"], {}])
def test_what_is_no_word_is_an_unknown_state(word: object) -> None:
    assert RequestState.read(word) is RequestState.UNKNOWN


@given(st.one_of(st.text(), st.binary(), st.integers(), st.none(), st.lists(st.text()), st.floats()))
def test_reading_a_state_never_raises(word: object) -> None:
    assert isinstance(RequestState.read(word), RequestState)


def test_three_states_are_ends() -> None:
    assert {state.value for state in RequestState if state.final} == {"completed", "failed", "cancelled"}
