"""Where control learning begins, and how a terminal cost is brought in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.exact.riccati import ChainRiccati
from sbridge.problems import ControlProblem, Quadratic
from sbridge.problems.costs import Costs, TerminalCost
from sbridge.processes import LinearProcess, StepRule
from sbridge.storage.registry import register
from sbridge.time import TimeGrid


class WarmStart(ABC):
    """A control from which learning starts: the network, zero at first, is added to it."""

    @abstractmethod
    def control(self, problem: ControlProblem, grid: TimeGrid, rule: StepRule) -> Control | None:
        """The control that is kept fixed below the network, for the chain that ``grid`` and ``rule`` make.

        It follows from the arguments alone, draws nothing, and takes times ``()`` and ``(batch,)``; ``None``: zero.
        """


@register
@dataclass(frozen=True)
class ZeroStart(WarmStart):
    """From the uncontrolled process."""

    def control(self, problem: ControlProblem, grid: TimeGrid, rule: StepRule) -> None:
        """None."""
        return None


@register
@dataclass(frozen=True, eq=False)
class EarlierStart(WarmStart):
    """From a control that is known, such as ``solution.control`` of an easier problem or a coarser grid."""

    earlier: Control

    def control(self, problem: ControlProblem, grid: TimeGrid, rule: StepRule) -> Control:
        """``earlier``."""
        return self.earlier


@register
@dataclass(frozen=True)
class Annealing:
    """The terminal cost as ``λ g``, with λ rising geometrically from ``first`` to 1 over a share of the updates.

    While λ is small the optimal law is broad, so that paths find all modes of a multimodal ``e^{−g}`` before any one of
    them attracts the control.
    """

    first: float = 0.01
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.first <= 1.0 or not 0.0 < self.share <= 1.0:
            raise InvalidInputError(f"first and share must lie in (0, 1], got {self.first} and {self.share}.")

    def factor(self, progress: float) -> float:
        """λ after a share ``progress`` of all updates."""
        return self.first ** max(0.0, 1.0 - progress / self.share)

    def costs(self, costs: Costs, progress: float) -> Costs:
        """The same costs with ``λ g``."""
        factor = self.factor(progress)
        if costs.terminal is None or factor == 1.0:
            return costs
        return Costs(costs.running, _Scaled(costs.terminal, factor), costs.stopping)


@dataclass(frozen=True, eq=False)
class _Scaled:
    cost: TerminalCost
    factor: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.factor * self.cost(x)


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
