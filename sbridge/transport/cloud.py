"""Weighted points under a Gaussian kernel: the only soft-nearest-neighbour sum of the package."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, shown
from sbridge.laws.arrays import check_rows
from sbridge.storage.registry import register

_CHUNK = 2**17
"""Entries of a block of weights; 1 MB in float64, which stays in cache with its copies."""


@register
@dataclass(frozen=True, eq=False)
class Cloud:
    """Probabilities ``w_j(x) ∝ exp(ℓ_j − |x−y_j|²/2v)`` over points ``y_j``, for any ``x`` and variance ``v``.

    With Sinkhorn's potential, ``ℓ_j = g_j/ε + log b_j``, the row ``w(x)`` at ``v = ε`` is the entropic plan
    given ``x``; at ``v = ε(1 − t/T)`` it is the distribution of the plug-in bridge's end point given its state at t.

    Exponents are formed in float64 and shifted before they are cast: ``|x|²/v`` is of order 10⁴ in real data,
    where float32 would lose three digits. A pass over n × m costs little more than the product of the two
    matrices. Only :meth:`weights` stores an n × m array. Results are differentiable in ``x``.

    Args:
        rows: the points ``y_j``, shape ``(m, dim)``.
        logits: ``ℓ_j``, shape ``(m,)``, best in float64.
    """

    rows: Tensor
    logits: Tensor
    holds_training_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_rows(self.rows, "rows", least=1)
        if self.logits.shape != self.rows.shape[:1]:
            raise InvalidInputError(
                f"a cloud of {len(self.rows)} rows needs one logit per row, got shape {tuple(self.logits.shape)}."
            )

    def log_normaliser(self, x: Tensor, variance: float | Tensor) -> Tensor:
        """Computes ``log Σ_j exp(ℓ_j − |x−y_j|²/2v)``, shape ``(n,)``, float64."""
        return torch.cat([log_sum for _, _, log_sum in self.chunks(x, variance)])

    def weights(self, x: Tensor, variance: float | Tensor) -> Tensor:
        """Computes all ``w_j(x_i)``, shape ``(n, m)``, in the dtype of ``x``."""
        return torch.cat([part for _, part, _ in self.chunks(x, variance)])

    def mean(self, x: Tensor, variance: float | Tensor) -> Tensor:
        """Computes ``Σ_j w_j(x) y_j``, shape ``(n, dim)``."""
        return torch.cat([part @ self.rows.to(part) for _, part, _ in self.chunks(x, variance)])

    def draw(self, x: Tensor, variance: float | Tensor, generator: torch.Generator) -> Tensor:
        """Draws one index ``j`` per row of ``x`` with probabilities ``w_j(x)``; int64, shape ``(n,)``.

        One uniform number a row is drawn at once and inverted, so a row's index does not depend on blocks.
        """
        return draw_indices(self.chunks(x.detach(), variance), len(x), generator)

    def chunks(self, x: Tensor, variance: float | Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yields blocks of rows of ``x``: their slice, their weights ``(block, m)``, their log normaliser (float64).

        Args:
            x: rows ``(n, dim)``.
            variance: ``v``, a number or one per row ``(n,)``.

        Raises:
            InvalidInputError: for rows of another dimension, or a variance that is not positive.
        """
        v = self._variance(x, variance).expand(len(x))[:, None]
        points = x.double() - self.centre
        half_norm = (0.5 / v[:, 0]) * points.square().sum(1)
        for rows, part, log_sum in self.tilts(points / v, 1.0 / v, x.dtype):
            yield rows, part, log_sum - half_norm[rows]

    def tilts(self, slopes: Tensor, precisions: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yields, as :meth:`chunks`, weights ``∝ exp(ℓ_j + a_i·z_j − ½ p_i |z_j|²)``, ``z_j = y_j −`` :attr:`centre`.

        That of ``x_i`` at variance ``v`` has ``a = (x − centre)/v`` and ``p = 1/v``; here ``v`` may be infinite.

        Args:
            slopes: ``a``, shape ``(n, dim)``, float64.
            precisions: ``p ≥ 0``, shape ``(n, 1)``, float64.
            dtype: of the weights.
        """
        # a·z − ½p|z|² as one product, so that nothing is divided n × m times.
        scaled = torch.cat([slopes, precisions], 1)
        size, least = max(1, _CHUNK // len(self.rows)), 0.85 * math.log(torch.finfo(dtype).tiny)
        for start in range(0, len(scaled), size):
            rows = slice(start, min(start + size, len(scaled)))
            exponent = torch.addmm(self._logits, scaled[rows], self._lifted.mT)
            # Weights below the smallest normal number make sums several times slower: zero in their stead.
            top = exponent.amax(1, keepdim=True)
            part = torch.softmax(torch.threshold((exponent - top).to(dtype), least, -math.inf), 1)
            yield rows, part, top[:, 0] - part.amax(1).double().log()

    def _variance(self, x: Tensor, variance: float | Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.rows.shape[1]:
            raise InvalidInputError(
                f"x must have shape (rows, {self.rows.shape[1]}) like the cloud, got {tuple(x.shape)}."
            )
        v = torch.as_tensor(variance, dtype=torch.float64, device=x.device)
        if v.shape not in ((), x.shape[:1]) or not bool((v > 0).all()):
            raise InvalidInputError(
                f"variance must be positive, a number or one per row of x ({len(x)}), got {shown(variance)}."
            )
        return v

    # Distances do not change when both sides move, and small coordinates round less.
    @cached_property
    def centre(self) -> Tensor:
        """The mean of the points in float64."""
        return self.rows.double().mean(0)

    @cached_property
    def _lifted(self) -> Tensor:
        points = self.rows.double() - self.centre
        return torch.cat([points, -0.5 * points.square().sum(1, keepdim=True)], 1)

    @cached_property
    def _logits(self) -> Tensor:
        return self.logits.to(self.rows.device, torch.float64)


def draw_indices(blocks: Iterator[tuple[slice, Tensor, Tensor]], count: int, generator: torch.Generator) -> Tensor:
    """Draws one index per row with the weights of :meth:`Cloud.chunks`; int64, shape ``(count,)``.

    One uniform number a row is drawn at once and inverted, so a row's index does not depend on blocks.
    """
    uniform = torch.rand(count, 1, dtype=torch.float64, generator=generator, device=generator.device)
    drawn = []
    for rows, part, _ in blocks:
        cumulative = part.double().cumsum(1)
        # Scaled by the last entry, so that rounding of the sum leaves no gap at the end.
        found = torch.searchsorted(cumulative, uniform[rows].to(part.device) * cumulative[:, -1:], right=True)
        drawn.append(found[:, 0].clamp_(max=part.shape[1] - 1))
    return torch.cat(drawn)
