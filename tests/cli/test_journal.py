"""`flux-klein journal`, called as users call it."""

import re
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flux_klein_async.emulator import Emulator
from flux_klein_async.journal.base import Reservation
from flux_klein_async.journal.states import EntryState
from flux_klein_async.models import SavedFile
from tests.databases import Cluster
from tests.journal.helpers import Run, entry
from tests.served import in_thread

from .helpers import Command

BEGUN = datetime(2024, 3, 1, 12, 0, tzinfo=UTC).timestamp()
DAY = 24 * 60 * 60.0
FILE = SavedFile(path=Path("/out/r\x1b[2J.png"), sha256="ab" * 32, size=3)
HOSTILE = b'{"prompt": "gr\\u00f6\\u00dfer: a \\u001b[31mleopard [bold]\\nat dawn"}'


@pytest.fixture
def journal(tmp_path: Path) -> str:
    """Four requests, a day apart: downloaded, failed, submitted, and one whose process died."""
    path = tmp_path / "run.sqlite"
    run = Run(path, now=BEGUN)
    price = Reservation(usd=0.02, max_usd=9.0)
    run.write(
        entry("submitting", key="k0", item=run.claim(b"0", "row 1").item, model="a/b", body=HOSTILE, reservation=price)
    )
    run.write(
        entry("submitted", key="k0", request_id="r0"),
        entry(
            "completed",
            request_id="r0",
            cost_usd=0.01,
            answer=b'{"output": ["data:image/png;base64,iVBORw0K", "data: 5"]}',
        ),
        entry("downloaded", request_id="r0", files=(FILE,)),
    )
    for number, state in enumerate(("failed", "submitted", "submitting"), 1):
        run.now = BEGUN + number * DAY
        run.write(entry("submitting", key=f"k{number}", body=b'{"prompt": "%d"}' % number, reservation=price))
        if state != "submitting":
            run.write(entry("submitted", key=f"k{number}", request_id=f"r{number}"))
            run.write(entry(state, request_id=f"r{number}", error="why \x1b[0m"))
    run.close()
    return str(path)


def test_the_list_is_a_table_with_the_newest_first_and_a_sum_on_stderr(flux_klein: Command, journal: str) -> None:
    ran = flux_klein("journal", "list", "--journal", journal)
    heading, *rows = ran.out.splitlines()
    assert (ran.code, heading.split()) == (0, ["created", "state", "cost", "request", "id", "prompt"])
    states = [row[heading.index("state") :].split()[0] for row in rows]
    assert states == ["uncertain", "submitted", "failed", "downloaded"]
    assert rows[3].endswith(r"downloaded  $0.01  r0       row 1  größer: a \x1b[31mleopard [bold]\nat dawn")
    assert ran.err == "4 requests: 1 uncertain, 1 submitted, 1 downloaded, 1 failed; $0.01 spent, $0.06 reserved\n"


def test_placeholders_of_the_emulator_are_no_spending(
    flux_klein: Command, served: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("prompts.txt").write_text("a cat\na dog\n")
    size = ("--width", "64", "--height", "64", "--quiet")
    flux_klein("batch", "prompts.txt", "--emulator", "--max-spend", "1", *size)
    free = "not charged: ${} for placeholders of the emulator\n"
    assert flux_klein("journal", "list").err.endswith(f"2 requests: 2 downloaded; $0.00 spent; {free.format('0.02')}")
    Path("prompts.txt").write_text("a cat\n")
    flux_klein("batch", "prompts.txt", *size)
    assert flux_klein("journal", "list").err.endswith(f"3 requests: 3 downloaded; $0.01 spent; {free.format('0.02')}")
    with (
        in_thread(Emulator(profile="fixed:0.01")) as another,
        monkeypatch.context() as environ,
    ):  # `flux-klein emulator`
        environ.setenv("RUNCOMFY_MODEL_API_BASE", another.base_url)
        environ.setenv("RUNCOMFY_API_TOKEN", another.api_key)
        Path("prompts.txt").write_text("a bird\n")
        flux_klein("batch", "prompts.txt", "--journal", "rehearsal.sqlite", *size)
    listed = flux_klein("journal", "list", "--journal", "rehearsal.sqlite")
    assert listed.err == f"1 request: 1 downloaded; $0.00 spent; {free.format('0.01')}"
    flux_klein("journal", "prune", "--older-than", "0")
    pruned = "0 requests: none; $0.01 spent, $0.01 of it for pruned requests\n"
    assert flux_klein("journal", "list").err.endswith(pruned)


def test_requests_are_chosen(flux_klein: Command, journal: str) -> None:
    def listed(*arguments: str) -> list[object]:
        ran = flux_klein("journal", "list", "--journal", journal, "--json", *arguments)
        return [record["request_id"] for record in ran.records]

    assert listed() == [None, "r2", "r1", "r0"]
    assert listed("--limit", "2") == [None, "r2"]
    assert listed("--state", "failed", "--state", "downloaded") == ["r1", "r0"]
    since = datetime.fromtimestamp(BEGUN + 1.5 * DAY, UTC).astimezone()  # as somebody here writes it
    assert listed("--since", since.strftime("%Y-%m-%dT%H:%M")) == [None, "r2"]
    assert listed("--since", "2025-01") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--state", "downloaded"], "1 request: 1 downloaded; $0.01 spent\n"),
        (["--state", "failed", "--limit", "1"], "1 request: 1 failed; $0.00 spent, $0.02 reserved\n"),
        (["--since", "2025-01"], "0 requests: none; $0.00 spent\n"),
        (["--since", "2024-03", "--state", "downloaded"], "1 request: 1 downloaded; $0.01 spent\n"),
    ],
)
def test_the_sum_is_of_the_requests_that_were_chosen(flux_klein: Command, journal: str, arguments, said) -> None:
    assert flux_klein("journal", "list", "--journal", journal, *arguments).err == said


def test_a_request_of_unknown_cost_is_counted(flux_klein: Command, tmp_path: Path) -> None:
    run = Run(tmp_path / "run.sqlite")
    run.write(entry("submitting", key="k"), entry("submitted", key="k", request_id="r"))
    run.close()
    ran = flux_klein("journal", "list", "--journal", str(tmp_path / "run.sqlite"))
    assert ran.err == "1 request: 1 submitted; $0.00 spent; 1 of unknown cost\n"


def test_what_was_never_sent_is_told_as_not_charged(flux_klein: Command, tmp_path: Path) -> None:
    run = Run(tmp_path / "run.sqlite")
    run.write(entry("submitting", key="k"), entry("refused", key="k"))
    run.close()
    ran = flux_klein("journal", "list", "--journal", str(tmp_path / "run.sqlite"))
    assert ran.err == "1 request: 1 refused (not accepted, or never sent: not charged); $0.00 spent\n"
    told = re.findall(r"^    (\w+)  ", flux_klein("journal", "list", "--help").out, re.MULTILINE)
    assert set(EntryState) == set(told)


def test_an_empty_journal_lists_only_the_sum(flux_klein: Command, tmp_path: Path) -> None:
    Run(tmp_path / "run.sqlite").close()
    ran = flux_klein("journal", "list", "--journal", str(tmp_path / "run.sqlite"))
    assert (ran.code, ran.out, ran.err) == (0, "", "0 requests: none; $0.00 spent\n")


@pytest.mark.parametrize(("columns", "length"), [("60", 60), ("20", None)])
def test_the_prompt_takes_the_rest_of_the_line(
    flux_klein: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: str, length: int | None
) -> None:
    run = Run(tmp_path / "run.sqlite")
    run.write(entry("submitting", key="k", body=('{"prompt": "' + "雪豹" * 50 + '"}').encode()))
    run.close()
    monkeypatch.setenv("COLUMNS", columns)
    heading, row = flux_klein("journal", "list", "--journal", str(tmp_path / "run.sqlite")).out.splitlines()
    assert heading.split() == ["created", "state", "cost", "request", "prompt"]  # no item has an id
    assert row.endswith("...")
    wide = sum(character in "雪豹" for character in row)
    assert wide >= 3
    assert length is None or length - 1 <= len(row) + wide <= length


def test_one_request_is_shown_in_full(flux_klein: Command, journal: str) -> None:
    ran = flux_klein("journal", "show", "r0", "--journal", journal)
    facts = dict(line.split(maxsplit=1) for line in ran.out.splitlines())
    known = [facts[name] for name in ("request_id", "state", "item_id", "cost_usd", "reserved_usd")]
    assert (ran.code, known) == (0, ["r0", "downloaded", "row 1", "0.01", "0.02"])
    assert facts["input"] == r'{"prompt": "größer: a \u001b[31mleopard [bold]\nat dawn"}'
    assert facts["files"] == rf'[{{"path": "/out/r\u001b[2J.png", "sha256": "{"ab" * 32}", "size": 3}}]'
    shown = flux_klein("journal", "show", "r1", "--journal", journal).out
    assert r"error         why \x1b[0m" in shown
    assert "cost" not in shown
    ran = flux_klein("journal", "show", "none\x1b", "--journal", journal)
    assert (ran.code, ran.out) == (65, "")
    assert r"The journal knows no request or line with the id none\x1b" in ran.err
    assert flux_klein("journal", "show", "row 1", "--journal", journal).out.splitlines()[4] == "request_id    r0"


def test_the_export_has_every_fact_of_every_request_the_oldest_first(flux_klein: Command, journal: str) -> None:
    first, *others = flux_klein("journal", "export", "--journal", journal).records
    assert first == {
        "number": 1,
        "item_id": "row 1",
        "input": {"prompt": "größer: a \x1b[31mleopard [bold]\nat dawn"},
        "model": "a/b",
        "request_id": "r0",
        "state": "downloaded",
        "files": [{"path": "/out/r\x1b[2J.png", "sha256": "ab" * 32, "size": 3}],
        "cost_usd": 0.01,
        "reserved_usd": 0.02,
        "error": None,
        "created": "2024-03-01T12:00:00+00:00",
        "updated": "2024-03-01T12:00:00+00:00",
        "answer": {"output": ["data:image/png;base64,... (8 characters)", "data: 5"]},
    }
    assert [record["state"] for record in others] == ["failed", "submitted", "uncertain"]
    assert [first] == flux_klein("journal", "show", "r0", "--journal", journal, "--json").records
    [only] = flux_klein("journal", "export", "--journal", journal, "--state", "uncertain").records
    assert (only["number"], only["error"]) == (4, None)


def test_an_export_ends_with_its_reader(flux_klein: Command, journal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []

    def write(text: str) -> int:
        lines.append(text)
        raise BrokenPipeError

    monkeypatch.setattr(sys.stdout, "write", write)
    assert (flux_klein("journal", "export", "--journal", journal).code, len(lines)) == (141, 1)


def test_a_sound_file_is_found_sound(flux_klein: Command, journal: str) -> None:
    ran = flux_klein("journal", "check", "--journal", journal)
    assert (ran.code, ran.out, ran.err) == (0, "", f"{journal} is sound.\n")


def test_requests_that_ended_long_ago_are_deleted(flux_klein: Command, journal: str) -> None:
    assert flux_klein("journal", "prune", "--journal", journal, "--older-than", "100000").out == "Deleted 0 requests\n"
    assert flux_klein("journal", "prune", "--journal", journal, "--dry-run").out == "Would delete 2 requests\n"
    ran = flux_klein("journal", "prune", "--journal", journal, "--older-than", "0")
    assert (ran.out, "submits and pays for them again" in ran.err) == ("Deleted 2 requests\n", True)
    ran = flux_klein("journal", "list", "--journal", journal, "--json")
    assert [record["state"] for record in ran.records] == ["uncertain", "submitted"]
    assert "$0.03 spent, $0.03 of it for pruned requests, $0.04 reserved\n" in ran.err
    ran = flux_klein("journal", "list", "--journal", journal, "--since", "2024-03", "--state", "uncertain")
    expected = "$0.00 spent, $0.02 reserved; not counted: $0.03 for pruned requests, of any time\n"
    assert ran.err == f"1 request: 1 uncertain; {expected}"
    assert flux_klein("journal", "prune", "--journal", journal, "--older-than", "-1").code == 64


@pytest.mark.parametrize("arguments", [("list",), ("show", "r"), ("check",), ("export",), ("prune",)])
def test_a_file_that_is_no_journal_is_an_error_and_stays(
    flux_klein: Command, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    path = tmp_path / "notes.txt"
    ran = flux_klein("journal", *arguments, "--journal", str(path))
    assert (ran.code, path.exists()) == (65, False)
    assert f"There is no journal {path}: name one with --journal" in ran.err
    path.write_text("notes")
    ran = flux_klein("journal", *arguments, "--journal", str(path))
    assert (ran.code, path.read_text()) == (64, "notes")
    assert "is not a journal of this package and was left as it is" in ran.err
    ran = flux_klein("journal", *arguments)
    assert (ran.code, "journal.sqlite: name one with --journal" in ran.err) == (65, True)


@pytest.mark.parametrize("arguments", [("journal", "list"), ("batch", "prompts.txt")])
def test_a_password_on_the_command_line_is_refused_and_not_told(
    flux_klein: Command, arguments: tuple[str, ...]
) -> None:
    """Everyone on the machine can list the arguments of processes."""
    Path("prompts.txt").touch()
    for dsn in ("postgresql://me:pa55word@host/db", "postgresql://me:pa55@word@host/db"):
        ran = flux_klein(*arguments, "--journal", dsn)
        assert ran.code == 64
        assert "PGPASSFILE" in ran.err or "cannot be read" in ran.err
        assert "pa55" not in ran.out + ran.err


@pytest.mark.slow
def test_a_journal_in_a_database_is_used_as_one_in_a_file(
    flux_klein: Command, served: Emulator, cluster: Cluster
) -> None:
    dsn = cluster.new_database()
    where = ("--journal", dsn)
    Path("prompts.txt").write_text("a cat\na dog\n")
    batch = ("batch", "prompts.txt", *where, "--output-dir", "out")
    assert "2 to submit" in flux_klein(*batch, "--dry-run").out
    assert "There is no journal postgresql://owner@" in flux_klein("journal", "list", *where).err
    assert flux_klein(*batch).code == 0
    assert "0 to submit, 2 done before" in flux_klein(*batch, "--dry-run").out
    shutil.rmtree("out")
    assert flux_klein(*batch).code == 0, "another machine, which has none of the files"
    assert (served.accepted, len(list(Path("out").glob("*.png")))) == (2, 2)
    assert [record["state"] for record in flux_klein("journal", "export", *where).records] == ["downloaded"] * 2
    assert "2 requests: 2 downloaded" in flux_klein("journal", "list", *where).err
    assert "is sound" in flux_klein("journal", "check", *where).err
    assert flux_klein("journal", "prune", *where, "--older-than", "0").out == "Deleted 2 requests\n"


def test_the_journal_of_the_default_directory_is_read_unless_another_is_named(
    flux_klein: Command, journal: str
) -> None:
    Path("out").mkdir()
    shutil.copy(journal, "out/journal.sqlite")
    for arguments in (["list"], ["show", "r0"], ["check"], ["export"], ["prune", "--dry-run"]):
        ran = flux_klein("journal", *arguments)
        assert (ran.code, ran.err.splitlines()[0]) == (0, f"Journal: {Path('out/journal.sqlite').absolute()}")
