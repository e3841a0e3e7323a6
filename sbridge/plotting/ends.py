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

    For an end that is only a density, samples of the bridge are drawn.
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

    If the plan is known, states are drawn from the plan and from pinned bridges without time steps. States at different
    times then belong to different paths.
    """
    measure, process = bridge.forward, bridge.reference
    if measure.end_kernel is None or not isinstance(process, LinearProcess):
        return measure.marginals(times, n, seed=seed)
    starts = measure.starts(n, seed=seed)
    ends = measure.transport(starts, seed=derive(seed, "states"))
    drawn = []
    for k, t in enumerate(times):
        noise = torch.randn(
            starts.shape, generator=generator(derive(seed, "pinned", k)), dtype=starts.dtype, device="cpu"
        )
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
