"""The part of the catalogue of faults whose form is right and whose content is odd.

Pure data over `answers`. Must not know how an answer is put on the wire.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from .answers import Cut, Endless, Generation, Reply, Rewrite, error_reply

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .answers import Answer

    Oddity: TypeAlias = tuple[str, str, tuple[str, ...], Answer]  # name, meaning, endpoints, what does it

__all__ = ["ODDITIES"]

_HTML = "<!doctype html><title>Sign in</title><h1>Please sign in</h1>"
_ODD: tuple[tuple[str, str, str, Mapping[str, Any]], ...] = (
    ("submit", "no-id", "accepted, without a request id", {"request_id": None}),
    ("submit", "bad-id", "accepted, with a request id that is none", {"request_id": "../../x"}),
    ("status", "no-status", "a status without its state", {"status": None}),
    ("status", "unknown-state", "a state that nobody documented", {"status": "on_fire"}),
    ("status", "gone-back", "queued again, after it ran or ended", {"status": "in_queue", "queue_position": 7}),
    ("status", "done-too-soon", "completed before the result is there", {"status": "completed"}),
    ("status", "failed-too-soon", "failed, while the generation goes on", {"status": "failed"}),
    ("status", "odd-position", "a queue position below nothing", {"status": "in_queue", "queue_position": -5}),
    ("result", "no-output", "completed, without an output", {"output": None}),
    ("result", "bare-output", "the output is a bare list", {"output": ["https://files.runcomfy.net/files/x.png"]}),
    ("result", "odd-cost", "a cost below nothing", {"cost": -1}),
    ("result", "ended-in-2199", "finished in the year 2199", {"finished_at": "2199-01-01T00:00:00Z"}),
    ("result", "ended-first", "finished before it was created", {"finished_at": "1999-01-01T00:00:00Z"}),
    ("cancel", "no-outcome", "a cancel that does not say what became of it", {"status": "in_queue", "outcome": None}),
    ("model", "no-price", "a catalogue entry without a price", {"base_price_usd": None}),
    ("model", "odd-price", "a price below nothing", {"base_price_usd": -1}),
)


def _contents() -> Iterator[Oddity]:
    for endpoint, name, meaning, fields in _ODD:
        yield name, meaning, (endpoint,), Rewrite(fields)
    somebody = Rewrite({"request_id": "somebody-elses"})
    yield "other-id", "the answer to another request", ("status", "result", "cancel"), somebody
    said = {"status": "cancelled", "outcome": "cancelled"}
    late = {"status": "in_progress", "outcome": "not_cancellable"}
    yield "only-said", "cancelled, it says; it goes on", ("cancel",), Reply(200, said)
    yield "too-late", "not cancellable: it has begun meanwhile", ("cancel",), Reply(200, late)


# --- generations that go an odd way
_LOUD = {word: word.upper() for word in ("in_queue", "in_progress", "completed", "failed", "cancelled")}
_OBSERVED = {"in_queue": "pending", "in_progress": "processing", "completed": "succeeded", "cancelled": "canceled"}
_FATES: tuple[tuple[str, str, Generation], ...] = (
    ("fails", "the generation fails", Generation(ends="failed", error="the model ran out of memory")),
    ("is-cancelled", "the generation is cancelled by the service", Generation(ends="cancelled")),
    ("never-ends", "the generation runs for ever", Generation(after=1e9)),
    ("upper-case", "its states are written in capitals", Generation(words=_LOUD)),
    ("other-words", "its states have the names that vendor clients know", Generation(words=_OBSERVED)),
    ("odd-word", "an unknown state while it runs", Generation(words={"in_progress": "warming_up"})),
    ("result-late", "the result comes 3 s after the state", Generation(result_lag=3.0)),
    ("result-never", "the result never comes", Generation(result_lag=1e9)),
    ("early-404", "a result asked for too early is 404", Generation(early_result=error_reply(404, 404001))),
)

# --- pictures
_PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x40\x00\x00\x00\x40\x08\x02\x00\x00\x00"


def _pictures() -> Iterator[Oddity]:
    for name, meaning, fate in _FATES:
        yield name, meaning, ("submit",), fate
    png = {"Content-Type": "image/png"}
    pictures: tuple[tuple[str, str, Answer], ...] = (
        ("cut", "the transfer breaks after 100 bytes", Cut(100)),
        ("picture-empty", "a picture of no bytes", Reply(200, b"", png)),
        ("picture-short", "half a picture, of the length it names", Reply(200, _PNG, png)),
        ("picture-mislabelled", "a PNG that calls itself WebP", Rewrite(headers={"Content-Type": "image/webp"})),
        ("picture-text", "a page of text that calls itself a PNG", Reply(200, _HTML, png)),
        ("picture-endless", "a picture without end", Endless(_PNG * 1_500, headers=png)),
    )
    for name, meaning, answer in pictures:
        yield name, meaning, ("file",), answer


ODDITIES: tuple[Oddity, ...] = (*_contents(), *_pictures())
