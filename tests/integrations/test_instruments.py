"""The instruments have the names and units that the page gives them."""

import re
from pathlib import Path

from opentelemetry.sdk.metrics import MeterProvider

from flux_klein_async.integrations.instruments import Instruments

PAGE = Path(__file__).parent.parent.parent / "docs" / "telemetry.md"


def test_the_page_lists_every_instrument_with_its_unit():
    instruments = vars(Instruments(MeterProvider().get_meter("test"))).values()
    listed = re.findall(r"^\| `([\w.]+)` \| [\w -]+ \| `([\w{}]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted((instrument.name, instrument.unit) for instrument in instruments)
