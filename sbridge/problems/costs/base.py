"""The costs of a control problem, evaluated along paths and checked where they enter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, NonFiniteError
from sbridge.laws.scaling import AffineScaling
from sbridge.measures import Paths
from sbridge.problems.costs.absorbed import AbsorbedCost
from sbridge.problems.costs.quadratic import Quadratic
from sbridge.problems.costs.stopping import StoppingSet
from sbridge.processes.base import Time
from sbridge.random import generator

RunningCost = Callable[[Time, Tensor], Tensor]
"""A running cost ``f(t, x) → (batch,)`` per unit time."""
StateCost = Quadratic | AbsorbedCost | RunningCost
"""A state cost of a bridge: one with a closed form, before or after the reference contains it, or a function."""
TerminalCost = Callable[[Tensor], Tensor]
"""A terminal cost ``g(x) → (batch,)``."""

WITHOUT_GRADIENTS = "LogVariance, Moment or CrossEntropy"
"""The solvers that need no gradient of a cost and allow a stopping set."""
_SCATTER = 8


@dataclass(frozen=True, eq=False)
class Costs:
    """Running cost ``f``, terminal cost ``g`` (``None``: zero) and the set on which paths stop, if there is one."""

    running: RunningCost | None = None
    terminal: TerminalCost | None = None
    stopping: StoppingSet | None = None

    def rate(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``f(t, x)``, shape ``(batch,)``; raises NonFiniteError or InvalidInputError for other values."""
        if self.running is None:
            return x.new_zeros(len(x))
        return checked(self.running(t, x), x, "running cost", f"t = {float(t):g}")

    def end(self, x: Tensor) -> Tensor:
        """Computes ``g(x)``, shape ``(batch,)``; raises the same errors."""
        if self.terminal is None:
            return x.new_zeros(len(x))
        return checked(self.terminal(x), x, "terminal cost", "the end")

    def along(self, paths: Paths, alive: Tensor | None = None) -> Tensor:
        """Computes ``Σ_k Δ_k f(t_k, x_k) + g(x_N)`` for each path, shape ``(batch,)``, summed in float64.

        Args:
            paths: any.
            alive: the result of :meth:`StoppingSet.alive`: steps count until the path is stopped, and ``g`` is
                evaluated at the first stopped state.
        """
        chain, total = paths.chain, torch.zeros((), dtype=torch.float64, device=paths.x.device)
        if self.running is not None:
            for k, width in enumerate(chain.root_durations):
                cost = width * width * self.rate(chain.step_times[k], paths.x[k]).double()
                total = total + (cost if alive is None else cost * alive[k])
        return total + self.end(_stopped(paths.x, alive)).double()

    def refusal(self, x: Tensor, moments: tuple[float, ...]) -> str | None:
        """Explains why losses that differentiate the costs (tested at ``x``) cannot be used, or returns ``None``."""
        if self.stopping is not None:
            return (
                "Gradients along a path ignore that its stopping time moves, so they are biased with a stopping set: "
                f"use {WITHOUT_GRADIENTS}."
            )
        running = self.running
        parts = [] if running is None else [("running cost", partial(running, t)) for t in moments]
        ends = [] if self.terminal is None else [("terminal cost", self.terminal)]
        for name, cost in [*parts, *ends]:
            if hides_gradient(cost, x):
                return (
                    f"The {name} depends on x but has no gradient (is it computed outside torch, detached, or a "
                    f"step function?). Write it in differentiable torch functions, or use {WITHOUT_GRADIENTS}, which "
                    "need none."
                )
        return None


@dataclass(frozen=True, eq=False)
class RescaledCost:
    """A running cost as a function of ``(x − shift)/scale``; its values, per unit time, stay the same."""

    cost: RunningCost
    scaling: AffineScaling

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``f(t, shift + scale · x)``."""
        return self.cost(t, self.scaling.to_data(x))


def rescaled_cost(cost: StateCost, scaling: AffineScaling) -> StateCost:
    """Returns the cost as a function of ``(x − shift)/scale``."""
    return cost.rescaled(scaling) if isinstance(cost, (Quadratic, AbsorbedCost)) else RescaledCost(cost, scaling)


def hides_gradient(function: TerminalCost, x: Tensor) -> bool:
    """Returns whether a function ``(batch, dim) → (batch,)`` depends on its states without a gradient in torch.

    It is tried at random states around ``x``, so that a step function is not mistaken for a constant.
    """
    rows = x.repeat(_SCATTER, 1)
    rows = rows + (1.0 + rows.abs()) * torch.randn(rows.shape, generator=generator(0), device="cpu").to(rows)
    with torch.enable_grad():
        value = function(rows.requires_grad_())
    known = value[torch.isfinite(value)]
    return not value.requires_grad and bool((known != known[:1]).any())


def _stopped(x: Tensor, alive: Tensor | None) -> Tensor:
    if alive is None:
        return x[-1]
    last = alive.sum(0).clamp_max(len(x) - 1)
    return x[last, torch.arange(x.shape[1], device=x.device)]


def checked(value: object, x: Tensor, name: str, where: str) -> Tensor:
    """Checks the ``value`` of the function called ``name`` at states ``x``: one finite number per row.

    Raises:
        InvalidInputError: if it has another shape.
        NonFiniteError: if it is NaN or infinite; says how many rows, and ``where``.
    """
    if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InvalidInputError(
            f"the {name} must return one number per row, shape ({len(x)},), for states of shape {tuple(x.shape)}; got "
            f"{got}. Sum over the last axis: x.square().sum(1)."
        )
    if not bool(torch.isfinite(value).all()):
        rows = int((~torch.isfinite(value)).sum())
        raise NonFiniteError(
            f"the {name} is NaN or infinite at {where} in {rows} of {len(x)} rows (largest |x| = "
            f"{float(x.detach().abs().max()):.3g}). Check it at such states; use smaller steps if the states "
            "themselves are wrong."
        )
    return value
