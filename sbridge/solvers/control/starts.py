"""Where control learning begins, and how a terminal cost is brought in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from sbridge.controls import Control
from sbridge.errors import InvalidInputError
from sbridge.objectives.costs import Costs, TerminalCost
from sbridge.problems import ControlProblem
from sbridge.processes import StepRule
from sbridge.registry import register
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
