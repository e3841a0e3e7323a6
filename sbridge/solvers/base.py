"""What a solver is: plain data that knows how to begin, take one step, and hand over a solution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar, final

from sbridge.errors import FileFormatError
from sbridge.laws.scaling import CommonScale, ScalingRecipe
from sbridge.problems import BridgeProblem
from sbridge.solutions import Bridge
from sbridge.storage.registry import check_kinds
from sbridge.training import Info, State, StateDict

P = TypeVar("P")
S = TypeVar("S", bound=State)
R = TypeVar("R")


class Method(ABC, Generic[P, S, R]):
    """Base of all solvers, which are frozen dataclasses of hyperparameters: problem ``P``, state ``S``, solution ``R``.

    The manual loop, which :func:`sbridge.solve` runs with callbacks::

        state = solver.init(problem, seed)
        while not solver.finished(problem, state):
            state, info = solver.step(problem, state)
        solution = solver.finish(problem, state)

    ``solver.resume(problem, state.state_dict())`` continues from a state, bit for bit.

    Attributes:
        problem_type: the kind of problem it solves.
    """

    problem_type: ClassVar[type]

    def __post_init__(self) -> None:
        """Checks that every option is of its kind."""
        check_kinds(self)

    def refusal(self, problem: P) -> str | None:
        """Why this solver cannot treat ``problem`` (a full sentence with the cure), or ``None`` if it can."""
        return None

    @abstractmethod
    def max_steps(self, problem: P) -> int:
        """The number of steps, or the largest number if it depends on convergence."""

    def finished(self, problem: P, state: S) -> bool:
        """Whether the state needs no further step."""
        return state.step >= self.max_steps(problem)

    @abstractmethod
    def init(self, problem: P, seed: int) -> S:
        """The state before the first step; everything random in the run follows from ``seed``."""

    @abstractmethod
    def step(self, problem: P, state: S) -> tuple[S, Info]:
        """One step and its numbers (a loss, an error). The state may be changed in place."""

    @abstractmethod
    def finish(self, problem: P, state: S) -> R:
        """The solution that the state holds; it must not share what further steps change."""

    @final
    def resume(self, problem: P, saved: StateDict) -> S:
        """The state of an interrupted run: ``init`` with its seed, then ``load_state_dict``.

        Raises:
            FileFormatError: if ``saved`` is not a state of this solver.
        """
        seed = saved.get("seed")
        if not isinstance(seed, int):
            raise FileFormatError("the state has no number 'seed': it belongs to another solver, or is incomplete.")
        state = self.init(problem, seed)
        state.load_state_dict(saved)
        return state


class Solver(Method[BridgeProblem, S, Bridge]):
    """Base of all bridge solvers.

    Attributes:
        scaling: how data are scaled by default; an attribute of the class, not an option.
    """

    problem_type = BridgeProblem
    scaling: ClassVar[ScalingRecipe] = CommonScale()
