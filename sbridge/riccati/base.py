"""Quadratic costs, and what both forms of the linear–quadratic problem share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, NonFiniteError, UnsupportedError
from sbridge.processes import LinearProcess
from sbridge.processes.base import Time, affine
from sbridge.registry import register


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
                "the matrix of a quadratic cost must be symmetric: take ½(M + Mᵀ), the cost is the same."
            )

    @classmethod
    def isotropic(cls, factor: float, dim: int) -> Quadratic:
        """``factor · |x|²``."""
        return cls(factor * torch.eye(dim, dtype=torch.float64))

    @classmethod
    def linear(cls, vector: Tensor) -> Quadratic:
        """``vᵀ x``."""
        return cls(vector.new_zeros(len(vector), len(vector)), vector)

    @property
    def dim(self) -> int:
        """The dimension of ``x``."""
        return self.matrix.shape[0]

    def __call__(self, x: Tensor) -> Tensor:
        """``q(x)``, shape ``(batch,)``."""
        value = ((x @ self.matrix.to(x)) * x).sum(1) + self.constant
        return value if self.vector is None else value + x @ self.vector.to(x)

    def running(self, t: Time, x: Tensor) -> Tensor:
        """``q(x)`` at any time."""
        return self(x)

    def expectation(self, mean: Tensor, covariance: Tensor) -> float:
        """``E q(X)`` for mean ``(dim,)`` and covariance ``(dim, dim)`` of ``X``."""
        spread_out = (self.matrix.double() * covariance.double()).sum()
        return float(self.__call__(mean.double().unsqueeze(0)) + spread_out)

    @property
    def homogeneous(self) -> Tensor:
        """The matrix of ``q`` in ``z = (x, 1)``, float64, shape ``(dim + 1, dim + 1)``."""
        whole = torch.zeros(self.dim + 1, self.dim + 1, dtype=torch.float64)
        whole[:-1, :-1] = self.matrix.detach().double().cpu()
        if self.vector is not None:
            whole[:-1, -1] = whole[-1, :-1] = 0.5 * self.vector.detach().double().cpu()
        whole[-1, -1] = self.constant
        return whole

    @classmethod
    def of(cls, homogeneous: Tensor, constant: Tensor) -> Quadratic:
        """The inverse of :attr:`homogeneous`, with a further constant."""
        inner = homogeneous[:-1, :-1]
        rest = float(homogeneous[-1, -1] + constant)
        return cls(0.5 * (inner + inner.mT).detach(), (2.0 * homogeneous[:-1, -1]).detach(), rest)


@dataclass(frozen=True, eq=False)
class LinearQuadratic(ABC):
    """What both forms share.

    Args:
        process: the uncontrolled process.
        running: ``f``, per unit time.
        terminal: ``g``.
    """

    process: LinearProcess
    running: Quadratic
    terminal: Quadratic

    def __post_init__(self) -> None:
        if not isinstance(self.process, LinearProcess):
            raise UnsupportedError(
                f"a Riccati equation needs a linear process, got {type(self.process).__name__}; linearise it first."
            )
        dims = {self.running.dim, self.terminal.dim, self.process.dim or self.running.dim}
        if len(dims) > 1:
            raise InvalidInputError(
                f"running cost, terminal cost and process have dimensions {self.running.dim}, {self.terminal.dim} and "
                f"{self.process.dim}; they must agree."
            )

    @property
    def dim(self) -> int:
        """The dimension of the state."""
        return self.running.dim

    @abstractmethod
    def gain(self, t: Time) -> Tensor:
        """``G`` with ``u* = G z`` at one time or at times ``(batch,)``, float64, shape ``(..., dim, dim + 1)``."""

    @abstractmethod
    def _solve(self, running: Tensor, terminal: Tensor) -> tuple[Tensor, Tensor]:
        """``F(0)`` and ``κ(0)`` for costs in homogeneous form, differentiable in them."""

    @cached_property
    def value_function(self) -> Quadratic:
        """The optimal objective as a function of the start, ``V(0, ·)``."""
        return Quadratic.of(*self._solve(self.running.homogeneous, self.terminal.homogeneous))

    @cached_property
    def energy_function(self) -> Quadratic:
        """``E Σ Δ|u*|²`` (in the limit ``E∫|u*|² dt``) as a function of the start.

        With costs ``λf`` and ``λg`` the derivative of the value at ``λ = 1`` is the part of the value that is not
        control energy (envelope theorem); hence ``2 (V − ∂_λ V)``.
        """

        def scaled(factor: Tensor) -> tuple[Tensor, Tensor]:
            return self._solve(factor * self.running.homogeneous, factor * self.terminal.homogeneous)

        one = torch.ones((), dtype=torch.float64)
        (f, k), (df, dk) = torch.autograd.functional.jvp(scaled, one, one)
        return Quadratic.of(2.0 * (f - df), 2.0 * (k - dk))

    @property
    def control(self) -> RiccatiControl:
        """The optimal control."""
        return RiccatiControl(self)


@register
@dataclass(frozen=True, eq=False)
class RiccatiControl:
    """``u*(t, x)`` of a :class:`Riccati` or :class:`ChainRiccati` problem."""

    solution: LinearQuadratic

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """``G(t) (x, 1)``, shape ``(batch, dim)``."""
        gain = self.solution.gain(t).to(x)
        return affine(gain[..., :-1], gain[..., -1], x)


def unbounded() -> NonFiniteError:
    """The error for a value that is not finite."""
    return NonFiniteError(
        "the value of this linear–quadratic problem is infinite: a cost falls so fast that no finite control energy "
        "holds the state. Make the costs bounded below, or the horizon shorter."
    )
