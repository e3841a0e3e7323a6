"""Reference processes, from which a bridge deviates as little as possible."""

from sbridge.processes.base import LinearProcess, Pinned, Process, Transition
from sbridge.processes.brownian import BrownianMotion
from sbridge.processes.chain import (
    Chain,
    Direction,
    EulerMaruyama,
    ExactTransition,
    KineticSplitting,
    StepRule,
    default_rule,
)
from sbridge.processes.conformance import check_process
from sbridge.processes.drift import DriftProcess
from sbridge.processes.grids import log_snr_grid
from sbridge.processes.ornstein_uhlenbeck import OrnsteinUhlenbeck
from sbridge.processes.rescaled import RescaledLinearProcess, RescaledProcess, rescale
from sbridge.processes.reversed import ReversedDrift
from sbridge.processes.schedules import CosineSchedule, LinearSchedule, Schedule
from sbridge.processes.tilted import TiltedLinearProcess
from sbridge.processes.underdamped import UnderdampedDrift, UnderdampedLangevin
from sbridge.processes.variance import VarianceExploding, VariancePreserving

__all__ = [
    "BrownianMotion",
    "Chain",
    "CosineSchedule",
    "Direction",
    "DriftProcess",
    "EulerMaruyama",
    "ExactTransition",
    "KineticSplitting",
    "LinearProcess",
    "LinearSchedule",
    "OrnsteinUhlenbeck",
    "Pinned",
    "Process",
    "RescaledLinearProcess",
    "RescaledProcess",
    "ReversedDrift",
    "Schedule",
    "StepRule",
    "TiltedLinearProcess",
    "Transition",
    "UnderdampedDrift",
    "UnderdampedLangevin",
    "VarianceExploding",
    "VariancePreserving",
    "check_process",
    "default_rule",
    "log_snr_grid",
    "rescale",
]
