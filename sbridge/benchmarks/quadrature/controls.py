"""Controls from tables and from separate coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.processes.base import Time
from sbridge.storage.registry import register


@register
@dataclass(frozen=True, eq=False)
class TabulatedControl:
    """A one-dimensional control, interpolated cubically from a uniform grid; constant between knots of time.

    Args:
        times: knots ``t_0 < … < t_{K−1}``, float64; a value holds from its knot to the next.
        low: first point of the grid.
        spacing: distance of its points.
        values: shape ``(K, points)``. Beyond the grid they stay what they are at its ends.
    """

    times: Tensor
    low: float
    spacing: float
    values: Tensor

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``u(t, x)``, shape ``(batch, 1)``."""
        moment = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        # A time that went through float32 still belongs to its knot.
        knot = (torch.searchsorted(self.times, moment * (1.0 + 1e-6) + 1e-12, right=True) - 1).clamp_min(0)
        place = (x[:, 0].double() - self.low) / self.spacing
        rows = knot.to(x.device).unsqueeze(-1) if knot.ndim else knot.to(x.device)
        return interpolate(self.values.to(x.device), rows, place).unsqueeze(1).to(x.dtype)


def interpolate(table: Tensor, rows: Tensor, place: Tensor) -> Tensor:
    """Interpolates cubically in rows of a table at fractional columns, constant beyond the ends.

    Args:
        table: shape ``(K, columns)``, at least four columns.
        rows: indices of shape ``()`` or ``(n, 1)``.
        place: shape ``(n,)``.
    """
    last = table.shape[1] - 1
    place = place.clamp(0.0, float(last))
    first = (place.floor().long() - 1).clamp(0, last - 3)
    s = place - first
    # Lagrange's polynomials on 0, 1, 2, 3
    weights = torch.stack(
        [
            -(s - 1) * (s - 2) * (s - 3) / 6,
            s * (s - 2) * (s - 3) / 2,
            -s * (s - 1) * (s - 3) / 2,
            s * (s - 1) * (s - 2) / 6,
        ],
        1,
    )
    columns = first.unsqueeze(1) + torch.arange(4, device=place.device)
    return (weights * table[rows, columns]).sum(1)


@register
@dataclass(frozen=True, eq=False)
class CoordinateControl:
    """The control of a separable problem: coordinate ``i`` is controlled by ``parts[columns[i]]``.

    Args:
        parts: controls on a line, ``(t, (batch, 1)) → (batch, 1)``.
        columns: which of them steers each coordinate.
    """

    parts: tuple[Control, ...]
    columns: tuple[int, ...]

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes the control, shape ``(batch, dim)``."""
        found = torch.empty_like(x)
        for index, part in enumerate(self.parts):
            mine = [i for i, column in enumerate(self.columns) if column == index]
            lines = x[:, mine].mT.reshape(-1, 1)
            times = t.repeat(len(mine)) if isinstance(t, Tensor) and t.ndim else t
            found[:, mine] = part(times, lines).reshape(len(mine), -1).mT
        return found
