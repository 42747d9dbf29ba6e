"""The instruments of the metrics: their names, units and buckets.

`gen_ai.*` are names of OpenTelemetry's semantic conventions for generative AI, which are not stable yet; the
conventions have no name for looks, lag or money, so that those stand under `flux_klein.`.
"""

from opentelemetry.metrics import Meter

__all__ = ["Instruments"]

# Bounds of the buckets, in seconds, that the conventions give for gen_ai.client.operation.duration.
_SECONDS = [0.01 * 2**power for power in range(14)]
_LOOKS = [1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100]


class Instruments:
    """Everything that is counted and measured."""

    def __init__(self, meter: Meter) -> None:
        self.generations = meter.create_counter(
            "flux_klein.generations", "{generation}", "Calls for a generation that ended, by outcome."
        )
        self.duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            "s",
            "From the call to its end: slot, submit, waiting and result.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self.queue = meter.create_histogram(
            "flux_klein.queue.duration",
            "s",
            "From the accepted submit to the look that found it running.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self.lag = meter.create_histogram(
            "flux_klein.lag",
            "s",
            "At most so long had it been over when a look saw the end.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self.looks = meter.create_histogram(
            "flux_klein.looks",
            "{look}",
            "Looks that a generation took.",
            explicit_bucket_boundaries_advisory=_LOOKS,
        )
        self.retries = meter.create_counter("flux_klein.retries", "{retry}", "Calls made again, by kind.")
        self.holds = meter.create_counter("flux_klein.holds", "{hold}", "Times that the service asked for patience.")
        self.cost = meter.create_counter("flux_klein.cost", "{USD}", "What results said they cost, in US dollars.")
        self.in_flight = meter.create_up_down_counter(
            "flux_klein.in_flight", "{generation}", "Accepted, and no end seen yet."
        )
