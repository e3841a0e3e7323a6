"""The most probable path between two points, and the least action of small noise, of linear processes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sbridge.functionals import freidlin_wentzell, most_probable_path
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.settings import Setting
from sbridge.random import generator
from sbridge.time import TimeGrid

_STEPS = 400
_PATHS = 4
_TOLERANCE = 1e-4


@identity(
    group="action",
    statement="argmin ∫ ½|σ⁻¹(ẋ − b)|² + ½∇·b dt = E[X | X_0, X_T]; min ∫ ½|σ⁻¹(ẋ − b)|² dt = ½ rᵀQ⁻¹r",
    equation="Onsager & Machlup 1953; Freidlin & Wentzell 2012",
    kind=Kind.RESIDUAL,
    left="largest relative difference of the path found by minimisation and the mean of the bridge; of its action "
    "and that of the transition, with r = X_T − ΦX_0 − k",
)
def most_probable_path_is_the_mean_of_the_bridge(setting: Setting) -> Iterator[Outcome]:
    """Checks the minimiser of the Onsager–Machlup functional and the least action between points of noising paths."""
    process, g = setting.process, generator(setting.seed_of("most probable path"))
    start = setting.data.sample(_PATHS, g).double()
    law = process.transition(0.0, setting.horizon)
    noise = torch.randn(start.shape, generator=g, dtype=torch.float64)
    end, grid = law.mean(start) + law.root(noise), TimeGrid.uniform(_STEPS)
    found = most_probable_path(process, start, end, grid)
    inside = [process.pinned(t).mean(start, end) for t in grid.times(setting.horizon)[1:-1].tolist()]
    gap = (found[1:-1] - torch.stack(inside)).abs().max() / found.std(1).max()
    yield Outcome(float(gap), allowance=_TOLERANCE, note="path")
    least = 0.5 * noise.square().sum(1)
    gap = (freidlin_wentzell(found, process, grid) / least - 1.0).abs().max()
    yield Outcome(float(gap), allowance=_TOLERANCE, note="action")
