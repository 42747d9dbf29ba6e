"""An application to be tested: postcards of towns, with an apology where there is no picture."""

from collections.abc import Sequence
from dataclasses import dataclass

from flux_klein_async import FluxKleinClient, Outcome, SubmissionUncertainError

__all__ = ["Postcard", "postcards"]


@dataclass(frozen=True)
class Postcard:
    """A town with either the URL of its picture or an apology."""

    town: str
    url: str | None = None
    apology: str | None = None


async def postcards(client: FluxKleinClient, towns: Sequence[str]) -> list[Postcard]:
    """Generate one picture for each town, all at once. One failure does not affect the others."""
    outcomes = await client.generate_all(towns, to_input=lambda town: f"a postcard from {town}")
    return [_postcard(outcome) for outcome in outcomes]


def _postcard(outcome: Outcome[str]) -> Postcard:
    if outcome.result is not None:
        return Postcard(outcome.item, url=outcome.result.image_url)
    if isinstance(outcome.error, SubmissionUncertainError):
        return Postcard(outcome.item, apology="This may have been charged already, so we do not try again.")
    return Postcard(outcome.item, apology="The picture could not be generated.")
