"""What a bridge changed at its ends: growth of source rows, and the part of the target that is explained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sbridge.display import short_repr
from sbridge.errors import InvalidInputError
from sbridge.laws import as_rows
from sbridge.laws.scaling import AffineScaling
from sbridge.storage.registry import register

LogRatio = Callable[[Tensor], Tensor]
"""``log dP/dp`` of a changed end with respect to the given one, of rows ``(batch, dim)``, shape ``(batch,)``."""


@register
@dataclass(frozen=True, eq=False)
class ScaledRatio:
    """A log ratio as a function of ``(x − shift)/scale``."""

    ratio: LogRatio
    scaling: AffineScaling

    def __call__(self, x: Tensor) -> Tensor:
        """Computes the log ratio at ``shift + scale · x``."""
        return self.ratio(self.scaling.to_data(x))


@register
@dataclass(frozen=True, eq=False)
class Reweighting:
    """The two ends of a bridge relative to the given ones, ``dP_0/dp_0`` and ``dP_T/dp_T``.

    Both have mean 1 under the given end, so they do not depend on masses. ``bridge.forward.start`` is ``P_0`` and
    ``bridge.backward.start`` is ``P_T``; their ``effective_size`` says how many rows are left.

    Attributes:
        source: ``log dP_0/dp_0``; ``None`` for an end that did not change.
        target: ``log dP_T/dp_T``, likewise.
        mass: the mass of ``P``. That of a hard end is its mass. Between two soft ends of mass 1 it is
            ``e^{−D/(1 + λ₀ + λ_T)}`` with ``D`` the least value over probabilities, which depends on the noise and says
            nothing about numbers of cells.
        given: the masses of the two given ends.
    """

    source: LogRatio | None
    target: LogRatio | None
    mass: float = 1.0
    given: tuple[float, float] = field(default=(1.0, 1.0))

    __repr__ = short_repr

    def growth(self, x0: Tensor | np.ndarray) -> Tensor:
        """Computes the relative growth ``dP_0/dp_0`` of source rows, in the data or new, shape ``(n,)``."""
        return _ratio(self.source, x0, "x0")

    def descendants(self, x0: Tensor | np.ndarray) -> Tensor:
        """Computes the mass at ``T`` that descends from a unit of mass at each row: growth in units of the masses."""
        return self.growth(x0) * (self.mass / self.given[0])

    def explained(self, x1: Tensor | np.ndarray) -> Tensor:
        """Computes ``dP_T/dp_T``: the part of the target at each row that is explained, relative to the mean."""
        return _ratio(self.target, x1, "x1")

    def rescaled(self, scaling: AffineScaling) -> Reweighting:
        """Returns the same ratios as functions of ``(x − shift)/scale``."""
        source, target = (None if one is None else ScaledRatio(one, scaling) for one in (self.source, self.target))
        return Reweighting(source, target, self.mass, self.given)


def _ratio(log_ratio: LogRatio | None, x: Tensor | np.ndarray, name: str) -> Tensor:
    rows = as_rows(x, name, least=1)
    if log_ratio is None:
        return torch.ones_like(rows[:, 0])
    with torch.no_grad():
        found = log_ratio(rows)
    if found.shape != rows.shape[:1]:
        raise InvalidInputError(f"the ratio of {len(rows)} rows must have shape ({len(rows)},), got {found.shape}.")
    return found.exp().to(rows)
