"""A control problem in one dimension."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, NonFiniteError
from sbridge.processes import Process
from sbridge.processes.base import Time


@dataclass(frozen=True)
class Barrier:
    """A barrier: paths end where ``x ≥ position``.

    Args:
        position: in units of state.
        between_knots: whether a chain also ends between two knots, with the probability ``exp(−2(B − x)(B − y)/L²)``
            that a Brownian bridge of variance ``L²`` from ``x`` to ``y`` reaches ``B``. The limit does not ask.
    """

    position: float
    between_knots: bool = False


@dataclass(frozen=True, eq=False)
class LineProblem:
    """The problem ``min_u E[∫ f + ½u² dt + g(X_T)]`` for a one-dimensional process from one point, on an interval.

    Args:
        process: the uncontrolled process.
        start: ``x_0``.
        low, high: an interval that all paths that matter stay in; outside, values are taken as at its ends. With a
            barrier ``high`` has to lie beyond it, by a few standard deviations of a step if ``g`` is not constant.
        running: ``f(t, x) → (batch,)`` for ``x`` of shape ``(batch, 1)``; ``None``: zero.
        terminal: ``g(x) → (batch,)``, also charged where a path ends early; ``None``: zero.
        barrier: where paths end early; ``None``: nowhere.

    Raises:
        InvalidInputError: if the process is not one-dimensional, or the start lies outside the interval or beyond the
            barrier.
    """

    process: Process
    start: float
    low: float
    high: float
    running: Callable[[Time, Tensor], Tensor] | None = None
    terminal: Callable[[Tensor], Tensor] | None = None
    barrier: Barrier | None = None

    def __post_init__(self) -> None:
        if self.process.dim not in (None, 1):
            raise InvalidInputError(f"a line problem needs a process of dimension 1, got {self.process.dim}.")
        if not self.low < self.start < self.high:
            raise InvalidInputError(f"the start {self.start:g} must lie between {self.low:g} and {self.high:g}.")
        if self.barrier is not None and not self.start < self.barrier.position <= self.high:
            raise InvalidInputError(
                f"the barrier must lie between the start and the end of the interval, {self.start:g} < B ≤ "
                f"{self.high:g}; got {self.barrier.position:g}."
            )

    def running_at(self, t: float, x: Tensor) -> Tensor:
        """Computes ``f(t, ·)`` at points of shape ``(n,)``."""
        return torch.zeros_like(x) if self.running is None else _finite(self.running(t, x.unsqueeze(1)), "running cost")

    def terminal_at(self, x: Tensor) -> Tensor:
        """Computes ``g`` at points of shape ``(n,)``."""
        return torch.zeros_like(x) if self.terminal is None else _finite(self.terminal(x.unsqueeze(1)), "terminal cost")

    def stopped(self, x: Tensor) -> Tensor:
        """Returns whether points are beyond the barrier."""
        return torch.zeros_like(x, dtype=torch.bool) if self.barrier is None else x >= self.barrier.position


def _finite(values: Tensor, name: str) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(f"the {name} is NaN or infinite on the interval; choose one on which it is finite.")
    return values.double()
