"""Solvers of control problems: one network, one loop, one loss each."""

from sbridge.solvers.control.adjoint import AdjointMatching, Replay
from sbridge.solvers.control.base import ControlSolver, ControlState
from sbridge.solvers.control.entropy import RelativeEntropy
from sbridge.solvers.control.posterior import PosteriorNetwork
from sbridge.solvers.control.posterior_matching import PosteriorMatching
from sbridge.solvers.control.ratios import CrossEntropy, LogVariance, Moment
from sbridge.solvers.control.reciprocal import ReciprocalAdjointMatching
from sbridge.solvers.control.starts import Annealing, EarlierStart, GaussianStart, RiccatiStart, WarmStart, ZeroStart
from sbridge.solvers.control.trust_region import TrustRegion

__all__ = [
    "AdjointMatching",
    "Annealing",
    "ControlSolver",
    "ControlState",
    "CrossEntropy",
    "EarlierStart",
    "GaussianStart",
    "LogVariance",
    "Moment",
    "PosteriorMatching",
    "PosteriorNetwork",
    "ReciprocalAdjointMatching",
    "RelativeEntropy",
    "Replay",
    "RiccatiStart",
    "TrustRegion",
    "WarmStart",
    "ZeroStart",
]
