"""`flux-klein emulator`: the emulated service on a loopback port, until it is stopped."""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer

from flux_klein_async.cli import connect, signals
from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.cli.output import Screen

if TYPE_CHECKING:
    from flux_klein_async.emulator import Emulator

__all__ = ["emulator"]


def emulator(
    *, port: int, profile: str, workers: int | None, seed: int | None, fault: list[str] | None, faults: bool
) -> ExitCode:
    """Serve until a signal, or list the faults."""
    if faults:
        from flux_klein_async.emulator import FAULTS, Emulator  # noqa: PLC0415  # for this command

        screen, width, server = Screen(), max(map(len, FAULTS)), Emulator()
        for name, entry in FAULTS.items():
            if places := [place for place in entry.endpoints if server.can_answer(place, entry.answer)]:
                screen.out(f"{name:{width}}  {entry.meaning} ({', '.join(places)})")
        return ExitCode.OK
    connect.require_pillow()
    seeded = {} if seed is None else {"seed": seed}
    server = _build(fault or (), port=port, profile=profile, workers=workers, **seeded)
    code = signals.run(lambda screen, _: _serve(server, port, screen))
    return ExitCode.OK if code in signals.SIGNALS.values() else code


def _build(faults: Iterable[str], *, profile: str, **options: Any) -> "Emulator":
    from flux_klein_async.emulator import Emulator, parse_fault, parse_profile  # noqa: PLC0415  # for this command

    hint = "--profile"
    try:
        server = Emulator(profile=parse_profile(profile), **options)
        hint = "--fault"
        for text in faults:
            for endpoint, answer, probability in parse_fault(text):
                server.fault(endpoint, answer, probability=probability)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=hint) from None
    return server


async def _serve(server: "Emulator", port: int, screen: Screen) -> ExitCode:
    try:
        await server.__aenter__()
    except OSError as error:
        screen.note(f"Cannot listen on port {port}: {error.strerror}")
        return ExitCode.OTHER
    try:
        screen.note("An emulated service: placeholder pictures, nothing is charged. Ctrl-C ends it.")
        screen.out(f"base URL: {server.base_url}")
        screen.out(f"token: {server.api_key}")
        screen.note("To use it from another shell:")
        screen.out(f"export RUNCOMFY_MODEL_API_BASE={server.base_url}")
        screen.out(f"export RUNCOMFY_API_TOKEN={server.api_key}")
        stopped: asyncio.Future[ExitCode] = asyncio.get_running_loop().create_future()
        return await stopped  # until it is cancelled
    finally:
        await server.__aexit__(None, None, None)
