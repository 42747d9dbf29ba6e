"""The emulated service: the whole wire without token, money or, in process, time.

`Emulator` listens on a loopback port; `InProcessEmulator` answers inside the process, in virtual time on a
`VirtualTimeLoop`. Both obey scripts made of the answers exported here.
"""

from .answers import (
    Answer,
    Cut,
    Endless,
    Garbage,
    Generation,
    Hang,
    Pass,
    Refuse,
    Reply,
    Reset,
    Script,
    Truncate,
    error_reply,
)
from .base import BaseEmulator, Options
from .engine import Call, Engine, Record
from .inprocess import InProcessEmulator
from .profiles import Profile, parse_profile
from .server import Emulator
from .virtual import VirtualTimeLoop

__all__ = [
    "Answer",
    "BaseEmulator",
    "Call",
    "Cut",
    "Emulator",
    "Endless",
    "Engine",
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
    "Script",
    "Truncate",
    "VirtualTimeLoop",
    "error_reply",
    "parse_profile",
]
