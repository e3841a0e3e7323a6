"""Change of units between the user's data and the model.

Noise units are the same on both sides: if ``dX = (b + σu) dt + σ dW`` and ``X̃ = (X − m)/s``, then
``X̃`` has drift ``(b + σu)/s`` and noise ``σ/s`` with *the same* ``u`` and ``W``. A bridge fitted to
scaled data under the scaled reference is therefore the bridge of the original problem.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sbridge.display import short_repr
from sbridge.errors import InvalidInputError
from sbridge.storage.registry import register


@register
@dataclass(frozen=True, eq=False)
class AffineScaling:
    """The map ``x_model = (x − shift) / scale``; ``shift`` ``(dim,)``, ``scale`` ``(1,)`` or ``(dim,)``, float64."""

    shift: Tensor
    scale: Tensor

    __repr__ = short_repr

    @property
    def changes_nothing(self) -> bool:
        """Whether shift is 0 and scale 1."""
        return not bool(self.shift.any()) and bool((self.scale == 1).all())

    def to_model(self, x: Tensor) -> Tensor:
        """Converts data units to model units."""
        return ((x - self.shift.to(x)) / self.scale.to(x)).to(x.dtype)

    def to_data(self, x: Tensor) -> Tensor:
        """Converts model units to data units."""
        return x * self.scale.to(x) + self.shift.to(x)


@runtime_checkable
class ScalingRecipe(Protocol):
    """A recipe that chooses a scaling from the rows of the two ends."""

    def __call__(self, x0: Tensor, x1: Tensor) -> AffineScaling:
        """Returns the scaling for sources ``x0`` and targets ``x1``."""
        ...


@register
@dataclass(frozen=True)
class NoScaling:
    """Leaves the data unchanged."""

    def __call__(self, x0: Tensor, x1: Tensor) -> AffineScaling:
        """Returns shift 0 and scale 1."""
        zero = torch.zeros(x0.shape[1], dtype=torch.float64, device=x0.device)
        return AffineScaling(zero, torch.ones_like(zero[:1]))


@register
@dataclass(frozen=True)
class CommonScale:
    """Centres the pooled samples and divides by one number, the mean over coordinates of their standard deviation.

    Shapes and angles do not change, so a scalar σ stays scalar.
    """

    def __call__(self, x0: Tensor, x1: Tensor) -> AffineScaling:
        """Computes the scaling; raises InvalidInputError if every column is constant."""
        pooled = torch.cat([x0, x1]).double()
        scale = _deviations(pooled).mean().reshape(1)
        if not bool(scale > 0):
            raise InvalidInputError(
                "every column is constant, so there is no scale for the data or the noise: give a reference, such as "
                "BrownianMotion(sigma=1.0), and scaling=NoScaling() (--sigma and --scaling none)."
            )
        return AffineScaling(pooled.mean(0), scale)


@register
@dataclass(frozen=True)
class PerCoordinate:
    """Centres and divides each column by its own pooled standard deviation."""

    def __call__(self, x0: Tensor, x1: Tensor) -> AffineScaling:
        """Computes the scaling; raises InvalidInputError if a column is constant."""
        pooled = torch.cat([x0, x1]).double()
        scale = _deviations(pooled)
        constant = torch.nonzero(scale <= 0).flatten().tolist()
        if constant:
            raise InvalidInputError(
                f"columns {constant[:10]} are constant, so they have no scale to divide by; "
                "drop them, or use CommonScale() or NoScaling()."
            )
        return AffineScaling(pooled.mean(0), scale)


def common_units(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float]:
    """Returns ``(x − c)/s``, ``(y − c)/s`` in float64 and ``s``, such that distances are of order one.

    ``c`` is the mean of ``y``. ``s`` is a power of two, so dividing by it is exact; it is 1 if all rows are equal.
    Distances of the results are those of ``x`` and ``y`` divided by ``s``, at any scale of the data and any offset.

    Args:
        x, y: rows ``(n, dim)`` and ``(m, dim)``.
    """
    first = _power_of_two(x, y)  # before the mean, whose sum would overflow
    rows, others = x.double() / first, y.double() / first
    centre = others.mean(0)
    rows, others = rows - centre, others - centre
    second = _power_of_two(rows, others)
    return rows / second, others / second, first * second


LEAST_WIDTH, LARGEST_WIDTH = 1e-28, 1e28
"""Standard deviations of the data between which σ and its square stay in the floating-point range."""


def check_units(x0: Tensor, x1: Tensor, names: tuple[str, str]) -> None:
    """Raises InvalidInputError if the rows of both ends together are too wide, too narrow or too far out to be squared.

    Samples that are all equal are accepted.
    """
    rows, others, unit = common_units(x0, x1)
    width = float(_deviations(torch.cat([rows, others])).square().mean().sqrt()) * unit
    largest = max(float(one.abs().max()) for one in (x0, x1))
    if width == 0.0 and largest <= LARGEST_WIDTH:
        return
    if width >= LEAST_WIDTH and max(width, largest) <= LARGEST_WIDTH:
        return
    raise InvalidInputError(
        f"the standard deviation of {names[0]} and {names[1]} together is {width:.3g} and their largest entry "
        f"{largest:.3g}: squares of such numbers leave the floating-point range. Use another unit of length, for "
        f"example divide both by {width or largest:.0e}; a given σ must be divided by the same number. The standard "
        f"deviation must be between {LEAST_WIDTH:g} and {LARGEST_WIDTH:g}."
    )


def _power_of_two(x: Tensor, y: Tensor) -> float:
    """Returns the power of two next to the largest entry in magnitude; 1 if all are zero."""
    largest = max(float(one.abs().max()) if one.numel() else 0.0 for one in (x, y))
    return 2.0 ** min(max(math.frexp(largest)[1], -1000), 1000) if largest > 0.0 else 1.0


def _deviations(rows: Tensor) -> Tensor:
    """Returns the standard deviations of the columns; exactly zero for constant ones, whose mean may round."""
    return torch.where(rows.amax(0) > rows.amin(0), rows.std(0), 0.0)
