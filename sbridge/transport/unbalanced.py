"""Entropic optimal transport whose marginals may change at a price, by its semi-dual.

The plan of ``min_π E_π c + KL(π ‖ a⊗b) + λ₀ KL(π_0 ‖ a) + λ_T KL(π_T ‖ b)``, ``c = ½|x−y|²/ε``, is
``π_ij = a_i b_j exp(f_i + g_j − c_ij)``. Sinkhorn's iteration contracts by ``λ/(1 + λ)`` only: hundreds of nats, which
small ε need, would take thousands of iterations. With ``S_j = Σ_i a_i exp(f_i − c_ij)`` the best ``g_j`` is
``−λ_T/(1 + λ_T) log S_j``, and what is left is smooth and concave in ``f`` alone::

    max_f −λ₀ Σ_i a_i (e^{−f_i/λ₀} − 1) − (1 + λ_T) Σ_j b_j (S_j^{1/(1+λ_T)} − 1)

whose limits are ``Σ_i a_i f_i`` for a hard source and ``−Σ_j b_j log S_j`` for a hard target. L-BFGS solves it, after a
few damped iterations with ε falling geometrically (Chizat, Peyré, Schmitzer & Vialard 2018, arXiv:1607.05816).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, NotConvergedError
from sbridge.transport.sinkhorn import EntropicProblem, check_epsilon

_WARM_ITERATIONS = 5
_DECREASE = 0.5
_MEMORY = 20


@dataclass(frozen=True, eq=False)
class UnbalancedSolution:
    """The plan of an unbalanced problem by its potentials, float64.

    Attributes:
        problem: the two weighted samples and ε.
        penalties: ``λ₀`` and ``λ_T``, in nats.
        f, g: potentials ``(n,)`` and ``(m,)``, in nats.
        error: L1 distance of the row sums from ``a e^{−f/λ₀}``, relative to the mass of the plan.
        evaluations: of the semi-dual.
    """

    problem: EntropicProblem
    penalties: tuple[float, float]
    f: Tensor
    g: Tensor
    error: float
    evaluations: int

    @cached_property
    def plan(self) -> Tensor:
        """The plan, not normalised, shape ``(n, m)``, float64."""
        one, cost = self.problem, _cost(self.problem)
        logs = (self.f + one.source_weights.log())[:, None] + (self.g + one.target_weights.log()) - cost
        return logs.exp()

    @cached_property
    def mass(self) -> float:
        """The mass of the plan."""
        return float(self.plan.sum())


def unbalanced(
    problem: EntropicProblem, source: float, target: float, *, tolerance: float = 1e-7, max_evaluations: int = 5000
) -> UnbalancedSolution:
    """Computes the entropic plan of ``problem`` with marginal penalties in nats.

    POT's ``sinkhorn_unbalanced(a, b, |x−y|², reg=2ε, reg_m=(2ελ₀, 2ελ_T), reg_type='kl')`` is the same plan.
    Memory: three ``n × m`` arrays in float64.

    Args:
        problem: the two weighted samples and ε.
        source, target: ``λ₀`` and ``λ_T``, not negative; one of them may be ``math.inf``.
        tolerance: of :attr:`UnbalancedSolution.error`.
        max_evaluations: of the semi-dual.

    Raises:
        InvalidInputError: if both ends are hard, a penalty is negative, or ε is so small that the plan degenerates.
        NotConvergedError: if the tolerance is not met.
    """
    if not (source >= 0.0 and target >= 0.0) or (math.isinf(source) and math.isinf(target)):
        raise InvalidInputError(
            f"penalties must be 0 or more, and one of them finite; got {source} and {target}. For two hard ends use "
            "sbridge.transport.sinkhorn."
        )
    check_epsilon(problem)
    dual = _SemiDual(problem.source_weights, problem.target_weights, _cost(problem), source, target)
    f = dual.warm_start()
    f, count = (f, 0) if source == 0.0 or target == 0.0 else dual.maximised(f, tolerance, max_evaluations)
    f = dual.row_update(dual.column_update(f))
    error = dual.error(f)
    if not error <= tolerance:
        raise NotConvergedError(
            f"the row sums of the unbalanced plan are not optimal: the L1 error is {error:.3g} after {count} "
            f"evaluations, the tolerance {tolerance:.3g}. Take a larger σ (ε = σ²T) or softer ends."
        )
    return UnbalancedSolution(problem, (source, target), f, dual.column_update(f), error, count)


@dataclass(frozen=True, eq=False)
class _SemiDual:
    """The semi-dual of an unbalanced problem and its gradient, in nats."""

    a: Tensor
    b: Tensor
    cost: Tensor
    source: float
    target: float

    def log_columns(self, f: Tensor) -> Tensor:
        """Computes ``log S``, shape ``(m,)``."""
        return torch.logsumexp((f + self.a.log())[:, None] - self.cost, 0)

    def column_update(self, f: Tensor) -> Tensor:
        """Computes the best ``g`` for ``f``."""
        return -_damping(self.target) * self.log_columns(f)

    def row_update(self, g: Tensor) -> Tensor:
        """Computes the best ``f`` for ``g``."""
        return -_damping(self.source) * torch.logsumexp((g + self.b.log()) - self.cost, 1)

    def warm_start(self) -> Tensor:
        """Runs damped iterations while ε falls to its value; the penalties keep their size in units of cost."""
        f, level = torch.zeros_like(self.a), max(1.0, float(self.cost.max()))
        while True:
            coarse = _SemiDual(self.a, self.b, self.cost / level, self.source / level, self.target / level)
            scaled = f / level
            for _ in range(_WARM_ITERATIONS):
                scaled = coarse.row_update(coarse.column_update(scaled))
            f = scaled * level
            if level == 1.0:
                return f
            level = max(1.0, _DECREASE * level)

    def loss(self, f: Tensor) -> tuple[float, Tensor]:
        """Computes the negative semi-dual and its gradient in ``f``."""
        scaled = (f + self.a.log())[:, None] - self.cost
        top = scaled.amax(0)
        scaled = torch.exp_(scaled.sub_(top))
        sums = scaled.sum(0)
        logs = sums.log() + top
        share = 0.0 if math.isinf(self.target) else 1.0 / (1.0 + self.target)
        column = logs if share == 0.0 else torch.expm1(share * logs) / share
        rows = scaled @ (self.b * torch.exp(share * logs) / sums)
        if math.isinf(self.source):
            return float(self.b @ column - self.a @ f), rows - self.a
        value = self.source * float(self.a @ torch.expm1(-f / self.source)) + float(self.b @ column)
        return value, rows - self.a * torch.exp(-f / self.source)

    def maximised(self, f: Tensor, tolerance: float, most: int) -> tuple[Tensor, int]:
        """Maximises by L-BFGS in ``z = f √a``, whose curvature is about one."""
        from scipy.optimize import minimize  # takes half a second, so it is imported late

        root = self.a.sqrt()

        def function(z: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = self.loss(torch.from_numpy(z).to(root) / root)
            return value, (gradient / root).cpu().numpy()

        # The largest entry of the gradient bounds the L1 error: Σ|g_i| ≤ max|g_i/√a_i| Σ√a_i.
        precise, spent, error = 0.5 * tolerance / float(root.sum()), 0, math.inf
        while True:
            left = most - spent
            options = {"maxcor": _MEMORY, "gtol": precise, "ftol": 0.0, "maxfun": left, "maxiter": left, "maxls": 40}
            found = minimize(function, (f * root).cpu().numpy(), jac=True, method="L-BFGS-B", options=options)
            f, spent, before = torch.from_numpy(found.x).to(root) / root, spent + int(found.nfev), error
            error = self.error(f)
            # A line search that rounding has stopped is begun again while that helps.
            if error <= tolerance or spent >= most or not error < 0.5 * before:
                return f, spent

    def error(self, f: Tensor) -> float:
        """Computes the L1 error of the row sums relative to the mass."""
        if self.source == 0.0:
            return 0.0
        wanted = self.a if math.isinf(self.source) else self.a * torch.exp(-f / self.source)
        return float(self.loss(f)[1].abs().sum() / wanted.sum())


def _damping(penalty: float) -> float:
    """Returns ``λ/(1 + λ)``."""
    return 1.0 if math.isinf(penalty) else penalty / (1.0 + penalty)


def _cost(problem: EntropicProblem) -> Tensor:
    """Computes ``½|x−y|²/ε``, shape ``(n, m)``, float64."""
    x, y = problem.x.double(), problem.y.double()
    centre = y.mean(0)
    return torch.cdist(x - centre, y - centre).square() * (0.5 / problem.epsilon)
