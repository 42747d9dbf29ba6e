"""`flux-klein emulator`: the emulated service on a loopback port, until it is stopped."""

import asyncio
import secrets
from typing import Annotated, Any

import typer

from flux_klein_async.cli import service, stopping
from flux_klein_async.cli.exits import ExitCode
from flux_klein_async.cli.render import Screen

__all__ = ["emulator"]


def emulator(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.", metavar="PORT")] = 0,
    profile: Annotated[
        str, typer.Option(help="How long generations take: klein, queue, queue:WORKERS or fixed:SECONDS.")
    ] = "klein",
    workers: Annotated[
        int | None, typer.Option(min=0, help="Generations side by side; 0: none ever starts.", metavar="N")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides ids, durations and pictures; else random.", metavar="N")
    ] = None,
) -> None:
    """Emulate the service on this machine: placeholder pictures, no account, no charge.

    Prints its address, its token and the lines that make another shell use it; runs until Ctrl-C.

    \b
    Example:
      flux-klein emulator --port 8188 --profile queue:2
    """  # noqa: D301  # \b: what follows is not to be wrapped
    service.require_pillow()
    from flux_klein_async.emulator import parse_profile  # noqa: PLC0415  # the server's import is for this command

    try:
        parse_profile(profile)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--profile") from None
    # Ids name the files that clients save: those of the next emulator must not replace them.
    seed = secrets.randbits(32) if seed is None else seed
    options = {"port": port, "profile": profile, "workers": workers, "seed": seed}
    code = stopping.run(lambda stop: _serve(options, Screen(), stop))
    raise typer.Exit(ExitCode.OK if code in {ExitCode.INTERRUPTED, ExitCode.TERMINATED} else code)


async def _serve(options: dict[str, Any], screen: Screen, stop: stopping.Stop) -> ExitCode:
    from flux_klein_async.emulator import Emulator  # noqa: PLC0415

    screen.when_reader_gone(lambda: stop.because(ExitCode.READER_GONE))
    server = Emulator(**options)
    try:
        await server.__aenter__()
    except OSError as error:
        screen.note(f"Cannot listen on port {options['port']}: {error.strerror}")
        return ExitCode.OTHER
    try:
        screen.note("An emulated service: placeholder pictures, nothing is charged. Ctrl-C ends it.")
        screen.out(f"base URL: {server.base_url}")
        screen.out(f"token: {server.api_key}")
        screen.note("To use it from another shell:")
        screen.out(f"export RUNCOMFY_MODEL_API_BASE={server.base_url}")
        screen.out(f"export RUNCOMFY_API_TOKEN={server.api_key}")
        await asyncio.get_running_loop().create_future()
    finally:
        await server.__aexit__(None, None, None)
    return ExitCode.OK
