"""The training loop, what its callbacks are told, and how they end it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

from sbridge import distributed
from sbridge.errors import InvalidInputError, NonFiniteError, check_at_least, listed, shown
from sbridge.training.states import State

Info = Mapping[str, float | Tensor]
"""What a step reports: numbers, or tensors without dimensions, which nobody has to wait for."""
Numbers = Mapping[str, float]
"""What callbacks are told: the numbers of a step by name."""
_S = TypeVar("_S", bound=State)
_CHECK_EVERY = 100


@runtime_checkable
class Callback(Protocol):
    """Called after every step."""

    def __call__(self, state: State, info: Numbers) -> None:
        """Look at the state and the step's numbers; do not change them.

        Raises:
            StopTraining: to end the run after this step.
        """
        ...


class StopTraining(Exception):
    """Raised by a callback to end training after the present step: the solution is made of what has been learned.

    Args:
        reason: told by the solution, in ``stopped``.
    """

    def __init__(self, reason: str = "a callback stopped it") -> None:
        super().__init__(reason)


class _Report(Numbers):
    """The numbers of a step. A tensor becomes a number, and is checked, when somebody reads it."""

    def __init__(self, step: int, values: Info) -> None:
        self._step, self._values = step, dict(values)

    def __getitem__(self, name: str) -> float:
        value = float(self._values[name])
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{name} became {value} at step {self._step}. Likely causes: a learning rate that "
                "is too large, σ far smaller than the scale of the data, or extreme outliers in the data."
            )
        self._values[name] = value
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(dict(self))

    @property
    def at_hand(self) -> bool:
        """Whether no number has to be waited for."""
        return all(not isinstance(value, Tensor) or value.device.type == "cpu" for value in self._values.values())


def run_loop(
    step: Callable[[_S], tuple[_S, Info]], state: _S, finished: Callable[[_S], bool], callbacks: Sequence[Callback] = ()
) -> _S:
    """``state ← step(state)`` until ``finished(state)`` or a callback raises StopTraining; returns the last state.

    Numbers on the CPU are checked at every step. Those on another device are checked when a callback reads them, at
    every hundredth step and at the last one, so that no step waits for the device. Of several processes
    (``sbridge.distributed``), all stop with the first whose callback stops; all need callbacks then, or none.

    Raises:
        NonFiniteError: when a number that a step reports is NaN or infinite: with the step and the likely cause.
    """
    done = finished(state)
    while not done:
        state, values = step(state)
        info, done = _Report(state.step, values), finished(state)
        if done or info.at_hand or state.step % _CHECK_EVERY == 0:
            dict(info)
        with distributed.apart():  # a callback may look at the networks in one process alone
            for callback in callbacks:
                try:
                    callback(state, info)
                except StopTraining as stop:
                    state.stopped = state.stopped or str(stop)
        state.stopped = distributed.first_reason(state.stopped) if callbacks else None
        if state.stopped is not None and not done:
            return state
    state.stopped = None
    return state


@dataclass
class Patience:
    """Callback that ends training when a reported number has stopped falling.

    The number is averaged over ``window`` steps, since losses are noisy. Training ends when the mean has not been below
    ``(1 − least)`` times its smallest value so far, for ``windows`` windows in a row. Solvers with several stages, such
    as ``IPF`` and ``IMF``, report another loss in each: choose enough windows for a stage.

    Args:
        quantity: name of the number, such as ``"loss"``.
        windows: number of windows without progress.
        window: steps per window.
        least: the relative fall that counts as progress.

    Raises:
        InvalidInputError: for options out of range; when called, if the steps do not report the quantity.
    """

    quantity: str = "loss"
    windows: int = 5
    window: int = 100
    least: float = 0.0
    _recent: list[Numbers] = field(default_factory=list, init=False, repr=False)
    _best: float = field(default=math.inf, init=False, repr=False)
    _without: int = field(default=0, init=False, repr=False)
    _last: int = field(default=-1, init=False, repr=False)

    def __post_init__(self) -> None:
        check_at_least(self, 1, "windows", "window")
        if not 0.0 <= self.least < 1.0:
            raise InvalidInputError(f"least is a relative fall, in [0, 1), got {shown(self.least)}.")

    def __call__(self, state: State, info: Numbers) -> None:
        """Judges the mean at the end of each window; raises StopTraining when patience is exhausted."""
        if self.quantity not in info:
            raise InvalidInputError(
                f"Patience waits for {shown(self.quantity)}, but the steps report {listed(info)}: name one of these."
            )
        if state.step <= self._last:  # another run
            self._recent, self._best, self._without = [], math.inf, 0
        self._last = state.step
        self._recent.append(info)
        if len(self._recent) < self.window:
            return
        mean = sum(one[self.quantity] for one in self._recent) / self.window
        self._recent.clear()
        fallen = mean < self._best - self.least * abs(self._best) if math.isfinite(self._best) else True
        self._without = 0 if fallen else self._without + 1
        self._best = min(self._best, mean)
        if self._without >= self.windows:
            raise StopTraining(f"{self.quantity} has not fallen for {self.windows * self.window} steps")
