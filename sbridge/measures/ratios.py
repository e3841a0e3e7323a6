"""Distances between two path measures: log ratios along paths, and their means.

All results are exact for the simulated chains, at any step size: the density of a path is the product of the Gaussian
kernels of its steps, and a control only shifts their means.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.errors import InvalidInputError
from sbridge.laws import Density, Law
from sbridge.measures.estimates import Estimate, effective_sample_size
from sbridge.measures.measure import PathMeasure, Paths, pieces
from sbridge.processes.base import Time
from sbridge.processes.chain import Chain, Direction, default_rule
from sbridge.random import NormalNoise, Seed, as_seed, derive
from sbridge.simulation import propagate
from sbridge.simulation.engine import check_control


def log_ratio(paths: Paths, control_p: Control | None, control_q: Control | None) -> Tensor:
    """Returns ``log dP/dQ`` along ``paths`` for the measures that two controls make of their chain, shape ``(batch,)``.

    With ``p_j, q_j`` the two controls at the states of the paths and ``v_j`` the one that made them::

        Σ_j √Δ_j (p_j − q_j) · (ξ_j + √Δ_j (v_j − ½ (p_j + q_j)))

    For ``v = p`` this is Girsanov's ``Σ √Δ (p − q)·ξ + ½Δ|p − q|²``. The start distributions are assumed to be equal.

    Args:
        paths: made with any control.
        control_p: of ``P``; ``None`` for zero.
        control_q: of ``Q``.
    """
    chain, total = paths.chain, torch.zeros((), dtype=torch.float64, device=paths.x.device)
    for j, width in enumerate(chain.root_durations):
        t, x = chain.step_times[j], paths.x[j]
        # The noise under control p is ξ + √Δ(v − p), so log dP/dQ = Σ ½|ξ + √Δ(v − q)|² − ½|ξ + √Δ(v − p)|²,
        # factorised as a difference of squares, which loses no digits where p is near q.
        p, q = control_value(control_p, t, x), control_value(control_q, t, x)
        total = total + ((p - q) * (paths.noise[j] + width * (paths.v[j] - 0.5 * (p + q)))).sum(1).double() * width
    return total.to(paths.x.dtype)


def energy(paths: Paths) -> Estimate:
    """Estimates ``½ E Σ_j Δ_j |v_j|²``: the path KL of the measure that made ``paths`` to its reference, same start."""
    return Estimate.of(energies(paths))


def martingale(paths: Paths, control: Control | None) -> Tensor:
    """Computes ``Σ_j √Δ_j p_j · ξ_j`` for a control at the states of the paths, shape ``(batch,)``: of mean zero."""
    total, chain = torch.zeros((), dtype=torch.float64, device=paths.x.device), paths.chain
    for j, width in enumerate(chain.root_durations):
        total = (
            total + width * (control_value(control, chain.step_times[j], paths.x[j]) * paths.noise[j]).sum(1).double()
        )
    return total.to(paths.x.dtype)


def energies(paths: Paths) -> Tensor:
    """Computes ``½ Σ_j Δ_j |v_j|²`` of each path, shape ``(batch,)``."""
    spans = paths.chain.visited.diff().abs().to(paths.v)
    return 0.5 * torch.einsum("j,jbd->b", spans, paths.v.detach().square())


@torch.no_grad()
def path_kl(p: PathMeasure, q: PathMeasure, n: int, *, seed: Seed, chunk: int | None = None) -> Estimate:
    """Computes ``KL(P ‖ Q) = KL(start_p ‖ start_q) + ½ E_P Σ_j Δ_j |p_j − q_j|²``, from ``n`` paths of ``p``.

    The part of the log ratio that is linear in the noise has mean zero and is omitted. The effective sample size is
    that of the weights ``dQ/dP``, with which the ``n`` paths represent ``q``.

    Args:
        p: the measure that is simulated, as ``p.sample(n, seed=seed)``.
        q: a measure with the same process, grid, rule and direction.
        n: number of paths, at least 2.
        seed: of the paths.
        chunk: as in :meth:`PathMeasure.marginals`.

    Raises:
        InvalidInputError: if the measures differ in more than control and start, or the starts differ and one
            of them has no normalised density.
    """
    _check_comparable(p, q)
    if p.direction is not q.direction:
        raise InvalidInputError("path_kl compares measures of the same direction; for two directions use jeffreys.")
    seed = as_seed(seed)
    starts = p.starts(n, seed=seed)
    chain = p.chain(starts)
    beginning = _start_log_ratio(p.start, q.start, starts).double()
    cost, martingale = torch.zeros_like(beginning), torch.zeros_like(beginning)
    for rows, noise in pieces(starts, chain.length, seed, chunk):

        def add(j: int, x: Tensor, u: Tensor | None, rows: slice = rows, noise: NormalNoise = noise) -> None:
            if j == chain.length:
                return
            other = control_value(q.control, chain.step_times[j], x)
            # log dP/dQ of the step = gap·ξ + ½|gap|² with gap = √Δ(p − q); the first term has mean zero under P
            gap = chain.root_durations[j] * (-other if u is None else u - other)
            cost[rows] += 0.5 * gap.square().sum(1)
            martingale[rows] += (gap * noise.step(j)).sum(1)

        propagate(chain, p.control, starts[rows], noise, add)
    return Estimate.of(beginning + cost, effective_sample_size(-(beginning + cost + martingale)))


def kernel_log_ratio(paths: Paths, forward: PathMeasure, backward: PathMeasure) -> Tensor:
    """``ℓ = Σ_k log F_k(x_{k+1} | x_k) − log B_k(x_k | x_{k+1})`` along paths of either direction, shape ``(batch,)``.

    ``F`` and ``B`` are the step kernels of the two measures, so the log ratio of forward to backward path density
    is ``ℓ + log p_0(x_0) − log p_T(x_T)`` with the densities of their starts. With ``ξ, L`` the noise and root of
    the forward kernel and ``ξ', L'`` those of the backward one a summand is
    ``½|ξ'|² − ½|ξ|² + log|det L'| − log|det L|``, exact for either step rule.

    Args:
        paths: made by one of the two measures, or by any control on the chain of one.
        forward: a measure that runs forward.
        backward: one that runs backward, with the same process, grid and rule.
    """
    _check_directions(forward, backward)
    chain = paths.chain
    own, opposite = (forward, backward) if chain.direction is Direction.FORWARD else (backward, forward)
    other = opposite.chain(chain.like)
    if not (_same(chain.process, own.process) and torch.equal(chain.times, other.times)):
        raise InvalidInputError("the paths were made with another process or on another grid than the two measures.")
    total = torch.zeros((), dtype=torch.float64, device=paths.x.device)
    for j, width in enumerate(chain.root_durations):
        x = paths.x[j]
        # The noise of the step under the measure's own control, whatever control v made the paths
        own_noise = paths.noise[j] + width * (paths.v[j] - control_value(own.control, chain.step_times[j], x))
        total = total + _kernel_gap(other, opposite.control, j, x, own_noise, paths.x[j + 1])
    return (chain.direction.value * (total + _log_det_gap(chain, other))).to(paths.x.dtype)


@torch.no_grad()
def jeffreys(forward: PathMeasure, backward: PathMeasure, n: int, *, seed: Seed, chunk: int | None = None) -> Estimate:
    """Computes ``E_forward[ℓ] − E_backward[ℓ]`` with ``ℓ`` of :func:`kernel_log_ratio`, from ``n`` paths of each.

    If the paths of each measure end in the start distribution of the other, this is the Jeffreys divergence
    ``KL(forward ‖ backward) + KL(backward ‖ forward) ≥ 0``: zero exactly if the two are one measure in two directions.
    No density of an end is needed. Otherwise the result differs from the Jeffreys divergence by
    ``(E_f − E_b) log p_0(X_0) − (E_f − E_b) log p_T(X_T)`` and can be negative. Between exact time reversals of one
    diffusion it tends to zero with the step size.

    Args:
        forward: a measure that runs forward.
        backward: one that runs backward, with the same process, grid and rule.
        n: number of paths of each, at least 2.
        seed: of the paths.
        chunk: as in :meth:`PathMeasure.marginals`.

    Raises:
        InvalidInputError: if the directions are not these two, or process, grid or rule differ.
    """
    _check_directions(forward, backward)
    seed = as_seed(seed)
    there = Estimate.of(_stream_kernel_log_ratio(forward, backward, n, derive(seed, "forward"), chunk))
    back = Estimate.of(_stream_kernel_log_ratio(backward, forward, n, derive(seed, "backward"), chunk))
    return Estimate(there.value - back.value, math.hypot(there.standard_error, back.standard_error), n)


def _stream_kernel_log_ratio(own: PathMeasure, opposite: PathMeasure, n: int, seed: int, chunk: int | None) -> Tensor:
    """Computes ``ℓ`` along ``n`` paths of ``own``, without keeping them."""
    starts = own.starts(n, seed=seed)
    chain, other = own.chain(starts), opposite.chain(starts)
    total = starts.new_zeros(n, dtype=torch.float64)
    for rows, noise in pieces(starts, chain.length, seed, chunk):
        before: list[tuple[Tensor, Tensor]] = []

        def add(
            j: int,
            x: Tensor,
            u: Tensor | None,
            rows: slice = rows,
            noise: NormalNoise = noise,
            before: list[tuple[Tensor, Tensor]] = before,
        ) -> None:
            if j > 0:
                total[rows] += _kernel_gap(other, opposite.control, j - 1, *before.pop(), x)
            if j < chain.length:
                before.append((x, noise.step(j)))

        propagate(chain, own.control, starts[rows], noise, add)
    return chain.direction.value * (total + _log_det_gap(chain, other))


def _kernel_gap(other: Chain, control: Control | None, j: int, x: Tensor, own_noise: Tensor, y: Tensor) -> Tensor:
    """Computes ``½|ξ_other|² − ½|ξ_own|²`` for step ``j`` from ``x`` to ``y``, which the other chain takes back."""
    k = other.length - 1 - j
    other_noise = other.shift(k, y, x) - other.root_durations[k] * control_value(control, other.step_times[k], y)
    return half_square_gap(other_noise, own_noise)


def half_square_gap(a: Tensor, b: Tensor) -> Tensor:
    """Computes ``½|a|² − ½|b|²`` for each row, in float64, as a product: the squares may be large and close."""
    return 0.5 * ((a - b) * (a + b)).sum(1).double()


def _log_det_gap(own: Chain, other: Chain) -> float:
    """Computes ``Σ log|det L_other| − log|det L_own|``, in float64: it is a small difference of large sums."""
    dim = own.like.shape[-1]
    precise = torch.empty(0, dtype=torch.float64, device=own.like.device)
    chains = [dataclasses.replace(chain, like=precise) for chain in (other, own)]
    sums = [sum(float(chain.root(j).log_abs_det(dim)) for j in range(chain.length)) for chain in chains]
    return sums[0] - sums[1]


def control_value(control: Control | None, t: Time, x: Tensor) -> Tensor:
    """Computes ``u(t, x)``, zeros for ``None``; InvalidInputError unless it is a tensor like ``x``."""
    if control is None:
        return torch.zeros_like(x)
    u = control(t, x)
    check_control(u, x)
    return u


def _start_log_ratio(p: Law, q: Law, x: Tensor) -> Tensor:
    """Computes ``log p(x) − log q(x)``, shape ``(batch,)``; zero if the distributions are the same."""
    if _same(p, q):
        return x.new_zeros(len(x))
    for law in (p, q):
        if isinstance(law, Density) or not hasattr(law, "log_density"):
            raise InvalidInputError(
                f"the start distributions differ and a {type(law).__name__} has no normalised density, so their KL is "
                "unknown. Start both measures from one distribution, or from Gaussian or GaussianMixture ones."
            )
    return p.log_density(x) - q.log_density(x)  # type: ignore[attr-defined]


def _check_comparable(p: PathMeasure, q: PathMeasure) -> None:
    rules = [m.rule or default_rule(m.process) for m in (p, q)]
    parts = {
        "process": (p.process, q.process),
        "grid": (p.grid, q.grid),
        "step rule": rules,
        "dimension": (p.start.dim, q.start.dim),
    }
    differing = [name for name, (a, b) in parts.items() if not _same(a, b)]
    if differing:
        raise InvalidInputError(
            f"the two measures differ in {' and '.join(differing)}; a log ratio exists only for measures that share "
            "process, grid and step rule. Build one from the other with dataclasses.replace."
        )


def _check_directions(forward: PathMeasure, backward: PathMeasure) -> None:
    if forward.direction is not Direction.FORWARD or backward.direction is not Direction.BACKWARD:
        raise InvalidInputError(
            f"a forward and a backward measure are needed, in this order; got {forward.direction.name} and "
            f"{backward.direction.name}."
        )
    _check_comparable(forward, backward)


def _same(a: object, b: object) -> bool:
    """Returns whether data are equal: dataclasses field by field, tensors entry by entry."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if dataclasses.is_dataclass(a):
        return all(_same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return bool(a == b)
