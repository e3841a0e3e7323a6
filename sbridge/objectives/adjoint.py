"""Adjoint matching: regression of the control on the adjoint state of the uncontrolled step map."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.errors import UnsupportedError
from sbridge.measures import Paths
from sbridge.problems.costs import WITHOUT_GRADIENTS, Costs
from sbridge.processes import Chain


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
    chain = paths.chain

    def ahead(k: int, x: Tensor, a: Tensor) -> Tensor:
        t, span = chain.step_times[k], chain.root_durations[k] ** 2
        kept = None if base is None else base(t, x)
        moved = (chain.move(k, x, kept) * a).sum(1)
        if kept is not None:
            moved = moved + span * (kept * paths.v[k].detach()).sum(1)
        return moved if costs.running is None else moved + span * costs.rate(t, x)

    return _swept_back(paths, costs, end, ahead)


def pathwise_adjoint(paths: Paths, costs: Costs, control: Control) -> Tensor:
    """Computes the gradient ``a_k`` of ``−log α`` from step ``k`` on, noise held fixed, shape ``(N + 1, batch, dim)``.

    ``a_N = ∇g(x_N)``, ``a_k = ∇_x [m_k(x)·a_{k+1} + √Δ L u·a_{k+1} + Δ (f + ½|u|²) + √Δ u·ξ_k]`` at ``x = x_k``, the
    step and the costs of the controlled chain, by one vector–Jacobian product a step. Where the uncontrolled process
    spreads and the controlled one does not, it stays small where the lean adjoint grows; and at the optimum
    ``−log α = V(x_k)`` on every path, so ``a_k = ∇V(x_k)`` has no variance. Away from it, it is the right gradient
    under weights ``α`` (:func:`tempered_targets`).

    Args:
        paths: of ``control``.
        costs: running and terminal cost.
        control: ``u``, differentiable.

    Raises:
        UnsupportedError: with a stopping set.
    """
    chain = paths.chain

    def ahead(k: int, x: Tensor, a: Tensor) -> Tensor:
        t, width = chain.step_times[k], chain.root_durations[k]
        u = control(t, x)
        cost = width * width * (costs.rate(t, x) + 0.5 * u.square().sum(1)) + width * (u * paths.noise[k]).sum(1)
        return (chain.move(k, x, u) * a).sum(1) + cost

    return _swept_back(paths, costs, None, ahead)


def _swept_back(
    paths: Paths, costs: Costs, end: Tensor | None, ahead: Callable[[int, Tensor, Tensor], Tensor]
) -> Tensor:
    """Computes ``a_k = a_{k+1} + ∇_x ahead(k, x, a_{k+1})`` at ``x = x_k``, from ``a_N = end`` or ``∇g(x_N)``."""
    if costs.stopping is not None:
        raise UnsupportedError(
            f"the adjoint state ignores that a stopping time moves: with a stopping set use {WITHOUT_GRADIENTS}."
        )
    states = paths.x.detach()
    adjoint = torch.empty_like(states)
    adjoint[-1] = a = terminal_gradient(states[-1], costs) if end is None else end
    for k in reversed(range(paths.chain.length)):
        adjoint[k] = a = a + gradient(states[k], lambda x, k=k, a=a: ahead(k, x, a))
    return adjoint


def tempered_targets(paths: Paths, adjoint: Tensor, power: float) -> Tensor:
    """Computes ``(1 − b) u_n − b L_kᵀ a_{k+1}/√Δ_k``, shape ``(N, batch, dim)``.

    With ``P_n`` the measure of the paths, ``u_n`` their control and ``a`` the pathwise adjoint, its mean given ``x_k``
    under ``P_{n+1} ∝ P_n α^b`` is the control of ``P_{n+1}``, ``u_n + E[ξ_k | x_k]/√Δ_k``, exactly for the chain: by
    Gaussian integration by parts ``E[ξ_k | x_k] = −b E[√Δ_k u_n + L_kᵀ a_{k+1} | x_k]``.
    """
    return (1.0 - power) * paths.v + power * adjoint_targets(paths.chain, adjoint)


def terminal_gradient(x: Tensor, costs: Costs) -> Tensor:
    """Computes ``∇g(x)``, shape ``(batch, dim)``."""
    return gradient(x, costs.end)


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
