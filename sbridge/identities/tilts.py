"""A reference tilted at its end by a Gaussian mixture: its bridge in closed form, and derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbridge.controls.base import Time
from sbridge.identities.components import Components
from sbridge.identities.settings import Setting, mixture
from sbridge.identities.trails import gradient
from sbridge.laws import Gaussian
from sbridge.pde import Grid
from sbridge.processes import LinearProcess

_LEAST = 1e-6
"""Size below which terms are rounding: the function hardly depends on any variable."""

RowFunction = Callable[[Tensor, Tensor], Tensor]
"""A function ``f(t, x)`` with one time per row, shape ``(batch,)``, differentiable in both."""


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


@dataclass(frozen=True, eq=False)
class Derivatives:
    """Derivatives of a function of time and state at rows ``(t, x)``.

    Attributes:
        rate: ``∂_t f``, shape ``(batch,)``.
        slope: ``∇f``, shape ``(batch, dim)``.
        hessian: ``∇²f``, shape ``(batch, dim, dim)``.
    """

    rate: Tensor
    slope: Tensor
    hessian: Tensor

    @classmethod
    def of(cls, function: RowFunction, t: Tensor, x: Tensor) -> Derivatives:
        """Differentiates automatically."""
        t, x = t.detach().requires_grad_(), x.detach().requires_grad_()
        values = function(t, x)
        rate, slope = torch.autograd.grad(values.sum(), (t, x), create_graph=True, materialize_grads=True)
        rows = [
            torch.autograd.grad(part.sum(), x, retain_graph=True, materialize_grads=True)[0] for part in slope.unbind(1)
        ]
        return cls(rate.detach(), slope.detach(), torch.stack(rows, 1))

    def along(self, drift: Tensor) -> Tensor:
        """Computes ``b·∇f``."""
        return (drift * self.slope).sum(1)

    def spread(self, process: LinearProcess, t: Tensor) -> Tensor:
        """Computes ``½ tr(σσᵀ∇²f)``."""
        scale = process.scale(t)
        square = (scale @ scale.T).expanded(self.slope.shape[1])
        return 0.5 * torch.einsum("bij,bji->b", square, self.hessian)


def relative(residual: Tensor, *terms: Tensor) -> float:
    """Returns the largest residual, relative to the largest sum of the sizes of its terms."""
    size = torch.stack([term.abs() for term in terms]).sum(0).max()
    return float(residual.abs().max() / size.clamp_min(_LEAST))


def _white(inverse: Tensor, gaps: Tensor) -> Tensor:
    """Computes ``L_k⁻¹ d_bk``, one matrix per component."""
    return torch.einsum("kij,bkj->bki", inverse, gaps)


def middle(setting: Setting, share: float) -> tuple[float, float]:
    """Returns mean (over coordinates too) and width of the noised data at a share of the horizon."""
    law = Components.of(setting.data).moved(setting.process.transition(0.0, share * setting.horizon))
    return float(law.mean().mean()), law.width


def spacious(setting: Setting, fineness: float) -> Grid:
    """Makes an interval that holds the data and the noised data, with ``fineness`` cells in the narrowest deviation.

    Of a component of the data, or of a third of the noising, seen from either end.
    """
    (start, narrow), (centre, width) = middle(setting, 0.0), middle(setting, 1.0)
    reach = 7.0 * max(width, narrow) + abs(start - centre)
    component = float(Components.of(setting.data).covariances.diagonal(dim1=-2, dim2=-1).min().sqrt())
    knots = setting.horizon * torch.linspace(0.0, 1.0, 4, dtype=torch.float64)
    third = setting.process.transition(knots[:-1], knots[1:])
    noise = float(third.root.values.min() / third.map.values.abs().max().clamp_min(1.0))
    cells = math.ceil(2.0 * reach * fineness / min(component, noise))
    return Grid.of(centre - reach, centre + reach, min(1200, cells))


def unreached(setting: Setting) -> Gaussian:
    """Returns a distribution that the noising process does not reach: shifted by half its width, and narrower."""
    centre, width = middle(setting, 1.0)
    place = torch.tensor([centre + 0.5 * width], dtype=torch.float64)
    return Gaussian(place, torch.tensor([[(0.8 * width) ** 2]], dtype=torch.float64))
