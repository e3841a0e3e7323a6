"""A Gaussian-mixture potential moved from ``T`` to an earlier time and evaluated at rows, by matrices or eigenvectors.

Notation of :class:`sbridge.exact.MixturePotential`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbridge.exact.conditional import ConditionalMixture
from sbridge.linear import LinearMap
from sbridge.processes import Transition


@dataclass(frozen=True, eq=False)
class PotentialAt:
    """A potential at one time, or at one time a row (then with a leading axis).

    Args:
        ahead: the transition.
        logits: ``b_k(t)``.
        shifts: ``η_k(t)``.
        precisions: ``Λ_k(t)``.
        end_means: ``M_k Q η_k``.
        shrink: ``M_k``.
        end_covariances: ``M_k Q``, the covariances of the far end.
        dense: whether the maps are matrices.
    """

    ahead: Transition
    logits: Tensor
    shifts: Tensor
    precisions: Tensor
    end_means: Tensor
    shrink: Tensor
    end_covariances: Tensor
    dense: bool

    @classmethod
    def of(
        cls, ahead: Transition, logits: Tensor, shifts: Tensor, maps: LinearMap, device: torch.device
    ) -> PotentialAt:
        """Moves the potential by ``M_k = (I + QΛ_k)⁻¹``."""
        one, q = LinearMap(torch.ones(1, dtype=torch.float64, device="cpu")), _over_components(ahead.covariance)
        stretched = one + q @ maps
        shrink = stretched.inverse()
        end_covariances = _symmetric(shrink @ q)
        precision = _symmetric(maps @ shrink)
        end_means = _apply(end_covariances, shifts)
        logits = logits - 0.5 * stretched.log_abs_det(shifts.shape[1]) + 0.5 * (shifts * end_means).sum(-1)
        parts = (logits, _apply(shrink.T, shifts), precision.values, end_means, shrink.values, end_covariances.values)
        return cls(ahead, *(part.to(device) for part in parts), dense=precision.dense)


@dataclass(frozen=True, eq=False)
class DensePotentialAt:
    """A :class:`PotentialAt`, evaluated at rows."""

    moved: PotentialAt
    x: Tensor

    @cached_property
    def _ahead(self) -> Tensor:
        return self.moved.ahead.mean(self.x)

    @cached_property
    def _tilts(self) -> Tensor:
        """``Λ_k(t) m``, shape ``(batch, K, dim)``."""
        return self._act(self.moved.precisions)

    @cached_property
    def exponents(self) -> Tensor:
        """The logarithms of the terms of φ, shape ``(batch, K)``."""
        slope = self.moved.shifts - 0.5 * self._tilts
        return self.moved.logits + (slope * self._ahead.unsqueeze(1)).sum(-1)

    @property
    def gradient(self) -> Tensor:
        """``Φᵀ Σ_k r_k (η_k(t) − Λ_k(t) m)``."""
        weights = torch.softmax(self.exponents, 1)
        slope = (weights.unsqueeze(2) * (self.moved.shifts - self._tilts)).sum(1)
        return self.moved.ahead.map.T.to(slope)(slope)

    @property
    def far(self) -> ConditionalMixture:
        """Returns the distribution of the far end for each row."""
        end_covariances = self.moved.end_covariances
        single = end_covariances.ndim == (3 if self.moved.dense else 2)
        return ConditionalMixture(
            self.exponents, self.means, end_covariances.unsqueeze(0) if single else end_covariances, torch.float64
        )

    @property
    def means(self) -> Tensor:
        """Computes the component means of that distribution, ``M_k (m + Q η_k)``, shape ``(batch, K, dim)``."""
        return self.moved.end_means + self._act(self.moved.shrink)

    def _act(self, maps: Tensor) -> Tensor:
        """Applies every component's map to ``m``, shape ``(batch, K, dim)``."""
        if not self.moved.dense:
            return maps * self._ahead.unsqueeze(1)
        if maps.ndim == 3:
            return torch.einsum("kde,be->bkd", maps, self._ahead)
        return (maps @ self._ahead[:, None, :, None]).squeeze(-1)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The eigenvectors ``Λ_k = V_k diag(λ_k) V_kᵀ``, which serve all times where ``Q`` is a multiple of the identity.

    Args:
        values: ``λ``, shape ``(K, dim)``.
        axes: all ``V_kᵀ`` below each other, ``(K·dim, dim)``.
        logits: ``b``.
        shifts: ``V_kᵀ η_k``, ``(K, dim)``.
    """

    values: Tensor
    axes: Tensor
    logits: Tensor
    shifts: Tensor

    @classmethod
    def of(cls, logits: Tensor, shifts: Tensor, precisions: Tensor) -> Spectrum:
        """Decomposes the precisions ``(K, dim, dim)``."""
        values, vectors = torch.linalg.eigh(precisions)
        axes = vectors.mT.contiguous()
        return cls(values, axes.reshape(-1, axes.shape[2]), logits, _apply(LinearMap(axes, dense=True), shifts))

    def to(self, device: torch.device) -> Spectrum:
        """Returns the same on a device."""
        return Spectrum(*(part.to(device) for part in (self.values, self.axes, self.logits, self.shifts)))


@dataclass(frozen=True, eq=False)
class SpectralPotentialAt:
    """A potential at rows without an inverse: all maps are diagonal along the axes of each component."""

    ahead: Transition
    spectrum: Spectrum
    x: Tensor

    @cached_property
    def _q(self) -> Tensor:
        """``Q``, of shape ``(1, 1)``, or ``(batch, 1, 1)`` for one time a row."""
        return self.ahead.covariance.values.to(self.x).unsqueeze(-1)

    @cached_property
    def _stretched(self) -> Tensor:
        """``1 + Qλ_k``, the eigenvalues of ``M_k⁻¹``."""
        return 1.0 + self._q * self.spectrum.values

    @cached_property
    def _places(self) -> Tensor:
        """``V_kᵀ m``, shape ``(batch, K, dim)``."""
        return (self.ahead.mean(self.x) @ self.spectrum.axes.mT).reshape(len(self.x), *self.spectrum.values.shape)

    @cached_property
    def exponents(self) -> Tensor:
        """The logarithms of the terms of φ, shape ``(batch, K)``."""
        shifts, m = self.spectrum.shifts, self._places
        completed = 0.5 * (self._q * shifts.square() / self._stretched).sum(-1)
        logits = self.spectrum.logits - 0.5 * self._stretched.log().sum(-1) + completed
        return logits + ((shifts - 0.5 * self.spectrum.values * m) * m / self._stretched).sum(-1)

    @property
    def gradient(self) -> Tensor:
        """``Φᵀ Σ_k r_k (η_k(t) − Λ_k(t) m)``."""
        weights = torch.softmax(self.exponents, 1).unsqueeze(2)
        slopes = weights * (self.spectrum.shifts - self.spectrum.values * self._places) / self._stretched
        slope = slopes.reshape(len(self.x), -1) @ self.spectrum.axes
        return self.ahead.map.T.to(slope)(slope)

    @property
    def far(self) -> ConditionalMixture:
        """Returns the distribution of the far end for each row."""
        axes = self._axes
        end_covariances = axes.mT @ ((self._q / self._stretched).unsqueeze(-1) * axes)
        single = end_covariances.ndim == 3
        return ConditionalMixture(
            self.exponents, self.means, end_covariances.unsqueeze(0) if single else end_covariances, torch.float64
        )

    @property
    def means(self) -> Tensor:
        """Computes the component means of that distribution, ``M_k (m + Q η_k)``, shape ``(batch, K, dim)``."""
        means = (self._q * self.spectrum.shifts + self._places) / self._stretched
        return torch.einsum("bkd,kde->bke", means, self._axes)

    @property
    def _axes(self) -> Tensor:
        return self.spectrum.axes.reshape(*self.spectrum.values.shape, -1)


Tilt = DensePotentialAt | SpectralPotentialAt
"""A potential evaluated at rows, at one time or at one time per row."""


def _over_components(one: LinearMap) -> LinearMap:
    """Inserts an axis for the components into a map for one time or for each row."""
    return LinearMap(one.values.unsqueeze(-3 if one.dense else -2), one.dense)


def _apply(maps: LinearMap, vectors: Tensor) -> Tensor:
    """Applies maps ``(..., K, …)`` to vectors ``(K, dim)``."""
    return (maps.values @ vectors.unsqueeze(-1)).squeeze(-1) if maps.dense else maps.values * vectors


def _symmetric(one: LinearMap) -> LinearMap:
    return LinearMap(0.5 * (one.values + one.values.mT), dense=True) if one.dense else one
