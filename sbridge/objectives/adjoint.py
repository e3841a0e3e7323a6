"""Adjoint matching: regression of the control on the adjoint state of the uncontrolled step map."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.errors import NonFiniteError, UnsupportedError
from sbridge.measures import Paths
from sbridge.problems.costs import WITHOUT_GRADIENTS, Costs
from sbridge.processes import Chain

_RIDGE = 1e-6  # relative; at a start that is a point, powers of the state are constant


def lean_adjoint(paths: Paths, costs: Costs, end: Tensor | None = None, base: Control | None = None) -> Tensor:
    """Computes the adjoint state ``a_k`` of each path, shape ``(N + 1, batch, dim)``, exact for the chain.

    ``a_N = ∇g(x_N)``, ``a_k = a_{k+1} + ∇_x [(m_k(x) − x)·a_{k+1} + Δ f(t_k, x)]`` at ``x = x_k``, with ``m_k`` the
    mean of the *uncontrolled* step: one vector–Jacobian product a step, no graph across steps. In continuous time
    this is the lean adjoint of Domingo-Enrich et al. 2024 (arXiv:2409.08861, eqs. (38)–(39)).

    Args:
        paths: of either direction; ``k`` counts steps as they are run.
        costs: running and terminal cost.
        end: ``a_N``; ``None``: ``∇g(x_N)``.
        base: a control ``w`` whose derivative is kept, as if it belonged to the drift: ``√Δ L w·a_{k+1} + Δ w·v`` is
            added in the bracket. Its mean is zero at the optimum, so the fixed point is the same; adjoint states then
            do not grow where the uncontrolled process spreads and the process under ``w`` does not.

    Raises:
        UnsupportedError: with a stopping set.
    """
    _refuse_stopping(costs)
    chain, states = paths.chain, paths.x.detach()
    adjoint = torch.empty_like(states)
    adjoint[-1] = a = terminal_gradient(states[-1], costs) if end is None else end
    for k in reversed(range(chain.length)):
        adjoint[k] = a = _before(paths, costs, k, a, base)
    return adjoint


def mixed_targets(paths: Paths, costs: Costs, weights: Tensor) -> Tensor:
    """Computes targets ``y_k`` of the control in which adjoint state and noise cancel, ``(N, batch, dim)``.

    Under the optimal path measure ``P*`` the control of the chain is the mean, given ``x_k``, of the noise of the
    uncontrolled step, and by Gaussian integration by parts that of the adjoint state::

        u*(t_k, x_k) = E*[v_k + ξ_k/√Δ_k | x_k] = E*[L_kᵀ p_{k+1} | x_k]/√Δ_k,      p = ∇ log φ

    The first has a variance of ``1/Δ_k``. The second is accurate near the end and grows with the distance to it. So the
    adjoint state is a mixture of both at every later step::

        y_k = (1 − c_k) L_kᵀ p_{k+1}/√Δ_k + c_k (v_k + ξ_k/√Δ_k),        p_N = −∇g(x_N)
        p_k = ∇_x [m_k(x)·q_k − Δ_k f(t_k, x)] at x_k,                 q_k = √Δ_k L_k⁻ᵀ y_k

    with one vector–Jacobian product of the uncontrolled step a step, as for :func:`lean_adjoint` (``c = 0``). Any
    function of ``x_k`` may be the share ``c_k``: that of a coordinate is the quadratic function of the coordinate with
    the least weighted mean square of ``y_k − v_k``, clamped to ``[0, 1]``. If ``P*`` is Gaussian with independent
    coordinates, the targets have no noise. The noise carried back over many steps is the Bismut–Elworthy–Li formula.

    Args:
        paths: of any control ``v``.
        costs: running and terminal cost.
        weights: normalised, of ``P*`` (or on the way there), shape ``(batch,)``.

    Raises:
        UnsupportedError: with a stopping set.
    """
    _refuse_stopping(costs)
    chain, x = paths.chain, paths.x.detach()
    targets, weights = torch.empty_like(x[:-1]), weights.to(x).unsqueeze(1)
    a = terminal_gradient(x[-1], costs)  # a = −p
    for k in reversed(range(chain.length)):
        root, width, v = chain.root(k), chain.root_durations[k], paths.v[k].detach()
        adjoint = root.T(-a) / width
        gap = v + paths.noise[k] / width - adjoint
        targets[k] = adjoint + _share(gap, v - adjoint, x[k], weights) * gap
        a = _before(paths, costs, k, -root.T.inverse()(width * targets[k]))
    return targets


def _before(paths: Paths, costs: Costs, k: int, a: Tensor, base: Control | None = None) -> Tensor:
    """The adjoint state before step ``k`` from that after it: the equation of :func:`lean_adjoint`."""
    t, span = paths.chain.step_times[k], paths.chain.root_durations[k] ** 2

    def ahead(x: Tensor) -> Tensor:
        kept = None if base is None else base(t, x)
        moved = (paths.chain.move(k, x, kept) * a).sum(1)
        if kept is not None:
            moved = moved + span * (kept * paths.v[k].detach()).sum(1)
        return moved if costs.running is None else moved + span * costs.rate(t, x)

    return a + gradient(paths.x[k].detach(), ahead)


def _share(gap: Tensor, wanted: Tensor, x: Tensor, weights: Tensor) -> Tensor:
    """``c(x)`` of least ``Σ w (c gap − wanted)²``, quadratic in each coordinate alone and clamped to ``[0, 1]``."""
    z = (x - x.mean(0)) / (x.std(0) + _RIDGE * x.abs().mean(0)).clamp_min(torch.finfo(x.dtype).tiny)
    powers = torch.stack([torch.ones_like(z), z, z.square()], -1)
    scaled = (powers * gap.unsqueeze(-1)).double()
    left = (weights.unsqueeze(-1) * scaled).transpose(0, 1)
    square, mixed = left.mT @ scaled.transpose(0, 1), left.mT @ wanted.double().T.unsqueeze(-1)
    ridge = _RIDGE * square.diagonal(dim1=1, dim2=2).mean(1) + torch.finfo(torch.float64).tiny
    square = square + torch.diag_embed(ridge.unsqueeze(1).expand(-1, powers.shape[-1]))
    return (powers * torch.linalg.solve(square, mixed).squeeze(-1).to(x)).sum(-1).clamp(0.0, 1.0)


def _refuse_stopping(costs: Costs) -> None:
    if costs.stopping is not None:
        raise UnsupportedError(
            f"the adjoint state ignores that a stopping time moves: with a stopping set use {WITHOUT_GRADIENTS}."
        )


def terminal_gradient(x: Tensor, costs: Costs) -> Tensor:
    """Computes ``∇g(x)``, shape ``(batch, dim)``; raises NonFiniteError, with an example, if it is not finite."""
    found = gradient(x, costs.end)
    bad = ~found.isfinite().all(1)
    if bool(bad.any()):
        place = ", ".join(f"{value:.3g}" for value in x[bad][0].tolist()[:4])
        raise NonFiniteError(
            f"the gradient of the terminal cost is NaN or infinite at {int(bad.sum())} of {len(x)} simulated ends, "
            f"such as x = ({place}{', …' if x.shape[1] > 4 else ''}). Write it so that torch can differentiate it "
            "there, with torch.logsumexp for the logarithm of a sum; or use LogVariance(), which needs no gradient."
        )
    return found


def adjoint_targets(chain: Chain, adjoint: Tensor) -> Tensor:
    """Computes ``−L_kᵀ a_{k+1}/√Δ_k``, the regression target of the control, shape ``(N, batch, dim)``.

    With ``a_{k+1}`` the fixed point is the chain's exact optimum; ``a_k`` would be off by ``O(Δ)``.
    """
    targets = [chain.root(k).T(adjoint[k + 1]) * (-1.0 / width) for k, width in enumerate(chain.root_durations)]
    return torch.stack(targets)


def gradient(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Computes ``∇_x Σ function(x)``; zeros if it does not depend on ``x``."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = function(x).sum()
        if not value.requires_grad:
            return torch.zeros_like(x)
        found = torch.autograd.grad(value, x, allow_unused=True)[0]
    return torch.zeros_like(x) if found is None else found.detach()
