"""Costs of a control problem, quadratic costs, and sets on which paths stop."""

from sbridge.problems.costs.absorbed import AbsorbedCost, absorb, quadratic_reference
from sbridge.problems.costs.base import (
    WITHOUT_GRADIENTS,
    Costs,
    RunningCost,
    StateCost,
    TerminalCost,
    checked,
    hides_gradient,
    rescaled_cost,
)
from sbridge.problems.costs.quadratic import Quadratic
from sbridge.problems.costs.stopping import BridgeCorrection, StoppingSet

__all__ = [
    "WITHOUT_GRADIENTS",
    "AbsorbedCost",
    "BridgeCorrection",
    "Costs",
    "Quadratic",
    "RunningCost",
    "StateCost",
    "StoppingSet",
    "TerminalCost",
    "absorb",
    "checked",
    "hides_gradient",
    "quadratic_reference",
    "rescaled_cost",
]
