"""Common parts of the accuracy benchmarks: the compared solvers, means and times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from sbridge.couplings import IndependentCoupling
from sbridge.measures import Estimate
from sbridge.solvers.base import Solver
from sbridge.solvers.gaussian import GaussianBridge
from sbridge.solvers.imf import IMF
from sbridge.solvers.ipf import IPF
from sbridge.solvers.matched import MatchedBridge
from sbridge.solvers.mixture import MixtureBridge
from sbridge.solvers.sinkhorn import SinkhornBridge

SOLVERS: dict[str, Solver] = {
    "IMF": IMF(),
    "IMF, independent start": IMF(coupling=IndependentCoupling()),
    "MatchedBridge": MatchedBridge(),
    "SinkhornBridge": SinkhornBridge(),
    "MixtureBridge": MixtureBridge(),
    "IPF": IPF(),
    "GaussianBridge": GaussianBridge(),
}
"""All solvers with their default options: one set for all tables."""

_T = TypeVar("_T")


def mean(values: Sequence[float]) -> Estimate:
    """Computes the mean of ``values`` over repetitions; the standard error of a single one is infinite."""
    return Estimate.of(torch.tensor(values)) if len(values) > 1 else Estimate(values[0], math.inf, 1)


def timed(task: Callable[[], _T]) -> tuple[_T, float]:
    """Returns the result and the CPU time of this process in seconds, little affected by other work on the machine.

    With one thread (``OMP_NUM_THREADS=1``) it is the wall time of a machine that does nothing else.
    """
    begin = time.process_time()
    return task(), time.process_time() - begin
