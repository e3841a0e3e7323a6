"""Rows at the two ends of a bridge, for backdrops and for the plane of projection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sbridge.laws import Density, Law
from sbridge.plotting.projection import Projection
from sbridge.processes.base import LinearProcess, check_time
from sbridge.random import derive, generator
from sbridge.solutions import Bridge


def end_rows(bridge: Bridge, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws ``count`` samples of the source and of the target.

    An end known by its density only is represented by the bridge's own rows there.
    """
    sides = ((bridge.forward.start, bridge.reversed()), (bridge.backward.start, bridge))
    source, target = (
        _far_rows(towards, count, seed) if isinstance(law, Density) else _rows(law, count, seed)
        for law, towards in sides
    )
    return source, target


def projection_of(bridge: Bridge, projection: Projection | None, seed: int) -> Projection:
    """Returns ``projection``, or the plane of the bridge's two ends."""
    return projection or Projection.fit(*end_rows(bridge, 4000, seed))


def states_at(bridge: Bridge, times: Sequence[float], n: int, seed: int) -> Tensor:
    """Draws ``n`` states of the forward process at each of ``times``, shape ``(len(times), n, dim)``.

    Where the plan is known they are drawn from it and from pinned bridges, which takes no time steps; states at
    different times are then not states of one path.
    """
    measure, process = bridge.forward, bridge.reference
    if measure.end_kernel is None or not isinstance(process, LinearProcess):
        return measure.marginals(times, n, seed=seed)
    starts = measure.starts(n, seed=seed)
    ends = measure.transport(starts, seed=derive(seed, "states"))
    drawn = []
    for k, t in enumerate(times):
        noise = torch.randn(starts.shape, generator=generator(derive(seed, "pinned", k)), dtype=starts.dtype)
        if 0.0 < float(check_time(t, bridge.horizon)) < bridge.horizon:
            drawn.append(process.pinned(t).sample(starts, ends, noise.to(starts)))
        else:
            drawn.append(ends if t > 0.0 else starts)
    return torch.stack(drawn)


def _rows(law: Law, count: int, seed: int) -> Tensor:
    return law.sample(count, generator(derive(seed, "end rows")))


def _far_rows(towards: Bridge, count: int, seed: int) -> Tensor:
    measure = towards.forward
    return measure.transport(measure.starts(count, seed=seed), seed=derive(seed, "far"))
