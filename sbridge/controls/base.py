"""Controls ``u(t, x)`` in noise units: the drift of the controlled process is ``b + σ u``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sbridge.laws.scaling import AffineScaling
from sbridge.storage.registry import register

Time = float | Tensor


@runtime_checkable
class Control(Protocol):
    """Any callable or module ``(t, x) → (batch, dim)``; ``t`` is a float or a tensor ``()`` or ``(batch,)``."""

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """The control at time ``t`` and states ``x``."""
        ...


@register
@dataclass(frozen=True)
class ZeroControl:
    """``u = 0``: the reference process itself."""

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Zeros like ``x``."""
        return torch.zeros_like(x)


@register
@dataclass(frozen=True, eq=False)
class ScaledControl:
    """A control of the model's units, used in the units of the data: ``u(t, x) = ũ(t, (x − shift)/scale)``.

    Noise units do not change under a change of state units (see :mod:`sbridge.laws.scaling`).
    """

    control: Control
    scaling: AffineScaling

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """The inner control at the scaled state."""
        return self.control(t, self.scaling.to_model(x))


@register
@dataclass(frozen=True, eq=False)
class SumControl:
    """``u(t, x) = Σ_i u_i(t, x)``: a known control and what is learned on top of it."""

    terms: tuple[Control, ...]

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """The sum at ``(t, x)``."""
        first, *others = (control(t, x) for control in self.terms)
        return sum(others, first)
