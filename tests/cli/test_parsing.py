"""What is typed: what the command line understands, what it refuses, and what it says then."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from flux_klein_async.emulator import Emulator
from flux_klein_async.models import KLEIN_9B_TEXT_TO_IMAGE

from .helpers import Command

EDIT = "blackforestlabs/flux-2/dev/edit"
NINE = KLEIN_9B_TEXT_TO_IMAGE
# Arguments, exit code, and what the message says. Nothing is sent, and nothing is printed to standard output.
REFUSED: list[tuple[str | list[str], int, str]] = [
    ("genrate", 64, "No such command"),
    ("--nonsense", 64, "No such option"),
    (["\x1b[31m"], 64, "No such command"),
    ("generate", 64, "PROMPT: give a prompt, or --input for a model that takes none"),
    ("generate --widht=512", 64, "No such option"),
    ("generate x --widht 512", 64, "--widht"),
    ("generate x y", 64, "put quotes around a prompt of several words"),
    ("generate x --count 0", 64, "--count"),
    (f"generate x --count {'9' * 20}", 64, "--count"),
    ("generate x --timeout 0", 64, "more than 0 seconds"),
    ("generate x --concurrency 0", 64, "--concurrency"),
    (["generate", "x", "--output-dir", __file__], 64, "nothing can be written"),
    ("generate x --width 63", 65, "width"),
    ("generate x --height 2049", 65, "height"),
    ("generate ' '", 65, "prompt"),
    ("generate -", 65, "UTF-8"),
    (["generate", "\udcff"], 65, "The prompt is not UTF-8: byte 0 is 0xFF"),
    ("generate x --model ../x", 65, "model"),
    ("generate x --steps 8", 64, f"4b/text-to-image takes no steps; --model {NINE} does"),
    ("generate x --steps 8 --model emulator/any/text-to-video", 64, "text-to-video takes no steps"),
    (f"generate x --steps eight --model {NINE}", 64, "eight' is not a"),
    (f"generate x --steps 0 --model {NINE}", 65, "steps: "),
    (f"generate x --steps 101 --model {NINE}", 65, "steps: "),
    (f"generate ' ' --steps 8 --model {NINE}", 65, "prompt: the prompt is blank"),
    (f"generate x --input image_urls --model {EDIT}", 64, "'image_urls' is no field and value: write FIELD=VALUE"),
    (f"generate x --input =3 --model {EDIT}", 64, "write FIELD=VALUE"),
    (f"generate x --input prompt=y --model {EDIT}", 64, "prompt is given twice"),
    (f"generate x --width 64 --input width=64 --model {EDIT}", 64, "width is given twice"),
    (["generate", "x", "--input", "a=[1\x1b", "--model", EDIT], 64, r"a: '[1\x1b' is no JSON; a text that begins so"),
    (
        f"generate x --input image_urls=@no.png --model {EDIT}",
        65,
        "the file 'no.png' does not exist; a relative path begins at",
    ),
    (f"generate x --input image_urls=@prompts.txt --model {EDIT}", 65, "prompts.txt' is of no known type; convert it"),
    (f"generate x --input image_urls=@ --model {EDIT}", 65, "is a directory; name one of its files"),
    (["generate", "x", "--input", 'a=[{"file": "no.png"}]', "--model", EDIT], 65, "a.0: the file '"),
    ("generate x --input seed=3", 65, "seed: the model has no such field"),
    ("generate --input width=64", 65, "prompt: missing"),
    ("batch", 64, "Missing argument"),
    ("batch none.txt", 64, "cannot be read"),
    ("batch prompts.doc", 65, ".txt, .jsonl, .csv"),
    ("batch prompts.txt --format xml", 64, "xml"),
    (["batch", "prompts.txt", "--output-dir", __file__], 64, "nothing can be written"),
    (["batch", "prompts.txt", "--dry-run", "--output-dir", __file__], 64, "nothing can be written"),
    (["batch", "prompts.txt", "--dry-run", "--journal", f"{__file__}/x"], 64, "nothing can be written"),
    ("batch prompts.txt --max-spend -1", 64, "--max-spend"),
    ("batch prompts.txt --concurrency 0", 64, "--concurrency"),
    ("batch prompts.txt --steps 8", 64, f"4b/text-to-image takes no steps; --model {NINE} does"),
    (f"batch prompts.txt --steps 101 --model {NINE}", 65, "steps: "),
    ("batch prompts.txt --width 63", 65, "width: "),
    *[(f"{verb} x --file-host https://a.example.com/", 64, "--file-host") for verb in ("generate", "batch", "result")],
    ("batch prompts.txt --journal prompts.txt", 64, "prompts.txt is not a journal"),
    ("journal list run.sqlite", 64, "(run.sqlite): a journal goes after --journal"),
    ("models flux edit", 64, "unexpected extra argument"),
    ("models --emulator show x", 64, "unexpected extra argument"),
    ("models --nonsense", 64, "No such option"),
    (["models", "\udcff"], 65, "search must be text"),
    ("models show", 64, "Missing argument 'ID'"),
    ("models show a b", 64, "unexpected extra argument"),
    ("models show ../x", 65, "model id"),
    ("emulator --profile slow", 64, "--profile"),
    ("emulator --port 65536", 64, "--port"),
    ("emulator --workers -1", 64, "--workers"),
    ("emulator --seed x", 64, "--seed"),
    ("emulator extra", 64, "unexpected extra argument"),
    *[
        (["emulator", "--fault", fault], 64, "--fault")
        for fault in ("", "status:503", "status:503=2", "status:none=0.1", "connect:refuse=0.1")
    ],
    *[([verb, "../../\x1b[31m"], 65, "request id") for verb in ("status", "result", "cancel")],
    # Plain http to another machine would show the token.
    ("status abc --base-url http://example.com", 64, "Invalid value for --base-url: "),
    ("generate x --base-url 127.0.0.1:8288", 64, "Invalid value for --base-url: The base URL must begin with https://"),
    ("generate x --base-url localhost:8188", 64, "write http://localhost:8188"),
    *[
        (f"{call} -o fox.PNG", 64, "'fox.PNG' looks like a file; this is the directory where files go")
        for call in ("generate x", "batch prompts.txt", "result x")
    ],
]


class Stumble(NamedTuple):
    """What a newcomer typed and piped in with which variables set, and what the answer says, and does not say."""

    arguments: str | list[str]
    code: int
    says: str = ""
    never: str = "Traceback"
    stdin: bytes = b""
    environment: Mapping[str, str] = {}


CSV = "batch - --format csv --dry-run"
JSONL = "batch - --format jsonl --dry-run"
EDITS = "batch - --format jsonl"
PICTURE = "--input image_urls=https://x.example/a.png"
UNLISTED = "the catalogue lists no such field of this model"
MISTYPED = b'{"prompt": "x", "image_url": "https://x.example/a.png", "\\u001b[2J": 1}'
TEXT_FOR_FILE = b'{"prompt": "x", "image_urls": ["a.png"]}'
CAT = b'{"prompt": "a cat"}\n'
PATH_FOR_FILE = b'{"prompt": "x", "image_urls": [{"path": "a.png"}]}'
NO_FILE = 'image_urls: takes image files, not an object; a local file is {"file": "in.png"}'
GENERATE = ["generate", "x", "--model", EDIT]
NEWCOMER = [
    Stumble("generate x --output out", 64, "No such option --output; did you mean --output-dir?", "extra argument"),
    Stumble("generate x --dir out", 64, "did you mean --output-dir?"),
    Stumble("generate x --widht 64", 64, "did you mean --width?"),
    Stumble("generate x -z", 64, "No such option -z; a prompt that starts with a dash goes after --"),
    Stumble(["generate", f"--{'x' * 300}"], 64, f"No such option --{'x' * 78};"),
    Stumble(["models", "--\x1b[2J"], 64, "No such option --\\x1b[2J"),
    Stumble("generate x --seed 3", 64, "No such option --seed: FLUX.2 [klein] takes no seed", "extra argument"),
    Stumble("batch x.txt --negative-prompt y", 64, "takes no negative prompt"),
    Stumble("generate x --num-images 2", 64, "takes --count"),
    Stumble("generate x --n 2", 64, "takes --count", "--json"),
    Stumble("batch x.txt --count 2", 64, "one picture per request: `generate` takes --count, and `batch`"),
    Stumble("batch x.txt --budget 3", 64, "No such option --budget: to bound what is spent, `batch` takes --max-spend"),
    Stumble("generate x --max-cost 3", 64, "`batch` takes --max-spend"),
    Stumble("batch x.txt --limit 3", 64, "`batch` takes --max-spend"),
    Stumble("batch x.txt --parallel 3", 64, "--concurrency"),
    Stumble("generate x --out d", 64, "did you mean --output-dir?"),
    Stumble("batch x.txt --retry 3", 64, "failed calls are repeated by themselves; `batch --retry-failed`"),
    Stumble("batch x.txt --size 64", 64, "the sides are --width and --height"),
    Stumble("batch x.txt --resume", 64, "run the same `batch` again"),
    Stumble("generate x -v", 64, "FLUX_KLEIN_DEBUG"),
    Stumble("generate x --token abc", 64, "RUNCOMFY_API_TOKEN", "--json"),
    Stumble("generate --prompt x", 64, "a prompt needs no option"),
    Stumble("batch x.txt -n 2", 64, "`batch` makes one for each line"),
    Stumble("batch x.txt --seed 2", 64, '"seed": N in a line of `batch`'),
    Stumble("generate x --max-spend 2", 64, "No such option --max-spend: `flux-klein batch` takes it"),
    Stumble("generate x --dry-run", 64, "No such option --dry-run: `flux-klein batch` takes it"),
    Stumble("batch x.txt --input a=b", 64, "No such option --input: `flux-klein generate` takes it"),
    Stumble("-V", 64, "the version is --version"),
    Stumble("generate x --aspect-ratio 16:9", 64, "the sides are --width and --height"),
    Stumble("generate x --name a", 64, "--name: `generate` names files after the prompt; `batch` has --names", "dash"),
    Stumble("batch x --name id", 64, "did you mean --names?"),
    Stumble("generate x", 64, "for RUNCOMFY_MODEL_API_BASE: ", environment={"RUNCOMFY_MODEL_API_BASE": "127.0.0.1:8"}),
    Stumble("generate x --model klein", 65, "Unknown model 'klein'; see `flux-klein models klein`"),
    Stumble(f"batch - --dry-run --model {NINE}s", 65, "see `flux-klein models`", "client.", stdin=b"a cat"),
    Stumble(f"generate x --model {NINE}s", 65, f"see `flux-klein models`; did you mean '{NINE}'?", "client."),
    Stumble("models show klein/9b", 65, "Unknown model 'klein/9b'; see `flux-klein models`"),
    Stumble("models list flux --category text-to-image", 0, "4b/text-to-image"),
    Stumble("models list show", 0, "No model of the catalogue matches"),
    Stumble("models -- list", 0, "No model of the catalogue matches"),
    Stumble("journal list", 65, "out/journal.sqlite: name one with --journal", "Missing option"),
    Stumble("generate x -m a/b", 64, "No such option -m; did you mean --model?"),
    Stumble("generate x --timeout 0", 64, "0 is not more than 0 seconds"),
    Stumble("batch x.txt --max-spend nan", 64, "nan is no amount of money: give it in USD, 0 or more"),
    Stumble("batch x.txt --max-spend inf", 64, "inf is no amount of money"),
    Stumble("batch .", 64, "'.' is a directory: name a file of prompts", "does not end in"),
    Stumble("batch x.txt --output-dir /proc/x", 64, "cannot be made; make it, or choose another", "download again"),
    Stumble("generate a snow leopard", 64, "put quotes around a prompt of several words"),
    Stumble("generate a --x leopard -- b", 64, "No such option --x"),
    Stumble(["a snow leopard"], 64, "'a snow leopard': write flux-klein generate 'a snow leopard'"),
    Stumble("gen x", 64, "No such command 'gen'; did you mean generate?"),
    Stumble("btach x", 64, "did you mean batch?"),
    Stumble(["\x1b[2J"], 64, "No such command '\\x1b[2J'"),
    Stumble("help", 64, "did you mean --help?"),
    Stumble("--emulator generate x", 64, "the options of a command go after its name"),
    Stumble("generate x -n 0", 64, "'--count' / '-n': ", "Input should"),  # typer's releases differ in the rest
    Stumble("generate x -n two -o out", 64, "'two' is not a", "Input should"),
    Stumble("generate x --width 4000", 65, "width: 4000 is more than 2048", "Input should"),
    Stumble("generate x --base-url http://example.com", 64, "use https", "allow_insecure"),
    Stumble("generate x", 77, "RUNCOMFY_API_TOKEN", "api_key", environment={"RUNCOMFY_API_TOKEN": ""}),
    Stumble(
        "models",
        77,
        "The token in RUNCOMFY_API_TOKEN is in quotes",
        '"abc',
        environment={"RUNCOMFY_API_TOKEN": '"abc-def-ghi"'},
    ),
    Stumble("models", 77, "begins with 'Bearer'", "abc-def", environment={"RUNCOMFY_API_TOKEN": "Bearer abc-def"}),
    Stumble(["generate", "caf\udce9"], 65, "The prompt is not UTF-8: byte 3 is 0xE9", "surrogate"),
    Stumble(["generate", "a\x1b[2J"], 65, "prompt: the control character U+001B is not allowed; remove it"),
    Stumble(["generate", "--input", 'prompt="a\\u0007"'], 65, "prompt: the control character U+0007 is not allowed"),
    Stumble("batch -", 65, "Line 1: prompt: the control character U+001B is not allowed; remove it", stdin=b"a\x1b"),
    Stumble(f"generate x --input image_urls=a.png --model {EDIT}", 65, "write --input image_urls=@a.png", "pathlib"),
    Stumble(f"{EDITS} --model {EDIT}", 65, 'write {"file": "a.png"} in its place', "pathlib", stdin=TEXT_FOR_FILE),
    Stumble(f"{EDITS} --model {EDIT}", 65, 'write {"file": "a.png"} in', stdin=TEXT_FOR_FILE.replace(b"a.p", b"@a.p")),
    Stumble(
        f"generate x {PICTURE} --input widht=64 --input sed=3 --model {EDIT}",
        65,
        f"widht: {UNLISTED}; sed: {UNLISTED} (did you mean seed?). It lists prompt, image_urls, seed; --allow-unlisted",
    ),
    Stumble(f"generate x {PICTURE} --width 64 --height 64 --model {EDIT}", 65, f"width: {UNLISTED}", "Generating"),
    Stumble(f"generate x {PICTURE} --width 64 --allow-unlisted --model {EDIT}", 0, "1 of 1 done"),
    Stumble(f"{EDITS} --model {EDIT}", 65, f"image_url: {UNLISTED} (did you mean image_urls?)", stdin=MISTYPED),
    Stumble(f"{JSONL} --model {EDIT}", 65, f"Line 1: image_url: {UNLISTED}", stdin=MISTYPED),
    Stumble(f"{JSONL} --model {EDIT}", 65, f"Line 1: {NO_FILE}", stdin=PATH_FOR_FILE),
    Stumble([*GENERATE, "--input", 'image_urls={"path": "a.png"}'], 65, NO_FILE),
    Stumble(f"generate x {PICTURE} --input seed=three --model {EDIT}", 65, "seed: takes integer, not 'three'", "file"),
    Stumble(f"generate x --model {EDIT}s", 65, f"'{EDIT}s'; see `flux-klein models`; did you mean '{EDIT}'?; "),
    Stumble("generate x --model flux-2/dev/edit", 65, f"; did you mean '{EDIT}'?; "),
    Stumble(f"{EDITS} --model {EDIT}s", 65, "--allow-unlisted submits to it all the same", "Line", stdin=TEXT_FOR_FILE),
    Stumble(f"{JSONL} --allow-unlisted --model {EDIT}", 0, "1 to submit", stdin=MISTYPED),
    Stumble(f"{JSONL} --width 64 --model {EDIT}", 65, f"Error: width: {UNLISTED}", "Line 1", stdin=TEXT_FOR_FILE),
    Stumble(CSV, 0, "2 to submit", stdin=b"Prompt;Width;Height;\na, b;64.0;64,0;\nc;;;\n"),
    Stumble(CSV, 0, "1 to submit", stdin=b",prompt\n0,a cat\n"),
    Stumble(CSV, 65, "unknown column 'notes'", stdin=b"prompt,notes\na,b\n"),
    Stumble(f"{CSV} --ignore-extra-columns", 0, "1 to submit", stdin=b"prompt,notes\na,b\n"),
    Stumble(CSV, 65, "--prompt-column", stdin=b"caption\na cat\n"),
    Stumble(f"{CSV} --prompt-column caption", 0, "1 to submit", stdin=b"caption\na cat\n"),
    Stumble(f"{JSONL} --prompt-column caption", 64, "only .csv files have columns", stdin=b"{}"),
    Stumble(JSONL, 0, "1 to submit", stdin=b'{"prompt": "a", "width": 64.0}'),
    Stumble(JSONL, 65, "a JSON array", "Traceback", stdin=b'[\n{"prompt": "a"}\n]'),
    Stumble(JSONL, 65, "compressed with gzip", stdin=b"\x1f\x8b\x08\x00"),
    Stumble(CSV, 65, "an Excel workbook", stdin=b"PK\x03\x04\x14"),
    Stumble(CSV, 65, "iconv -f UTF-16 -t UTF-8", stdin="prompt\na\n".encode("utf-16")),
    Stumble("batch - --dry-run", 65, "There is no prompt in standard input"),
    Stumble(CSV, 65, "There is no prompt in standard input", stdin=b"prompt\n"),
    Stumble("batch empty.txt", 65, "There is no prompt in 'empty.txt'"),
    Stumble("batch -", 0, "1 of 1 done", stdin=b"# a number sign\n"),
    Stumble(
        "batch -", 65, "Line 1: a JSON object, which would be painted as it stands: pass --format jsonl", stdin=CAT
    ),
    Stumble("batch - --format txt", 0, "1 of 1 done", stdin=CAT),
    Stumble("batch -", 65, "Line 1: a JSON array, which would be painted as it stands", stdin=b'[\n{"prompt": "a"}\n]'),
    Stumble("batch -", 65, "Line 1: a JSON array", stdin=b'["a cat",\n "a dog"]'),
    Stumble("batch -", 0, "1 of 1 done", stdin=b"[soft light] a cat\n"),
    Stumble(["generate", "x", "--output-dir", ""], 64, "the name of the directory is empty"),
    Stumble("generate x --negative_prompt blur", 64, "FLUX.2 [klein] takes no negative prompt", "after --"),
    Stumble("batch -", 65, "Line 1: a header, which would be painted as it stands", stdin=b"id;Prompt\n1;a hen\n"),
    Stumble("batch a.txt b.txt", 64, "(b.txt): there is one FILE, and a journal goes after --journal"),
    Stumble("generate x -q --force", 64, "No such option --force: no file is replaced"),
    Stumble("batch prompts.json", 65, "jq -c '.[]'"),
    Stumble("batch prompts.jsonl.gz", 65, "gunzip"),
    Stumble("batch prompts.xlsx", 65, "save the sheet as CSV in UTF-8"),
    Stumble("batch -h", 0, "also where the line begins with #"),
]


@pytest.mark.parametrize("stumble", NEWCOMER, ids=lambda it: str(it.arguments)[:60])
def test_what_a_newcomer_types_is_understood_or_answered_with_what_to_write(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch, stumble: Stumble
) -> None:
    Path("empty.txt").touch()
    for name, value in stumble.environment.items():
        monkeypatch.setenv(name, value)
    arguments, code, says, never, stdin, _ = stumble
    ran = flux_klein(*(shlex.split(arguments) if isinstance(arguments, str) else arguments), stdin=stdin)
    said = " ".join((ran.out + ran.err).split())
    assert (ran.code, says in said, never in said, "\x1b" in said) == (code, True, False, False), said
    assert served.accepted == (says == "1 of 1 done")


def test_a_wrong_call_is_refused_with_a_message_before_anything_is_sent(served: Emulator, flux_klein: Command) -> None:
    Path("prompts.txt").write_text("a cat\na dog\n")
    for line, code, message in REFUSED:
        ran = flux_klein(*(shlex.split(line) if isinstance(line, str) else line), stdin=b"caf\xe9")
        assert (ran.code, ran.out) == (code, ""), line
        assert code != 64 or "Error: " in ran.err, line
        assert message in " ".join(ran.err.split()), line
        assert "\x1b" not in ran.err, line
    assert not served.records
