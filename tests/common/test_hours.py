"""Training hours against a slow reference that walks the week minute by minute."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from wardround_common.hours import DAYS, Window, is_within

MONDAY = datetime(2026, 1, 5)
WEEK = 7 * 24 * 60


def slow(first: int, last: int, start: int, end: int) -> set[int]:
    """Minutes of the week in a window, by walking through each of its days."""
    found: set[int] = set()
    day = first
    while True:
        length = end - start if end > start else end + 24 * 60 - start
        found |= {(day * 24 * 60 + start + i) % WEEK for i in range(length)}
        if day == last:
            return found
        day = (day + 1) % 7


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 1439), st.integers(0, 1440), st.integers(0, WEEK - 1))
def test_like_the_reference(first: int, last: int, start: int, end: int, minute: int) -> None:
    text = f"{DAYS[first]}-{DAYS[last]} {start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
    assert is_within((text,), MONDAY + timedelta(minutes=minute)) == (minute in slow(first, last, start, end))


def test_no_window_means_always_and_several_add_up() -> None:
    assert is_within((), MONDAY)
    assert is_within(("tue 00:00-24:00", "mon 00:00-00:01"), MONDAY)
    assert not is_within(("tue 00:00-24:00", "mon 00:01-24:00"), MONDAY)


@pytest.mark.parametrize(
    "text", ["", "mon", "mon 24:00-06:00", "mon 19:60-20:00", "mon 19:00-24:01", "xyz 01:00-02:00", "Mon 01:00-02:00"]
)
def test_a_malformed_window_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Window).validate_python(text)
