"""Killed diffusion: Feynman–Kac weights on stored paths, and explicit killing.

``φ(t, x) = E[e^{−∫_t^T V(r, X_r) dr} ψ(X_T) | X_t = x]`` solves ``∂_t φ + b·∇φ + ½ tr(σσᵀ∇²φ) = Vφ``, ``φ(T, ·) = ψ``
(Kac 1949; Premkumar 2023, eq. (2.28)–(2.33)). If ``V ≥ 0``, it is the rate at which paths are killed, and ``φ`` counts
the survivors. If ``V < 0``, mass is created; weights can represent this, killing cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.functionals.quadrature import PathValues, Quadrature, RowFunction, Trapezoid, integrate, row_values
from sbridge.measures import Paths
from sbridge.random import Seed, generator

TerminalFunction = Callable[[Tensor], Tensor]
"""A terminal function ``ψ(x) → (batch,)``."""


def log_weights(paths: Paths, state_cost: RowFunction, quadrature: Quadrature = Trapezoid()) -> PathValues:
    """Computes ``−∫ V(t, X_t) dt`` of each path: the logarithm of its Feynman–Kac weight.

    Args:
        paths: of the process without killing.
        state_cost: ``V(t, x) → (batch,)``, of either sign, per unit time.
        quadrature: :class:`~sbridge.functionals.Trapezoid` has a weak error of order two in the step,
            :class:`~sbridge.functionals.LeftPoint` and :class:`~sbridge.functionals.RightPoint` of order one.

    Raises:
        InvalidInputError: if ``V`` returns another shape than ``(batch,)``.
        NonFiniteError: if it is NaN or infinite.
    """
    return -integrate(paths, _rate(state_cost), quadrature)


def feynman_kac(
    paths: Paths, terminal: TerminalFunction, state_cost: RowFunction, quadrature: Quadrature = Trapezoid()
) -> PathValues:
    """Computes ``e^{−∫V dt} ψ(X_T)`` of each path, whose mean from one start is ``φ(0, x)``.

    Args:
        paths, state_cost, quadrature: as for :func:`log_weights`.
        terminal: ``ψ(x) → (batch,)``, taken where the paths end.

    Raises:
        InvalidInputError, NonFiniteError: as for :func:`log_weights`, and for ``ψ`` likewise.
    """
    with torch.no_grad():
        end = row_values(lambda _, x: terminal(x), float(paths.t[-1]), paths.x[-1], "the terminal function ψ").double()
    weights = log_weights(paths, state_cost, quadrature)
    return PathValues(weights.values.exp() * end, weights.coarse.exp() * end)


@dataclass(frozen=True, eq=False)
class Killing:
    """The outcome of killing paths at a rate.

    Args:
        time: bridge time at which each path was killed, float64, shape ``(batch,)``; infinite if it was not.
        alive: whether it lives at each knot, in the order visited, bool, shape ``(N + 1, batch)``.
    """

    time: Tensor
    alive: Tensor

    @property
    def survived(self) -> Tensor:
        """The paths that reached their end, bool, shape ``(batch,)``."""
        return self.alive[-1]


def kill(paths: Paths, killing_rate: RowFunction, *, seed: Seed, quadrature: Quadrature = Trapezoid()) -> Killing:
    """Kills stored paths at rate ``V ≥ 0``: each path when ``∫V dt`` reaches an independent clock from Exp(1).

    A given path survives to ``t_k`` with probability ``exp(−∫_0^{t_k} V dt)``, where ``quadrature`` computes the
    integral. This is exactly the weight of :func:`log_weights` with the same rule. Between knots
    the integral grows linearly.

    Args:
        paths: of the process without killing.
        killing_rate: ``V(t, x) → (batch,)``, per unit time.
        seed: of the clocks.
        quadrature: the rule between knots.

    Raises:
        InvalidInputError: if ``V`` is negative somewhere, or has another shape than ``(batch,)``.
        NonFiniteError: if it is NaN or infinite.
    """
    rate, (before, after) = _rate(killing_rate), quadrature.shares()
    times, batch = paths.t.tolist(), paths.x.shape[1]
    clocks = (
        torch.empty(batch, dtype=torch.float64, device="cpu").exponential_(generator=generator(seed)).to(paths.x.device)
    )
    hazard, killed = torch.zeros_like(clocks), torch.full_like(clocks, torch.inf)
    alive = torch.ones(len(times), batch, dtype=torch.bool, device=paths.x.device)
    with torch.no_grad():
        previous = _nonnegative(rate, times[0], paths.x[0])
        for k in range(1, len(times)):
            current = _nonnegative(rate, times[k], paths.x[k])
            step = times[k] - times[k - 1]
            growth = abs(step) * (before * previous + after * current)
            dies = alive[k - 1] & (hazard + growth >= clocks)
            share = ((clocks - hazard) / growth.clamp_min(torch.finfo(torch.float64).tiny)).clamp(0.0, 1.0)
            killed = torch.where(dies, times[k - 1] + share * step, killed)
            alive[k] = alive[k - 1] & ~dies
            hazard, previous = hazard + growth, current
    return Killing(killed, alive)


def _rate(state_cost: RowFunction) -> RowFunction:
    return lambda t, x: row_values(state_cost, t, x, "the state cost V")


def _nonnegative(rate: RowFunction, t: float, x: Tensor) -> Tensor:
    values = rate(t, x).double()
    least = float(values.min())
    if least < 0.0:
        raise InvalidInputError(
            f"the killing rate is {least:g} at t = {t:g}: a negative rate creates mass, which killing cannot "
            "represent. Use the weights of log_weights(paths, V) or feynman_kac(paths, psi, V) instead."
        )
    return values
