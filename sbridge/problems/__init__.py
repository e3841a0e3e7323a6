"""Problems: a Schrödinger bridge, stochastic optimal control, sampling from a density."""

from sbridge.problems.base import BridgeProblem, ControlProblem, unabsorbed_cost, unknown_transition, unsampled_end
from sbridge.problems.costs import (
    AbsorbedCost,
    BridgeCorrection,
    Costs,
    Quadratic,
    RunningCost,
    StateCost,
    StoppingSet,
    TerminalCost,
    quadratic_reference,
)
from sbridge.problems.sampling import sampling_problem

__all__ = [
    "AbsorbedCost",
    "BridgeCorrection",
    "BridgeProblem",
    "ControlProblem",
    "Costs",
    "Quadratic",
    "RunningCost",
    "StateCost",
    "StoppingSet",
    "TerminalCost",
    "quadratic_reference",
    "sampling_problem",
    "unabsorbed_cost",
    "unknown_transition",
    "unsampled_end",
]
