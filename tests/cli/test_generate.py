"""`flux-klein generate`: what it prints and saves. Calls that it refuses are in `test_main`."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from flux_klein_async.cli.generate import _decoded, _resume
from flux_klein_async.emulator import Emulator, error_reply
from flux_klein_async.errors import InvalidInputError
from tests.fakes import png

from .helpers import Command


def test_eight_pictures_are_eight_different_files(served: Emulator, flux_klein: Command) -> None:
    ran = flux_klein("generate", "a snow leopard at dawn", "--count", "8", "--width", "128", "--height", "96")
    assert ran.code == 0
    paths = [Path(line) for line in ran.out.splitlines()]
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}) == 8
    assert {path.parent for path in paths} == {Path("out")}
    assert "Generating 8 pictures of 128 x 96: a snow leopard at dawn" in ran.err
    assert re.search(
        r"8 of 8 done in out; \$0\.08 spent, [\d.]+ a second, [\d.]+ polls each, [\d.]+ s$", ran.err, re.MULTILINE
    )
    assert served.accepted == 8


def test_json_is_one_object_a_line_for_each_picture(served: Emulator, flux_klein: Command) -> None:
    prompt = 'a "quoted" 🐆 שלום\n[31m\u2028'
    ran = flux_klein("generate", prompt, "--count", "3", "--json", "--output-dir", "deep/er", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    assert sorted(record["index"] for record in ran.records) == [0, 1, 2]
    for record in ran.records:
        assert record["input"] == {"prompt": prompt, "width": 1024, "height": 1024}
        assert record["state"] == "completed"
        [file] = record["files"]
        assert Path(file["path"]).read_bytes().startswith(b"\x89PNG")
        assert record["cost_usd"] > 0
        assert record["timings"]["polls"] >= 1
        assert record["error"] is None
    paths = {record["files"][0]["path"] for record in ran.records}
    assert paths == {f"deep/er/a-quoted-שלום-31m{number}.png" for number in ("", "-2", "-3")}


def test_another_run_replaces_no_picture(served: Emulator, flux_klein: Command) -> None:
    made = [flux_klein("generate", prompt, "--quiet").out.strip() for prompt in ("A cat!", "a CAT", "?!", "?!")]
    assert made == ["out/a-cat.png", "out/a-cat-2.png", "out/picture.png", "out/picture-2.png"]


def test_without_download_urls_are_printed_and_nothing_is_saved(served: Emulator, flux_klein: Command) -> None:
    ran = flux_klein("generate", "x", "--no-download", "--count", "2")
    assert [line.startswith(served.base_url) for line in ran.out.splitlines()] == [True, True]
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "stdin", "prompt"),
    [
        (["-5 degrees"], b"", "-5 degrees"),
        (["-5 degrees", "-n", "1"], b"", "-5 degrees"),
        (["--output-dir", "-my pictures", "x"], b"", "x"),
        (["--dashes-- and words"], b"", "--dashes-- and words"),
        (["--", "--count"], b"", "--count"),
        (["--", "-"], "-é 🐆\nsecond line\n".encode(), "-é 🐆\nsecond line"),
        (["-"], b"--help\r\n", "--help"),
    ],
)
def test_prompts_with_dashes_and_from_standard_input(
    served: Emulator, flux_klein: Command, arguments: list[str], stdin: bytes, prompt: str
) -> None:
    ran = flux_klein("generate", "--json", "--no-download", *arguments, stdin=stdin)
    assert ran.code == 0
    assert ran.records[0]["input"]["prompt"] == prompt


NINE = "blackforestlabs/flux-2-klein/9b/text-to-image"


def test_the_9b_model_takes_steps(served: Emulator, flux_klein: Command) -> None:
    ran = flux_klein("generate", "x", "--model", NINE, "--steps", "8", "--height", "64", "--json", "--no-download")
    assert ran.code == 0
    assert ran.records[0]["input"] == {"prompt": "x", "width": 1024, "height": 64, "steps": 8}
    assert served.records[0].path == f"/v1/models/{NINE}"


EDIT = "blackforestlabs/flux-2/dev/edit"


def sent(served: Emulator) -> list[dict[str, Any]]:
    return [json.loads(record.body) for record in served.records if record.endpoint == "submit"]


def test_input_sets_any_field_and_a_local_file_is_sent_and_shown_without_its_bytes(
    served: Emulator, flux_klein: Command
) -> None:
    content = {name: png(size) for name, size in (("a.png", 300), ("b.png", 400))}
    for name, data in content.items():
        Path(name).write_bytes(data)
    one = ["--input", "image_urls=@a.png"]
    for files in (one, [*one, "--input", "image_urls=@b.png"], ["--input", 'image_urls=[{"file": "~/a.png"}]']):
        home = Path("~/a.png").expanduser()
        home.parent.mkdir(exist_ok=True)
        home.write_bytes(content["a.png"])
        ran = flux_klein("generate", "x", *files, "--input", "seed=3", "--model", EDIT, "--json", "--no-download")
        assert ran.code == 0, ran.err
        assert "base64" not in ran.out + ran.err
        names = ["a.png", "b.png"] if len(files) > 2 else ["a.png"]
        [record] = ran.records
        assert [(Path(file["file"]).name, file["size"], file["sha256"]) for file in record["input"]["image_urls"]] == [
            (name, len(content[name]), hashlib.sha256(content[name]).hexdigest()) for name in names
        ]
        uris = [f"data:image/png;base64,{base64.b64encode(content[name]).decode()}" for name in names]
        assert sent(served)[-1] == {"prompt": "x", "image_urls": uris, "seed": 3}


def test_what_is_no_json_is_text_and_two_ats_begin_a_text(served: Emulator, flux_klein: Command) -> None:
    values = ["a=16:9", "b=@@home", "c=true", 'd="@x"', "e=NaN", "f=", "g=x=y", "h=1", "h=2", 'i={"j": null}', "k=[5]"]
    arguments = [part for value in values for part in ("--input", value)]
    ran = flux_klein("generate", *arguments, "--model", "emulator/any/text-to-video", "--no-download")
    assert ran.code == 0, ran.err
    expected = {"a": "16:9", "b": "@home", "c": True, "d": "@x", "e": "NaN", "f": "", "g": "x=y", "h": [1, 2]}
    assert sent(served) == [{**expected, "i": {"j": None}, "k": [5]}]


def test_without_a_catalogue_a_field_goes_as_it_is_given(served: Emulator, flux_klein: Command) -> None:
    arguments = ("generate", "x", "--input", "image_urls=https://x.example/a.png", "--model", EDIT, "--no-download")
    arguments += ("--allow-unlisted",)
    served.script("model", error_reply(404))
    ran = flux_klein(*arguments)
    assert (ran.code, sent(served)[0]["image_urls"]) == (65, "https://x.example/a.png")
    assert "The catalogue does not say which fields the model takes, and they go as they are: " in ran.err
    assert flux_klein(*arguments).code == 0


def test_the_command_that_resumes_a_request_can_be_copied() -> None:
    resume = _resume(Path("my pictures"), "http://127.0.0.1:1")
    assert resume("abc") == "flux-klein result --output-dir 'my pictures' --base-url http://127.0.0.1:1 abc"
    assert _resume(None, None)("-x") == "flux-klein result -- -x"


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"a\n", "a"), (b"a\r\n", "a"), (b"a\n\n", "a\n"), (b"a\r", "a\r"), (b"-", "-"), ("é\n".encode(), "é")],
)
def test_a_prompt_from_a_pipe_loses_one_line_end(data: bytes, expected: str) -> None:
    assert _decoded("It", data) == expected


@pytest.mark.parametrize("data", [b"caf\xe9", "\udc80".encode("utf-8", "surrogatepass")])
def test_a_prompt_that_is_not_utf8_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError, match="not UTF-8"):
        _decoded("It", data)
