"""Many columns: ``python -m docs.benchmarks.large`` fits 1000 dimensions with 20 000 samples a side.

The ends are Gaussian mixtures of five components with means on a sphere and a low-rank plus diagonal covariance each.
It prints CPU seconds, memory of the process so far, and the error of the end distribution with its floor and the
trivial answer. The Gaussian bridge is what the others have to beat. The ends of ``SinkhornBridge`` are samples of the
data, whose distribution is right by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
import tyro
from torch import Tensor

from sbridge.benchmarks.memory import peak_memory
from sbridge.benchmarks.output import row
from sbridge.benchmarks.tables import SOLVERS as DEFAULTS, timed
from sbridge.errors import check_known
from sbridge.fitting import fit
from sbridge.metrics import BuresUVP, EnergyDistance, SlicedW2
from sbridge.random import derive, generator
from sbridge.solvers import Covariance, MixtureBridge
from sbridge.solvers.base import Solver

_DIAGONAL = "MixtureBridge, diagonal"
SOLVERS: dict[str, Solver] = DEFAULTS | {_DIAGONAL: MixtureBridge(covariance=Covariance.DIAGONAL)}
METRICS = EnergyDistance(), SlicedW2(), BuresUVP()
_COMPONENTS, _RANK = 5, 10


@dataclass(frozen=True)
class Settings:
    """Options of this benchmark.

    Args:
        solvers: names of rows.
        dim: columns.
        rows: training samples a side.
        fresh: fresh samples a side, for the scores.
        seed: of data and fit.
    """

    solvers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = (
        "GaussianBridge",
        "MixtureBridge",
        _DIAGONAL,
        "SinkhornBridge",
    )
    dim: int = 1000
    rows: int = 20_000
    fresh: int = 5_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_known("solver", self.solvers, SOLVERS)


def sample(settings: Settings, end: str, key: str, rows: int) -> Tensor:
    """Samples of one end: the distribution depends on ``end``, the draw on ``key`` too."""
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
    """Prints floors and the scores of the source, then a line per solver."""
    x0, x1 = (sample(settings, end, "train", settings.rows) for end in ("source", "target"))
    fresh0, fresh1, floor = (
        sample(settings, end, key, settings.fresh)
        for end, key in (("source", "test"), ("target", "test"), ("target", "floor"))
    )
    for metric in METRICS:
        floor_value, trivial = (metric(rows, fresh1, generator(0)) for rows in (floor, fresh0))
        row(metric.name, floor=f"{floor_value:.4g}", source=f"{trivial:.4g}")
    for name in settings.solvers:
        bridge, seconds = timed(partial(fit, x0, x1, solver=SOLVERS[name], seed=settings.seed))
        moved, moving = timed(partial(bridge.transport, fresh0, seed=1))
        scores = {metric.name: f"{metric(moved, fresh1, generator(0)):.4g}" for metric in METRICS}
        row(name, fit_s=f"{seconds:.0f}", transport_s=f"{moving:.1f}", peak_GiB=f"{peak_memory() / 1024:.2f}", **scores)


if __name__ == "__main__":
    main(tyro.cli(Settings))
