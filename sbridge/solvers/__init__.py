"""Solvers, one file per method."""

from sbridge.solvers.adjoint_bridge import AdjointBridge
from sbridge.solvers.base import Method, Solver
from sbridge.solvers.conformance import check_solver
from sbridge.solvers.control import (
    AdjointMatching,
    Annealing,
    ControlSolver,
    CrossEntropy,
    EarlierStart,
    GaussianStart,
    LogVariance,
    Moment,
    PosteriorMatching,
    PosteriorNetwork,
    ReciprocalAdjointMatching,
    RelativeEntropy,
    Replay,
    RiccatiStart,
    TrustRegion,
    WarmStart,
    ZeroStart,
)
from sbridge.solvers.density_ratio import DensityRatio
from sbridge.solvers.density_sampler import DensitySampler
from sbridge.solvers.gaussian import GaussianBridge
from sbridge.solvers.half_bridges import AdjointHalfBridge, HalfBridge, MaximumLikelihood, MeanMatching, PinnedPaths
from sbridge.solvers.imf import IMF
from sbridge.solvers.ipf import IPF
from sbridge.solvers.learners import control_learner
from sbridge.solvers.matched import MatchedBridge
from sbridge.solvers.mixture import Covariance, MixtureBridge
from sbridge.solvers.sinkhorn import SinkhornBridge
from sbridge.training import Derived, Learner, State

__all__ = [
    "IMF",
    "IPF",
    "AdjointBridge",
    "AdjointHalfBridge",
    "AdjointMatching",
    "Annealing",
    "ControlSolver",
    "Covariance",
    "CrossEntropy",
    "DensityRatio",
    "DensitySampler",
    "Derived",
    "EarlierStart",
    "GaussianBridge",
    "GaussianStart",
    "HalfBridge",
    "Learner",
    "LogVariance",
    "MatchedBridge",
    "MaximumLikelihood",
    "MeanMatching",
    "Method",
    "MixtureBridge",
    "Moment",
    "PinnedPaths",
    "PosteriorMatching",
    "PosteriorNetwork",
    "ReciprocalAdjointMatching",
    "RelativeEntropy",
    "Replay",
    "RiccatiStart",
    "SinkhornBridge",
    "Solver",
    "State",
    "TrustRegion",
    "WarmStart",
    "ZeroStart",
    "check_solver",
    "control_learner",
]
