"""Exact scores of noised distributions: Gaussians, Gaussian mixtures, and finite sets of points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbridge.controls.base import Time
from sbridge.diffusion.conversions import as_times
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.exact.plug_in import FarEnd
from sbridge.laws import Gaussian, GaussianMixture, Law, Samples
from sbridge.laws.moments import gaussian_components
from sbridge.linear import LinearMap
from sbridge.measures import Direction
from sbridge.processes import LinearProcess
from sbridge.processes.base import check_time
from sbridge.storage.registry import register
from sbridge.transport import Cloud


@register
@dataclass(frozen=True, eq=False)
class ExactScore:
    """The score ``∇ log ρ_t`` of a linear process started in ``data``, in closed form.

    With ``X_t | X_0 ~ N(Φ X_0 + k, Q)``::

        mixture   ρ_t = Σ_i w_i N(Φ μ_i + k, Φ Σ_i Φᵀ + Q)
        samples   ρ_t = Σ_i w_i N(Φ x_i + k, Q),   ∇ log ρ_t = −Q⁻¹(x − k − Φ Σ_i softmax_i(x) x_i)

    The second is a softmax over the data; the exact reversal with this score returns data points only. Times are floats
    or tensors ``()`` or ``(batch,)`` in ``[0, T]``. The score is computed in float64, has the dtype of ``x``, and is
    differentiable in ``x``.

    Args:
        process: the noising process.
        data: the distribution at ``t = 0``.

    Raises:
        UnsupportedError: for a process that is not linear, or another kind of distribution.
        InvalidInputError: when called at a time outside ``[0, T]``, or at ``t = 0`` if the data are points.
    """

    process: LinearProcess
    data: Law

    def __post_init__(self) -> None:
        if not isinstance(self.process, LinearProcess):
            raise UnsupportedError(
                f"an exact score needs a linear process such as VariancePreserving(), got "
                f"{type(self.process).__name__}; train a network score instead."
            )
        if not isinstance(self.data, (Gaussian, GaussianMixture, Samples)):
            raise UnsupportedError(
                f"an exact score needs Samples, a Gaussian or a GaussianMixture, got {type(self.data).__name__}."
            )
        if self.process.dim not in (None, self.data.dim):
            raise InvalidInputError(
                f"the process has dimension {self.process.dim}, the data have {self.data.dim}; they must agree."
            )

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``∇ log ρ_t(x)``, shape ``(batch, dim)``."""
        t, precise = self._checked(t, x)
        if self._points is not None:
            return self.process.conditional_score(t, precise, self._points.mean(t, precise)).to(x.dtype)
        return self._components(t, precise).score.to(x.dtype)

    def log_density(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``log ρ_t(x)``, shape ``(batch,)``."""
        t, precise = self._checked(t, x)
        if self._points is not None:
            return self._points.log_potential(t, precise).to(x.dtype)
        return torch.logsumexp(self._components(t, precise).exponents, 1).to(x.dtype)

    def start_mean(self, t: Time, x: Tensor) -> Tensor:
        """``⟨X_0⟩ = E[X_0 | X_t = x]``, shape ``(batch, dim)``, from the posterior of every component or point."""
        t, precise = self._checked(t, x)
        if self._points is not None:
            return self._points.mean(t, precise).to(x.dtype)
        parts = self._components(t, precise)
        _, means, covariances = self._mixture
        # Φᵀ s, row by row.
        back = parts.scores * parts.map if parts.map.ndim == 3 else (parts.scores.unsqueeze(2) @ parts.map).squeeze(2)
        starts = means.to(x.device, torch.float64) - torch.einsum("kde,bke->bkd", covariances.to(back), back)
        return torch.einsum("bk,bkd->bd", parts.weights, starts).to(x.dtype)

    def divergence(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``∇·∇ log ρ_t(x)``, shape ``(batch,)``."""
        t, precise = self._checked(t, x)
        if self._points is not None:
            return self._divergence_of_points(self._points, t, precise).to(x.dtype)
        parts = self._components(t, precise)
        laplacians = (parts.weights * (parts.scores.square().sum(2) - parts.traces)).sum(1)
        return (laplacians - parts.score.square().sum(1)).to(x.dtype)

    def marginal(self, t: float) -> Gaussian | GaussianMixture:
        """Returns ``ρ_t`` as a distribution.

        Raises:
            UnsupportedError: for samples, which would make a mixture of as many components.
        """
        if isinstance(self.data, Samples):
            raise UnsupportedError(
                "the marginal of samples is a kernel density, which has no closed-form class; use log_density(t, x)."
            )
        t = float(check_time(t, self.process.horizon))
        law, dim = self.process.transition(0.0, t), self.data.dim
        weights, means, covariances = self._mixture
        phi, moved = law.map.expanded(dim), law.mean(means.double()).to(means)
        spreads = (phi @ covariances.double().cpu() @ phi.mT + law.covariance.expanded(dim)).to(means)
        if isinstance(self.data, Gaussian):
            return Gaussian(moved[0], spreads[0])
        return GaussianMixture(weights, moved, spreads)

    def _checked(self, t: Time, x: Tensor) -> tuple[Time, Tensor]:
        if x.ndim != 2 or x.shape[1] != self.data.dim:
            raise InvalidInputError(f"x must have shape (rows, {self.data.dim}), got {tuple(x.shape)}.")
        times = as_times(check_time(t, self.process.horizon), x)
        if self._points is not None and bool((times == 0).any()):
            raise InvalidInputError(
                "the score of a set of points is infinite at t = 0, where the distribution has no density; use t > 0, "
                "for example the first knot of a time grid."
            )
        return (times if times.ndim else float(times)), x.double()

    @cached_property
    def _points(self) -> FarEnd | None:
        """The data as a cloud seen from later times, if they are points."""
        if not isinstance(self.data, Samples):
            return None
        rows, weights = self.data.rows, self.data.weights
        logits = torch.full((len(rows),), -math.log(len(rows)), dtype=torch.float64, device="cpu")
        logits = logits.to(rows.device) if weights is None else weights.double().log()
        return FarEnd(self.process, Cloud(rows, logits), Direction.BACKWARD)

    @cached_property
    def _mixture(self) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(self.data, (Gaussian, GaussianMixture)):
            return gaussian_components(self.data)
        raise UnsupportedError("samples are not a Gaussian mixture with covariances.")

    @cached_property
    def _axes(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues ``(1, K, dim)`` and eigenvectors ``(1, K, dim, dim)`` of the covariances at ``t = 0``."""
        values, vectors = torch.linalg.eigh(self._mixture[2].double())
        return values[None], vectors[None]

    def _components(self, t: Time, x: Tensor) -> _Components:
        dim, law = x.shape[1], self.process.transition(0.0, t)
        weights, means, covariances = (one.to(x) for one in self._mixture)
        if law.map.dim is None and law.covariance.dim is None:  # noise moves every axis alike
            values, vectors = (one.to(x) for one in self._axes)
            phi, q = (one.values.to(x).reshape(-1, 1, 1) for one in (law.map, law.covariance))
            variances, moved = phi.square() * values + q, phi * means
        else:
            phi, q = (one.expanded(dim).to(x).reshape(-1, 1, dim, dim) for one in (law.map, law.covariance))
            variances, vectors = torch.linalg.eigh(phi @ covariances @ phi.mT + q)
            moved = (phi @ means.unsqueeze(-1)).squeeze(-1)
        centres = moved + law.offset.to(x).reshape(len(moved), 1, -1)
        along = _turn(x[:, None] - centres, vectors)
        log_scale = variances.log().sum(-1) + dim * math.log(2.0 * math.pi)
        exponents = weights.log() - 0.5 * ((along.square() / variances).sum(-1) + log_scale)
        scores = _turn(-along / variances, vectors.mT)
        return _Components(exponents, scores, variances.reciprocal().sum(-1), phi)

    def _divergence_of_points(self, points: FarEnd, t: Time, x: Tensor) -> Tensor:
        """Computes ``−tr Q⁻¹ + tr Q⁻¹ Φ Cov(X_0 | x) Φᵀ Q⁻¹``."""
        rows, found = points.cloud.rows.double(), torch.empty_like(x[:, 0])
        rows = rows - rows.mean(0)  # second moments keep their digits near zero
        for moment, index, view in points.views(t, x):
            law = self.process.transition(0.0, moment)
            gain, trace = (law.precision @ law.map).to(x), _trace(law.precision, x.shape[1]).to(x)
            if gain.values.ndim == 1 or (gain.dense and gain.values.ndim == 2):
                seen, factor = gain(rows), x.new_ones(1)
            else:  # a number for each row: it comes out of the sum
                seen, factor = rows, gain.values[:, 0].square()
            parts = [part @ seen.square().sum(1) - (part @ seen).square().sum(1) for _, part, _ in view.blocks(x.dtype)]
            found = found.index_put((index,), factor * torch.cat(parts) - trace)
        return found


@dataclass(frozen=True, eq=False)
class _Components:
    """A noised mixture evaluated at given points.

    Args:
        exponents: ``log w_k N_k(x)``, shape ``(batch, K)``.
        scores: ``∇ log N_k(x)``, shape ``(batch, K, dim)``.
        traces: ``tr`` of the inverse covariances, shape ``(1 | batch, K)``.
        map: ``Φ``, shape ``(1 | batch, 1, dim, dim)``, or ``(1 | batch, 1, 1)`` if it is a number.
    """

    exponents: Tensor
    scores: Tensor
    traces: Tensor
    map: Tensor

    @cached_property
    def weights(self) -> Tensor:
        """Computes the posterior probabilities of the components, shape ``(batch, K)``."""
        return torch.softmax(self.exponents, 1)

    @cached_property
    def score(self) -> Tensor:
        """``Σ_k weights_k ∇ log N_k``, shape ``(batch, dim)``."""
        return torch.einsum("bk,bkd->bd", self.weights, self.scores)


def _turn(rows: Tensor, axes: Tensor) -> Tensor:
    """Transforms ``rows`` ``(batch, K, dim)`` to the coordinates of ``axes``, shape ``(1 | batch, K, dim, dim)``."""
    if len(axes) == 1:
        return torch.einsum("bkd,kde->bke", rows, axes[0])
    return (rows.unsqueeze(2) @ axes).squeeze(2)


def _trace(one: LinearMap, dim: int) -> Tensor:
    """Computes ``tr A``, shape ``(...)``."""
    return one.expanded(dim).diagonal(dim1=-2, dim2=-1).sum(-1)
