"""How numbers are written for people."""

import math
import re

import pytest

from sbridge.display import time_text, value_and_error


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (556.7, 13.2, "557 ± 13"),
        (1.23456, 0.0123, "1.235 ± 0.012"),
        (1.23456, 0.0567, "1.23 ± 0.06"),
        (123.4, 25.0, "123 ± 25"),
        (-0.004, 0.0051, "-0.004 ± 0.005"),
        (5567.0, 1234.0, "5567 ± 1234"),
        (1.2e-9, 3.1e-10, "(1.2 ± 0.3)e-9"),
        (5.4e9, 2.4e8, "(5.40 ± 0.24)e9"),
        (0.0, 4e-9, "(0 ± 4)e-9"),
        (0.5, 0.0, "0.5 ± 0"),
        (0.5, math.inf, "0.5 ± inf"),
    ],
)
def test_a_value_has_the_decimals_that_its_error_is_worth(value, error, text):
    assert value_and_error(value, error) == text


@pytest.mark.parametrize("error", [10.0**k * digit for k in range(-12, 12) for digit in (1.0, 1.4, 2.7, 3.1, 6.0, 9.9)])
def test_the_error_that_is_written_is_near_the_error(error):
    """Of one digit it is off by at most half of its last: 1/2 in 3."""
    shown = value_and_error(7.3 * error, error)
    inside, power = re.fullmatch(r"\(?([^()]+)\)?(?:e(-?\d+))?", shown).groups()
    value, _, spread = inside.partition(" ± ")
    scale = 10.0 ** int(power or 0)
    assert float(spread) * scale == pytest.approx(error, rel=0.17)
    assert float(value) * scale == pytest.approx(7.3 * error, abs=0.17 * error)


def test_times_keep_their_digits():
    assert [time_text(t) for t in (0.1 + 0.2, 4.0, 1.7e9 + 50, 2.5)] == ["0.3", "4", "1700000050", "2.5"]
