"""Controls ``u(t, x)`` in noise units: the drift of the controlled process is ``b + σ u``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sbridge.laws.scaling import AffineScaling
from sbridge.storage.registry import register
from sbridge.time import mirrored

Time = float | Tensor


@runtime_checkable
class Control(Protocol):
    """A callable or module ``(t, x) → (batch, dim)``; ``t`` is a float or a tensor ``()`` or ``(batch,)``."""

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes the control at time ``t`` and states ``x``."""
        ...


@register
@dataclass(frozen=True)
class ZeroControl:
    """The zero control ``u = 0``, which gives the reference process."""

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Returns zeros like ``x``."""
        return torch.zeros_like(x)


@register
@dataclass(frozen=True, eq=False)
class ScaledControl:
    """A control of model units, used in data units: ``u(t, x) = ũ(t, (x − shift)/scale)``.

    Noise units do not change under a change of state units (see :mod:`sbridge.laws.scaling`).
    """

    control: Control
    scaling: AffineScaling

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes the inner control at the scaled state."""
        return self.control(t, self.scaling.to_model(x))


@register
@dataclass(frozen=True, eq=False)
class SumControl:
    """The sum ``u(t, x) = Σ_i u_i(t, x)``: a known control and a learned correction."""

    terms: tuple[Control, ...]

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes the sum at ``(t, x)``."""
        first, *others = (control(t, x) for control in self.terms)
        return sum(others, first)


@register
@dataclass(frozen=True, eq=False)
class MirroredControl:
    """The control ``u(t, x) = v(T − t, x)`` of a measure that runs backward, for ``v`` in the time since its start."""

    control: Control
    horizon: float

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes the control at bridge time ``t``."""
        return self.control(mirrored(t, self.horizon), x)


def on_top(known: Control | None, network: Control) -> Control:
    """A known control plus ``network``; the network alone if nothing is known."""
    return network if known is None else SumControl((known, network))
