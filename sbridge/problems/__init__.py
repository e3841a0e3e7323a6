"""Problems: a Schrödinger bridge, stochastic optimal control, sampling from a density."""

from sbridge.problems.base import BridgeProblem, ControlProblem, unknown_transition, unsampled_end
from sbridge.problems.costs import BridgeCorrection, Costs, Quadratic, RunningCost, StoppingSet, TerminalCost
from sbridge.problems.sampling import sampling_problem

__all__ = [
    "BridgeCorrection",
    "BridgeProblem",
    "ControlProblem",
    "Costs",
    "Quadratic",
    "RunningCost",
    "StoppingSet",
    "TerminalCost",
    "sampling_problem",
    "unknown_transition",
    "unsampled_end",
]
