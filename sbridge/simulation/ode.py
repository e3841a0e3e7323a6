"""Ordinary differential equations along bridge time: the only file that imports torchdiffeq."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, NonFiniteError, NotConvergedError
from sbridge.storage.registry import register

Velocity = Callable[[float, Tensor], Tensor]
"""A velocity ``(t, x) →`` per unit of bridge time, shape ``(batch, dim)``."""
VelocityAndRate = Callable[[float, Tensor], tuple[Tensor, Tensor]]
"""A function ``(t, x) →`` velocity ``(batch, dim)`` and a rate ``(batch,)`` to be integrated along the flow."""


class ODEMethod(ABC):
    """A method to integrate an ordinary differential equation."""

    @abstractmethod
    def settings(self, clock: Tensor) -> dict[str, object]:
        """Returns the arguments of torchdiffeq, for increasing knots ``clock``."""


@dataclass(frozen=True)
class _FixedSteps(ODEMethod):
    name: ClassVar[str]
    stages: ClassVar[int]
    """Evaluations of the velocity per step."""

    def settings(self, clock: Tensor) -> dict[str, object]:
        """Returns settings for one step from knot to knot."""
        return {"method": self.name, "options": {"grid_constructor": lambda func, y0, t: clock}}


@register
@dataclass(frozen=True)
class Euler(_FixedSteps):
    """Euler's method: order 1, one evaluation per step, at its start."""

    name = "euler"
    stages = 1


@register
@dataclass(frozen=True)
class Heun(_FixedSteps):
    """Heun's method (explicit trapezoids): order 2, two evaluations per step, at its two ends."""

    name = "heun2"
    stages = 2


@register
@dataclass(frozen=True)
class RungeKutta4(_FixedSteps):
    """Kutta's 3/8 rule: order 4, four evaluations per step, the first and the last at its ends."""

    name = "rk4"
    stages = 4


@register
@dataclass(frozen=True)
class DormandPrince(ODEMethod):
    """The adaptive method of order 5(4) of Dormand & Prince (1980).

    The error of a step is a root mean square over rows and coordinates, so the steps, and in their last digits the
    states, depend on which rows are integrated together.

    Args:
        relative_tolerance: of the state, a step.
        absolute_tolerance: of the state, a step, in its units.
        max_evaluations: of the velocity, after which NotConvergedError is raised.
    """

    relative_tolerance: float = 1e-6
    absolute_tolerance: float = 1e-6
    max_evaluations: int = 100_000

    def __post_init__(self) -> None:
        if not (self.relative_tolerance >= 0 and self.absolute_tolerance >= 0) or (
            self.relative_tolerance == self.absolute_tolerance == 0
        ):
            raise InvalidInputError(
                "tolerances must be non-negative and not both zero, got "
                f"{self.relative_tolerance} and {self.absolute_tolerance}."
            )
        if self.max_evaluations < 1:
            raise InvalidInputError(f"max_evaluations must be positive, got {self.max_evaluations}.")

    def settings(self, clock: Tensor) -> dict[str, object]:
        """Returns settings whose steps end exactly at the last knot: torchdiffeq would step past it and interpolate."""
        return {
            "method": "dopri5",
            "rtol": self.relative_tolerance,
            "atol": self.absolute_tolerance,
            "options": {"step_t": clock[-1:]},
        }


@dataclass(frozen=True, eq=False)
class Flow:
    """The states at the end of a flow.

    Args:
        x: the last states, shape ``(batch, dim)``.
        integral: of the rate along the way, ``∫ rate dt``, shape ``(batch,)``; zeros if there was none.
        evaluations: how many times the velocity was evaluated.
    """

    x: Tensor
    integral: Tensor
    evaluations: int


def flow(velocity: Velocity, x: Tensor, times: Tensor, method: ODEMethod) -> Flow:
    """Solves ``dx/dt = velocity(t, x)`` from ``times[0]`` to ``times[-1]``.

    Operations are recorded for differentiation if the ambient grad mode is on.

    Args:
        velocity: called with a float in bridge time, never outside ``[times[0], times[-1]]``.
        x: states at ``times[0]``, shape ``(batch, dim)``.
        times: increasing or decreasing knots in bridge time, shape ``(steps + 1,)``. Methods with fixed steps use all
            knots; the adaptive method uses only the first and the last.
        method: :class:`Euler`, :class:`Heun`, :class:`RungeKutta4` or :class:`DormandPrince`.

    Raises:
        InvalidInputError: for times that are not monotone, states or velocities of another shape.
        NonFiniteError: if state or velocity stops being finite; the message has the time.
        NotConvergedError: if the adaptive method needs more evaluations than it may use, or steps too small to count.
    """
    field = _Field(velocity, x, times, method)
    end = _solve(field, x, method)
    return Flow(end, x.new_zeros(len(x)), field.evaluations)


def flow_with_rate(field: VelocityAndRate, x: Tensor, times: Tensor, method: ODEMethod) -> Flow:
    """Runs :func:`flow` and ``∫ rate(t, x_t) dt`` along it: negative for decreasing times if the rate is positive.

    The integral is one more coordinate of the equation, under the same control of the error.
    """

    def joint(t: float, y: Tensor) -> Tensor:
        velocity, rate = field(t, y[:, :-1])
        if rate.shape != x.shape[:1]:
            raise InvalidInputError(f"the rate must have shape ({len(x)},), got {tuple(rate.shape)}.")
        return torch.cat([velocity, rate.unsqueeze(1)], 1)

    _check_states(x)
    start = torch.nn.functional.pad(x, (0, 1))
    wrapped = _Field(joint, start, times, method)
    end = _solve(wrapped, start, method)
    return Flow(end[:, :-1], end[:, -1], wrapped.evaluations)


class _Field:
    """The velocity in an increasing clock, checked and counted."""

    def __init__(self, velocity: Velocity, x: Tensor, times: Tensor, method: ODEMethod) -> None:
        _check_states(x)
        self.velocity, self.evaluations = velocity, 0
        self.limit = method.max_evaluations if isinstance(method, DormandPrince) else None
        knots = times.detach().to(device=x.device, dtype=torch.float64)
        self.sign = 1.0 if len(knots) < 2 or bool(knots[-1] > knots[0]) else -1.0
        self.clock = self.sign * knots
        if knots.ndim != 1 or len(knots) < 2 or not bool((self.clock.diff() > 0).all()):
            raise InvalidInputError(
                "times must have shape (steps + 1,) with at least one step and increase, or decrease, strictly; got "
                f"shape {tuple(times.shape)}."
            )
        self.first, self.last = float(self.clock[0]), float(self.clock[-1])

    def __call__(self, clock: Tensor, x: Tensor) -> Tensor:
        # The first step of the adaptive method is sized by a look ahead that knows no end.
        t = self.sign * min(max(float(clock), self.first), self.last)
        if self.evaluations == self.limit:
            raise NotConvergedError(
                f"the adaptive method used its {self.limit} evaluations by t = {t:g}. Loosen its tolerances, raise "
                "max_evaluations, or stop further from a time at which the velocity diverges."
            )
        self.evaluations += 1
        self.require_finite(x, "state", t)
        value = self.velocity(t, x)
        if value.shape != x.shape or torch.promote_types(value.dtype, x.dtype) != x.dtype:
            raise InvalidInputError(
                f"a velocity must have the shape and dtype of its states, {x.dtype} {tuple(x.shape)}; got "
                f"{value.dtype} {tuple(value.shape)}."
            )
        self.require_finite(value, "velocity", t)
        return self.sign * value.to(x.dtype)

    @staticmethod
    def require_finite(value: Tensor, name: str, t: float) -> None:
        """Raises NonFiniteError with the time and the number of rows unless all of ``value`` is finite."""
        bad = ~torch.isfinite(value).all(1)
        if bool(bad.any()):
            raise NonFiniteError(
                f"the {name} of the flow is NaN or infinite at t = {t:g} in {int(bad.sum())} of {len(value)} rows. Use "
                "smaller steps, or stop before the time at which the velocity diverges."
            )


def _solve(field: _Field, x: Tensor, method: ODEMethod) -> Tensor:
    import torchdiffeq  # with SciPy's integrators: not before it is needed

    try:
        settings: dict[str, Any] = method.settings(field.clock)
        states: Any = torchdiffeq.odeint(field, x, field.clock[[0, -1]], **settings)
    except AssertionError as error:  # torchdiffeq's words for a step that does not move the clock
        raise NotConvergedError(
            f"the adaptive method cannot meet its tolerances: {error}. Loosen them, use float64, or stop further from "
            "a time at which the velocity diverges."
        ) from error
    end: Tensor = states[-1]
    field.require_finite(end, "state", field.sign * field.last)
    return end


def _check_states(x: Tensor) -> None:
    if x.ndim != 2 or not x.is_floating_point():
        raise InvalidInputError(f"states must be floating point of shape (batch, dim), got {x.dtype} {tuple(x.shape)}.")
