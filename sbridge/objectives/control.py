"""Losses of control learning on paths that are sampled with the control values ``v = paths.v``.

With ``f`` the running and ``g`` the terminal cost the optimal path measure is ``dP*/dR ∝ exp(−Σ Δ f − g)``. Along
paths of any control ``v`` its density against ``P^v`` is ``α/E[α]``, so every loss below is an expectation under the
control of the paths, whichever it is (Nüsken & Richter 2021, arXiv:2005.05409). All sums are exact for the chain.
``alive`` masks steps after a stopping time, see :class:`~sbridge.objectives.StoppingSet`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.errors import UnsupportedError
from sbridge.measures import PathMeasure, Paths, StepKernel, importance_weights
from sbridge.measures.kernels import run_weighted
from sbridge.measures.measure import noise_for
from sbridge.problems.costs import WITHOUT_GRADIENTS, Costs
from sbridge.random import derive
from sbridge.simulation.engine import check_control

_CHUNK = 2**22  # numbers of a bundle of paths that is kept whole
_ROWS = 2**14  # paths that are simulated together and not kept


def control_values(control: Control, paths: Paths) -> Tensor:
    """Computes ``u(t_k, x_k)`` at all states but the last, shape ``(N, batch, dim)``, in one call of the control.

    States are constants here: the gradient is that of the control's parameters.
    """
    x = paths.x[:-1].detach()
    t = paths.t[:-1].to(x.device).repeat_interleave(x.shape[1])
    flat = x.reshape(-1, x.shape[2])
    u = control(t, flat)
    check_control(u, flat)
    return u.to(x.dtype).reshape(x.shape)


def control_objective(paths: Paths, costs: Costs, alive: Tensor | None = None) -> Tensor:
    """Gives ``Σ Δ (f + ½|v|²) + g`` for each path, shape ``(batch,)``, float64; its mean is the objective of ``v``."""
    return costs.along(paths, alive) + _sum(0.5 * paths.v.square().sum(2), _spans(paths), alive)


def log_weight(paths: Paths, costs: Costs, alive: Tensor | None = None) -> Tensor:
    """Computes ``log α = −Σ [Δ (f + ½|v|²) + √Δ v·ξ] − g``, shape ``(batch,)``, float64; ``dP*/dP^v = α/E[α]``."""
    return -control_objective(paths, costs, alive) - _sum((paths.v * paths.noise).sum(2), _spans(paths).sqrt(), alive)


@torch.no_grad()
def weighted_ends(
    measure: PathMeasure, costs: Costs, n: int, *, seed: int, kernel: StepKernel | None = None
) -> tuple[Tensor, Tensor]:
    """Draws ``n`` ends of a controlled measure, with ``log α`` of their paths: ``(n, dim)`` and ``(n,)``.

    Args:
        measure: the controlled process, on its grid.
        costs: of the problem.
        n: number of paths.
        seed: of the paths.
        kernel: how the chain steps; ``None``: as the measure does.

    Raises:
        UnsupportedError: with a kernel, if there is a running cost or a stopping set.
    """
    size = max(2, _CHUNK // (measure.grid.steps * measure.start.dim)) if kernel is None else _ROWS
    ends, logs = [], []
    for first in range(0, n, size):
        own, rows = derive(seed, "chunk", first), min(size, n - first)
        if kernel is None:
            paths = measure.sample(rows, seed=own)
            found = paths.x[-1].clone(), log_weight(paths, costs)
        else:
            found = kernel_ends(measure, costs, measure.starts(rows, seed=own), kernel, seed=own)
        ends.append(found[0])
        logs.append(found[1])
    return torch.cat(ends), torch.cat(logs)


@torch.no_grad()
def kernel_ends(
    measure: PathMeasure, costs: Costs, x0: Tensor, kernel: StepKernel, *, seed: int
) -> tuple[Tensor, Tensor]:
    """Runs one path with the steps of ``kernel`` from each row of ``x0``; ends and ``log α`` of the paths.

    Raises:
        UnsupportedError: if there is a running cost or a stopping set.
    """
    if costs.running is not None or costs.stopping is not None:
        raise UnsupportedError(
            "steps with a variance of their own are for problems with a terminal cost alone: leave kernel=None."
        )
    chain = measure.chain(x0)
    ends, ratio = run_weighted(chain, kernel.on(chain, measure.control), x0, noise_for(x0, chain.length, seed))
    return ends, ratio - costs.end(ends).double()


def residual(paths: Paths, costs: Costs, u: Tensor, alive: Tensor | None = None) -> Tensor:
    """Computes ``Ỹ = Σ [Δ (½|u|² − u·v) − √Δ u·ξ − Δ f] − g = log dP*/dP^u + const``, shape ``(batch,)``, float64.

    It is constant exactly when ``u`` is the control of ``P*``.

    Args:
        paths: sampled with ``v``.
        costs: of the problem.
        u: values of the control to be evaluated, as :func:`control_values` gives them.
        alive: the mask, if paths stop.
    """
    return _log_density(paths, u, alive) - costs.along(paths, alive).detach()


def relative_entropy(paths: Paths, costs: Costs) -> Tensor:
    """Computes ``E[Σ Δ (f + ½|u|²) + g]``, for paths simulated with their gradient: ``u = v`` (ibid.).

    Raises:
        UnsupportedError: with a stopping set, whose hitting times the gradient does not see.
    """
    if costs.stopping is not None:
        raise UnsupportedError(
            f"the pathwise gradient of the relative entropy is biased with a stopping set: use {WITHOUT_GRADIENTS}."
        )
    return control_objective(paths, costs).mean()


def log_variance(paths: Paths, costs: Costs, u: Tensor, alive: Tensor | None = None) -> Tensor:
    """Computes ``Var Ỹ``, unbiased, under the control of the paths (ibid.).

    With paths of ``u`` itself, taken as constants, its gradient is twice that of the relative entropy in expectation;
    it vanishes path by path at the optimum.
    """
    return residual(paths, costs, u, alive).var()


def moment(paths: Paths, costs: Costs, u: Tensor, offset: Tensor, alive: Tensor | None = None) -> Tensor:
    """Computes ``E (Ỹ + y_0)²``; the best ``y_0`` is ``−log E_R exp(−Σ Δ f − g)``, the value (ibid., moment loss)."""
    return (residual(paths, costs, u, alive) + offset).square().mean()


def cross_entropy(paths: Paths, costs: Costs, u: Tensor, alive: Tensor | None = None) -> Tensor:
    """Computes ``Σ_i w_i [Σ Δ (½|u|² − u·v) − √Δ u·ξ]_i`` with the normalised weights ``w ∝ α`` (ibid.).

    ``KL(P* ‖ P^u)`` up to a constant; convex in ``u``. The weights are normalised from their logarithms.
    """
    weights = importance_weights(log_weight(paths, costs, alive).detach()).values
    return (weights * _log_density(paths, u, alive)).sum()


def _log_density(paths: Paths, u: Tensor, alive: Tensor | None) -> Tensor:
    """Computes ``−log dP^u/dR`` along paths of ``v``, R the uncontrolled chain: ``Σ Δ (½|u|² − u·v) − √Δ u·ξ``."""
    v, spans = paths.v.detach(), _spans(paths)
    square = _sum((u * (0.5 * u - v)).sum(2), spans, alive)
    return square - _sum((u * paths.noise.detach()).sum(2), spans.sqrt(), alive)


def _sum(values: Tensor, weights: Tensor, alive: Tensor | None) -> Tensor:
    """Computes ``Σ_k weights_k values_k`` over the steps that count, in float64."""
    weighted = values.double() * weights.unsqueeze(1)
    return (weighted if alive is None else weighted * alive[:-1]).sum(0)


def _spans(paths: Paths) -> Tensor:
    return paths.t.diff().abs().to(paths.x.device)
