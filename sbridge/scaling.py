"""The change of units between the user's data and the model, as an object.

Noise units are the same on both sides: if ``dX = (b + σu) dt + σ dW`` and ``X̃ = (X − m)/s``, then
``X̃`` has drift ``(b + σu)/s`` and noise ``σ/s`` with *the same* ``u`` and ``W``. A bridge fitted to
scaled data under the scaled reference is therefore the bridge of the original problem.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.registry import register


@register
@dataclass(frozen=True, eq=False)
class AffineScaling:
    """``x_model = (x − shift) / scale``; ``shift`` of shape ``(dim,)``, ``scale`` ``(1,)`` or ``(dim,)``, float64."""

    shift: Tensor
    scale: Tensor

    @property
    def changes_nothing(self) -> bool:
        """Whether shift is 0 and scale 1."""
        return not bool(self.shift.any()) and bool((self.scale == 1).all())

    def to_model(self, x: Tensor) -> Tensor:
        """From data units to model units."""
        return ((x - self.shift.to(x)) / self.scale.to(x)).to(x.dtype)

    def to_data(self, x: Tensor) -> Tensor:
        """From model units to data units."""
        return x * self.scale.to(x) + self.shift.to(x)


@runtime_checkable
class ScalingRecipe(Protocol):
    """Chooses a scaling from the rows of the two ends."""

    def __call__(self, x0: Tensor, x1: Tensor) -> AffineScaling:
        """The scaling for sources ``x0`` and targets ``x1``."""
        ...


@register
@dataclass(frozen=True)
class NoScaling:
    """Leaves the data as they are."""

    def __call__(self, x0: Tensor, x1: Tensor) -> AffineScaling:
        """Shift 0, scale 1."""
        zero = torch.zeros(x0.shape[1], dtype=torch.float64, device=x0.device)
        return AffineScaling(zero, torch.ones_like(zero[:1]))


@register
@dataclass(frozen=True)
class CommonScale:
    """Centres the pooled rows and divides by one number, the mean over coordinates of their standard deviation.

    Shapes and angles stay as they are, so a scalar σ stays scalar.
    """

    def __call__(self, x0: Tensor, x1: Tensor) -> AffineScaling:
        """Raises InvalidInputError if every column is constant."""
        pooled = torch.cat([x0, x1]).double()
        scale = _deviations(pooled).mean().reshape(1)
        if not bool(scale > 0):
            raise InvalidInputError(
                "every column is constant, so there is no scale to divide by, nor to choose the noise by: give a "
                "reference, such as BrownianMotion(sigma=1.0), and scaling=NoScaling() (--sigma and --scaling none)."
            )
        return AffineScaling(pooled.mean(0), scale)


@register
@dataclass(frozen=True)
class PerCoordinate:
    """Centres and divides each column by its own pooled standard deviation."""

    def __call__(self, x0: Tensor, x1: Tensor) -> AffineScaling:
        """Raises InvalidInputError if a column is constant."""
        pooled = torch.cat([x0, x1]).double()
        scale = _deviations(pooled)
        constant = torch.nonzero(scale <= 0).flatten().tolist()
        if constant:
            raise InvalidInputError(
                f"columns {constant[:10]} are constant, so they have no scale to divide by; "
                "drop them, or use CommonScale() or NoScaling()."
            )
        return AffineScaling(pooled.mean(0), scale)


def _deviations(rows: Tensor) -> Tensor:
    """Standard deviations of the columns; exactly zero for constant ones, whose mean may round."""
    return torch.where(rows.amax(0) > rows.amin(0), rows.std(0), 0.0)
