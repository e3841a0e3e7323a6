"""A reference tilted at its end by a Gaussian mixture: potential and control in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbridge.controls.base import Time
from sbridge.identities.settings import Setting, mixture
from sbridge.identities.tools.components import Components
from sbridge.identities.tools.derivatives import gradient
from sbridge.processes import LinearProcess


@dataclass(frozen=True, eq=False)
class Tilt:
    """The tilt ``e^{g(y)} = Σ_k w_k N(y; μ_k, Σ_k)`` at ``T``, and ``φ(t, x) = E[e^{g(X_T)} | X_t = x]``.

    A Gaussian integral: ``φ(t, x) = Σ_k w_k N(m(T|t, x); μ_k, Σ_k + Q(T, t))``.
    """

    process: LinearProcess
    weights: Tensor
    means: Tensor
    covariances: Tensor

    @classmethod
    def of(cls, setting: Setting) -> Tilt:
        """Makes three fixed wide components, about as far apart as the noised data at ``T`` are wide."""
        law = Components.of(setting.data).moved(setting.process.transition(0.0, setting.horizon))
        shape, width = mixture(setting.dim, 3, seed=11), law.width
        means = law.mean() + 0.6 * width * shape.means
        broad = shape.covariances + 0.4 * torch.eye(setting.dim, dtype=torch.float64)
        return cls(setting.process, shape.weights, means, width**2 * broad)

    @property
    def horizon(self) -> float:
        """The duration ``T``."""
        return self.process.horizon

    @cached_property
    def _dim(self) -> int:
        return self.means.shape[1]

    def log_potential(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``log φ(t, x)``, shape ``(batch,)``; ``g`` at ``t = T``."""
        law = self.process.transition(t, self.horizon)
        spread = law.covariance.expanded(self._dim)
        spread = spread.reshape(-1, 1, self._dim, self._dim) + self.covariances
        roots = torch.linalg.cholesky(spread)
        gaps = law.mean(x)[:, None] - self.means
        inverse = torch.linalg.solve_triangular(roots, torch.eye(self._dim, dtype=torch.float64), upper=False)
        white = (inverse @ gaps.unsqueeze(-1)).squeeze(-1) if len(inverse) > 1 else _white(inverse[0], gaps)
        volume = roots.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.5 * self._dim * math.log(2.0 * math.pi)
        return torch.logsumexp(self.weights.log() - 0.5 * white.square().sum(-1) - volume, -1)

    def control(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``u = σᵀ∇log φ`` by automatic differentiation."""
        with torch.enable_grad():
            free = x.detach().requires_grad_()
            slope = gradient(self.log_potential(t, free), free).detach()
        return self.process.scale(t).T.to(x)(slope)


def _white(inverse: Tensor, gaps: Tensor) -> Tensor:
    """Computes ``L_k⁻¹ d_bk``, one matrix per component."""
    return torch.einsum("kij,bkj->bki", inverse, gaps)
