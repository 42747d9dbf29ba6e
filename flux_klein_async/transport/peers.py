"""Whether the other end of a connection has gone, as far as the kernel knows: asked before a paid body leaves.

The loop hears of a server's goodbye only when it comes round to reading it. Between that and the moment of writing lies
whatever else the loop had to do; the kernel knew all along.
"""

import asyncio
import select

__all__ = ["gone"]

# That the peer has closed its writing half is told apart from data to be read (a TLS session ticket, say) on Linux
# alone; the BSDs say "hung up" for it. Windows has no poll(): there the loop's own knowledge must do.
_POLL = getattr(select, "poll", None)
_GOODBYE = getattr(select, "POLLRDHUP", 0) | getattr(select, "POLLHUP", 0) | getattr(select, "POLLERR", 0)


def gone(transport: asyncio.BaseTransport | None) -> bool:
    """Whether what is written now can reach nobody; about 2 us."""
    if transport is None or transport.is_closing():
        return True
    socket = transport.get_extra_info("socket")
    if socket is None or _POLL is None:  # a transport in memory
        return False
    descriptor = socket.fileno()
    if descriptor < 0:
        return True
    poll = _POLL()
    poll.register(descriptor, _GOODBYE)
    return bool(poll.poll(0))
