"""`flux-klein emulator` without clients; with them it is in tests/test_end_to_end.py."""

import os
import signal
import socket
import sys
from contextlib import suppress

import pytest
import typer

from flux_klein_async.cli import emulator as emulator_command
from flux_klein_async.cli.output import Screen
from flux_klein_async.emulator import FAULTS, Drop, Emulator, Pass

from .helpers import Command


def test_a_port_that_is_taken_is_a_sentence(flux_klein: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = flux_klein("emulator", "--port", str(port))
    assert ran.code == 1
    assert f"Cannot listen on port {port}" in ran.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_what_to_export_and_runs_until_it_is_stopped(
    flux_klein: Command, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def out(_: Screen, line: str) -> None:
        sys.stdout.write(f"{line}\n")
        if line.startswith("export RUNCOMFY_API_TOKEN"):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Screen, "out", out)
    ran = flux_klein("emulator", "--profile", "queue:2", "--seed", "7", "--fault", "status:503=0.5")
    assert ran.code == 0
    url, token, *exports = ran.out.splitlines()
    assert exports == [
        f"export RUNCOMFY_MODEL_API_BASE={url.removeprefix('base URL: ')}",
        f"export RUNCOMFY_API_TOKEN={token.removeprefix('token: ')}",
    ]
    assert "nothing is charged" in ran.err


def test_it_lists_every_fault_that_it_takes(flux_klein: Command) -> None:
    def taken(fault: str) -> bool:
        with suppress(typer.BadParameter):
            return emulator_command._build([f"any:{fault}=1"], profile="klein") is not None
        return False

    ran = flux_klein("emulator", "--faults")
    assert (ran.code, ran.err) == (0, "")
    listed = [line.split()[0] for line in ran.out.splitlines()]
    assert listed == list(filter(taken, FAULTS))
    assert set(FAULTS) - set(listed) == {"refuse", "no-connection", "slow-connection"}


def test_a_fault_happens_as_often_as_it_was_told_to(flux_klein: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    served = []

    async def serve(server: Emulator, *_: object) -> int:
        served.append(server)
        return 0

    monkeypatch.setattr(emulator_command, "_serve", serve)
    assert flux_klein("emulator", "--seed", "7", "--fault", "any:drop=0.5", "--fault", "models:503=0.25").code == 0
    engine = served[0]
    answers = [
        engine.handle("GET", "/v1/models", {"authorization": "Bearer emulator-token"}, b"", 0.0).status
        for _ in range(400)
    ]
    assert 70 <= answers.count(503) <= 130
    assert answers.count(200) == 400 - answers.count(503)
    assert {type(engine.connect()) for _ in range(50)} == {Pass, Drop}
