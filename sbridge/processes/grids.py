"""Time grids that follow a process: equal steps in its log signal-to-noise ratio."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.processes.base import LinearProcess, Process
from sbridge.time import TimeGrid

_HALVINGS = 100
_SHORTEST = 1e-13  # of the horizon


def log_snr_grid(process: Process, steps: int, resolution: float) -> TimeGrid:
    """Makes knots at equal distances in the log signal-to-noise ratio of the end: ``log(Φ²/Q)`` of ``(T, t)``.

    The noise that lies ahead, ``s(t)² = Q/Φ²``, is what blurs the end as seen from ``X_t``. It falls from ``s(0)²`` to
    ``resolution²`` by the same factor at every step, and to zero in the last one. For an Ornstein–Uhlenbeck process of
    rate β it is proportional to ``e^{2βτ} − 1``, ``τ = T − t``; for a Brownian motion to ``τ``. For a process whose
    coordinates differ, means of their squares are taken.

    Args:
        process: linear.
        steps: number of steps ``N``, at least 2.
        resolution: noise ahead at the last knot before ``T``, in units of the state: at most the smallest length on
            which the end distribution varies.

    Raises:
        UnsupportedError: if the process is not linear.
        InvalidInputError: for fewer steps, or a resolution that is not positive, not below ``s(0)`` or below ``s(t)``
            at the last time that can be resolved.
    """
    if not isinstance(process, LinearProcess):
        raise UnsupportedError(
            f"log_snr_grid needs a LinearProcess such as OrnsteinUhlenbeck, got a {type(process).__name__}: use "
            "TimeGrid.refined(steps)."
        )
    if steps < 2:
        raise InvalidInputError(f"log_snr_grid needs at least 2 steps, got {steps}.")
    horizon = process.horizon
    span = torch.tensor([_SHORTEST * horizon, horizon], dtype=torch.float64, device="cpu")
    least, most = (float(value) for value in _noise_ahead(process, span))
    if not least < resolution < most:
        raise InvalidInputError(
            f"resolution must lie between {least:.3g} and {most:.3g}, the noise ahead at the last time that can be "
            f"resolved and at t = 0; got {resolution}."
        )
    wanted = torch.linspace(math.log(most), math.log(resolution), steps, dtype=torch.float64, device="cpu")
    low, high = span.log()[0].expand(steps).clone(), span.log()[1].expand(steps).clone()
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        above = _noise_ahead(process, middle.exp()).log() > wanted
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    left = (0.5 * (low + high)).exp() / horizon
    return TimeGrid((0.0, *(1.0 - left[1:]).tolist(), 1.0))


def _noise_ahead(process: LinearProcess, left: Tensor) -> Tensor:
    """Computes ``s = √(Q/Φ²)`` at times ``T − left``, shape ``(n,)``."""
    start = (process.horizon - left).clamp_min(0.0)
    law = process.transition(start, torch.full_like(start, process.horizon))
    dim = law.map.dim or law.covariance.dim or 1
    back = law.map.inverse()
    return (back @ law.covariance @ back.T).expanded(dim).diagonal(dim1=-2, dim2=-1).mean(-1).sqrt()
