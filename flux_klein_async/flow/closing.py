"""Closing a client: let calls finish, end the rest, see the background through, say what is left running."""

from flux_klein_async.events import Closed
from flux_klein_async.flow.core import Core, log

__all__ = ["close"]

_IDS_LOGGED = 10
_CLOSE_WITHIN = 5.0  # seconds that closing may take beyond its drain


async def close(core: Core, drain: float | None) -> tuple[str, ...]:
    """Wait `drain` seconds (None: without limit) for calls under way, then end them, within 5 s more.

    Returns:
        The ids left running.
    """
    loop = core.loop
    try:
        await core.calls.drained(drain)
        end = loop.time() + _CLOSE_WITHIN
        core.calls.close()
        await core.calls.drained(_CLOSE_WITHIN)
        core.save_learned()
        await core.background.finish(end - loop.time())
    finally:  # also where the loop itself ends, and cancels this
        await core.transport.aclose()
    left = tuple(sorted(core.left_running))
    if left:
        more = f" and {len(left) - _IDS_LOGGED} more" if len(left) > _IDS_LOGGED else ""
        log.warning("Closed; still running: %s%s", ", ".join(left[:_IDS_LOGGED]), more)
    core.emit(lambda at: Closed(at=at, left_running=left))
    return left
