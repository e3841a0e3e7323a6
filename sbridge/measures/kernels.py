"""Gaussian steps with their own mean and variance, and exact weights of the paths that they make.

A step of the uncontrolled chain is ``y = m_j(x) + L_j ξ``. Here a step is ``y = m_j(x) + L_j (h_j(x) + s_j(x) ⊙ ξ)``
with any shift ``h`` and any positive ``s``. The weight of a path is the product of the ratios of both densities, so it
is exact for every choice; the choice decides how much the weights vary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.errors import InvalidInputError, NonFiniteError, UnsupportedError
from sbridge.linear import LinearMap
from sbridge.measures.ratios import half_square_gap
from sbridge.processes.base import LinearProcess, Time
from sbridge.processes.chain import Chain, Direction, ExactTransition
from sbridge.random import NormalNoise
from sbridge.simulation.engine import check_control, is_finite
from sbridge.storage.registry import check_kinds, register

KernelAt = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""The shift ``h`` and the standard deviations ``s > 0`` of step ``j`` from states ``x``, each ``(batch, dim)``."""


@runtime_checkable
class PosteriorVariance(Protocol):
    """A control that knows the variance of the end too, for processes with scalar or diagonal coefficients."""

    def with_variance(self, t: Time, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes ``u(t, x)`` and ``V = Var[X_T | X_t = x]/Q`` of the optimal path measure, both ``(batch, dim)``."""
        ...


class StepKernel(ABC):
    """Says how a controlled chain steps: ``y = m_j(x) + L_j (h_j(x) + s_j(x) ⊙ ξ)``."""

    @abstractmethod
    def on(self, chain: Chain, control: Control | None) -> KernelAt:
        """Returns ``(j, x) ↦ (h, s)`` for the steps of ``chain`` under ``control``."""


@register
@dataclass(frozen=True)
class ControlledKernel(StepKernel):
    """The step of a controlled chain, ``h = √Δ u`` and ``s = 1``: the variance is that of the uncontrolled process."""

    def on(self, chain: Chain, control: Control | None) -> KernelAt:
        """Returns ``(j, x) ↦ (√Δ_j u(t_j, x), 1)``."""

        def at(j: int, x: Tensor) -> tuple[Tensor, Tensor]:
            u = torch.zeros_like(x) if control is None else control(chain.step_times[j], x)
            check_control(u, x)
            return chain.root_durations[j] * u, torch.ones_like(x)

        return at


@register
@dataclass(frozen=True)
class MatchedKernel(StepKernel):
    """The Gaussian step with the mean and the diagonal variance of the optimal step, from control and derivative.

    Let ``φ(t, x) = E_R[e^{−g(X_T)} | X_t = x]`` and ``u = σᵀ∇log φ`` be the optimal control of a terminal cost. The
    optimal chain steps from ``x`` by ``R(y | x) φ(t', y)/φ(t, x)``. With ``y = Φx + c + Lξ`` under R, it has::

        E[ξ] = B u          Cov[ξ] = I + B (∂u/∂x) A          A = Φ⁻¹ L,   B = Lᵀ Φ⁻ᵀ σ⁻ᵀ ≈ √Δ

    (Tweedie's formula, and Bao et al. 2022, arXiv:2206.07309, for every linear process). The kernel has this
    mean and the diagonal of this covariance, so it has the smallest ``KL(P* ‖ P)`` of all chains with Gaussian steps of
    diagonal variance in the coordinates ξ. For a Gaussian ``e^{−g}`` with independent coordinates all weights are
    equal. A plain controlled step keeps the variance ``I`` of R instead: it is far too wide where the optimal path
    measure narrows in a step, and too narrow where paths part.

    A step costs ``dim`` reverse derivatives of the control; none if the control is a :class:`PosteriorVariance`. The
    variance is then ``1 − κ + κV`` with ``κ = Φ(T, t')² L²/Q(T, t)``: that of the pinned step, and of the end.

    Args:
        least, most: bounds of the variance in units of that of R, for a learned control whose derivative is wrong.

    Raises:
        InvalidInputError: unless ``0 < least ≤ 1 ≤ most``.
    """

    least: float = 0.02
    most: float = 50.0

    def __post_init__(self) -> None:
        check_kinds(self)
        if not 0.0 < self.least <= 1.0 <= self.most:
            raise InvalidInputError(f"0 < least ≤ 1 ≤ most is needed, got least = {self.least}, most = {self.most}.")

    def on(self, chain: Chain, control: Control | None) -> KernelAt:
        """Tabulates ``A`` and ``B``.

        Raises:
            UnsupportedError: if the steps are not exact transitions of a linear process, forward in time.
        """
        process, exact = chain.process, isinstance(chain.rule, ExactTransition)
        if not isinstance(process, LinearProcess) or not exact or chain.direction is not Direction.FORWARD:
            raise UnsupportedError(
                "MatchedKernel needs exact forward steps of a LinearProcess such as OrnsteinUhlenbeck, got "
                f"{type(process).__name__} with {type(chain.rule).__name__}, {chain.direction.name.lower()}."
            )
        if control is None:
            return lambda j, x: (torch.zeros_like(x), torch.ones_like(x))
        if isinstance(control, PosteriorVariance):
            return self._from_posterior(chain, process, control)
        dim, like = chain.like.shape[-1], chain.like
        # In float64: over a long step Φ is small, and its inverse large.
        precise = Chain(
            process, chain.times, chain.direction, chain.rule, torch.empty(0, dim, dtype=torch.float64, device="cpu")
        )
        roots = [precise.root(j) for j in range(chain.length)]
        root = LinearMap(torch.stack([one.values for one in roots]), roots[0].dense)
        back = process.transition(chain.times[:-1], chain.times[1:]).map.inverse()
        ahead = (back @ root).to(like)
        pull = (root.T @ back.T @ process.inverse_scale(chain.times[:-1]).T).to(like)
        columns, rows = ahead.expanded(dim).mT, pull.expanded(dim)
        times = chain.step_times

        def at(j: int, x: Tensor) -> tuple[Tensor, Tensor]:
            u, narrowing = _with_diagonal(control, times[j], x, rows[j], columns[j])
            return pull.at(j)(u), (1.0 + narrowing).clamp(self.least, self.most).sqrt()

        return at

    def _from_posterior(self, chain: Chain, process: LinearProcess, control: PosteriorVariance) -> KernelAt:
        starts, ends = chain.times[:-1], chain.times[1:]
        step = process.transition(starts, ends)
        ahead, rest = (process.transition(t, torch.full_like(t, process.horizon)) for t in (starts, ends))
        sigma = process.scale(starts)
        if step.map.dense or ahead.covariance.dense or sigma.dense:
            raise UnsupportedError("a control with posterior variances needs scalar or diagonal coefficients.")
        share = rest.map.values.square() * step.covariance.values / ahead.covariance.values
        pull = (step.covariance.values.sqrt() / (step.map.values * sigma.values)).to(chain.like)
        shares, times = share.clamp_max(1.0).to(chain.like), chain.step_times

        def at(j: int, x: Tensor) -> tuple[Tensor, Tensor]:
            u, variance = control.with_variance(times[j], x)
            check_control(u, x)
            own = 1.0 + shares[j] * (variance - 1.0)
            return pull[j] * u, own.clamp(self.least, self.most).sqrt()

        return at


def _with_diagonal(control: Control, t: float, x: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Computes ``u(t, x)`` and ``b_iᵀ (∂u/∂x) a_i`` for rows ``b_i`` and columns ``a_i``; both ``(batch, dim)``."""
    with torch.enable_grad():
        states = x.detach().requires_grad_()
        u = control(t, states)
        check_control(u, x)
        if not u.requires_grad:
            raise UnsupportedError(
                "MatchedKernel needs the derivative of the control, but torch cannot differentiate its values. Compute "
                "them with torch from x, without detach() or no_grad()."
            )
        found = [
            torch.autograd.grad(u, states, row.expand_as(u), retain_graph=i + 1 < len(rows), materialize_grads=True)[0]
            @ column
            for i, (row, column) in enumerate(zip(rows, columns, strict=True))
        ]
    return u.detach(), torch.stack(found, 1)


@torch.no_grad()
def run_weighted(chain: Chain, at: KernelAt, x0: Tensor, noise: NormalNoise) -> tuple[Tensor, Tensor]:
    """Runs a chain by its kernels; returns the last states ``(batch, dim)`` and ``log dR/dP``, float64 ``(batch,)``.

    ``log dR/dP = Σ_j ½|ξ_j|² + Σ_i log s_ji − ½|h_j + s_j ⊙ ξ_j|²``.

    Args:
        chain: of the uncontrolled process.
        at: the kernels.
        x0: start states.
        noise: ``ξ``.

    Raises:
        NonFiniteError: if a state becomes infinite or NaN.
    """
    x, ratio = x0, torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    for j in range(chain.length):
        shift, spread = at(j, x)
        own = noise.step(j)
        moved = shift + spread * own
        ratio += half_square_gap(own, moved) + spread.log().sum(1).double()
        x = chain.push(j, x, moved)
    if not is_finite(x):
        raise NonFiniteError("states are NaN or infinite at the end: take more steps, or check the control.")
    return x, ratio


@torch.no_grad()
def ratio_along(chain: Chain, at: KernelAt, x: Tensor) -> Tensor:
    """Computes ``log dR/dP`` along given states ``(N + 1, batch, dim)``, in float64, shape ``(batch,)``."""
    ratio = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for j in range(chain.length):
        shift, spread = at(j, x[j])
        moved = chain.shift(j, x[j], x[j + 1])
        own = (moved - shift) / spread
        ratio += half_square_gap(own, moved) + spread.log().sum(1).double()
    return ratio
