"""What both forms of the linear–quadratic problem share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, NonFiniteError, UnsupportedError
from sbridge.problems.costs import Quadratic
from sbridge.processes import LinearProcess
from sbridge.processes.base import Time, affine
from sbridge.storage.registry import register


@dataclass(frozen=True, eq=False)
class LinearQuadratic(ABC):
    """Common part of the linear–quadratic problems for a chain and in continuous time.

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
        """Computes ``G`` with ``u* = G z`` at times ``()`` or ``(batch,)``, float64, shape ``(..., dim, dim + 1)``."""

    @abstractmethod
    def _solve(self, running: Tensor, terminal: Tensor) -> tuple[Tensor, Tensor]:
        """Computes ``F(0)`` and ``κ(0)`` for costs in homogeneous form, differentiable in them."""

    @cached_property
    def value_function(self) -> Quadratic:
        """Returns the optimal objective as a function of the start, ``V(0, ·)``."""
        return Quadratic.of(*self._solve(self.running.homogeneous, self.terminal.homogeneous))

    @cached_property
    def energy_function(self) -> Quadratic:
        """Returns ``E Σ Δ|u*|²`` (in the limit ``E∫|u*|² dt``) as a function of the start.

        With costs ``λf`` and ``λg`` the derivative of the value at ``λ = 1`` is the part of the value that is not
        control energy (envelope theorem); hence ``2 (V − ∂_λ V)``.
        """

        def scaled(factor: Tensor) -> tuple[Tensor, Tensor]:
            return self._solve(factor * self.running.homogeneous, factor * self.terminal.homogeneous)

        one = torch.ones((), dtype=torch.float64, device="cpu")
        (f, k), (df, dk) = torch.autograd.functional.jvp(scaled, one, one)
        return Quadratic.of(2.0 * (f - df), 2.0 * (k - dk))

    @property
    def control(self) -> RiccatiControl:
        """The optimal control."""
        return RiccatiControl(self)


@register
@dataclass(frozen=True, eq=False)
class RiccatiControl:
    """The control ``u*(t, x)`` of a :class:`Riccati` or :class:`ChainRiccati` problem."""

    solution: LinearQuadratic

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``G(t) (x, 1)``, shape ``(batch, dim)``."""
        gain = self.solution.gain(t).to(x)
        return affine(gain[..., :-1], gain[..., -1], x)


def unbounded() -> NonFiniteError:
    """Makes the error for a value that is not finite."""
    return NonFiniteError(
        "the value of this linear–quadratic problem is infinite: a cost falls so fast that no finite control energy "
        "holds the state. Make the costs bounded below, or the horizon shorter."
    )
