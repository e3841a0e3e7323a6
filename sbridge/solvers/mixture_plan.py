"""Gaussian-mixture plans in the coordinates in which they are fitted.

In coordinates ``x̃, ỹ`` that keep ``x̃·ỹ`` (up to terms of one end alone) a plan of this family is::

    π(y | x) = v(ỹ) e^{x̃·ỹ} / Z(x̃)      v = Σ_k e^{a_k} N(ỹ; m_k, S_k)      Z = Σ_k exp(a_k + m_k·x̃ + ½ x̃ᵀS_k x̃)

(Korotin et al. 2024, arXiv:2310.01174): component ``k`` sends ``x`` to ``N(m_k + S_k x̃, S_k)``. Where all components
are the Gaussian bridge's in some of the coordinates, ``v`` is a product, and the others can be fitted by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sbridge.linear import LinearMap
from sbridge.potentials import MixturePotential
from sbridge.processes import LinearProcess
from sbridge.solvers.gaussian import sample_moments

_NARROW = 2e4  # variance of the data beside a component's: beyond it float32 rounds log weights by more than .001


@dataclass(frozen=True, eq=False)
class Coordinates:
    """``x̃ = M(x̄ − c_x)``, ``ỹ = M^{−T}(ȳ − c_y)``, whitened by the reference: ``x̄ = Q^{−½}m(T|0,x)``, ``ȳ = Q^{−½}y``.

    ``M`` gives both ends one diagonal covariance ``diag(n)``, falling: the singular values of ``L_Bᵀ L_A``, where the
    bridge of the Gaussians with the moments of the ends is diagonal too, ``S = diag(s)`` with ``s²n + s = n``. For
    diagonal components, ``M`` is diagonal and the coordinates keep their axes.

    Args:
        process: the reference.
        centres: ``c_x, c_y``.
        matrix: ``M``.
        variances: all of ``n``, ``(dim,)``.
        diagonal: whether components are diagonal.
        width: number of leading coordinates in which components are fitted.
    """

    process: LinearProcess
    centres: tuple[Tensor, Tensor]
    matrix: Tensor
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
        """All coordinates for rows ``x, y`` of the two ends, whose covariances must be positive definite."""
        whole, dim = process.transition(0.0, process.horizon), x.shape[1]
        white = whole.root.inverse()
        c_x, a = (part.cpu() for part in sample_moments(white.to(x)(whole.mean(x)), weights[0]))
        c_y, b = (part.cpu() for part in sample_moments(white.to(y)(y), weights[1]))
        centres = c_x, c_y
        if diagonal:
            variances = a.diagonal(), b.diagonal()
            n = (variances[0] * variances[1]).sqrt()
            return cls(process, centres, torch.diag((n / variances[0]).sqrt()), n, diagonal, dim)
        root_a, root_b = (torch.linalg.cholesky(one) for one in (a, b))
        _, n, vt = torch.linalg.svd(root_b.mT @ root_a)
        matrix = torch.linalg.solve_triangular(root_a, n.sqrt().unsqueeze(1) * vt, upper=False, left=False)
        return cls(process, centres, matrix, n, diagonal, dim)

    def leading(self, width: int) -> Coordinates:
        """The first ``width`` of them."""
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

    @cached_property
    def _inverse(self) -> Tensor:
        return torch.linalg.inv(self.matrix)

    @cached_property
    def _root(self) -> LinearMap:
        return self.process.transition(0.0, self.process.horizon).root

    def source(self, x: Tensor) -> Tensor:
        """``x̃`` of rows ``x``, in their dtype."""
        moved = self.process.transition(0.0, self.process.horizon).mean(x)
        centred = self._root.inverse().to(x)(moved).double() - self.centres[0].to(x.device)
        return (centred @ self.matrix[: self.width].mT.to(centred)).to(x.dtype)

    def target(self, y: Tensor) -> Tensor:
        """``ỹ`` of rows ``y``, in their dtype."""
        centred = self._root.inverse().to(y)(y).double() - self.centres[1].to(y.device)
        return (centred @ self._inverse[:, : self.width].to(centred)).to(y.dtype)

    def are_narrow(self, parts: Parts) -> bool:
        """Whether float32 is too coarse for exponents of components, which are of the order of ``n_i (S_k⁻¹)_ii``."""
        return float((self.n * parts.precisions.detach()).max()) > _NARROW

    def carried(self, parts: Parts, onto: Coordinates) -> Parts:
        """The same plan in the coordinates of ``onto``, up to what couples those beyond its width to others.

        With ``ỹ' = Aỹ + a`` and ``x̃ = Aᵀx̃' + d``, ``v'(ỹ')`` is ``v(ỹ) e^{A^{−T}d · ỹ'}`` up to a constant.
        """
        parts = parts.widened(self.all_s)
        across = onto._inverse.mT @ self.matrix.mT
        shift = onto._inverse.mT @ (self.centres[1] - onto.centres[1])
        tilt = onto.matrix @ (onto.centres[0] - self.centres[0])
        full = torch.diag_embed(parts.spreads) if self.diagonal else parts.spreads
        spreads, means = across @ full @ across.mT, parts.means @ across.mT + shift
        moved = spreads @ tilt
        logits = parts.logits + (means + 0.5 * moved) @ tilt
        if self.diagonal:
            spreads = spreads.diagonal(dim1=1, dim2=2)
        return Parts(logits - logits.logsumexp(0), means + moved, spreads).narrowed(onto.width)

    def potential(self, parts: Parts) -> MixturePotential:
        """The potential of the plan, in the user's coordinates: ``g(y) = log v(ỹ) + ½|ȳ|² − c_x·ȳ``."""
        dim, (c_x, c_y), parts = len(self.variances), self.centres, parts.widened(self.all_s)
        full = torch.diag_embed(parts.spreads) if self.diagonal else parts.spreads
        precision = torch.cholesky_inverse(torch.linalg.cholesky(full))
        shift = (precision @ parts.means.unsqueeze(-1)).squeeze(-1)
        logits = parts.logits - 0.5 * (torch.logdet(full) + (shift * parts.means).sum(1))
        precision, shift = self._inverse @ precision @ self._inverse.mT, shift @ self._inverse.mT
        moved = precision @ c_y
        logits = logits - shift @ c_y - 0.5 * moved @ c_y
        shift, precision = shift + moved - c_x, precision - torch.eye(dim, dtype=torch.float64)
        back = self._root.inverse().expanded(dim)
        precision = back.mT @ (0.5 * (precision + precision.mT)) @ back
        if self.diagonal and not self._root.dense:
            precision = precision.diagonal(dim1=1, dim2=2)
        return MixturePotential(self.process, logits - logits.logsumexp(0), shift @ back, precision)


@dataclass(frozen=True, eq=False)
class Parts:
    """The components: ``a`` of shape ``(K,)``, ``m`` ``(K, dim)``, ``S`` ``(K, dim)`` or ``(K, dim, dim)``, float64."""

    logits: Tensor
    means: Tensor
    spreads: Tensor

    @property
    def precisions(self) -> Tensor:
        """The diagonals of ``S⁻¹``, shape ``(K, dim)``."""
        if self.spreads.ndim == 2:
            return 1.0 / self.spreads
        return torch.cholesky_inverse(torch.linalg.cholesky(self.spreads)).diagonal(dim1=1, dim2=2)

    @property
    def have_densities(self) -> bool:
        """Whether every ``S`` is finite and positive definite, to rounding."""
        if not bool(self.logits.isfinite().all() and self.means.isfinite().all() and self.spreads.isfinite().all()):
            return False
        if self.spreads.ndim == 2:
            return bool((self.spreads > 0).all())
        return not bool(torch.linalg.cholesky_ex(self.spreads).info.any())

    def widened(self, s: Tensor) -> Parts:
        """The same in as many coordinates as ``s`` has: in those that are new the Gaussian bridge, ``m = 0, S = s``."""
        (count, width), more = self.means.shape, s[self.means.shape[1] :]
        means = torch.cat([self.means, torch.zeros(count, len(more), dtype=s.dtype)], 1)
        if self.spreads.ndim == 2:
            return Parts(self.logits, means, torch.cat([self.spreads, more.expand(count, -1)], 1))
        spreads = torch.diag(s).repeat(count, 1, 1)
        spreads[:, :width, :width] = self.spreads
        return Parts(self.logits, means, spreads)

    def narrowed(self, width: int) -> Parts:
        """The first ``width`` coordinates of them."""
        spreads = self.spreads[:, :width] if self.spreads.ndim == 2 else self.spreads[:, :width, :width]
        return Parts(self.logits, self.means[:, :width], spreads)

    def source_forms(self, s: Tensor) -> Quadratics:
        """``log Z_k(x̃) − ½ x̃ᵀ diag(s) x̃``; what is taken away is the same for all, and most of it at small ε."""
        base = s if self.spreads.ndim == 2 else torch.diag(s)
        return Quadratics(self.logits, self.means, 0.5 * (self.spreads - base))

    def target_forms(self, s: Tensor) -> Quadratics:
        """``log v_k(ỹ) + ½ ỹᵀ diag(1/s) ỹ``, without ``−½ dim log 2π``."""
        if self.spreads.ndim == 2:
            precision, base, volume = 1.0 / self.spreads, 1.0 / s, self.spreads.log().sum(1)
            slope = precision * self.means
        else:
            root = torch.linalg.cholesky(self.spreads)
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
