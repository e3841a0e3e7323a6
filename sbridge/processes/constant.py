"""Transitions of a linear process whose coefficients are constant matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_TERMS = 20  # of the series on a step with ‖A‖ h ≤ ½: the first one left out is below 1/20! = 4e-19


@dataclass(frozen=True, eq=False)
class ConstantFlow:
    """The transition of ``dX = (AX + c) dt + σ dW`` over any duration.

    Φ, the offset and Q are power series on a step ``h`` with ``‖A‖ h ≤ ½``, doubled up to the duration by
    ``Q_{2h} = Q_h + Φ_h Q_h Φ_hᵀ``: sums of positive terms, where one block exponential over a long interval would
    cancel.

    Args:
        linear: ``A``, shape ``(dim, dim)``.
        offset: ``c``, shape ``(dim,)``.
        noise: ``σσᵀ``, shape ``(dim, dim)``; it may be singular.
    """

    linear: Tensor
    offset: Tensor
    noise: Tensor

    @cached_property
    def speed(self) -> float:
        """``‖A‖``."""
        return float(torch.linalg.matrix_norm(self.linear, 2))

    @cached_property
    def _terms(self) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients of ``h^n`` in Φ, and of ``h^{n+1}`` in the offset and in Q, for ``n < _TERMS``."""
        a = self.linear
        phi, offset, covariance = [torch.eye(len(a), dtype=a.dtype, device=a.device)], [self.offset], [self.noise]
        # Φ' = AΦ, k' = Ak + c and Q' = AQ + QAᵀ + σσᵀ, term by term: Q^{(n+1)} = A Q^{(n)} + (A Q^{(n)})ᵀ
        for n in range(1, _TERMS):
            phi.append(a @ phi[-1] / n)
            offset.append(a @ offset[-1] / (n + 1))
            half = a @ covariance[-1] / (n + 1)
            covariance.append(half + half.mT)
        return torch.stack(phi).flatten(1), torch.stack(offset), torch.stack(covariance).flatten(1)

    def over(self, duration: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes Φ, k and Q over ``duration`` of shape ``(...)``, with these leading dimensions."""
        dim = len(self.linear)
        longest = self.speed * float(duration.detach().max())
        doublings = max(0, math.ceil(math.log2(2.0 * longest))) if longest > 0 else 0
        step = duration * 0.5**doublings
        powers = step.unsqueeze(-1) ** torch.arange(_TERMS, dtype=torch.float64, device=step.device)
        shape = (*duration.shape, dim, dim)
        by_phi, by_offset, by_covariance = self._terms
        phi = (powers @ by_phi).reshape(shape)
        offset = powers @ by_offset * step.unsqueeze(-1)
        covariance = (powers @ by_covariance).reshape(shape) * step.reshape(*step.shape, 1, 1)
        # Chapman–Kolmogorov over two equal steps: k_{2h} = k_h + Φ_h k_h, Q_{2h} = Q_h + Φ_h Q_h Φ_hᵀ, Φ_{2h} = Φ_h²
        for _ in range(doublings):
            offset = offset + (phi @ offset.unsqueeze(-1)).squeeze(-1)
            covariance = covariance + phi @ covariance @ phi.mT
            phi = phi @ phi
        return phi, offset, 0.5 * (covariance + covariance.mT)
