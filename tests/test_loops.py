"""The suite runs on the event loop that the environment names; otherwise that run would prove nothing."""

import asyncio
import os
import sys

import pytest

from .loops import LOOP_VARIABLE, chosen_loop


async def test_a_test_runs_on_the_loop_that_was_asked_for():
    asked = os.environ.get(LOOP_VARIABLE) or "asyncio"
    assert type(asyncio.get_running_loop()).__module__.partition(".")[0] == asked


async def test_debug_mode_is_on_where_it_was_asked_for(klein_emulator):
    asked = bool(os.environ.get("PYTHONASYNCIODEBUG")) or sys.flags.dev_mode
    assert asyncio.get_running_loop().get_debug() == asked


async def test_virtual_time_has_a_loop_of_its_own_all_the_same(klein_emulator):
    assert type(asyncio.get_running_loop()).__name__ == "VirtualTimeLoop"


def test_a_misspelt_loop_is_refused(monkeypatch):
    monkeypatch.setenv(LOOP_VARIABLE, "uvlop")
    with pytest.raises(pytest.UsageError, match="uvlop"):
        chosen_loop()
