"""The emulated service: the whole wire without token, money or, in process, time.

`Emulator` listens on a loopback port; `InProcessEmulator` answers inside the process, in virtual time on a
`VirtualTimeLoop`. Both obey scripts made of the answers exported here.
"""

from .answers import (
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
    error_reply,
)
from .base import BaseEmulator, Options
from .engine import Call, Engine, Record
from .faults import FAULTS, Fault, fault, faults_at, parse_fault
from .inprocess import InProcessEmulator
from .profiles import Profile, parse_profile
from .server import Emulator
from .virtual import VirtualTimeLoop

__all__ = [
    "FAULTS",
    "Answer",
    "BaseEmulator",
    "Call",
    "Cut",
    "Drop",
    "Emulator",
    "Endless",
    "Engine",
    "Fault",
    "Garbage",
    "Generation",
    "Hang",
    "InProcessEmulator",
    "Options",
    "Pass",
    "Profile",
    "Record",
    "Refuse",
    "Reply",
    "Reset",
    "Rewrite",
    "Script",
    "Truncate",
    "VirtualTimeLoop",
    "error_reply",
    "fault",
    "faults_at",
    "parse_fault",
    "parse_profile",
]
