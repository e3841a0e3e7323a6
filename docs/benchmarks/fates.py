"""Fate probabilities against known ones: ``OMP_NUM_THREADS=1 python -m docs.benchmarks.fates``.

Two tasks have known answers. In ``pair`` both ends and the bridge between them are known: the group of a path is the
component of the mixture potential in which it ends, and its probability given the start is a closed form. In ``fork``
cells follow ``dX = dt + σ dW``, ``dY = (4 min(max(X, 0), 1) Y − 4 Y³) dt + σ dW`` with σ = ½, from
``N(0, diag(.04, .16))``; the snapshots are at t = 0, 1, 2, 3, with other cells each, and the groups are Y > 0 and
Y < 0 at t = 3. The true probability of a cell of the first snapshot is the share of 4000 simulated paths. The reference
of the fits is Brownian motion with the true σ, so the drift has to come from the snapshots.

Printed are the mean absolute error over 300 cells, how many of the 95 % intervals hold the true probability, and the
CPU seconds of fit and fates. Beside the bridges stand products of POT's entropic plans of the same samples, the same
with one plan from the first to the last snapshot, and the shares of the groups, without a model.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import pairwise

import torch
import tyro
from torch import Tensor

from sbridge.benchmarks.output import row, say
from sbridge.benchmarks.pairs import MixturePair
from sbridge.benchmarks.tables import mean, timed
from sbridge.cells import Fates, fates
from sbridge.errors import SbridgeWarning, check_at_least
from sbridge.fitting import fit_course
from sbridge.random import derive, generator
from sbridge.solvers import MixtureBridge, SinkhornBridge
from sbridge.solvers.base import Solver
from sbridge.transport import entropic_plan

_SIGMA, _STEP, _PATHS, _CELLS = 0.5, 0.01, 4000, 300
_TIMES = (0.0, 1.0, 2.0, 3.0)


@dataclass(frozen=True)
class Settings:
    """Options.

    Args:
        rows: of each snapshot.
        seeds: number of seeds of data, fits and draws.
        draws: paths per cell.
        dims: dimensions of the pairs.
    """

    rows: int = 1000
    seeds: int = 3
    draws: int = 1000
    dims: tuple[int, ...] = (2, 16)

    def __post_init__(self) -> None:
        check_at_least(self, 1, "rows", "seeds", "draws")


@dataclass(frozen=True)
class Task:
    """Snapshots, labels of the last one, and the true probabilities of the first cells of the first one."""

    snapshots: list[Tensor]
    times: tuple[float, ...]
    sigma: float
    labels: Tensor
    truth: Tensor


def pair(dim: int, settings: Settings, seed: int) -> Task:
    """Returns ends of a mixture pair with ε = 1; a row of the target is labelled by a draw of its component."""
    known, draw = MixturePair(dim, 1.0, seed), generator(derive(seed, "labels"))
    start, other = (known.source.sample(settings.rows, draw) for _ in range(2))
    potential = known.potential
    end = potential.conditional(other).sample(draw)
    shapes = torch.einsum("nd,kde,ne->nk", end, potential.precisions, end)
    shares = (potential.logits + end @ potential.shifts.mT - 0.5 * shapes).softmax(1)
    labels = torch.multinomial(shares, 1, generator=draw)[:, 0]
    truth = potential.conditional(start[:_CELLS]).weights
    return Task([start.float(), end.float()], (0.0, 1.0), 1.0, labels, truth)


def fork(settings: Settings, seed: int) -> Task:
    """Returns four snapshots of the forking process."""
    draw = generator(derive(seed, "fork"))
    scale = torch.tensor([0.2, 0.4])
    starts = [scale * torch.randn(settings.rows, 2, generator=draw) for _ in _TIMES]
    snapshots = [_carried(rows, t, draw) for rows, t in zip(starts, _TIMES, strict=True)]
    ends = _carried(snapshots[0][:_CELLS].repeat_interleave(_PATHS, 0), _TIMES[-1], draw)
    above = (ends[:, 1] > 0).double().reshape(-1, _PATHS).mean(1)
    labels = (snapshots[-1][:, 1] > 0).long()
    return Task(snapshots, _TIMES, _SIGMA, labels, torch.stack([1.0 - above, above], 1))


def answers(task: Task, settings: Settings, seed: int) -> dict[str, tuple[float, float, float]]:
    """Returns, for each method, its mean absolute error, the coverage of its intervals and its CPU seconds."""
    found = {}
    solvers = {"MixtureBridge()": MixtureBridge(), "SinkhornBridge()": SinkhornBridge()}
    ends = {"": range(len(task.times))} | ({", first and last snapshot": (0, -1)} if len(task.times) > 2 else {})
    for words, places in ends.items():
        snapshots, times = [task.snapshots[k] for k in places], [task.times[k] for k in places]
        for name, solver in solvers.items():

            def estimated(snapshots: list = snapshots, times: list = times, solver: Solver = solver) -> Fates:
                course = fit_course(snapshots, times, sigma=task.sigma, solver=solver, seed=seed)
                return fates(course, task.labels, snapshots[0][:_CELLS], draws=settings.draws, seed=seed)

            made, seconds = timed(estimated)
            inside = (made.lower <= task.truth) & (task.truth <= made.upper)
            found[name + words] = _error(made.probabilities, task), float(inside.double().mean()), seconds
        plans, seconds = timed(lambda s=snapshots, t=times: _plans(s, t, task))
        found["POT, product of plans" + words] = _error(plans, task), float("nan"), seconds
    shares = torch.nn.functional.one_hot(task.labels).double().mean(0).expand_as(task.truth)
    found["shares of the groups"] = _error(shares, task), float("nan"), 0.0
    return found


def main(settings: Settings) -> None:
    """Prints a table for each task."""
    warnings.simplefilter("ignore", SbridgeWarning)  # of gaps: groups are apart by design
    tasks = {f"pair, {dim} columns": lambda seed, dim=dim: pair(dim, settings, seed) for dim in settings.dims}
    for name, make in {**tasks, "fork": lambda seed: fork(settings, seed)}.items():
        say(name)
        runs = [answers(make(seed), settings, seed) for seed in range(settings.seeds)]
        for method in runs[0]:
            errors, covered, seconds = zip(*(run[method] for run in runs), strict=True)
            row(f"  {method}", error=mean(errors), covered=f"{sum(covered) / len(covered):.2f}", seconds=mean(seconds))


def _carried(rows: Tensor, duration: float, draw: torch.Generator) -> Tensor:
    for _ in range(round(duration / _STEP)):
        x, y = rows.unbind(1)
        drift = torch.stack([torch.ones_like(x), 4.0 * x.clamp(0.0, 1.0) * y - 4.0 * y**3], 1)
        rows = rows + _STEP * drift + _SIGMA * _STEP**0.5 * torch.randn(rows.shape, generator=draw)
    return rows


def _plans(snapshots: list[Tensor], times: list[float], task: Task) -> Tensor:
    shares = torch.nn.functional.one_hot(task.labels).double()
    for (x, y), (start, stop) in list(zip(pairwise(snapshots), pairwise(times), strict=True))[::-1]:
        plan = entropic_plan(x, y, task.sigma**2 * (stop - start), tolerance=1e-4).double()
        shares = plan / plan.sum(1, keepdim=True) @ shares
    return shares[:_CELLS]


def _error(found: Tensor, task: Task) -> float:
    return float((found.double() - task.truth).abs().mean())


if __name__ == "__main__":
    main(tyro.cli(Settings))
