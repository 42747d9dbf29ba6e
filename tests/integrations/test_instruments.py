"""The instruments have the names and units that the page gives them."""

import re
from pathlib import Path

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from flux_klein_async.integrations.instruments import Instruments

PAGE = Path(__file__).parent.parent.parent / "docs" / "telemetry.md"


def test_the_page_lists_every_instrument_with_its_unit():
    instruments = vars(Instruments(MeterProvider().get_meter("test"))).values()
    listed = re.findall(r"^\| `([\w.]+)` \| [\w -]+ \| `([\w{}]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted((instrument.name, instrument.unit) for instrument in instruments)


def test_the_buckets_are_those_of_the_conventions_and_of_looks():
    reader = InMemoryMetricReader()
    measured = Instruments(MeterProvider([reader]).get_meter("test"))
    for histogram in (measured.duration, measured.queue, measured.lag, measured.looks):
        histogram.record(1)
    [metrics] = reader.get_metrics_data().resource_metrics[0].scope_metrics
    bounds = {metric.name: metric.data.data_points[0].explicit_bounds for metric in metrics.metrics}
    seconds = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
    assert bounds == {
        "gen_ai.client.operation.duration": seconds,
        "flux_klein.queue.duration": seconds,
        "flux_klein.lag": seconds,
        "flux_klein.looks": (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100),
    }
