"""Training hours: when a hospital lets its machine take part, in its own local time.

Rules.
- A window is `DAYS HH:MM-HH:MM`, days `mon` or `mon-fri`, wrapping allowed (`fri-mon`). An end at or
  before its start lies on the next day, so `mon-fri 19:00-06:00` ends on Saturday at six.
- No window at all means always. The end is exclusive; `24:00` is the end of the day.
Not done here: clocks and time zones (the caller hands in a local `datetime`).

    >>> from datetime import datetime
    >>> is_within(("mon-fri 19:00-06:00",), datetime(2026, 1, 3, 5, 59))  # a Saturday
    True
"""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 24 * 60

_FORM = re.compile(r"^([a-z]{3})(?:-([a-z]{3}))? ([0-9]{2}):([0-9]{2})-([0-9]{2}):([0-9]{2})$")


def _checked(text: str) -> str:
    _parse(text)
    return text


Window = Annotated[str, StringConstraints(max_length=30), AfterValidator(_checked)]
"""One window, as a person writes it."""


def is_within(windows: Sequence[str], moment: datetime) -> bool:
    """Return whether `moment` (local time) lies in one of `windows`, or there are none."""
    return not windows or any(_covers(window, moment) for window in windows)


def _covers(window: str, moment: datetime) -> bool:
    days, start, end = _parse(window)
    minute, today = moment.hour * 60 + moment.minute, moment.weekday()
    if start < end:
        return today in days and start <= minute < end
    return (today in days and minute >= start) or ((today - 1) % 7 in days and minute < end)


def _parse(text: str) -> tuple[frozenset[int], int, int]:
    """Return (weekdays, first minute, end minute)."""
    found = _FORM.match(text)
    if found is None or found[1] not in DAYS or (found[2] or found[1]) not in DAYS:
        raise ValueError("write it as mon-fri 19:00-06:00")
    first, last = DAYS.index(found[1]), DAYS.index(found[2] or found[1])
    start, end = _minute(found[3], found[4]), _minute(found[5], found[6])
    if start >= DAY_MINUTES:
        raise ValueError("a window starts before 24:00")
    return frozenset((first + i) % 7 for i in range((last - first) % 7 + 1)), start, end


def _minute(hours: str, minutes: str) -> int:
    minute = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or minute > DAY_MINUTES:
        raise ValueError("times lie between 00:00 and 24:00")
    return minute
