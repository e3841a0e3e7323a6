"""The two potentials of a Schrödinger system at times between the ends: exactly, or by a propagator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sbridge.errors import InvalidInputError
from sbridge.pde.grids import Field, Grid
from sbridge.pde.kernels import (
    LogKernel,
    PropagatedKernel,
    gaussian_kernel,
    narrow_backward,
    narrow_forward,
    propagated,
    resolved_in_end,
    resolved_in_start,
    resolved_kernel,
)
from sbridge.pde.propagator import Propagator
from sbridge.processes.base import LinearProcess


class Reference(ABC):
    """The reference on a grid: its kernel ``G`` over the whole horizon, and its kernels to times in between."""

    grid: Grid

    @cached_property
    def whole(self) -> LogKernel:
        """``G(T, y | 0, x)``."""
        return self._whole()

    @abstractmethod
    def _whole(self) -> LogKernel: ...

    @abstractmethod
    def between(self, s: float, t: float) -> LogKernel:
        """Computes ``G(t, y | s, x)``."""

    @abstractmethod
    def potentials(self, log_start: Field, log_end: Field) -> Potentials:
        """Computes ``φ`` and ``φ̂`` at all times from ``log φ̂(0)`` and ``log φ(T)``."""


class Potentials(ABC):
    """``log φ(t)`` and ``log φ̂(t)`` as fields, ``0 ≤ t ≤ T``."""

    @abstractmethod
    def log_phi(self, t: float) -> Field:
        """Computes ``log φ(t, x) = log ∫ G(T, y | t, x) φ(T, y) dy``."""

    @abstractmethod
    def log_phi_hat(self, t: float) -> Field:
        """Computes ``log φ̂(t, y) = log ∫ G(t, y | 0, x) φ̂(0, x) dx``."""


@dataclass(frozen=True, eq=False)
class ExactReference(Reference):
    """A linear process with transitions in closed form: no error in time, and only rounding in space."""

    process: LinearProcess
    grid: Grid

    def _whole(self) -> LogKernel:
        return self.between(0.0, self.process.horizon)

    def between(self, s: float, t: float) -> LogKernel:
        """Returns the kernel over ``[s, t]``."""
        return resolved_kernel(self.process.transition(s, t), self.grid)

    def potentials(self, log_start: Field, log_end: Field) -> Potentials:
        """Computes the potentials at each requested time."""
        return _ExactPotentials(self.process, self.grid, log_start, log_end)


@dataclass(frozen=True, eq=False)
class PropagatedReference(Reference):
    """Any process with any state cost, by finite volumes: an error of second order in cell width and time step."""

    propagator: Propagator

    @property
    def grid(self) -> Grid:  # type: ignore[override]
        """The grid of the propagator."""
        return self.propagator.grid

    def _whole(self) -> LogKernel:
        """Makes a matrix in one dimension; in two, every product runs through the steps."""
        last = len(self.propagator.times) - 1
        if self.grid.dim == 1:
            return propagated(self.propagator, 0, last)
        return PropagatedKernel(self.propagator, 0, last)

    def between(self, s: float, t: float) -> LogKernel:
        """Returns the kernel between two knots."""
        return PropagatedKernel(self.propagator, self._knot(s), self._knot(t))

    def potentials(self, log_start: Field, log_end: Field) -> Potentials:
        """Computes the potentials at all knots at once."""
        return _PropagatedPotentials(self.propagator, log_start, log_end)

    def _knot(self, t: float) -> int:
        times = self.propagator.times
        k = int(np.abs(times - t).argmin())
        if abs(times[k] - t) > 1e-9 * times[-1]:
            raise InvalidInputError(
                f"the transition of a propagated reference is known only between knots of its time grid, not at {t:g}. "
                "Add it: times.including([t / horizon])."
            )
        return k


@dataclass(frozen=True, eq=False)
class _ExactPotentials(Potentials):
    process: LinearProcess
    grid: Grid
    log_start: Field
    log_end: Field

    def log_phi(self, t: float) -> Field:
        law = self.process.transition(t, self.process.horizon)
        if t == self.process.horizon:
            return self.log_end
        if resolved_in_end(law, self.grid):
            return gaussian_kernel(law, self.grid).backward(self.log_end)
        return narrow_backward(law, self.grid, self.log_end)

    def log_phi_hat(self, t: float) -> Field:
        if t == 0.0:
            return self.log_start
        law = self.process.transition(0.0, t)
        if resolved_in_start(law, self.grid):
            return gaussian_kernel(law, self.grid).forward(self.log_start)
        return narrow_forward(law, self.grid, self.log_start)


@dataclass(frozen=True, eq=False)
class _PropagatedPotentials(Potentials):
    """Fields at the knots; linear in time between them, in logarithms."""

    propagator: Propagator
    log_start: Field
    log_end: Field

    @cached_property
    def _phi(self) -> list[Field]:
        found = [self.log_end]
        for k in reversed(range(len(self.propagator.times) - 1)):
            found.append(self.propagator.log_backward(k, found[-1]))
        return found[::-1]

    @cached_property
    def _phi_hat(self) -> list[Field]:
        found = [self.log_start]
        for k in range(len(self.propagator.times) - 1):
            found.append(self.propagator.log_forward(k, found[-1]))
        return found

    def log_phi(self, t: float) -> Field:
        return self._at(self._phi, t)

    def log_phi_hat(self, t: float) -> Field:
        return self._at(self._phi_hat, t)

    def _at(self, fields: list[Field], t: float) -> Field:
        times = self.propagator.times
        k = min(bisect_right(times.tolist(), t) - 1, len(times) - 2)
        share = (t - times[k]) / (times[k + 1] - times[k])
        if share == 0.0:  # −∞ times 0 is no number
            return fields[k]
        return fields[k + 1] if share == 1.0 else (1.0 - share) * fields[k] + share * fields[k + 1]
