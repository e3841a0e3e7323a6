"""Noise schedules β of the variance-preserving process."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, shown
from sbridge.storage.registry import register


class Schedule(ABC):
    """A rate ``β(t) > 0`` on ``[0, T]``, with its integral. Times are float64 tensors of any shape."""

    @abstractmethod
    def rate(self, t: Tensor, horizon: float) -> Tensor:
        """Computes ``β(t)``, per unit time."""

    @abstractmethod
    def integral(self, start: Tensor, duration: Tensor, horizon: float) -> Tensor:
        """Computes ``∫_s^{s+Δ} β dr``, to full relative precision for short durations ``Δ`` too."""


@register
@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """The linear schedule ``β(t) = β_min + (β_max − β_min) t/T`` (Song et al. 2021, arXiv:2011.13456, eq. 32).

    Args:
        beta_min: β at the start, positive, per unit time.
        beta_max: β at the end, positive, per unit time.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        for name, value in (("beta_min", self.beta_min), ("beta_max", self.beta_max)):
            check_positive(value, name)

    def rate(self, t: Tensor, horizon: float) -> Tensor:
        """Computes ``β(t)``."""
        return self.beta_min + (self.beta_max - self.beta_min) * t / horizon

    def integral(self, start: Tensor, duration: Tensor, horizon: float) -> Tensor:
        """Computes ``Δ β(s + Δ/2)``."""
        return duration * self.rate(start + 0.5 * duration, horizon)


@register
@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """The cosine schedule ``exp(−∫_0^t β) = cos²θ(t)/cos²θ(0)`` with ``θ = (π/2) (t/T + c)/(1 + c)``.

    Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17. Then ``β = (π/(T(1+c))) tan θ``, infinite at ``t = T``.
    β is limited to ``max_rate/T``: from the time at which it reaches this value it is constant, and the transitions are
    those of the limited β.

    Args:
        offset: ``c > 0``; keeps β positive at the start.
        max_rate: the largest ``β T``, without unit: ``∫β`` of this schedule does not depend on T.

    Raises:
        InvalidInputError: if either is not positive, or ``max_rate`` lies below ``β(0) T``.
    """

    offset: float = 0.008
    max_rate: float = 100.0

    def __post_init__(self) -> None:
        for name, value in (("offset", self.offset), ("max_rate", self.max_rate)):
            check_positive(value, name)
        lowest = math.pi / (1.0 + self.offset) * math.tan(self._angle(0.0))
        if self.max_rate <= lowest:
            raise InvalidInputError(
                f"max_rate must exceed {lowest:.3g}, the initial value of β T, got {self.max_rate:g}."
            )

    def rate(self, t: Tensor, horizon: float) -> Tensor:
        """Computes ``β(t)``."""
        end = self._cut
        angle = self._speed * ((t / horizon).clamp_max(end) + self.offset)
        return torch.where(t < end * horizon, 2.0 * self._speed * torch.tan(angle), self.max_rate) / horizon

    def integral(self, start: Tensor, duration: Tensor, horizon: float) -> Tensor:
        """Computes ``−2 log (cos θ(t)/cos θ(s))`` before the cut-off, ``max_rate Δ/T`` after it."""
        begin, length, end = start / horizon, duration / horizon, self._cut
        curved = torch.minimum(length, (end - begin).clamp_min(0.0))
        turn = self._speed * curved
        # cos(θ + δ)/cos θ = 1 − 2 sin²(δ/2) − sin δ tan θ, of which the logarithm is wanted for small δ too
        slope = torch.tan(self._speed * (begin.clamp_max(end) + self.offset))
        fall = 2.0 * torch.sin(0.5 * turn).square() + torch.sin(turn) * slope
        return -2.0 * torch.log1p(-fall) + self.max_rate * (length - curved)

    @property
    def _speed(self) -> float:
        """``dθ/d(t/T)``."""
        return 0.5 * math.pi / (1.0 + self.offset)

    @property
    def _cut(self) -> float:
        """The fraction ``t/T`` at which β reaches ``max_rate/T``."""
        return math.atan(self.max_rate / (2.0 * self._speed)) / self._speed - self.offset

    def _angle(self, fraction: float) -> float:
        return self._speed * (fraction + self.offset)


def check_positive(value: float, name: str) -> None:
    """Raises InvalidInputError unless ``value`` is a positive, finite number."""
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
        raise InvalidInputError(f"{name} must be a positive number, got {shown(value)}.")
