"""Quadratic costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.laws.scaling import AffineScaling
from sbridge.processes.base import Time
from sbridge.storage.registry import register


@register
@dataclass(frozen=True, eq=False)
class Quadratic:
    """The cost ``q(x) = xᵀ M x + vᵀ x + c``, without a factor ½.

    A terminal cost is ``q`` itself, a running cost ``q.running``.

    Args:
        matrix: ``M``, symmetric, shape ``(dim, dim)``.
        vector: ``v``, shape ``(dim,)``; zero if ``None``.
        constant: ``c``.

    Raises:
        InvalidInputError: for other shapes, values that are not finite, or a matrix that is not symmetric.
    """

    matrix: Tensor
    vector: Tensor | None = None
    constant: float = 0.0

    def __post_init__(self) -> None:
        size = self.matrix.shape[0] if self.matrix.ndim == 2 else -1
        vector = self.matrix.new_zeros(max(size, 0)) if self.vector is None else self.vector
        if self.matrix.shape != (size, size) or vector.shape != (size,):
            raise InvalidInputError(
                f"a quadratic cost needs a matrix (dim, dim) and a vector (dim,), got {tuple(self.matrix.shape)} and "
                f"{tuple(vector.shape)}."
            )
        if not bool(torch.isfinite(self.matrix).all() and torch.isfinite(vector).all()):
            raise InvalidInputError("the coefficients of a quadratic cost must be finite.")
        if not torch.allclose(self.matrix, self.matrix.mT, rtol=1e-6):
            raise InvalidInputError(
                "the matrix of a quadratic cost must be symmetric: use ½(M + Mᵀ), which gives the same cost."
            )

    @classmethod
    def isotropic(cls, factor: float, dim: int) -> Quadratic:
        """Returns ``factor · |x|²``."""
        return cls(factor * torch.eye(dim, dtype=torch.float64, device="cpu"))

    @classmethod
    def linear(cls, vector: Tensor) -> Quadratic:
        """Returns ``vᵀ x``."""
        return cls(vector.new_zeros(len(vector), len(vector)), vector)

    @property
    def dim(self) -> int:
        """The dimension of ``x``."""
        return self.matrix.shape[0]

    def __call__(self, x: Tensor) -> Tensor:
        """Computes ``q(x)``, shape ``(batch,)``."""
        value = ((x @ self.matrix.to(x)) * x).sum(1) + self.constant
        return value if self.vector is None else value + x @ self.vector.to(x)

    def running(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``q(x)`` at any time."""
        return self(x)

    def rescaled(self, scaling: AffineScaling) -> Quadratic:
        """Returns the same cost as a function of ``(x − shift)/scale``."""
        kind = {"dtype": torch.float64, "device": self.matrix.device}
        shift, scale = scaling.shift.to(**kind), scaling.scale.to(**kind).expand(self.dim)
        matrix, vector = self.matrix.double(), 2.0 * shift @ self.matrix.double()
        vector = vector if self.vector is None else vector + self.vector.double()
        constant = float(self(shift.unsqueeze(0)))
        return Quadratic(scale.unsqueeze(1) * matrix * scale, scale * vector, constant)

    def expectation(self, mean: Tensor, covariance: Tensor) -> float:
        """Computes ``E q(X)`` for mean ``(dim,)`` and covariance ``(dim, dim)`` of ``X``."""
        spread_out = (self.matrix.double() * covariance.double()).sum()
        return float(self.__call__(mean.double().unsqueeze(0)) + spread_out)

    @property
    def homogeneous(self) -> Tensor:
        """The matrix of ``q`` in ``z = (x, 1)``, float64, shape ``(dim + 1, dim + 1)``."""
        whole = torch.zeros(self.dim + 1, self.dim + 1, dtype=torch.float64, device="cpu")
        whole[:-1, :-1] = self.matrix.detach().double().cpu()
        if self.vector is not None:
            whole[:-1, -1] = whole[-1, :-1] = 0.5 * self.vector.detach().double().cpu()
        whole[-1, -1] = self.constant
        return whole

    @classmethod
    def of(cls, homogeneous: Tensor, constant: Tensor) -> Quadratic:
        """Inverts :attr:`homogeneous`, with a further constant."""
        inner = homogeneous[:-1, :-1]
        rest = float(homogeneous[-1, -1] + constant)
        return cls(0.5 * (inner + inner.mT).detach(), (2.0 * homogeneous[:-1, -1]).detach(), rest)
