"""Time grids, as fractions of the horizon, so that one grid serves processes of any horizon; times given by users.

Times that differ by rounding alone (``0.1 + 0.2`` and ``0.3``) are the same time everywhere: see :func:`snapped`.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import overload

import numpy as np
import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, shown
from sbridge.storage.registry import register

_ROUNDING = 1e-9  # of the whole stretch of time
_NUMBER = r"\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+"


@register
@dataclass(frozen=True)
class TimeGrid:
    """Grid of knots ``0 = τ_0 < τ_1 < … < τ_N = 1``; the times of a process are ``t_k = τ_k T``.

    Raises:
        InvalidInputError: if the fractions do not rise strictly from 0 to 1.
    """

    fractions: tuple[float, ...]

    def __post_init__(self) -> None:
        knots = tuple(float(value) for value in self.fractions)
        rising = all(a < b for a, b in pairwise(knots))
        if len(knots) < 2 or knots[0] != 0.0 or knots[-1] != 1.0 or not rising:
            raise InvalidInputError(
                "A time grid needs at least two strictly increasing fractions of the horizon, the first 0 "
                f"and the last 1; got {_abbreviated(knots)}. Divide by the horizon, or use TimeGrid.uniform(steps)."
            )
        object.__setattr__(self, "fractions", knots)

    def __repr__(self) -> str:
        return f"TimeGrid({_abbreviated(self.fractions)}, steps={self.steps})"

    @classmethod
    def uniform(cls, steps: int) -> TimeGrid:
        """Makes ``steps`` equal steps."""
        _check_steps(steps)
        return cls((*(k / steps for k in range(steps)), 1.0))

    @classmethod
    def refined(cls, steps: int, exponent: float = 2.0) -> TimeGrid:
        """Makes steps that shrink towards the end: ``τ_k = 1 − (1 − k/N)^exponent`` (``exponent`` < 1: towards 0)."""
        _check_steps(steps)
        if not exponent > 0:
            raise InvalidInputError(f"exponent must be positive, got {exponent}.")
        return cls((*(1.0 - (1.0 - k / steps) ** exponent for k in range(steps)), 1.0))

    @classmethod
    def cosine(cls, steps: int) -> TimeGrid:
        """Makes steps that shrink towards both ends: ``τ_k = ½(1 − cos(πk/N))``; the outermost are about ``π²/4N²``."""
        _check_steps(steps)
        return cls((*(0.5 * (1.0 - math.cos(math.pi * k / steps)) for k in range(steps)), 1.0))

    @property
    def steps(self) -> int:
        """The number of steps ``N``."""
        return len(self.fractions) - 1

    def times(self, horizon: float) -> Tensor:
        """Returns ``t_k = τ_k · horizon`` in float64, shape ``(steps + 1,)``."""
        return torch.tensor(self.fractions, dtype=torch.float64, device="cpu") * horizon

    def including(self, fractions: Iterable[float]) -> TimeGrid:
        """Returns this grid with further knots inserted, except those within 1e-9 of an existing knot."""
        knots = list(self.fractions)
        for value in fractions:
            if not 0.0 <= value <= 1.0:
                raise InvalidInputError(f"time {value} (as a fraction of the horizon) is outside [0, 1].")
            if abs(knots[nearest_index(knots, value)] - value) > 1e-9:
                knots.insert(bisect_left(knots, value), float(value))
        return TimeGrid(tuple(knots))

    def index(self, fraction: float) -> int:
        """Returns the index of the knot nearest to ``fraction``."""
        return nearest_index(self.fractions, fraction)


def nearest_index(knots: tuple[float, ...] | list[float], value: float) -> int:
    """Returns the index of the entry of the sorted ``knots`` nearest to ``value``."""
    right = min(bisect_left(knots, value), len(knots) - 1)
    left = max(right - 1, 0)
    return left if value - knots[left] <= knots[right] - value else right


def snapped(t: float, knots: Sequence[float]) -> float:
    """Returns the one of the sorted ``knots`` that differs from ``t`` only by rounding, else ``t`` itself.

    Rounding is a difference of at most 1e-9 of the stretch between the first and the last knot, or of four units in
    the last place where the times are large (seconds since 1970).
    """
    knot = knots[nearest_index(tuple(knots), t)]
    return knot if abs(t - knot) <= _rounding(knots[0], knots[-1]) else t


@overload
def mirrored(t: Tensor, horizon: float) -> Tensor: ...
@overload
def mirrored(t: float, horizon: float) -> float: ...
@overload
def mirrored(t: float | Tensor, horizon: float) -> float | Tensor: ...
def mirrored(t: float | Tensor, horizon: float) -> float | Tensor:
    """Returns ``T − t``, not below 0: for t close to T the difference may be rounded below it."""
    left = horizon - t
    return left.clamp_min(0.0) if isinstance(left, Tensor) else max(left, 0.0)


def same_times(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct values of ``times``, increasing, and for each time the index of its value.

    Args:
        times: finite numbers, shape ``(n,)``.
    """
    values = np.unique(times)
    gap = _rounding(float(values[0]), float(values[-1]))
    values = values[np.concatenate([[True], np.diff(values) > gap])]
    return values, np.searchsorted(values, times + gap, side="right") - 1


def times_of_labels(labels: Iterable[str]) -> dict[str, float] | None:
    """Returns the number in each label, if all labels are the same text around one number each; else ``None``.

    ``day2, day10`` are 2 and 10, ``D-1, D0`` are −1 and 0, ``day-2, day-10`` are 2 and 10: a minus sign that all labels
    have is a hyphen.
    """
    labels = list(labels)
    for pattern in (_NUMBER, rf"-?(?:{_NUMBER})"):
        found = [list(re.finditer(pattern, label, re.IGNORECASE)) for label in labels]
        if any(len(numbers) != 1 for numbers in found):
            continue
        around = {
            (label[: hit.start()].lower(), label[hit.end() :].lower())
            for label, (hit,) in zip(labels, found, strict=True)
        }
        if len(around) == 1:
            return {label: float(hit[0]) for label, (hit,) in zip(labels, found, strict=True)}
    return None


def _rounding(first: float, last: float) -> float:
    return max(_ROUNDING * (last - first), 4 * np.finfo(float).eps * max(abs(first), abs(last)))


def _check_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InvalidInputError(f"steps must be a positive integer, got {shown(steps)}.")


def _abbreviated(knots: tuple[float, ...]) -> str:
    shown = [f"{value:g}" for value in knots]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "…", *shown[-2:]])
