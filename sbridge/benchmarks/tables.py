"""What the accuracy benchmarks share: the solvers that are compared, and how rows are printed."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sbridge.coupling import IndependentCoupling
from sbridge.solvers.base import Solver
from sbridge.solvers.gaussian import GaussianBridge
from sbridge.solvers.imf import IMF
from sbridge.solvers.sinkhorn import SinkhornBridge

SOLVERS: dict[str, Solver] = {
    "IMF (default)": IMF(),
    "IMF, independent start": IMF(start=IndependentCoupling()),
    "SinkhornBridge": SinkhornBridge(),
    "GaussianBridge": GaussianBridge(),
}
"""Every solver with its default options: one set for all tables."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Mean:
    """A mean over repetitions with its standard error (0 for a single one)."""

    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.standard_error:.1g}"


def mean(values: Sequence[float]) -> Mean:
    """Mean and standard error of ``values``."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return Mean(statistics.fmean(values), error)


def timed(task: Callable[[], _T]) -> tuple[_T, float]:
    """The result and its wall time in seconds."""
    begin = time.perf_counter()
    return task(), time.perf_counter() - begin


def row(name: str, **cells: object) -> None:
    """One line on standard output, at once."""
    text = "  ".join(f"{key} {value}" for key, value in cells.items())
    sys.stdout.write(f"{name:<34}{text}\n")
    sys.stdout.flush()
