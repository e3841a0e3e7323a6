"""Differentiable losses, on simulated paths with the sampling control ``v`` or on noised samples."""

from sbridge.objectives.adjoint import adjoint_targets, lean_adjoint, mixed_targets, terminal_gradient
from sbridge.objectives.control import (
    control_objective,
    control_values,
    cross_entropy,
    log_variance,
    log_weight,
    moment,
    relative_entropy,
    residual,
)

__all__ = [
    "adjoint_targets",
    "control_objective",
    "control_values",
    "cross_entropy",
    "lean_adjoint",
    "log_variance",
    "log_weight",
    "mixed_targets",
    "moment",
    "relative_entropy",
    "residual",
    "terminal_gradient",
]
