"""Growth and death between snapshots: ``python -m docs.benchmarks.growth FOLDER``.

The folder holds ``gene.csv`` and ``emt.csv`` of the repository zhenyiizhang/CytoBridge-NeurIPS: a column ``samples``
with the time, then the coordinates.

``gene.csv`` is a simulated network of genes whose cells divide at a rate proportional to ``x2²/(1 + x2²)``; its numbers
of rows are masses. A bridge with a soft source and a hard target is fitted to each leg. The rows at the first time are
carried through all of them, 10 draws a row: weights are multiplied by the descendants, rows are transported. Errors are
means over the later times. In the sample the plug-in bridge ends in rows of the target, so its W1 is near 0 by
construction; the second score fits one half of every snapshot and judges the other half. ``one rate`` is a quadratic
function of ``x`` fitted to the log growth of all rows of all legs; it is compared with the truth at all rows.

``emt.csv`` is an epithelial–mesenchymal transition. Each inner time is left out, and predicted from the rows before
it, as many as there are, by the bridge to the time after it. ``spline mean`` moves the prediction to the natural cubic
spline through the means of the other snapshots; ``noise`` is ε over the squared standard deviation. The price of the
soft source is fixed beforehand, in units of the mean squared distance between rows of the two ends. W1 is not squared,
in the columns of the files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import ot
import torch
import tyro
from scipy.interpolate import CubicSpline
from torch import Tensor

from sbridge.benchmarks.output import row
from sbridge.benchmarks.tables import mean, timed
from sbridge.errors import check_at_least
from sbridge.fitting import choose_sigma, solve
from sbridge.laws import Samples
from sbridge.problems import BridgeProblem, SoftEnds
from sbridge.processes import BrownianMotion
from sbridge.random import derive, generator
from sbridge.solutions import Bridge
from sbridge.solvers.base import Solver
from sbridge.solvers.mixture import MixtureBridge
from sbridge.solvers.sinkhorn import SinkhornBridge

_DRAWS = 10
_SOLVERS: dict[str, Solver] = {"SinkhornBridge": SinkhornBridge(), "MixtureBridge": MixtureBridge()}


@dataclass(frozen=True)
class Settings:
    """Options of this benchmark.

    Args:
        folder: with ``gene.csv`` and ``emt.csv``.
        seeds: number of splits into halves, and of draws.
        epsilon: ε = σ²T of a leg of ``gene.csv``, in squared units of the data.
        prices: ``2ελ`` of the soft source of ``gene.csv``, in squared units of the data.
        share: the same for ``emt.csv``, in units of the mean squared distance between rows of the two ends.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    seeds: int = 3
    epsilon: float = 0.005
    prices: tuple[float, ...] = (1.0, 3.0, 10.0)
    share: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(self, 2, "seeds")


def main(settings: Settings) -> None:
    """Prints a line for every fit of either data set, floors and trivial answers first."""
    genes, cells = (_snapshots(settings.folder / name) for name in ("gene.csv", "emt.csv"))
    _transition(cells, settings)
    _genes(genes, settings)


def _snapshots(file: Path) -> list[Tensor]:
    table = torch.from_numpy(np.loadtxt(file, delimiter=",", skiprows=1))
    return [table[table[:, 0] == time][:, 1:] for time in table[:, 0].unique()]


def _w1(x: Tensor, y: Tensor, weights: Tensor | None = None) -> float:
    a = torch.ones_like(x[:, 0]) if weights is None else weights
    x, place = x.unique(dim=0, return_inverse=True)  # plug-in paths end in few rows
    a = torch.zeros_like(x[:, 0]).index_add(0, place, a)
    b = torch.full((len(y),), 1.0 / len(y), dtype=torch.float64)
    return float(ot.emd2(a / a.sum(), b, torch.cdist(x, y), numItermax=10**7))  # type: ignore[arg-type]


def _halves(rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    first, second = rows[torch.randperm(len(rows), generator=generator(seed))].tensor_split(2)
    return first, second


def _genes(data: list[Tensor], settings: Settings) -> None:
    splits = [[_halves(rows, derive(seed, i)) for i, rows in enumerate(data)] for seed in range(settings.seeds)]
    floors = [[_w1(*pair) for pair in split[1:]] for split in splits]
    row("gene, floor: half against half", w1_half=mean([sum(one) / len(one) for one in floors]))
    copies = [_w1(data[0], rows) for rows in data[1:]]
    growing = [abs(len(data[0]) / len(rows) - 1.0) for rows in data[1:]]
    row("gene, rows of the first time", w1=sum(copies) / len(copies), mass=sum(growing) / len(growing))
    for name, solver in _SOLVERS.items():
        for price in (math.inf, *settings.prices):
            legs, seconds = timed(lambda price=price, solver=solver: _legs(data, settings.epsilon, price, solver))
            runs = [_carried(legs, data[0], data[1:], seed) for seed in range(settings.seeds)]
            halves = []
            for seed, split in enumerate(splits):
                half = _legs([first for first, _ in split], settings.epsilon, price, solver)
                halves.append(_carried(half, split[0][0], [second for _, second in split[1:]], seed)[0])
            row(
                f"gene, {name}, price {price:g}",
                w1=mean([w1 for w1, _ in runs]),
                mass=mean([mass for _, mass in runs]),
                w1_half=mean(halves),
                **({} if math.isinf(price) else _rates(legs, data)),
                seconds=seconds,
            )


def _legs(data: Sequence[Tensor], epsilon: float, price: float, solver: Solver) -> list[Bridge]:
    process, soft = BrownianMotion(math.sqrt(epsilon)), SoftEnds(price / (2.0 * epsilon), math.inf)
    counted = [Samples(rows, mass=1.0 if soft.hard else len(rows)) for rows in data]
    pairs = pairwise(counted)
    return [solve(BridgeProblem(*pair, process, balance=soft), solver, seed=0) for pair in pairs]


def _carried(legs: list[Bridge], start: Tensor, later: list[Tensor], seed: int) -> tuple[float, float]:
    """Mean W1 and mean relative error of the mass of the first rows, carried through all legs."""
    x, weights = start.repeat(_DRAWS, 1), torch.full((_DRAWS * len(start),), 1.0 / _DRAWS, dtype=torch.float64)
    scores, masses = list[float](), list[float]()
    for leg, (bridge, rows) in enumerate(zip(legs, later, strict=True)):
        if bridge.balance is not None:
            weights = weights * bridge.balance.descendants(x)
        x = bridge.transport(x, seed=derive(seed, leg))
        scores.append(_w1(x, rows, weights))
        masses.append(abs(float(weights.sum()) / len(rows) - 1.0))
    return sum(scores) / len(scores), sum(masses) / len(masses)


def _rates(legs: list[Bridge], data: list[Tensor]) -> dict[str, float | list[float]]:
    """Correlations with the true rate: of the log growth of each leg, of all together, and of one quadratic rate."""
    logs = [bridge.balance.descendants(rows).log() for bridge, rows in zip(legs, data, strict=False) if bridge.balance]
    known, values, every = torch.cat(data[:-1]), torch.cat(logs), torch.cat(data)
    fitted = torch.linalg.lstsq(_quadratic(known, every), values.unsqueeze(1)).solution
    one = (_quadratic(every, every) @ fitted)[:, 0]
    return {
        "legs": [_correlation(log, rows) for log, rows in zip(logs, data, strict=False)],
        "pooled": _correlation(values, known),
        "one_rate": _correlation(one, every),
    }


def _quadratic(x: Tensor, like: Tensor) -> Tensor:
    u, v = ((x - like.mean(0)) / like.std(0)).T
    return torch.stack([torch.ones_like(u), u, v, u * u, u * v, v * v], 1)


def _correlation(rate: Tensor, rows: Tensor) -> float:
    square = rows[:, 1].square()
    return round(float(torch.corrcoef(torch.stack([rate, square / (1.0 + square)]))[0, 1]), 4)


def _transition(data: list[Tensor], settings: Settings) -> None:
    inner = range(1, len(data) - 1)
    row(
        "emt, floor: half against half",
        **_scores([[_w1(*_halves(data[i], s)) for i in inner] for s in range(settings.seeds)]),
    )
    for name, offset in (("rows before", -1), ("rows after", 1)):
        row(f"emt, {name}", **_scores([[_w1(data[i + offset], data[i]) for i in inner]]))
    pools = [
        [_w1(_pool(data[i - 1], data[i + 1], derive(s, i)), data[i]) for i in inner] for s in range(settings.seeds)
    ]
    row("emt, pooled neighbours, rows of the one before", **_scores(pools))
    for name, noise in (("SinkhornBridge", 0.1), ("SinkhornBridge", 0.02), ("MixtureBridge", 0.1)):
        for soft in (False, True):
            share = settings.share if soft else math.inf
            found = [
                [_left_out(data, i, _SOLVERS[name], noise, share, seed) for i in inner]
                for seed in range(settings.seeds)
            ]
            label = f"{name}, noise {noise:g}, {'soft source' if soft else 'hard ends'}"
            row(f"emt, {label}", **_scores([[plain for plain, _ in run] for run in found]))
            row(f"emt, {label}, spline mean", **_scores([[moved for _, moved in run] for run in found]))


def _pool(before: Tensor, after: Tensor, seed: int) -> Tensor:
    """Half of the rows before and as many of the rows after, together as many as there are before."""
    count = len(before) // 2
    parts = (
        one[torch.randperm(len(one), generator=generator(derive(seed, i)))[:count]]
        for i, one in enumerate((before, after))
    )
    return torch.cat(list(parts))


def _left_out(
    data: list[Tensor], inner: int, solver: Solver, noise: float, share: float, seed: int
) -> tuple[float, float]:
    """W1 of the prediction half way, and moved to the spline of the means."""
    before, held_out, after = data[inner - 1 : inner + 2]
    price = share * float(torch.cdist(before, after).square().mean())
    sigma = choose_sigma(before, after).spread * math.sqrt(noise)
    soft = SoftEnds(price / (2.0 * sigma**2), math.inf)
    problem = BridgeProblem(Samples(before), Samples(after), BrownianMotion(sigma), balance=soft)
    bridge = solve(problem, solver, seed=seed)
    predicted = bridge.interpolate(before, 0.5, seed=seed)
    weights = torch.ones_like(before[:, 0]) if bridge.balance is None else bridge.balance.growth(before)
    times = [i for i in range(len(data)) if i != inner]
    spline = CubicSpline(times, np.stack([data[i].mean(0).numpy() for i in times]), bc_type="natural")
    here = (weights / weights.sum()) @ predicted
    moved = predicted - here + torch.from_numpy(spline(inner))
    return _w1(predicted, held_out, weights), _w1(moved, held_out, weights)


def _scores(runs: list[list[float]]) -> dict[str, object]:
    """The mean over the inner times, with its standard error over seeds if there are several, and each time."""
    totals = [sum(run) / len(run) for run in runs]
    times = [f"{sum(run[k] for run in runs) / len(runs):.3f}" for k in range(len(runs[0]))]
    return {"mean": mean(totals) if len(totals) > 1 else f"{totals[0]:.4f}", "times": times}


if __name__ == "__main__":
    main(tyro.cli(Settings))
