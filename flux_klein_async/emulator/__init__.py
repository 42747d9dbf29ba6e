"""The emulated service, for trying, testing and building without token or money.

- `engine`: gives each call its scripted answer, a fault or the normal answer
- `endpoints`: the normal answers; `generations`: how long each generation takes, and the queue
- `scripts`, `faults`: the other answers; `catalogue`: the models; `pictures`: the files
- `server`: `Emulator`, on a loopback port; `inprocess`: `InProcessEmulator`, on the loop of `virtual` time
"""

from flux_klein_async.emulator.engine import Action, EmulatorOptions, Engine, Record
from flux_klein_async.emulator.faults import FAULTS, Fault, fault, faults_at, parse_fault
from flux_klein_async.emulator.generations import Profile, parse_profile
from flux_klein_async.emulator.inprocess import InProcessEmulator
from flux_klein_async.emulator.scripts import (
    Answer,
    Cut,
    Drop,
    Endless,
    Garbage,
    Generation,
    Hang,
    Pass,
    Refuse,
    Reply,
    Reset,
    Rewrite,
    Script,
    Truncate,
    Unasked,
    error_reply,
)
from flux_klein_async.emulator.server import Emulator
from flux_klein_async.emulator.virtual import VirtualTimeLoop

__all__ = [
    "FAULTS",
    "Action",
    "Answer",
    "Cut",
    "Drop",
    "Emulator",
    "EmulatorOptions",
    "Endless",
    "Engine",
    "Fault",
    "Garbage",
    "Generation",
    "Hang",
    "InProcessEmulator",
    "Pass",
    "Profile",
    "Record",
    "Refuse",
    "Reply",
    "Reset",
    "Rewrite",
    "Script",
    "Truncate",
    "Unasked",
    "VirtualTimeLoop",
    "error_reply",
    "fault",
    "faults_at",
    "parse_fault",
    "parse_profile",
]
