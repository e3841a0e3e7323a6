"""What a solver is: plain data that knows how to begin, take one step, and hand over a solution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

import torch

from sbridge.laws.scaling import CommonScale, ScalingRecipe
from sbridge.problems import BridgeProblem
from sbridge.solutions import Bridge
from sbridge.storage.registry import check_kinds
from sbridge.training import Flat, Info, State

P = TypeVar("P")
S = TypeVar("S", bound=State)
R = TypeVar("R")


class Method(ABC, Generic[P, S, R]):
    """Base of all solvers, which are frozen dataclasses of hyperparameters: problem ``P``, state ``S``, solution ``R``.

    The manual loop, which :func:`sbridge.solve` runs with callbacks::

        state = solver.init(problem, generator)
        while not solver.finished(problem, state):
            state, info = solver.step(problem, state)
        solution = solver.finish(problem, state)

    ``solver.restore(problem, state.flat())`` goes on where a state left off, bit for bit.

    Attributes:
        treats: the kind of problem it is made for.
    """

    treats: ClassVar[type]

    def __post_init__(self) -> None:
        """Every option must be of its kind."""
        check_kinds(self)

    def refusal(self, problem: P) -> str | None:
        """Why this solver cannot treat ``problem`` (a full sentence with the cure), or ``None`` if it can."""
        return None

    @abstractmethod
    def length(self, problem: P) -> int:
        """The number of steps, or the largest number if it depends on convergence."""

    def finished(self, problem: P, state: S) -> bool:
        """Whether the state needs no further step."""
        return state.step >= self.length(problem)

    @abstractmethod
    def init(self, problem: P, generator: torch.Generator) -> S:
        """The state before the first step; all later randomness comes from ``generator``."""

    @abstractmethod
    def step(self, problem: P, state: S) -> tuple[S, Info]:
        """One step and its numbers (a loss, an error). The state may be changed in place."""

    @abstractmethod
    def restore(self, problem: P, flat: Flat) -> S:
        """The state whose :meth:`~sbridge.training.State.flat` form is ``flat``."""

    @abstractmethod
    def finish(self, problem: P, state: S) -> R:
        """The solution that the state holds."""


class Solver(Method[BridgeProblem, S, Bridge]):
    """Base of all bridge solvers.

    Attributes:
        scaling: how data are scaled for it unless the user says otherwise; of the class, no option.
    """

    treats = BridgeProblem
    scaling: ClassVar[ScalingRecipe] = CommonScale()
