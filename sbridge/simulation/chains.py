"""Simulation of a chain: step by step with an observer, or with whole paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.errors import InvalidInputError, NonFiniteError, UnsupportedError
from sbridge.processes.chain import Chain
from sbridge.simulation.engine import Noise, check_control, euler, is_finite, noise_of_step, require_finite
from sbridge.simulation.options import Backprop, Detached, GradientMethod, ReversibleAdjoint

Observer = Callable[[int, Tensor, Tensor | None], None]
"""A function called with ``(j, x_j, u_j)``; ``u_j`` is ``None`` at the last state, and without a control."""


def propagate(
    chain: Chain,
    control: Control | None,
    x0: Tensor,
    noise: Noise,
    observe: Observer | None = None,
    stop: int | None = None,
) -> Tensor:
    """Runs ``x_{j+1} = m_j(x_j) + L_j (√Δ_j u(t_j, x_j) + ξ_j)``; returns the last state ``(batch, dim)``.

    Steps and times are in the chain's own direction. Whether operations are recorded for differentiation is
    up to the ambient grad mode. The control is called once a step, with ``t`` in bridge time as a float.

    Args:
        chain: the reference on a grid, forward or backward.
        control: ``u``, or ``None`` for zero.
        x0: where the chain starts, shape ``(batch, dim)``: the states at ``t = 0`` forward, ``t = T`` backward.
        noise: ``ξ``, of as many steps as the chain has.
        observe: called with every state before the step from it, and with the last one.
        stop: how many steps to take; all by default.

    Raises:
        InvalidInputError: if shapes or dtypes do not fit, or the control returns another shape.
        NonFiniteError: if the state or the control becomes infinite or NaN; the message has step and time.
    """
    steps = chain.length if stop is None else stop
    if not 0 <= steps <= chain.length:
        raise InvalidInputError(f"stop must lie in 0 … {chain.length}, the steps of the chain; got {stop}.")
    xi = noise_of_step(noise, chain.length, x0)
    if chain.like.dtype != x0.dtype or chain.like.device != x0.device:
        raise InvalidInputError(
            f"the chain was made for {chain.like.dtype} on {chain.like.device}, the states are {x0.dtype} on "
            f"{x0.device}; make the chain with like=x0."
        )
    end = _run(chain, control, x0, xi, observe or _ignore, steps)
    if not is_finite(end):
        _locate(chain, control, x0, xi, steps)
    return end


def simulate(
    chain: Chain, control: Control | None, x0: Tensor, noise: Noise, gradient: GradientMethod = Detached()
) -> tuple[Tensor, Tensor]:
    """Returns the states ``(N + 1, batch, dim)`` in the order visited, and the control values ``(N, batch, dim)``.

    Steps, arguments and errors are those of :func:`propagate`.

    Args:
        chain, control, x0, noise: as there.
        gradient: :class:`Detached` or :class:`Backprop`.

    Raises:
        UnsupportedError: for :class:`ReversibleAdjoint`, which keeps no path.
    """
    if isinstance(gradient, ReversibleAdjoint):
        raise UnsupportedError(
            "ReversibleAdjoint keeps no path, so there is none to return; use Backprop(), or endpoint()."
        )
    with torch.set_grad_enabled(isinstance(gradient, Backprop)):
        record = _Lists() if torch.is_grad_enabled() else _Buffers(chain.length, x0)
        propagate(chain, control, x0, noise, record)
        states, controls = record.path()
    return states, x0.new_zeros(1, 1, 1).expand(chain.length, *x0.shape) if controls is None else controls


@dataclass
class _ChainEquation:
    """The chain as an equation for torchsde. ``f`` reports states and control values to the observer."""

    chain: Chain
    control: Control | None
    one: Tensor
    observe: Observer
    first: Tensor | None = None

    noise_type = "diagonal"
    sde_type = "ito"

    def f(self, index: Tensor, x: Tensor) -> Tensor:
        j = int(index.item())  # quicker than int(index)
        if j > 0:
            return self._move(j, x)
        # torchsde evaluates the equation once at the start before it steps: keep that value, observe once.
        if self.first is None:
            self.first = self._move(0, x)
        return self.first

    def g(self, index: Tensor, x: Tensor) -> Tensor:
        return self.one

    def _move(self, j: int, x: Tensor) -> Tensor:
        if self.control is None:
            self.observe(j, x, None)
            return self.chain.move(j, x)
        u = self.control(self.chain.step_times[j], x)
        if j == 0:
            check_control(u, x)
        self.observe(j, x, u)
        return self.chain.move(j, x, u if u.dtype is x.dtype else u.to(x.dtype))


def _run(
    chain: Chain, control: Control | None, x0: Tensor, xi: Callable[[int], Tensor], observe: Observer, steps: int
) -> Tensor:
    end = x0
    if steps:
        equation = _ChainEquation(chain, control, x0.new_ones(()).expand_as(x0), observe)
        end = euler(equation, x0, lambda j: chain.root(j)(xi(j)), steps)
    observe(steps, end, None)
    return end


def _ignore(j: int, x: Tensor, u: Tensor | None) -> None:
    """Ignores every state."""


@torch.no_grad()
def _locate(chain: Chain, control: Control | None, x0: Tensor, xi: Callable[[int], Tensor], steps: int) -> None:
    """Repeats the run and raises where it becomes non-finite; NaN and infinity persist as steps add to the state."""
    visited = chain.visited.tolist()

    def observe(j: int, x: Tensor, u: Tensor | None) -> None:
        require_finite(x, "the state", j, visited[j])
        if u is not None:
            require_finite(u, "the control", j, visited[j])

    _run(chain, control, x0, xi, observe, steps)
    raise NonFiniteError("the simulation was not finite, but it is when repeated: does the control draw numbers?")


class _Buffers:
    """Keeps a path in tensors allocated once."""

    def __init__(self, steps: int, like: Tensor) -> None:
        self._states = like.new_empty(steps + 1, *like.shape)
        self._controls: Tensor | None = None
        self._rows = self._states.unbind(0)
        self._control_rows: tuple[Tensor, ...] = ()

    def __call__(self, j: int, x: Tensor, u: Tensor | None) -> None:
        self._rows[j].copy_(x)
        if u is None:
            return
        if self._controls is None:
            self._controls = torch.empty_like(self._states[1:])
            self._control_rows = self._controls.unbind(0)
        self._control_rows[j].copy_(u)

    def path(self) -> tuple[Tensor, Tensor | None]:
        return self._states, self._controls


class _Lists:
    """Keeps a path as separate tensors: with in-place writing, autograd would copy it at every step."""

    def __init__(self) -> None:
        self._states: list[Tensor] = []
        self._controls: list[Tensor] = []

    def __call__(self, j: int, x: Tensor, u: Tensor | None) -> None:
        self._states.append(x)
        if u is not None:
            self._controls.append(u)

    def path(self) -> tuple[Tensor, Tensor | None]:
        return torch.stack(self._states), torch.stack(self._controls) if self._controls else None
