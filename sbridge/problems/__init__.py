"""Problems: a Schrödinger bridge, stochastic optimal control, sampling from a density."""

from sbridge.problems.base import (
    BridgeProblem,
    ControlProblem,
    noiseless_coordinate,
    not_plain,
    unknown_transition,
    unsampled_end,
)
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
from sbridge.problems.ends import Growth, Reweighting, SoftEnds
from sbridge.problems.sampling import sampling_problem

__all__ = [
    "AbsorbedCost",
    "BridgeCorrection",
    "BridgeProblem",
    "ControlProblem",
    "Costs",
    "Growth",
    "Quadratic",
    "Reweighting",
    "RunningCost",
    "SoftEnds",
    "StateCost",
    "StoppingSet",
    "TerminalCost",
    "noiseless_coordinate",
    "not_plain",
    "quadratic_reference",
    "sampling_problem",
    "unknown_transition",
    "unsampled_end",
]
