"""What a solver is: plain data that knows how to begin, take one step, and hand over a bridge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

import torch

from sbridge.problems import BridgeProblem
from sbridge.scaling import CommonScale, ScalingRecipe
from sbridge.solutions import Bridge
from sbridge.training import Flat, Info, State

S = TypeVar("S", bound=State)


class Solver(ABC, Generic[S]):
    """Base of all bridge solvers, which are frozen dataclasses of hyperparameters.

    The manual loop, which :func:`sbridge.solve` runs with callbacks::

        state = solver.init(problem, generator)
        while not solver.finished(problem, state):
            state, info = solver.step(problem, state)
        bridge = solver.finish(problem, state)

    ``solver.restore(problem, state.flat())`` goes on where a state left off, bit for bit.

    Attributes:
        scaling: how data are scaled for it unless the user says otherwise; of the class, no option.
    """

    scaling: ClassVar[ScalingRecipe] = CommonScale()

    def refusal(self, problem: BridgeProblem) -> str | None:
        """Why this solver cannot treat ``problem`` (a full sentence with the cure), or ``None`` if it can."""
        return None

    @abstractmethod
    def length(self, problem: BridgeProblem) -> int:
        """The number of steps, or the largest number if it depends on convergence."""

    def finished(self, problem: BridgeProblem, state: S) -> bool:
        """Whether the state needs no further step."""
        return state.step >= self.length(problem)

    @abstractmethod
    def init(self, problem: BridgeProblem, generator: torch.Generator) -> S:
        """The state before the first step; all later randomness comes from ``generator``."""

    @abstractmethod
    def step(self, problem: BridgeProblem, state: S) -> tuple[S, Info]:
        """One step and its numbers (a loss, an error). The state may be changed in place."""

    @abstractmethod
    def restore(self, problem: BridgeProblem, flat: Flat) -> S:
        """The state whose :meth:`~sbridge.training.State.flat` form is ``flat``."""

    @abstractmethod
    def finish(self, problem: BridgeProblem, state: S) -> Bridge:
        """The bridge that the state holds."""
