"""Losses that need likelihood ratios only: no gradient of a cost, and paths may stop."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sbridge.controls import NetworkControl
from sbridge.errors import InvalidInputError
from sbridge.measures import Paths, effective_sample_size
from sbridge.objectives.control import (
    control_objective,
    control_values,
    cross_entropy,
    log_variance,
    log_weight,
    moment,
    residual,
)
from sbridge.problems import ControlProblem
from sbridge.problems.costs import Costs
from sbridge.solvers.control.base import ControlSolver, ControlState
from sbridge.storage.registry import register
from sbridge.training import Info


@register
@dataclass(frozen=True)
class LogVariance(ControlSolver):
    """Log-variance loss (Nüsken & Richter 2021, arXiv:2005.05409) on paths of the current control, as constants.

    ``Var Ỹ`` of the log density of the optimal path law against the controlled one. Its gradient vanishes path by path
    at the optimum, so accuracy is not limited by Monte Carlo noise there.

    Args:
        optimisation: ``batch`` is the number of paths of an update.
    """

    def loss(self, problem: ControlProblem, costs: Costs, state: ControlState) -> tuple[Tensor, Info]:
        """The variance over a batch of paths."""
        paths, alive = self.sample(problem, state, state.control, self.optimisation.batch)
        loss = log_variance(paths, costs, control_values(state.control, paths), alive)
        return loss, {"objective": _objective(paths, problem, alive)}


@register
@dataclass(frozen=True)
class CrossEntropy(ControlSolver):
    """Cross-entropy ``KL(P* ‖ P^u)`` (Zhang et al. 2014; Nüsken & Richter 2021), weighted paths of the current control.

    Convex in the control, but only as good as the importance weights: watch the effective sample size that it reports.

    Args:
        optimisation: ``batch`` is the number of paths of an update.
    """

    def loss(self, problem: ControlProblem, costs: Costs, state: ControlState) -> tuple[Tensor, Info]:
        """The weighted likelihood over a batch of paths."""
        paths, alive = self.sample(problem, state, state.control, self.optimisation.batch)
        loss = cross_entropy(paths, costs, control_values(state.control, paths), alive)
        size = effective_sample_size(log_weight(paths, costs, alive))
        return loss, {"objective": _objective(paths, problem, alive), "effective sample size": size}


@register
@dataclass(frozen=True)
class Moment(ControlSolver):
    """Moment loss ``E (Ỹ + y_0)²`` with a learned ``y_0``, which estimates the value (Nüsken & Richter 2021).

    Args:
        optimisation: ``batch`` is the number of paths of an update.
    """

    def scales(self, problem: ControlProblem, state: ControlState) -> dict[str, float]:
        """Also mean and standard deviation of ``Ỹ`` at first: ``y_0`` starts at one, in units of the other."""
        paths, alive = self.sample(problem, state, state.base, self.optimisation.batch)
        first = residual(paths, problem.costs, paths.v, alive)
        spread = {"centre": -float(first.mean()), "spread": max(float(first.std()), 1e-6)}
        return super().scales(problem, state) | spread

    def module(self, network: NetworkControl, scales: dict[str, float]) -> nn.Module:
        """The network and ``y_0``."""
        return _WithOffset(network, scales["centre"], scales["spread"])

    def loss(self, problem: ControlProblem, costs: Costs, state: ControlState) -> tuple[Tensor, Info]:
        """The second moment over a batch of paths."""
        paths, alive = self.sample(problem, state, state.control, self.optimisation.batch)
        module = state.learner.module
        if not isinstance(module, _WithOffset):
            raise InvalidInputError(f"a control with its offset is trained here, found {type(module).__name__}.")
        offset = module.offset
        loss = moment(paths, costs, control_values(state.control, paths), offset, alive)
        return loss, {"objective": _objective(paths, problem, alive), "y0": float(offset.detach())}


class _WithOffset(nn.Module):
    """A control and the number ``y_0 = centre + spread · θ``."""

    def __init__(self, control: NetworkControl, centre: float, spread: float) -> None:
        super().__init__()
        self.control = control
        self.theta = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.centre, self.spread = centre, spread

    @property
    def offset(self) -> Tensor:
        """``y_0``."""
        return self.centre + self.spread * self.theta


def _objective(paths: Paths, problem: ControlProblem, alive: Tensor | None) -> float:
    return float(control_objective(paths, problem.costs, alive).mean())
