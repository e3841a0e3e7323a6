"""The Onsager–Machlup functional of a path, and the most probable path between two points.

A diffusion ``dX = b dt + σ(t) dW`` stays near a smooth path ``x`` with a probability proportional to ``e^{−S[x]}``
(Onsager & Machlup 1953; Dürr & Bach 1978)::

    S[x] = ∫ ½|σ⁻¹(ẋ − b(t, x))|² + ½∇·b(t, x) dt

The first term alone is the action of Freidlin & Wentzell (2012), which rules small noise: a rare event has the
probability ``e^{−min S}``. A path from the bottom of a well ``U`` with ``b = −∇U`` and scalar σ to a place that is
``ΔU`` higher has at least the action ``2ΔU/σ²``, reached in the limit of long times.

Paths are given at the knots of a grid. Velocities are differences over its steps, coefficients are taken in the middle
of each step: an error of second order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, NonFiniteError, NotConvergedError, shown
from sbridge.functionals.elbo import divergence_of_drift
from sbridge.laws import as_rows
from sbridge.linear import LinearMap
from sbridge.modes import standard_modes
from sbridge.processes.base import Process
from sbridge.time import TimeGrid

PathAction = Callable[[Tensor, Process, TimeGrid], Tensor]
"""A functional of paths ``(x, process, grid) → (batch,)``, ``x`` of shape ``(N + 1, batch, dim)``."""


def onsager_machlup(x: Tensor, process: Process, grid: TimeGrid) -> Tensor:
    """Computes ``∫ ½|σ⁻¹(ẋ − b)|² + ½∇·b dt`` of each path, differentiable in ``x`` and the parameters of ``b``.

    Args:
        x: states at the knots of ``grid``, shape ``(N + 1, batch, dim)``.
        process: of the drift ``b`` and the noise σ.
        grid: the knots, as fractions of the horizon of the process.

    Returns:
        in nats, shape ``(batch,)``.

    Raises:
        InvalidInputError: if ``x`` has another shape.
    """
    steps = _Steps.of(x, process, grid)
    growth = divergence_of_drift(process, steps.times(x.shape[1]), steps.middles(x)).reshape(len(x) - 1, -1)
    return freidlin_wentzell(x, process, grid) + 0.5 * (steps.spans.to(x).unsqueeze(1) * growth).sum(0)


def freidlin_wentzell(x: Tensor, process: Process, grid: TimeGrid) -> Tensor:
    """Computes ``∫ ½|σ⁻¹(ẋ − b)|² dt`` of each path: the action of small noise, without the divergence.

    Arguments, result and errors as for :func:`onsager_machlup`.
    """
    steps = _Steps.of(x, process, grid)
    drift = process.drift(steps.times(x.shape[1]), steps.middles(x)).reshape(x[1:].shape)
    excess = x.diff(dim=0) - steps.spans.to(x).reshape(-1, 1, 1) * drift
    return 0.5 * steps.roots.inverse().to(x)(excess.flatten(0, 1)).reshape(x[1:].shape).square().sum((0, 2))


@standard_modes()
def most_probable_path(
    process: Process,
    start: Tensor,
    end: Tensor,
    grid: TimeGrid,
    *,
    action: PathAction = onsager_machlup,
    guess: Tensor | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
) -> Tensor:
    """Finds the path of least action between two points, by L-BFGS in the noise that makes it.

    The unknowns are the noise ``w_k`` of ``x_{k+1} = x_k + √Δ_k σ_k w_k`` with both ends fixed, in which the action of
    Brownian motion is ``½Σ|w|²``: the number of iterations does not grow with the number of steps. For a linear process
    the result is the mean of the pinned bridge. The action of a nonlinear process can have several minima; the one that
    is found depends on ``guess``.

    Args:
        process: of the drift and the noise; the path takes its whole horizon.
        start, end: the two points of each path, shape ``(batch, dim)``.
        grid: the knots at which the path is computed.
        action: :func:`onsager_machlup`, or :func:`freidlin_wentzell` for small noise.
        guess: a first path, shape ``(N + 1, batch, dim)``; by default that of Brownian motion, a straight line if σ is
            constant.
        tolerance: the largest norm of the gradient of the action of a path in the noise. The error of the path is at
            most that of ``tolerance`` standard deviations of the noise over the horizon, where the action is convex.
        max_iterations: of L-BFGS.

    Returns:
        states at the knots, shape ``(N + 1, batch, dim)``, in the dtype of ``start``; computed in float64.

    Raises:
        InvalidInputError: if the points are not of one shape, or the guess does not lie on the grid.
        NonFiniteError: if the action is NaN or infinite.
        NotConvergedError: if the gradient is still above ``tolerance``.
    """
    start, end = as_rows(start, "start", least=1), as_rows(end, "end", least=1)
    if start.shape != end.shape:
        raise InvalidInputError(
            f"start and end must have one shape (batch, dim), got {tuple(start.shape)} and {tuple(end.shape)}."
        )
    noise = _NoiseCoordinates.of(process, grid, start.double(), end.double())
    if guess is None:
        unknown = start.new_zeros(grid.steps, *start.shape, dtype=torch.float64)
    else:
        unknown = noise.of_path(_Steps.checked(guess, grid).double().detach())
    unknown.requires_grad_()

    def value() -> Tensor:
        total = action(noise.path(unknown), process, grid).sum()
        if not bool(torch.isfinite(total)):
            raise NonFiniteError(
                "the action of a path is NaN or infinite; check the drift, and σ, which must not be 0."
            )
        return total

    def closure() -> Tensor:
        with torch.enable_grad():
            total = value()
            (unknown.grad,) = torch.autograd.grad(total, unknown)
        return total

    search = torch.optim.LBFGS(
        [unknown],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        history_size=50,
        tolerance_grad=0.1 * tolerance / unknown[:, 0].numel() ** 0.5,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )
    search.step(closure)  # type: ignore[arg-type]  # a closure may return a tensor
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(value(), unknown)
    left = float(gradient.square().sum((0, 2)).sqrt().max())
    if not left <= tolerance:
        raise NotConvergedError(
            f"the gradient of the action is {left:.3g} after {max_iterations} iterations, above the tolerance "
            f"{shown(tolerance)}. Give a guess nearer to the path, more max_iterations, or a larger tolerance."
        )
    return noise.path(unknown.detach()).to(start)


@dataclass(frozen=True, eq=False)
class _Steps:
    """The steps of a grid: their lengths, and the time and the noise root ``√Δ σ`` in the middle of each."""

    spans: Tensor
    moments: Tensor
    roots: LinearMap

    @classmethod
    def of(cls, x: Tensor, process: Process, grid: TimeGrid) -> _Steps:
        cls.checked(x, grid)
        return cls.at(process, grid)

    @classmethod
    def at(cls, process: Process, grid: TimeGrid) -> _Steps:
        times = grid.times(process.horizon)
        middles = 0.5 * (times[1:] + times[:-1])
        return cls(times.diff(), middles, process.scale(middles) * times.diff().sqrt())

    @staticmethod
    def checked(x: Tensor, grid: TimeGrid) -> Tensor:
        if x.ndim != 3 or len(x) != grid.steps + 1:
            raise InvalidInputError(
                f"a path on this grid has shape ({grid.steps + 1}, batch, dim), got {tuple(x.shape)}. One path "
                "alone is x.unsqueeze(1)."
            )
        return x

    def times(self, batch: int) -> Tensor:
        """The time of every row of :meth:`middles`."""
        return self.moments.repeat_interleave(batch)

    def middles(self, x: Tensor) -> Tensor:
        """The states in the middle of the steps, shape ``(N · batch, dim)``, step by step."""
        return (0.5 * (x[1:] + x[:-1])).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class _NoiseCoordinates:
    """Paths ``x_{k+1} = x_k + G_k w_k``, ``G = √Δ σ``, with ``w`` projected on ``Σ G w = end − start``.

    Args:
        roots: ``G``.
        gains: ``G_kᵀ (Σ G Gᵀ)⁻¹``, shape ``(N, dim, dim)``.
        start, end: shape ``(batch, dim)``.
    """

    roots: LinearMap
    gains: Tensor
    start: Tensor
    end: Tensor

    @classmethod
    def of(cls, process: Process, grid: TimeGrid, start: Tensor, end: Tensor) -> _NoiseCoordinates:
        roots = _Steps.at(process, grid).roots.to(start)
        full = roots.expanded(start.shape[1])
        return cls(roots, full.mT @ torch.linalg.inv((full @ full.mT).sum(0)), start, end)

    def path(self, w: Tensor) -> Tensor:
        moved = self._moved(w)
        missing = self.end - self.start - moved.sum(0)
        moved = moved + self._moved((self.gains @ missing.mT).mT)
        inner = self.start + moved[:-1].cumsum(0)
        return torch.cat([self.start.unsqueeze(0), inner, self.end.unsqueeze(0)])

    def of_path(self, x: Tensor) -> Tensor:
        return self.roots.inverse()(x.diff(dim=0).flatten(0, 1)).reshape(x[1:].shape)

    def _moved(self, w: Tensor) -> Tensor:
        return self.roots(w.flatten(0, 1)).reshape(w.shape)
