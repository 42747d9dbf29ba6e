"""Whatever a server writes into `Retry-After`, its kin and `Date`: seconds that can be slept, or nothing."""

from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.api.responses import CAP, retry_after

from .strategies import damaged, examples, times, words

DAYS = ["Thu", "Thursday", "Do", ""]
MONTHS = ["Jan", "Feb", "Dec", "Foo", "1"]
ZONES = ["GMT", "UTC", "+0000", "-2359", "+9999999999999999999999", "EST", "Z", "", "--00"]
numbers = st.integers(-(10**6), 10**6) | st.integers() | st.sampled_from(["00", "99", "2026", "9999", "0", "-"])
dates = st.builds(
    "{}, {} {} {} {}:{}:{} {}".format,
    st.sampled_from(DAYS),
    numbers,
    st.sampled_from(MONTHS),
    numbers,
    *[st.sampled_from(["00", "23", "60", "99", "-1", "x"])] * 3,
    st.sampled_from(ZONES),
)
spoilt = damaged(times.map(lambda text: text.encode("utf-8"))).map(lambda data: data.decode("utf-8", "surrogateescape"))
values = words | times | dates | spoilt | st.text() | st.floats().map(str) | st.integers().map(str)


@examples(500)
@given(st.sampled_from(["retry-after", "retry-after-ms", "ratelimit-reset"]), values, st.none() | values)
def test_it_is_a_float_that_can_be_slept_or_none(header, wish, date):
    seconds = retry_after({header: wish} if date is None else {header: wish, "date": date}, 429)
    assert seconds is None or (type(seconds) is float and 0 <= seconds <= CAP)
