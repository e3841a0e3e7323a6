"""Options that select how a simulation is differentiated."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sbridge.storage.registry import register


class GradientMethod:
    """One of :class:`Detached`, :class:`Backprop` and :class:`ReversibleAdjoint`."""


@register
@dataclass(frozen=True)
class Detached(GradientMethod):
    """No gradient."""


@register
@dataclass(frozen=True)
class Backprop(GradientMethod):
    """Ordinary backpropagation through every step; memory grows with the number of steps."""


@register
@dataclass(frozen=True, eq=False)
class ReversibleAdjoint(GradientMethod):
    """The gradient of :class:`Backprop` to rounding, from a path that is reconstructed backwards instead of stored.

    Control, drift and cost are evaluated again in the backward pass: they must be deterministic, and their
    parameters must not change in between.

    Args:
        parameters: tensors to differentiate in that the control, the process and the running cost do not
            show by themselves. Modules show theirs, also inside dataclasses; a plain function cannot.
    """

    parameters: tuple[Tensor, ...] = ()
