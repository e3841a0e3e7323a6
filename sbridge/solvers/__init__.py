"""Solvers, one file per method."""

from sbridge.solvers.base import Solver
from sbridge.solvers.conformance import check_solver
from sbridge.solvers.gaussian import GaussianBridge
from sbridge.solvers.imf import IMF
from sbridge.solvers.sinkhorn import SinkhornBridge

__all__ = ["IMF", "GaussianBridge", "SinkhornBridge", "Solver", "check_solver"]
