"""Linear maps of states in the forms of a diffusion coefficient: scalar, diagonal, dense."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, NonFiniteError


@dataclass(frozen=True, eq=False)
class LinearMap:
    """The linear map ``x ↦ A x`` on row vectors ``x`` of shape ``(batch, dim)``.

    Args:
        values: a scalar as ``(..., 1)``, a diagonal as ``(..., dim)``, a matrix as ``(..., dim, dim)``.
            One leading dimension, if any, runs over times: each map acts on a block of consecutive rows.
        dense: whether ``values`` holds matrices.
    """

    values: Tensor
    dense: bool = False

    @classmethod
    def of(cls, value: float | Tensor) -> LinearMap:
        """Makes a float64 map from a scalar, a vector (diagonal) or a square matrix.

        Raises:
            InvalidInputError: for another shape, or values that are not finite.
        """
        if not isinstance(value, Tensor):  # for a tensor, the default device would take the place of its own
            value = torch.as_tensor(value, dtype=torch.float64, device="cpu")
        tensor = value.double()
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidInputError(f"a coefficient must be finite, got {value}.")
        if tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]:
            return cls(tensor, dense=True)
        if tensor.ndim <= 1:
            return cls(tensor.reshape(-1))
        raise InvalidInputError(
            "a coefficient is a scalar, a vector (dim,) or a square matrix (dim, dim), "
            f"got shape {tuple(tensor.shape)}."
        )

    @property
    def dim(self) -> int | None:
        """The dimension of its space, or ``None`` for a scalar."""
        return self.values.shape[-1] if self.dense or self.values.shape[-1] > 1 else None

    def __call__(self, x: Tensor) -> Tensor:
        """Computes ``A x``, row by row; each of ``n`` maps acts on its block of ``batch / n`` consecutive rows."""
        if self.values.ndim == (2 if self.dense else 1):
            return x @ self.values.mT if self.dense else self.values * x
        blocks = x.reshape(len(self.values), -1, x.shape[-1])
        mapped = blocks @ self.values.mT if self.dense else self.values.unsqueeze(1) * blocks
        return mapped.reshape(-1, mapped.shape[-1])

    def add(self, base: Tensor, x: Tensor) -> Tensor:
        """Computes ``base + A x`` in one pass over the rows; ``base`` broadcasts."""
        if self.values.ndim > (2 if self.dense else 1):
            return base + self(x)
        return torch.addmm(base, x, self.values.mT) if self.dense else torch.addcmul(base, self.values, x)

    def __matmul__(self, other: LinearMap) -> LinearMap:
        """Returns the composition ``A B``."""
        if not self.dense and not other.dense:
            return LinearMap(self.values * other.values)
        if not self.dense:
            return LinearMap(self.values.unsqueeze(-1) * other.values, dense=True)
        if not other.dense:
            return LinearMap(self.values * other.values.unsqueeze(-2), dense=True)
        return LinearMap(self.values @ other.values, dense=True)

    def __add__(self, other: LinearMap) -> LinearMap:
        """Returns the sum ``A + B``."""
        if self.dense == other.dense:
            return LinearMap(self.values + other.values, self.dense)
        dense, diagonal = (self, other) if self.dense else (other, self)
        return LinearMap(dense.values + diagonal.expanded(dense.values.shape[-1]), dense=True)

    def __mul__(self, factor: float | Tensor) -> LinearMap:
        """Returns ``factor · A``; a tensor factor has one entry per leading (batch) index."""
        if isinstance(factor, Tensor) and factor.ndim:
            factor = factor.reshape(*factor.shape, *([1] * (2 if self.dense else 1)))
        return LinearMap(self.values * factor, self.dense)

    def __neg__(self) -> LinearMap:
        """Returns ``−A``."""
        return LinearMap(-self.values, self.dense)

    @property
    def T(self) -> LinearMap:
        """The transpose."""
        return LinearMap(self.values.mT, dense=True) if self.dense else self

    @property
    def singular(self) -> bool:
        """Whether some coordinate of a scalar or diagonal map is zero."""
        return not self.dense and bool((self.values == 0.0).any())

    def inverse(self) -> LinearMap:
        """Returns ``A⁻¹``.

        Raises:
            NonFiniteError: if a matrix is singular to rounding.
        """
        if not self.dense:
            return LinearMap(1.0 / self.values)
        found, failed = torch.linalg.inv_ex(self.values)
        if bool(failed.any()):
            raise NonFiniteError(
                "a matrix of the process is singular to rounding and has no inverse: over this time the process loses "
                "its state, or adds noise, far more in some directions than in others. Use a shorter horizon, a rate "
                "with eigenvalues closer to each other, or a diagonal rate."
            )
        return LinearMap(found, dense=True)

    def cholesky(self, *, upper: bool = False) -> LinearMap:
        """Returns a root ``L`` with ``L Lᵀ = A`` of a positive semidefinite map, lower or upper triangular if dense.

        A dense map that is singular to rounding (a pinned bridge at its very end) takes its root from the
        eigenvalues, cut at zero.
        """
        if not self.dense:
            return LinearMap(self.values.clamp_min(0.0).sqrt())
        if upper:
            return LinearMap(LinearMap(self.values.flip(-2, -1), dense=True).cholesky().values.flip(-2, -1), dense=True)
        root, failed = torch.linalg.cholesky_ex(self.values)
        if bool(failed.any()):
            eigenvalues, vectors = torch.linalg.eigh(self.values)
            root = vectors * eigenvalues.clamp_min(0.0).sqrt().unsqueeze(-2)
        return LinearMap(root, dense=True)

    def log_abs_det(self, dim: int) -> Tensor:
        """Computes ``log |det A|`` on ``dim`` dimensions."""
        if self.dense:
            return torch.linalg.slogdet(self.values).logabsdet
        return self.values.abs().log().expand(*self.values.shape[:-1], dim).sum(-1)

    def mean_square(self, dim: int) -> Tensor:
        """Computes ``tr(A Aᵀ) / dim``: the mean square of ``A ξ`` per coordinate for standard normal ``ξ``."""
        if self.dense:
            return self.values.square().sum((-2, -1)) / dim
        return self.values.square().expand(*self.values.shape[:-1], dim).mean(-1)

    def expanded(self, dim: int) -> Tensor:
        """Returns the matrix, shape ``(..., dim, dim)``."""
        if self.dense:
            return self.values
        return torch.diag_embed(self.values.expand(*self.values.shape[:-1], dim))

    def to(self, like: Tensor) -> LinearMap:
        """Returns the same map in the dtype and on the device of ``like``."""
        return LinearMap(self.values.to(like), self.dense)

    def at(self, index: int | Tensor) -> LinearMap:
        """Returns entry ``index`` of the first leading dimension, or the entries of several indices."""
        return LinearMap(self.values[index], self.dense)

    def unbind(self) -> list[LinearMap]:
        """Returns the entries of the first leading dimension, one by one."""
        return [LinearMap(values, self.dense) for values in self.values.unbind(0)]
