"""Gaussian-mixture plans in the coordinates in which they are fitted.

In coordinates ``x̃, ỹ`` that keep ``x̃·ỹ`` (up to terms of one end alone) a plan of this family is::

    π(y | x) = v(ỹ) e^{x̃·ỹ} / Z(x̃)      v = Σ_k e^{a_k} N(ỹ; m_k, S_k)      Z = Σ_k exp(a_k + m_k·x̃ + ½ x̃ᵀS_k x̃)

(Korotin et al. 2024, arXiv:2310.01174): component ``k`` sends ``x`` to ``N(m_k + S_k x̃, S_k)``. If all components
equal the Gaussian bridge in some coordinates, ``v`` is a product, and the other coordinates can be fitted alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sbridge.exact import MixturePotential
from sbridge.laws.moments import sample_moments
from sbridge.processes import LinearProcess

_NARROW = 2e4  # ratio of data variance to component variance; above it float32 rounds log weights by more than .001
_LEAST_VARIANCE = 1e-16
"""Smallest variance of a coordinate: smaller correlations of the ends are rounding; its square is normal in float32."""


@dataclass(frozen=True, eq=False)
class Coordinates:
    """``x̃ = N^½ Vᵀ L_A^{−1}(x − c_x)``, ``ỹ = N^½ Uᵀ L_B^{−1}(y − c_y)`` with ``L_Bᵀ Q^{−1}Φ L_A = U N Vᵀ``.

    ``L_A, L_B`` are Cholesky roots of the covariances of the ends, ``c_x, c_y`` their means; ``Φ, Q`` belong to the
    reference from 0 to T. Then ``x̃·ỹ = (x − c_x)ᵀ ΦᵀQ^{−1}(y − c_y)``, and both ends have the diagonal covariance
    ``N = diag(n)`` with decreasing ``n``. The bridge of the Gaussians with the moments of the ends is diagonal too:
    ``S = diag(s)`` with ``s²n + s = n``. For diagonal components, the coordinates are those of ``L_Q^{−1}Φx`` and
    ``L_Q^{−1}y``, each scaled. If ``n`` is below the rounding error of float64, the ends are independent in this
    coordinate, as for a reference that forgets its start, ``Φ = 0``; then ``n`` is raised to that rounding error.

    Args:
        process: the reference.
        centres: ``c_x, c_y``.
        maps: ``N^½ Vᵀ L_A^{−1}`` and ``N^½ Uᵀ L_B^{−1}``.
        variances: all of ``n``, ``(dim,)``.
        diagonal: whether components are diagonal.
        width: number of leading coordinates in which components are fitted.
    """

    process: LinearProcess
    centres: tuple[Tensor, Tensor]
    maps: tuple[Tensor, Tensor]
    variances: Tensor
    diagonal: bool
    width: int

    @classmethod
    def of(
        cls,
        process: LinearProcess,
        x: Tensor,
        y: Tensor,
        *,
        diagonal: bool,
        weights: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> Coordinates:
        """Makes all coordinates for samples ``x, y`` of the two ends, whose covariances must be positive definite."""
        whole, dim = process.transition(0.0, process.horizon), x.shape[1]
        c_x, a = (part.cpu() for part in sample_moments(x, weights[0]))
        c_y, b = (part.cpu() for part in sample_moments(y, weights[1]))
        if diagonal:
            white = whole.root.inverse().expanded(dim)
            maps = white @ whole.map.expanded(dim), white
            deviations = [
                ((one @ covariance) * one).sum(1).sqrt() for one, covariance in zip(maps, (a, b), strict=True)
            ]
            n = deviations[0] * deviations[1]
            forgotten = (deviations[0] == 0.0).unsqueeze(1)  # Φ = 0: any axis serves
            maps = torch.where(forgotten, white, maps[0]), white
            deviations[0] = ((maps[0] @ a) * maps[0]).sum(1).sqrt()
            scaled = [one / size.unsqueeze(1) for one, size in zip(maps, deviations, strict=True)]
        else:
            roots = [torch.linalg.cholesky(one) for one in (a, b)]
            inner = (whole.precision @ whole.map).expanded(dim)
            u, n, vt = torch.linalg.svd(roots[1].mT @ inner @ roots[0])
            scaled = [
                torch.linalg.solve_triangular(root, axes, upper=False, left=False)
                for root, axes in zip(roots, (vt, u.mT), strict=True)
            ]
        n = n.clamp_min(_LEAST_VARIANCE)
        first, second = (n.sqrt().unsqueeze(1) * one for one in scaled)
        return cls(process, (c_x, c_y), (first, second), n, diagonal, dim)

    def leading(self, width: int) -> Coordinates:
        """Returns the first ``width`` coordinates."""
        return replace(self, width=width)

    @property
    def n(self) -> Tensor:
        """Variances, ``(width,)``."""
        return self.variances[: self.width]

    @property
    def s(self) -> Tensor:
        """Conditional variances of the Gaussian bridge, ``(width,)``."""
        return self.all_s[: self.width]

    @cached_property
    def all_s(self) -> Tensor:
        """:attr:`s` in all coordinates, ``(dim,)``."""
        return 2.0 * self.variances / (1.0 + (1.0 + 4.0 * self.variances.square()).sqrt())

    def source(self, x: Tensor) -> Tensor:
        """Computes ``x̃`` of samples ``x``, in their dtype."""
        return self._mapped(0, x)

    def target(self, y: Tensor) -> Tensor:
        """Computes ``ỹ`` of samples ``y``, in their dtype."""
        return self._mapped(1, y)

    def _mapped(self, end: int, rows: Tensor) -> Tensor:
        centred = rows.double() - self.centres[end].to(rows.device)
        return (centred @ self.maps[end][: self.width].mT.to(centred)).to(rows.dtype)

    def are_narrow(self, components: Components) -> bool:
        """Whether float32 is too coarse for the exponents of components, which have the size ``n_i (S_k⁻¹)_ii``."""
        return float((self.n * components.precisions.detach()).max()) > _NARROW

    def carried(self, components: Components, onto: Coordinates) -> Components:
        """Returns the same plan in the coordinates of ``onto``, without couplings to coordinates beyond its width.

        With ``ỹ' = Aỹ + a`` and ``x̃ = Aᵀx̃' + d``, ``v'(ỹ')`` is ``v(ỹ) e^{A^{−T}d · ỹ'}`` up to a constant.
        """
        components = components.widened(self.all_s)
        across = torch.linalg.solve(self.maps[1], onto.maps[1], left=False)
        shift = onto.maps[1] @ (self.centres[1] - onto.centres[1])
        tilt = onto.maps[0] @ (onto.centres[0] - self.centres[0])
        full = torch.diag_embed(components.covariances) if self.diagonal else components.covariances
        covariances, means = across @ full @ across.mT, components.means @ across.mT + shift
        moved = covariances @ tilt
        logits = components.logits + (means + 0.5 * moved) @ tilt
        if self.diagonal:
            covariances = covariances.diagonal(dim1=1, dim2=2)
        return Components(logits - logits.logsumexp(0), means + moved, covariances).narrowed(onto.width)

    def potential(self, components: Components) -> MixturePotential:
        """Computes ``g(y) = log v(ỹ) + ½ yᵀQ^{−1}y − m(T | 0, c_x)ᵀQ^{−1}y``, the potential in data coordinates."""
        dim, components = len(self.variances), components.widened(self.all_s)
        onto, c_y = self.maps[1], self.centres[1]
        full = torch.diag_embed(components.covariances) if self.diagonal else components.covariances
        precision = torch.cholesky_inverse(torch.linalg.cholesky(full))
        means = components.means + onto @ c_y
        shift = (precision @ means.unsqueeze(-1)).squeeze(-1)
        logits = components.logits - 0.5 * (torch.logdet(full) + (shift * means).sum(1))
        whole = self.process.transition(0.0, self.process.horizon)
        shift = shift @ onto - whole.precision(whole.mean(self.centres[0].unsqueeze(0)))
        precision = onto.mT @ precision @ onto - whole.precision.expanded(dim)
        precision = 0.5 * (precision + precision.mT)
        if self.diagonal and not whole.root.dense:
            precision = precision.diagonal(dim1=1, dim2=2)
        return MixturePotential(self.process, logits - logits.logsumexp(0), shift, precision)


@dataclass(frozen=True, eq=False)
class Components:
    """Components: ``a`` of shape ``(K,)``, ``m`` ``(K, dim)``, ``S`` ``(K, dim)`` or ``(K, dim, dim)``, float64."""

    logits: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def precisions(self) -> Tensor:
        """The diagonals of ``S⁻¹``, shape ``(K, dim)``."""
        if self.covariances.ndim == 2:
            return 1.0 / self.covariances
        return torch.cholesky_inverse(torch.linalg.cholesky(self.covariances)).diagonal(dim1=1, dim2=2)

    @property
    def have_densities(self) -> bool:
        """Whether all components are finite and every ``S`` is numerically positive definite."""
        if not bool(self.logits.isfinite().all() and self.means.isfinite().all() and self.covariances.isfinite().all()):
            return False
        if self.covariances.ndim == 2:
            return bool((self.covariances > 0).all())
        return not bool(torch.linalg.cholesky_ex(self.covariances).info.any())

    def widened(self, s: Tensor) -> Components:
        """Returns them in as many coordinates as ``s`` has; new ones have the Gaussian bridge, ``m = 0, S = s``."""
        (count, width), more = self.means.shape, s[self.means.shape[1] :]
        means = torch.cat([self.means, torch.zeros(count, len(more), dtype=s.dtype)], 1)
        if self.covariances.ndim == 2:
            return Components(self.logits, means, torch.cat([self.covariances, more.expand(count, -1)], 1))
        covariances = torch.diag(s).repeat(count, 1, 1)
        covariances[:, :width, :width] = self.covariances
        return Components(self.logits, means, covariances)

    def narrowed(self, width: int) -> Components:
        """Returns them in the first ``width`` coordinates."""
        covariances = self.covariances[:, :width] if self.covariances.ndim == 2 else self.covariances[:, :width, :width]
        return Components(self.logits, self.means[:, :width], covariances)

    def source_forms(self, s: Tensor) -> Quadratics:
        """Returns ``log Z_k(x̃) − ½ x̃ᵀ diag(s) x̃``; the subtracted term is common, and dominates at small ε."""
        base = s if self.covariances.ndim == 2 else torch.diag(s)
        return Quadratics(self.logits, self.means, 0.5 * (self.covariances - base))

    def target_forms(self, s: Tensor) -> Quadratics:
        """Returns ``log v_k(ỹ) + ½ ỹᵀ diag(1/s) ỹ``, without ``−½ dim log 2π``."""
        if self.covariances.ndim == 2:
            precision, base, volume = 1.0 / self.covariances, 1.0 / s, self.covariances.log().sum(1)
            slope = precision * self.means
        else:
            root = torch.linalg.cholesky(self.covariances)
            precision, base = torch.cholesky_inverse(root), torch.diag(1.0 / s)
            volume = 2.0 * root.diagonal(dim1=1, dim2=2).log().sum(1)
            slope = (precision @ self.means.unsqueeze(-1)).squeeze(-1)
        constants = self.logits - 0.5 * (volume + (slope * self.means).sum(1))
        return Quadratics(constants, slope, -0.5 * (precision - base))


@dataclass(frozen=True, eq=False)
class Quadratics:
    """``K`` functions ``α_k + β_k·z + zᵀ Γ_k z``; Γ as diagonals ``(K, dim)`` or matrices ``(K, dim, dim)``."""

    constants: Tensor
    linear: Tensor
    quadratic: Tensor
