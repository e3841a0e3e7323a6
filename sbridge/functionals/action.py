"""The action of stochastic control, its gap, and path KL with killing, along paths.

For paths of ``dX = (b + σu) dt + σ dW`` with state cost ``V`` and a field ``J`` (Premkumar 2023, eq. (3.21))::

    S[p, u, J] = E ∫ ½|u|² + V dt + E ∫ [∂_t J + (b + σu)·∇J + ½ tr(σσᵀ∇²J)] dt + E J(0, X_0) − E J(T, X_T)

The field is a multiplier: for any ``J``, its terms have mean zero if ``u`` is the control of the paths (Itô). Along
paths of a backward measure, time is ``T − t``: ``∂_t J`` and ``b`` change sign, and the first value of ``J`` is the one
at the start of the paths. Functions of time are always called with bridge time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.functionals.quadrature import (
    PathValues,
    Quadrature,
    RowFunction,
    Trapezoid,
    integrate,
    knots_from,
    row_values,
)
from sbridge.linear import LinearMap
from sbridge.measures import Paths, log_ratio
from sbridge.measures.ratios import control_value
from sbridge.objectives.score_matching import divergence
from sbridge.processes.base import Time


def action(
    paths: Paths,
    control: Control | None,
    field: RowFunction,
    state_cost: RowFunction | None = None,
    *,
    quadrature: Quadrature = Trapezoid(),
    probes: Tensor | None = None,
    start_time: float = 0.0,
) -> PathValues:
    """Computes ``S[p, u, J]``, where ``p`` is the distribution of ``paths``.

    Args:
        paths: samples of ``p``, simulated with any control.
        control: ``u``; ``None`` for zero. Called at every knot that ``quadrature`` gives a weight.
        field: ``J(t, x) → (batch,)``, differentiable by autograd once in ``t`` of shape ``(batch,)``, twice in ``x``.
        state_cost: ``V(t, x) → (batch,)`` of either sign; ``None`` for zero.
        quadrature: the rule in time, trapezoids of order two by default.
        probes: for the trace of second derivatives, as in :func:`~sbridge.objectives.score_matching.divergence`.
        start_time: the bridge time from which all terms are counted.

    Raises:
        InvalidInputError: if ``u``, ``J`` or ``V`` return another shape than they should.
        NonFiniteError: if ``J`` or ``V`` is NaN or infinite.
    """

    def cost(t: Time, x: Tensor) -> Tensor:
        energy = 0.5 * control_value(control, t, x).square().sum(1)
        return energy if state_cost is None else energy + row_values(state_cost, t, x, "the state cost V")

    multiplied = constraint(paths, control, field, quadrature=quadrature, probes=probes, start_time=start_time)
    return integrate(paths, cost, quadrature, start_time) + multiplied


def constraint(
    paths: Paths,
    control: Control | None,
    field: RowFunction,
    *,
    quadrature: Quadrature = Trapezoid(),
    probes: Tensor | None = None,
    start_time: float = 0.0,
) -> PathValues:
    """Computes ``∫ [∂_t J + (b + σu)·∇J + ½ tr(σσᵀ∇²J)] dt + J(0, X_0) − J(T, X_T)``, of mean zero under ``u``.

    Arguments and errors as for :func:`action`.
    """
    process, sign = paths.chain.process, paths.chain.direction.value

    def generator(t: Time, x: Tensor) -> Tensor:
        scale = process.scale(t).to(x)
        rate, gradient, trace = _derivatives(field, t, x, scale @ scale.T, probes)
        moved = sign * process.drift(t, x) + scale(control_value(control, t, x))
        return sign * rate + (moved * gradient).sum(1) + 0.5 * trace

    bulk = integrate(paths, generator, quadrature, start_time)
    first, last = (_at_knot(paths, field, int(k)) for k in knots_from(paths, start_time)[[0, -1]])
    return bulk + PathValues.exact(first - last)


def action_difference(
    paths: Paths,
    control: Control | None,
    other: Control | None,
    field: RowFunction,
    *,
    quadrature: Quadrature = Trapezoid(),
    start_time: float = 0.0,
) -> PathValues:
    """Gives ``S[p, u, J] − S[p, u', J] = E ∫ ½|u|² − ½|u'|² + σ(u − u')·∇J dt``: all other terms of the action cancel.

    Args:
        paths: samples of ``p``.
        control, other: ``u`` and ``u'``.
        field: ``J``, differentiable in ``x`` once.
        quadrature, start_time: as for :func:`action`.
    """
    process = paths.chain.process

    def integrand(t: Time, x: Tensor) -> Tensor:
        u, v = control_value(control, t, x), control_value(other, t, x)
        pull = process.scale(t).T.to(x)(_gradient(field, t, x))
        return 0.5 * (u.square() - v.square()).sum(1) + ((u - v) * pull).sum(1)

    return integrate(paths, integrand, quadrature, start_time)


def action_gap(
    paths: Paths,
    control: Control | None,
    optimal: Control | None,
    *,
    quadrature: Quadrature = Trapezoid(),
    start_time: float = 0.0,
) -> PathValues:
    """Computes ``S[p*, u] − S[p*, u*] = ½ E_{p*} ∫ |u − u*|² dt`` (Premkumar 2023, eq. (3.36)).

    Args:
        paths: samples of ``p*``.
        control: ``u``.
        optimal: ``u*``.
        quadrature, start_time: as for :func:`action`; for paths that ``u*`` made,
            :class:`~sbridge.functionals.LeftPoint` makes it the KL of the two chains, exactly.
    """

    def integrand(t: Time, x: Tensor) -> Tensor:
        return 0.5 * (control_value(control, t, x) - control_value(optimal, t, x)).square().sum(1)

    return integrate(paths, integrand, quadrature, start_time)


def killed_log_ratio(
    paths: Paths,
    control_p: Control | None,
    control_q: Control | None,
    killing_rate: RowFunction,
    *,
    quadrature: Quadrature = Trapezoid(),
) -> PathValues:
    """Computes ``log dP/dQ`` when paths of ``Q`` are killed at rate ``V`` and those of ``P`` are not.

    Girsanov's log ratio plus ``∫ V dt`` (Premkumar 2023, eq. (3.19)). Under ``P`` its mean is the path KL,
    ``½ E ∫ |p − q|² + 2V dt``, and ``E e^{−log ratio}`` is the surviving mass of ``Q`` at ``T``, not 1. If ``V < 0``,
    mass is created and the KL can be negative.

    Args:
        paths: as for :func:`~sbridge.measures.log_ratio`, which is exact for the chain.
        control_p, control_q: of ``P`` and ``Q``; ``None`` for zero.
        killing_rate: ``V(t, x) → (batch,)``.
        quadrature: the rule for ``∫ V dt``.
    """

    def rate(t: Time, x: Tensor) -> Tensor:
        return row_values(killing_rate, t, x, "the killing rate V")

    return PathValues.exact(log_ratio(paths, control_p, control_q)) + integrate(paths, rate, quadrature)


def _at_knot(paths: Paths, field: RowFunction, k: int) -> Tensor:
    x = paths.x[k]
    with torch.no_grad():
        return row_values(field, paths.t[k].expand(len(x)).clone(), x, "the field J").double()


def _derivatives(
    field: RowFunction, t: Time, x: Tensor, metric: LinearMap, probes: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes ``∂_t J``, ``∇J`` and ``tr(σσᵀ∇²J)`` at one time and many states."""
    with torch.enable_grad():
        # One time a row: then the derivative comes row by row.
        times = torch.full((len(x),), float(t), dtype=torch.float64, device=x.device, requires_grad=True)
        value = row_values(field, times, x, "the field J")
        rate = torch.zeros_like(x[:, 0])
        if value.requires_grad:
            (found,) = torch.autograd.grad(value.sum(), times, materialize_grads=True)
            rate = found.to(x)
    gradient, trace = divergence(lambda y: _gradient(field, t, y), x, probes, metric)
    return rate, gradient, trace


def _gradient(field: RowFunction, t: Time, x: Tensor) -> Tensor:
    """Computes ``∇J(t, x)``, shape ``(batch, dim)``; differentiable where gradients are on."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        point = x if x.requires_grad else x.detach().requires_grad_()
        times = torch.full((len(x),), float(t), dtype=torch.float64, device=x.device)
        value = row_values(field, times, point, "the field J")
        if not value.requires_grad:
            return torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(value.sum(), point, create_graph=differentiable, materialize_grads=True)
    return gradient
