"""Exit codes."""

import re
from pathlib import Path

from flux_klein_async import errors
from flux_klein_async.cli.exit_codes import HELP, ExitCode, exit_code, worst
from flux_klein_async.errors import APIStatusError, FluxKleinError, status_error_class

EXPECTED = {
    "APIConnectionError": 69,
    "APIStatusError": 1,
    "APITimeoutError": 75,
    "AuthenticationError": 77,
    "BudgetExceededError": 1,
    "ClientClosedError": 77,
    "ConfigurationError": 77,
    "DownloadError": 1,
    "FanOutHaltedError": 1,
    "FluxKleinError": 1,
    "GenerationCancelledError": 1,
    "GenerationFailedError": 1,
    "InputRejectedError": 65,
    "InsufficientBalanceError": 77,
    "InvalidInputError": 65,
    "InvalidResponseError": 69,
    "ItemClaimedError": 75,
    "JournalError": 1,
    "NotFoundError": 65,
    "PermissionDeniedError": 77,
    "RateLimitError": 75,
    "ResultNotReadyError": 75,
    "ServerError": 69,
    "SubmissionUncertainError": 1,
    "WaitTimeoutError": 75,
}


def test_the_page_and_the_help_list_every_code() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "howto" / "commands.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\d+(?:, \d+)*) \| (.+) \|$", page, re.MULTILINE))
    assert sorted(int(code) for codes in rows for code in codes.split(", ")) == sorted(ExitCode)
    assert {int(code) for code in re.findall(r"(?<![\w-])\d+", HELP)} == set(ExitCode)
    for status, code in ((403, "77"), (404, "65")):
        kind = status_error_class(status, None)
        assert f"({status})" in rows[code]
        assert exit_code(kind("refused", status_code=status)) == int(code)
    assert "balance" in rows[str(exit_code(errors.InsufficientBalanceError()))]


def test_each_error_has_its_code() -> None:
    kinds = [getattr(errors, name) for name in errors.__all__]
    found = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, FluxKleinError)]
    assert {kind.__name__: exit_code(kind("broken")) for kind in found} == EXPECTED


def test_a_request_timeout_is_to_be_tried_later() -> None:
    assert exit_code(APIStatusError("slow", status_code=408)) == 75


def test_the_worst_item_decides() -> None:
    order = [ExitCode(code) for code in (77, 69, 75, 65, 1)]
    for place, code in enumerate(order):
        assert worst(reversed(order[place:])) == code
    assert worst([]) == 0
