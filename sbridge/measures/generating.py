"""A path measure as a process of its own, to which further controls are added."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.errors import UnsupportedError
from sbridge.laws.scaling import AffineScaling
from sbridge.linear import LinearMap
from sbridge.measures.measure import PathMeasure
from sbridge.processes.base import Process, Time
from sbridge.processes.chain import Chain, Direction, StepRule, Steps, default_rule
from sbridge.time import mirrored


@dataclass(frozen=True, eq=False)
class MeasureProcess(Process):
    """The process ``dY = (±b + σu) ds + σ dW`` that a path measure follows, in the time ``s`` since its start.

    ``s = t`` for a forward measure, ``s = T − t`` for a backward one; states are ``Y = (X − shift)/scale``. A further
    control ``v`` has the meaning that it has in the measure: its control is then ``u + v``. Simulated with
    :class:`MeasureSteps`, it is the chain of the measure, step by step.

    Args:
        measure: whose process it is.
        scaling: from the units of the measure to those of the process.
    """

    measure: PathMeasure
    scaling: AffineScaling

    @property
    def horizon(self) -> float:  # type: ignore[override]
        """The horizon of the measure."""
        return self.measure.process.horizon

    @property
    def dim(self) -> int:
        """The dimension of the measure."""
        return self.measure.start.dim

    def drift(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``(±b + σu)/scale``."""
        measure, t, x = self.measure, self.bridge_time(t), self.scaling.to_data(x)
        drift = measure.direction.value * measure.process.drift(t, x)
        if measure.control is not None:
            drift = drift + measure.process.scale(t).to(x)(measure.control(t, x))
        return drift / self.scaling.scale.to(x)

    def scale(self, t: Time) -> LinearMap:
        """Computes ``σ/scale``."""
        return LinearMap(1.0 / self.scaling.scale.double().cpu()) @ self.measure.process.scale(self.bridge_time(t))

    def bridge_time(self, s: Time) -> Time:
        """The bridge time ``s`` after the start of the measure."""
        return s if self.measure.direction is Direction.FORWARD else mirrored(s, self.horizon)


@dataclass(frozen=True)
class MeasureSteps(StepRule):
    """The steps of a :class:`MeasureProcess`: those of its measure, with its step rule."""

    def steps(self, process: Process, times: Tensor, direction: Direction, like: Tensor) -> Steps:
        """Computes the steps, forward in the time since the start of the measure.

        Raises:
            UnsupportedError: for another process or direction.
        """
        if not isinstance(process, MeasureProcess) or direction is not Direction.FORWARD:
            raise UnsupportedError("MeasureSteps are the steps of a MeasureProcess, from its start on.")
        measure, backward = process.measure, process.measure.direction is Direction.BACKWARD
        knots = mirrored(times, process.horizon).flip(0) if backward else times
        chain = Chain(measure.process, knots, measure.direction, measure.rule or default_rule(measure.process), like)
        shrink = LinearMap(1.0 / process.scaling.scale.double()).to(like)
        return _ControlledSteps(process, chain, shrink @ chain.roots(torch.arange(chain.length, device="cpu")))


@dataclass(frozen=True, eq=False)
class _ControlledSteps(Steps):
    process: MeasureProcess
    chain: Chain
    roots: LinearMap

    def move(self, k: int, x: Tensor) -> Tensor:
        control, scaling = self.process.measure.control, self.process.scaling
        x = scaling.to_data(x)
        u = None if control is None else control(self.chain.step_times[k], x)
        return self.chain.move(k, x, u) / scaling.scale.to(x)


def knots_since_start(measure: PathMeasure) -> tuple[float, ...]:
    """The knots of a measure as fractions of the horizon since its start, increasing."""
    knots = measure.grid.fractions
    return knots if measure.direction is Direction.FORWARD else tuple(1.0 - knot for knot in reversed(knots))
