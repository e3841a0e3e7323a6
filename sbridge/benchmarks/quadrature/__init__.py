"""Optimal control in one dimension to high precision: the chain by dynamic programming, its limit by eigenfunctions.

With :class:`CoordinateControl` these are the exact answers of separable problems in any dimension.
"""

from sbridge.benchmarks.quadrature.chain import ChainOnLine, LineSolution
from sbridge.benchmarks.quadrature.controls import CoordinateControl, TabulatedControl
from sbridge.benchmarks.quadrature.limit import LimitOnLine
from sbridge.benchmarks.quadrature.problem import Barrier, LineProblem

__all__ = [
    "Barrier",
    "ChainOnLine",
    "CoordinateControl",
    "LimitOnLine",
    "LineProblem",
    "LineSolution",
    "TabulatedControl",
]
