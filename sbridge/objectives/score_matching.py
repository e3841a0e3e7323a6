"""Three forms of score matching: differentiable losses, one for each noised state ``(t, x)``.

With ``s = s_θ(t, x)``, ``a = σσᵀ`` and ``X_t = Φ X_0 + k + L ε`` of a linear noising process, per unit of time::

    explicit     ½ |σᵀ(s − ∇log ρ_t(x))|²                  (Premkumar 2023, eq. (3.37))
    denoising    ½ |σᵀ(s − ∇log p(x | x_0))|²              (Vincent 2011; ibid., eq. (3.43))
    implicit     ½ |σᵀ s|² + ∇·(a s)                       (Hyvärinen 2005)

Their means differ by terms that do not depend on θ::

    explicit = denoising − constant,   constant = ½ E|σᵀ∇log p(x | x_0)|² − ½ E|σᵀ∇log ρ_t|²
    explicit = implicit + ½ E|σᵀ∇log ρ_t|²

Every function returns one number per row, shape ``(batch,)``. Times are floats, or tensors ``()`` or ``(batch,)``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sbridge.controls.divergence import probed_trace
from sbridge.errors import InvalidInputError
from sbridge.linear import LinearMap
from sbridge.processes.base import LinearProcess, Process, Time

ScoreFunction = Callable[[Time, Tensor], Tensor]
"""A score ``(t, x) → (batch, dim)``."""
Units = Callable[[LinearProcess, Time, Tensor], Tensor]
"""A function that converts the error of a score to the units in which it is squared."""


def likelihood_units(process: Process, t: Time, error: Tensor) -> Tensor:
    """Converts to ``σᵀ error``, whose square is a rate of path KL."""
    return process.scale(t).T.to(error)(error)


def noise_units(process: LinearProcess, t: Time, error: Tensor) -> Tensor:
    """Converts to ``Lᵀ error``, the error of ``ε``, equal for all noise levels."""
    return process.transition(0.0, t).root.T.to(error)(error)


def denoising_target(process: LinearProcess, t: Time, noise: Tensor) -> Tensor:
    """Computes ``∇_x log p(x | x_0) = −Q⁻¹(x − m) = −L^{−ᵀ} ε``, without the difference ``x − m``; ``t > 0``."""
    return -process.transition(0.0, t).root.T.inverse().to(noise)(noise)


def explicit(
    process: LinearProcess, t: Time, score: Tensor, true_score: Tensor, units: Units = likelihood_units
) -> Tensor:
    """Computes ``½ |σᵀ(s − ∇log ρ_t)|²``."""
    return 0.5 * units(process, t, score - true_score).square().sum(1)


def denoising(process: LinearProcess, t: Time, score: Tensor, noise: Tensor, units: Units = likelihood_units) -> Tensor:
    """Computes ``½ |σᵀ(s + L^{−ᵀ} ε)|²``."""
    return 0.5 * units(process, t, score - denoising_target(process, t, noise)).square().sum(1)


def denoising_constant(process: LinearProcess, t: Time, noise: Tensor, true_score: Tensor) -> Tensor:
    """Computes ``½ |σᵀ L^{−ᵀ} ε|² − ½ |σᵀ∇log ρ_t|²``: :func:`denoising` minus :func:`explicit` in the mean."""
    target = likelihood_units(process, t, denoising_target(process, t, noise))
    return 0.5 * target.square().sum(1) - implicit_constant(process, t, true_score)


def implicit(process: LinearProcess, t: Time, x: Tensor, score: ScoreFunction, probes: Tensor | None = None) -> Tensor:
    """Computes ``½ |σᵀ s|² + ∇·(σσᵀ s)``, the divergence as in :func:`divergence`."""
    scale = process.scale(t).to(x)
    values, trace = divergence(lambda y: score(t, y), x, probes, scale @ scale.T)
    return 0.5 * scale.T(values).square().sum(1) + trace


def implicit_constant(process: LinearProcess, t: Time, true_score: Tensor) -> Tensor:
    """Computes ``½ |σᵀ∇log ρ_t|²``, the mean difference of :func:`explicit` and :func:`implicit`."""
    return 0.5 * likelihood_units(process, t, true_score).square().sum(1)


def divergence(
    field: Callable[[Tensor], Tensor], x: Tensor, probes: Tensor | None = None, metric: LinearMap | None = None
) -> tuple[Tensor, Tensor]:
    """Computes ``f(x)``, shape ``(batch, dim)``, and ``∇·(a f)(x) = tr(a ∇f)``, shape ``(batch,)``.

    Exact by ``dim`` backward passes, or by the unbiased estimate ``mean_i η_iᵀ ∇(a f · η_i)`` (Hutchinson 1989), whose
    variance for Rademacher probes is ``½ Σ_{i≠j} (J + Jᵀ)²_ij`` over the number of probes. Row ``i`` of the field may
    depend on row ``i`` of ``x`` only. Differentiable in parameters and ``x`` where gradients are on.

    Args:
        field: ``f``.
        x: states, shape ``(batch, dim)``.
        probes: ``η``, shape ``(probes, batch, dim)``, ``None`` for the exact trace. Signs come from
            :func:`~sbridge.controls.divergence.rademacher`.
        metric: ``a``; 1 by default.

    Raises:
        InvalidInputError: for a field or probes of another shape.
    """
    if probes is not None and (probes.ndim != 3 or probes.shape[1:] != x.shape or len(probes) < 1):
        raise InvalidInputError(
            f"probes must have shape (probes, {len(x)}, {x.shape[1]}), one set for the rows of x; got "
            f"{tuple(probes.shape)}."
        )
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        point = x if x.requires_grad else x.detach().requires_grad_()
        values = checked_score(lambda _, y: field(y), 0.0, point)
        moved = values if metric is None else metric.to(point)(values)
        share = 1.0 if probes is None else 1.0 / len(probes)
        directions = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).unsqueeze(1) if probes is None else probes
        trace = torch.zeros_like(point[:, 0])
        if moved.requires_grad:  # a constant field has no graph, and no divergence
            trace = share * probed_trace(moved, point, directions, recorded=differentiable)
    return (values, trace) if differentiable else (values.detach(), trace.detach())


def checked_score(score: ScoreFunction, t: Time, x: Tensor) -> Tensor:
    """Computes ``score(t, x)``; raises InvalidInputError unless it has the shape of ``x``."""
    values = score(t, x)
    if not isinstance(values, Tensor) or values.shape != x.shape:
        said = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise InvalidInputError(
            f"a score must return the shape of its states, {tuple(x.shape)}; it returned {said}. Combine a time of "
            "shape (batch,) with x as t.unsqueeze(-1)."
        )
    return values
