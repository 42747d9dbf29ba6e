"""`flux-klein emulator`: the emulated service on a loopback port, until it is stopped."""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flux_klein_async.cli import connect, signals
from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.cli.output import Screen

if TYPE_CHECKING:
    from flux_klein_async.emulator import Emulator

__all__ = ["emulator"]


def emulator(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.", metavar="PORT")] = 0,
    profile: Annotated[str, typer.Option(help="Times: klein, queue, queue:WORKERS or fixed:SECONDS.")] = "klein",
    workers: Annotated[int | None, typer.Option(min=0, help="Generations at a time, even 0.", metavar="N")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides ids, times, faults and pictures.", metavar="N")] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(help="A fault and its probability, such as status:503=0.05; repeatable.", metavar="FAULT"),
    ] = None,
    faults: Annotated[bool, typer.Option("--faults", help="List every fault by name, and exit.")] = False,
) -> None:
    """Emulate the service on this machine: no account, no charge.

    Its pictures are placeholders. It prints its address, its token and the lines that make another shell use it, and
    runs until Ctrl-C.

    \b
    Examples:
      flux-klein emulator --port 8188 --profile queue:2
      flux-klein emulator --seed 7 --fault submit:reset+accepted=0.01
    """  # noqa: D301  # \b: what follows is not to be wrapped
    if faults:
        from flux_klein_async.emulator import FAULTS  # noqa: PLC0415  # for this command

        screen, width = Screen(), max(map(len, FAULTS))
        for name, entry in FAULTS.items():
            screen.out(f"{name:{width}}  {entry.meaning} ({', '.join(entry.endpoints)})")
        return
    connect.require_pillow()
    seeded = {} if seed is None else {"seed": seed}
    server = _build(fault or (), port=port, profile=profile, workers=workers, **seeded)
    code = signals.run(lambda screen, _: _serve(server, port, screen))
    raise typer.Exit(ExitCode.OK if code in signals.SIGNALS.values() else code)


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
