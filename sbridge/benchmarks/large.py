"""Many columns: ``python -m sbridge.benchmarks.large``: the default fit at 1000 dimensions and 20 000 rows a side.

Ends: Gaussian mixtures of five components with means on a sphere and a low-rank plus diagonal covariance each.
Prints seconds, peak memory of the process, and the end-law error beside its floor and the trivial row.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor

from sbridge.benchmarks.output import row
from sbridge.benchmarks.tables import timed
from sbridge.fitting import fit
from sbridge.metrics import BuresUVP, EnergyDistance, SlicedW2
from sbridge.random import derive, generator

_COMPONENTS, _RANK = 5, 10


@dataclass(frozen=True)
class Settings:
    """Options of this benchmark.

    Args:
        dim: columns.
        rows: training rows a side.
        fresh: fresh rows a side, for the scores.
        seed: of data and fit.
    """

    dim: int = 1000
    rows: int = 20_000
    fresh: int = 5_000
    seed: int = 0


def sample(settings: Settings, end: str, key: str, rows: int) -> Tensor:
    """Rows of one end: the law depends on ``end``, the draw on ``key`` too."""
    law, draw = (generator(derive(settings.seed, *keys)) for keys in ((end,), (end, key)))
    means = torch.randn(_COMPONENTS, settings.dim, generator=law)
    loadings = torch.randn(_COMPONENTS, settings.dim, _RANK, generator=law) * 0.5
    which = torch.randint(_COMPONENTS, (rows,), generator=draw)
    noise = 0.5 * torch.randn(rows, settings.dim, generator=draw)
    scores = torch.randn(rows, _RANK, generator=draw)
    for k in range(_COMPONENTS):
        chosen = which == k
        noise[chosen] += means[k] + scores[chosen] @ loadings[k].mT
    return noise


def main(settings: Settings) -> None:
    """Prints a line for the fit and one per metric."""
    x0, x1 = (sample(settings, end, "train", settings.rows) for end in ("source", "target"))
    bridge, seconds = timed(lambda: fit(x0, x1, seed=settings.seed))
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    row("default fit", seconds=f"{seconds:.0f}", peak_GiB=f"{gigabytes:.2f}", sigma=bridge.reference)
    fresh0, fresh1, floor = (
        sample(settings, end, key, settings.fresh)
        for end, key in (("source", "test"), ("target", "test"), ("target", "floor"))
    )
    moved, moving = timed(lambda: bridge.transport(fresh0, seed=1))
    row("transport of fresh rows", seconds=f"{moving:.1f}")
    for metric in (EnergyDistance(), SlicedW2(), BuresUVP()):
        values = {key: metric(rows, fresh1, generator(0)) for key, rows in (("bridge", moved), ("floor", floor))}
        trivial = metric(fresh0, fresh1, generator(0))
        row(metric.name, **{key: f"{value:.4g}" for key, value in values.items()}, source=f"{trivial:.4g}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
