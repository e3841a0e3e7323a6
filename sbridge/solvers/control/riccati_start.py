"""The linear–quadratic problem nearest to a control problem, as a warm start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.errors import UnsupportedError
from sbridge.problems import ControlProblem
from sbridge.processes import LinearProcess, StepRule
from sbridge.registry import register
from sbridge.riccati import ChainRiccati, Quadratic
from sbridge.solvers.control.starts import WarmStart
from sbridge.time import TimeGrid


@register
@dataclass(frozen=True)
class RiccatiStart(WarmStart):
    """The optimal control of the chain for both costs expanded to second order about the mean start.

    Curvatures below zero are taken as zero, so that the expanded problem has a solution. Exact for quadratic costs. The
    running cost is expanded at ``t = 0``.
    """

    def control(self, problem: ControlProblem, grid: TimeGrid, rule: StepRule) -> Control:
        """An affine control.

        Raises:
            UnsupportedError: for a process that is not linear, or with a stopping set.
        """
        if not isinstance(problem.process, LinearProcess) or problem.stopping is not None:
            raise UnsupportedError(
                "RiccatiStart needs a linear process such as OrnsteinUhlenbeck and no stopping set; start from a "
                "control that you know, EarlierStart(control), or from ZeroStart()."
            )
        costs, centre = problem.costs, problem.probe.double().mean(0).cpu()
        running = _expanded(lambda x: costs.rate(0.0, x), centre)
        return ChainRiccati(problem.process, running, _expanded(costs.end, centre), grid, rule).control


def _expanded(cost: Callable[[Tensor], Tensor], centre: Tensor) -> Quadratic:
    """Value, gradient and curvature at ``centre``."""

    def alone(x: Tensor) -> Tensor:
        return cost(x.unsqueeze(0)).sum()

    with torch.enable_grad():
        x = centre.clone().requires_grad_()
        value = alone(x)
        gradient = torch.autograd.grad(value, x)[0] if value.requires_grad else torch.zeros_like(centre)
        hessian = torch.autograd.functional.hessian(alone, centre)
    if not isinstance(hessian, Tensor):
        raise UnsupportedError("a cost of one argument has one matrix of second derivatives.")
    curvatures, vectors = torch.linalg.eigh(0.5 * (hessian + hessian.mT))
    half = 0.5 * (vectors * curvatures.clamp_min(0.0)) @ vectors.mT
    vector = gradient - 2.0 * half @ centre
    constant = float(value.detach() - gradient @ centre + centre @ half @ centre)
    return Quadratic(0.5 * (half + half.mT), vector, constant)
