"""Inputs are strict, states are read tolerantly, results are easy to use."""

from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flux_klein_async.api.urls import checked_model_id
from flux_klein_async.errors import GenerationFailedError
from flux_klein_async.models import (
    KLEIN_4B_TEXT_TO_IMAGE,
    KLEIN_9B_TEXT_TO_IMAGE,
    GenerationOutput,
    GenerationResult,
    HostedFile,
    RequestState,
    TextToImage9BInput,
    TextToImageInput,
    brief_url,
    without_file,
)

KINDS = [TextToImageInput, TextToImage9BInput]


def test_an_input_has_the_documented_defaults() -> None:
    assert [kind(prompt="a").model_dump() for kind in KINDS] == [
        {"prompt": "a", "width": 1024, "height": 1024},
        {"prompt": "a", "width": 1024, "height": 1024, "steps": 25},
    ]


def test_an_input_names_its_own_model() -> None:
    models = [KLEIN_4B_TEXT_TO_IMAGE, KLEIN_9B_TEXT_TO_IMAGE]
    assert [kind.default_model for kind in KINDS] == models == [checked_model_id(model) for model in models]


def assert_refused(kind: Any, **fields: Any) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(fields)


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_takes_a_prompt_and_sizes_from_64_to_2048_and_nothing_else(kind: type[TextToImageInput]) -> None:
    for side in ("width", "height"):
        for value in (64, 65, 1024, 2047, 2048, 512.0):
            assert getattr(kind.model_validate({"prompt": "a", side: value}), side) == value
        for other in (63, 2049, 0, -64, 10**400, True, False, 512.5, nan, inf, "512", b"512", None, [512]):
            assert_refused(kind, prompt="a", **{side: other})
    for prompt in ("", "  \n\t\u00a0\u2003", None, b"a", 5):
        assert_refused(kind, prompt=prompt)
    for fields in ({}, {"prompt": "a", "seed": 1}, {"prompt": "a", "Width": 512}):
        assert_refused(kind, **fields)


def test_the_9b_input_alone_takes_1_to_100_steps() -> None:
    for steps in (1, 100, 4.0):
        assert TextToImage9BInput(prompt="a", steps=steps).steps == steps
    for other in (0, 101, True, 4.5, "4"):
        assert_refused(TextToImage9BInput, prompt="a", steps=other)
    assert_refused(TextToImageInput, prompt="a", steps=4)


@pytest.mark.parametrize(
    ("model", "field"),
    [(TextToImageInput(prompt="a"), "prompt"), (HostedFile("https://files.example.com/a.png"), "url")],
)
def test_an_input_cannot_be_changed(model: Any, field: str) -> None:
    with pytest.raises(ValidationError):
        setattr(model, field, "b")


def test_a_hosted_file_keeps_a_public_https_url_as_it_is() -> None:
    for url in (
        *("https://files.example.com/a.png", "HTTPS://FILES.EXAMPLE.COM/a.png", "https://files.example.com./a.png"),
        *("https://files.example.com:8443/a.png?signature=x#y", "https://b\u00fccher.example.com/a.png"),
        *("https://8.8.8.8/a.png", "https://[2001:4860:4860::8888]/a.png", "https://0x7f.example.com/a.png"),
    ):
        assert HostedFile(url).url == url


NO_HOSTED_FILES: dict[str, tuple[Any, ...]] = {
    "no HTTPS URL": (
        *("", "files.example.com/a.png", "//files.example.com/a.png", "http://files.example.com/a.png"),
        *("ftp://files.example.com/a.png", "file:///etc/passwd", "data:image/png;base64,iVBORw0KGgo=", "https:"),
        *("https:///a.png", "https:files.example.com/a.png", "https://files.example.com:99999/a.png"),
        *("https://files.example.com:443a/a.png", "https://[::1/a.png"),
        *(None, 5, b"https://files.example.com/a.png", ["https://files.example.com/a.png"]),
    ),
    "credentials": (
        *("https://user@files.example.com/a.png", "https://user:password@files.example.com/a.png"),
        "https://:password@files.example.com/a.png",
    ),
}
NO_HOSTS = {
    "no public host": (
        *("localhost", "LOCALHOST.", "a.localhost", "printer.local", "metadata.google.internal", "example.invalid"),
        *("intranet", "127.0.0.1", "127.0.0.1.", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254"),
        *("100.64.0.1", "0.0.0.0", "255.255.255.255", "[::1]", "[::]", "[fe80::1]", "[fd00::1]", "[::ffff:127.0.0.1]"),
        *("224.0.0.1", "[ff02::1]"),  # multicast, which Python calls global
        *("[64:ff9b::7f00:1]", "[2002:7f00:1::]"),  # so are NAT64 and 6to4 of 127.0.0.1
        *("[::7f00:1]", "[::127.0.0.1]", "[::ffff:0:7f00:1]", "[64:ff9b:1::7f00:1]", "[2001:0:7f00:1::]"),
        *("192.0.0.8", "192.0.0.171", "[fec0::1]", "[2606:4700::1111%25eth0]", "[2606:4700::1111%eth0]"),
    ),
    "such an address in disguise": (
        *("127.1", "0x7f.1", "0x7F000001", "2130706433", "0177.0.0.1", "127.0.0.0x1", "0x7f.1."),
        *("\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "files.example.com\\@127.0.0.1"),
    ),
    "no host name": (
        "127.0.0.1\0.example.com",  # resolvers written in C stop at the NUL
        *("files example.com", "127.0.0.1%2f.example.com", "127.0.0.1%23.example.com"),
        *("files..example.com", ".example.com"),
    ),
}
NO_HOSTED_FILES |= {name: tuple(f"https://{host}/a.png" for host in hosts) for name, hosts in NO_HOSTS.items()}


@pytest.mark.parametrize("urls", NO_HOSTED_FILES.values(), ids=NO_HOSTED_FILES)
def test_a_hosted_file_refuses_what_the_service_cannot_or_should_not_fetch(urls: tuple[Any, ...]) -> None:
    for url in urls:
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


@pytest.mark.parametrize(
    ("output", "urls", "image"),
    [
        ({}, [], None),
        ({"image": "a"}, ["a"], "a"),
        ({"images": ["a", "b"]}, ["a", "b"], "a"),
        ({"image": "a", "images": ["b"]}, ["a", "b"], "a"),
        ({"image": "", "images": ["b"]}, ["b"], "b"),
        ({"image": "", "images": [""]}, [], None),
        ({"video": "v", "image": "a"}, ["a", "v"], "a"),
        ({"video": "v"}, ["v"], None),
        ({"videos": ["v"]}, ["v"], None),
        ({"images": ["b", "a", "b"], "image": "a", "videos": ["w", "v"], "video": "v"}, ["a", "b", "v", "w"], "a"),
    ],
)
def test_a_result_lists_its_urls_images_first_and_none_twice_and_knows_its_first_image(
    output: dict[str, Any], urls: list[str], image: str | None
) -> None:
    result = GenerationResult(request_id="r-1", state=RequestState.COMPLETED, output=GenerationOutput(**output))
    assert result.urls == urls
    if image is not None:
        assert result.image_url == image
        return
    with pytest.raises(GenerationFailedError, match=r"without an image, and is charged; fetch .* r-1 again") as caught:
        _ = result.image_url
    assert (caught.value.charged, caught.value.retryable, caught.value.request_id) == ("yes", False, "r-1")


@pytest.mark.parametrize(
    ("raw", "not_taken", "words"),
    [
        ({"output": {}}, (), None),
        ({"output": None}, (), None),
        ({"output": {}, "error": "filtered"}, (), "filtered"),
        ({"output": {"images": [], "message": "all filtered"}}, (), "all filtered"),
        ({"output": {"images": [], "filtered": 2}}, (), "the output is {'images': [], 'filtered': 2}"),
        ({"output": {"text": "a" * 400}}, (), "the output is {'text': '" + "a" * 290),
        ({"output": "//x/y"}, ("//x/y",), "no https:// URL: '//x/y'"),
        ({"output": "//x/y", "error": "late"}, ("//x/y",), "late; no https:// URL: '//x/y'"),
    ],
)
def test_the_error_of_a_result_without_a_file_says_what_the_service_says(
    raw: dict[str, Any], not_taken: tuple[str, ...], words: str | None
) -> None:
    output = GenerationOutput(not_taken=not_taken)
    error = without_file(
        GenerationResult(request_id="r-1", state=RequestState.COMPLETED, output=output, raw=raw), "a file"
    )
    start = "The generation completed without a file, and is charged; fetch the result of request r-1 again later, "
    said = "" if words is None else f": {words}"
    assert (str(error), error.charged, error.raw) == (f"{start}do not submit again{said} (request r-1)", "yes", raw)


def test_a_data_uri_is_shown_without_its_data() -> None:
    assert brief_url("data:image/png;base64," + "A" * 4000) == "data:image/png;base64,... (4,000 characters)"
    for url in ("https://files.runcomfy.net/a,b.png", "data:"):
        assert brief_url(url) == url


def test_a_result_does_not_show_its_raw_answer() -> None:
    whole = GenerationResult(
        request_id="r-1", state=RequestState.COMPLETED, output=GenerationOutput(), raw={"secret": "s3cr3t"}
    )
    assert "s3cr3t" not in repr(whole)


def test_reads_every_word_for_a_state_in_any_case() -> None:
    words = {
        "in_queue": ("in_queue", "pending", "waiting"),
        "in_progress": ("in_progress", "starting", "processing"),
        "completed": ("completed", "succeeded"),
        "failed": ("failed",),
        "cancelled": ("cancelled", "canceled"),
        "unknown": ("unknown", "paused", ""),
    }
    for state, spellings in words.items():
        for word in spellings:
            for spelt in (word, word.upper(), word.title(), f"  {word}\n"):
                assert RequestState.read(spelt) == state
    for other in (None, 1, True, b"completed", ["completed"], {}):
        assert RequestState.read(other) is RequestState.UNKNOWN


def test_three_states_are_ends() -> None:
    assert {state.value for state in RequestState if state.final} == {"completed", "failed", "cancelled"}
