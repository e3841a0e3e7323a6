"""Leave one snapshot out: ``python -m docs.benchmarks.snapshots DAY2.npy DAY3.npy … --times 2 3 …``.

For every inner snapshot a bridge is fitted from the snapshot before it to the one after it, on all their cells. It
predicts the inner snapshot from the cells of the one before. As in other single-cell benchmarks, all three are divided
by the mean over coordinates of their pooled standard deviation, and ε = 0.1 in those units. Predictions are scored in
original units by half the energy distance, averaged over the inner snapshots.

Some answers need no fit: copies of the two neighbours; ``pooled ends``, the mixture of the neighbours with weights
``1 − s`` and ``s``, where ``s`` is the elapsed share of the time between them, unmoved and moved to the true mean; and
the floor, one half of the snapshot against the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor

from sbridge.benchmarks.output import row
from sbridge.benchmarks.tables import SOLVERS, mean, timed
from sbridge.errors import InvalidInputError, check_at_least, check_known
from sbridge.evaluation.cross_validation import unfitted
from sbridge.fitting import fit
from sbridge.laws import as_rows
from sbridge.metrics import HalfEnergyDistance
from sbridge.processes import BrownianMotion
from sbridge.random import generator
from sbridge.solvers.base import Solver


@dataclass(frozen=True)
class Settings:
    """Options of this benchmark.

    Args:
        files: ``.npy`` arrays of the snapshots, in order.
        times: their times, rising.
        seeds: number of seeds of fit and prediction.
        epsilon: ε = σ²T in scaled units.
        solvers: names of rows of the solver table.
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    times: tuple[float, ...]
    seeds: int = 5
    epsilon: float = 0.1
    solvers: tuple[str, ...] = tuple(SOLVERS)

    def __post_init__(self) -> None:
        check_known("solver", self.solvers, SOLVERS)
        check_at_least(self, 1, "seeds")


def main(settings: Settings) -> None:
    """Prints the answers without a fit, then a line per solver."""
    if len(settings.files) != len(settings.times) or len(settings.files) < 3:
        raise InvalidInputError("need at least three files, and one time for each.")
    data = [as_rows(np.load(file, allow_pickle=False), file.name) for file in settings.files]
    inner = range(1, len(data) - 1)
    for name, scores in unfitted(data, settings.times).items():
        row(name, mean=f"{sum(scores) / len(scores):.4f}", splits=[f"{score:.3f}" for score in scores])
    for name in settings.solvers:
        runs = [[_split(data, settings, i, SOLVERS[name], seed) for i in inner] for seed in range(settings.seeds)]
        total = mean([sum(score for score, _ in run) / len(run) for run in runs])
        splits = [str(mean([run[k][0] for run in runs])) for k in range(len(inner))]
        row(name, mean=total, splits=splits, seconds=mean([seconds for run in runs for _, seconds in run]))


def _split(data: list[Tensor], settings: Settings, inner: int, solver: Solver, seed: int) -> tuple[float, float]:
    """Score of one prediction, and the seconds of its fit."""
    before, held_out, after = data[inner - 1 : inner + 2]
    spread = float(torch.cat([before, held_out, after]).std(0).mean())
    reference = BrownianMotion(sigma=spread * math.sqrt(settings.epsilon))
    bridge, seconds = timed(lambda: fit(before, after, reference=reference, solver=solver, seed=seed))
    first, here, last = settings.times[inner - 1 : inner + 2]
    predicted = bridge.interpolate(before, (here - first) / (last - first), seed=seed)
    return HalfEnergyDistance()(predicted, held_out, generator(0)), seconds


if __name__ == "__main__":
    main(tyro.cli(Settings))
