"""How numbers are written for people: one form for a value with its standard error, one for a time."""

from __future__ import annotations

import math

_MOST_DECIMALS = 6
_LARGEST = 1e7


def decimals_of(error: float) -> int:
    """Decimals that show a positive ``error`` to one digit, or to two if it begins with 1 or 2."""
    return max(0, -math.floor(math.log10(error / 3.0)))


def value_and_error(value: float, error: float, decimals: int | None = None) -> str:
    """``value ± error``, both to the decimals that the error is worth; with a power of ten if they are far from 1.

    Args:
        value: any finite number.
        error: its standard error; 0 or infinite where nothing is known of it.
        decimals: of both, where several numbers share a column; :func:`decimals_of` the error if ``None``.
    """
    if decimals is not None:
        return f"{value:.{decimals}f} ± {error:.{decimals}f}"
    if not 0.0 < error < math.inf:
        return f"{value:.6g} ± {error:g}"
    size = max(abs(value), error)
    if decimals_of(error) <= _MOST_DECIMALS and size < _LARGEST:
        return value_and_error(value, error, decimals_of(error))
    power = math.floor(math.log10(size))
    scaled = error / 10.0**power
    return f"({value_and_error(value / 10.0**power, scaled, min(decimals_of(scaled), _MOST_DECIMALS))})e{power}"


def time_text(t: float) -> str:
    """A time to twelve digits: ``0.3`` for ``0.1 + 0.2``, and all digits of seconds since 1970."""
    return f"{t:.12g}"
