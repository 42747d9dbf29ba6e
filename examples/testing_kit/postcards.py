"""An application as anyone might write it: postcards of towns, with an honest word where there is no picture."""

from collections.abc import Sequence
from dataclasses import dataclass

from flux_klein_async import FluxKleinClient, FluxKleinError, Outcome, SubmissionUncertainError

__all__ = ["Postcard", "postcards"]


@dataclass(frozen=True)
class Postcard:
    """A town with the URL of its picture, or with a sentence for the visitor."""

    town: str
    url: str | None = None
    sorry: str | None = None


async def postcards(client: FluxKleinClient, towns: Sequence[str]) -> list[Postcard]:
    """Paint every town once, side by side; one that fails takes none of the others with it."""
    outcomes = await client.generate_all(towns, to_input=lambda town: f"a postcard from {town}")
    return [_postcard(outcome) for outcome in outcomes]


def _postcard(outcome: Outcome[str]) -> Postcard:
    if outcome.result is not None:
        return Postcard(outcome.item, url=outcome.result.image_url)
    return Postcard(outcome.item, sorry=_sorry(outcome.error))


def _sorry(error: FluxKleinError | None) -> str:
    if isinstance(error, SubmissionUncertainError):
        return "We may have paid for it already, and do not paint it twice."
    return "The painter could not do it."
