"""Optimal-transport maps as baselines: fitted on rows of the two ends, applied to held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from sbridge import transport
from sbridge.errors import UnsupportedError
from sbridge.processes import Direction, LinearProcess, Process
from sbridge.storage.registry import register

Map = Callable[[Tensor], Tensor]


@runtime_checkable
class Baseline(Protocol):
    """A recipe that fits a map from one end to the other."""

    @property
    def name(self) -> str:
        """The name in reports."""
        ...

    def __call__(self, near: Tensor, far: Tensor, reference: Process, direction: Direction) -> Map:
        """Fits the map on rows ``near (n, dim)`` and ``far (m, dim)``; forward, ``near`` are source rows."""
        ...


@runtime_checkable
class TwoWayBaseline(Baseline, Protocol):
    """A recipe that fits the maps of both directions in one computation."""

    def both(self, near: Tensor, far: Tensor, reference: Process, direction: Direction) -> tuple[Map, Map]:
        """Fits the maps from ``near`` to ``far`` and from ``far`` to ``near``; arguments as for one map."""
        ...


@register
@dataclass(frozen=True)
class ExactTransport:
    """The exact plan between the fit rows; a new row takes the image of the nearest fit row."""

    @property
    def name(self) -> str:
        """``exact OT map``."""
        return "exact OT map"

    def __call__(self, near: Tensor, far: Tensor, reference: Process, direction: Direction) -> Map:
        """Fits :func:`sbridge.transport.exact_map`; reference and direction are not used."""
        return transport.exact_map(near, far)

    def both(self, near: Tensor, far: Tensor, reference: Process, direction: Direction) -> tuple[Map, Map]:
        """Fits :func:`sbridge.transport.exact_maps`."""
        return transport.exact_maps(near, far)


@register
@dataclass(frozen=True)
class EntropicTransport:
    """The conditional mean of the far end under the entropic plan at the noise level of the reference.

    Whitened by the reference, ``z = Q_T^{−½} m(T | 0, x)`` and ``w = Q_T^{−½} y``, the plan is the entropic one with
    ε = 1, for any linear reference; for Brownian motion that is ε = σ²T.

    Args:
        options: tolerance and limits of the iteration.
    """

    options: transport.Sinkhorn | None = None

    @property
    def name(self) -> str:
        """``entropic map``."""
        return "entropic map"

    def __call__(self, near: Tensor, far: Tensor, reference: Process, direction: Direction) -> Map:
        """Fits the barycentric map; raises what :meth:`both` raises."""
        return self.both(near, far, reference, direction)[0]

    def both(self, near: Tensor, far: Tensor, reference: Process, direction: Direction) -> tuple[Map, Map]:
        """Fits the barycentric maps of one plan.

        Raises:
            UnsupportedError: if the reference is not linear.
            NotConvergedError: if Sinkhorn does not meet its tolerance.
        """
        if not isinstance(reference, LinearProcess):
            raise UnsupportedError(f"the entropic map needs a linear reference, got {type(reference).__name__}.")
        law = reference.transition(0.0, reference.horizon)
        root, whiten = law.root.to(near), law.root.inverse().to(near)
        undo, offset = law.map.inverse().to(near), law.offset.to(near)

        def source_in(x: Tensor) -> Tensor:
            return whiten(law.mean(x))

        def source_out(z: Tensor) -> Tensor:
            return undo(root(z) - offset)

        source, target = (near, far) if direction is Direction.FORWARD else (far, near)
        forward, backward = transport.entropic_maps(source_in(source), whiten(target), 1.0, self.options)
        there, back = (lambda x: root(forward(source_in(x)))), (lambda x: source_out(backward(whiten(x))))
        return (there, back) if direction is Direction.FORWARD else (back, there)


@register
@dataclass(frozen=True)
class GaussianTransport:
    """The optimal map between the Gaussians with the moments of the fit rows."""

    @property
    def name(self) -> str:
        """``Gaussian map``."""
        return "Gaussian map"

    def __call__(self, near: Tensor, far: Tensor, reference: Process, direction: Direction) -> Map:
        """Fits :func:`sbridge.transport.gaussian_map`; reference and direction are not used."""
        return transport.gaussian_map(near, far)


class Shared:
    """A two-way baseline within one evaluation: both directions are computed at once and cached.

    Args:
        baseline: the two-way baseline; both directions use the same samples with exchanged roles.
    """

    def __init__(self, baseline: TwoWayBaseline) -> None:
        self.name, self._baseline = baseline.name, baseline
        self._maps: dict[Direction, Map] = {}

    def __call__(self, near: Tensor, far: Tensor, reference: Process, direction: Direction) -> Map:
        """Returns the map of ``direction``; raises what the baseline raises."""
        if not self._maps:
            there, back = self._baseline.both(near, far, reference, direction)
            self._maps = dict.fromkeys(Direction, back) | {direction: there}
        return self._maps[direction]


STANDARD_BASELINES: tuple[Baseline, ...] = (ExactTransport(), EntropicTransport(), GaussianTransport())
"""Default baselines of an evaluation."""
