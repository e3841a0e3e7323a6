"""Bridges under a drift with two wells, against the grid: ``OMP_NUM_THREADS=1 python -m docs.benchmarks.wells``.

In one dimension the drift is ``−4x(x² − 1)``. In two it is ``(−4x(x² − 1) + y, −y − x)``, which is no gradient. σ = 1,
T = 1, mixtures of two Gaussians at the ends, 20 000 samples of either. Printed are the path KL between the fitted
process and the bridge of the grid, in both directions of time and with either measure first, and the CPU seconds. No
control has the value of the problem, printed first. With ``--wrong`` a control of more than 3 nats is put below the
forward network.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
import tyro
from torch import Tensor

from sbridge.benchmarks.output import row, say
from sbridge.controls import Control
from sbridge.fitting import solve
from sbridge.laws import GaussianMixture, Samples
from sbridge.measures import PathMeasure, path_kl
from sbridge.pde import Grid, GridSolution, solve_schroedinger
from sbridge.problems import BridgeProblem, ControlProblem
from sbridge.processes import Direction, DriftProcess, StepRule
from sbridge.processes.base import Time
from sbridge.random import generator
from sbridge.solvers import IPF, WarmStart, ZeroStart
from sbridge.time import TimeGrid

_ROWS, _PATHS = 20_000, 2000
WEIGHTS = (0.8, 0.2), (0.3, 0.7)
MEANS = {
    1: (((-1.0,), (1.0,)), ((-1.2,), (0.9,))),
    2: (((-1.0, 0.0), (1.0, 0.5)), ((-1.2, 0.5), (0.9, -0.7))),
}
VARIANCE = {1: 0.05, 2: 0.08}
GRIDS = {1: Grid.of(-3.0, 3.0, 300), 2: Grid.of([-3.0, -3.0], [3.0, 3.0], [100, 100])}


@dataclass(frozen=True)
class Settings:
    """Options.

    Args:
        dims: 1 and 2.
        seeds: of the fits.
        wrong: put a wrong control below the forward network.
    """

    dims: tuple[int, ...] = (1, 2)
    seeds: tuple[int, ...] = (0, 1, 2)
    wrong: bool = False


def drift(t: Time, x: Tensor) -> Tensor:
    """Two wells along the first coordinate, and a rotation if there is a second."""
    wells = -4.0 * x[:, 0] * (x[:, 0].square() - 1.0)
    return wells[:, None] if x.shape[1] == 1 else torch.stack([wells + x[:, 1], -x[:, 1] - x[:, 0]], 1)


class Wrong(WarmStart):
    """A control that has nothing to do with the bridge."""

    def control(self, problem: ControlProblem, grid: TimeGrid, rule: StepRule) -> None:
        """None."""
        return None

    def bridge_controls(self, problem: BridgeProblem) -> dict[Direction, Control | None]:
        """Forward a rotation and a push; backward nothing."""
        return {Direction.FORWARD: _wrong, Direction.BACKWARD: None}


def _wrong(t: Time, x: Tensor) -> Tensor:
    return 2.0 * torch.cos(3.0 * x) if x.shape[1] == 1 else 2.0 * (torch.stack([-x[:, 1], x[:, 0]], 1) + 1.0)


def problems(dim: int) -> tuple[BridgeProblem, GridSolution]:
    """The problem from samples, and its solution on the grid."""
    covariances = VARIANCE[dim] * torch.eye(dim).expand(2, dim, dim)
    weighted = zip(WEIGHTS, MEANS[dim], strict=True)
    laws = [GaussianMixture(torch.tensor(w), torch.tensor(m), covariances) for w, m in weighted]
    draws, process = generator(1), DriftProcess(drift, 1.0, 1.0, dim)
    source, target = (Samples(law.sample(_ROWS, draws)) for law in laws)
    p, q = (GaussianMixture(law.weights.double(), law.means.double(), law.covariances.double()) for law in laws)
    return BridgeProblem(source, target, process), solve_schroedinger(process, p, q, GRIDS[dim])


def judged(measure: PathMeasure, exact: Control) -> tuple[str, str]:
    """Path KL from the grid's bridge and to it."""
    truth = replace(measure, control=lambda t, x: exact(t, x.double()).to(x))
    pair = ((truth, measure), (measure, truth))
    first, second = (path_kl(p, q, _PATHS, seed=3) for p, q in pair)
    return f"{first.value:.4f} ± {first.standard_error:.4f}", f"{second.value:.4f} ± {second.standard_error:.4f}"


def main(settings: Settings) -> None:
    """Prints the table."""
    for dim in settings.dims:
        problem, truth = problems(dim)
        say(f"d = {dim}, no control {truth.value:.3f} nats")
        solver = IPF(start=Wrong() if settings.wrong else ZeroStart())
        for seed in settings.seeds:
            start = time.process_time()
            bridge = solve(problem, solver, seed=seed)
            seconds = f"{time.process_time() - start:.0f} s"
            for measure, exact in ((bridge.forward, truth.control), (bridge.backward, truth.backward_control)):
                from_truth, to_truth = judged(measure, exact)
                row(
                    f"IPF(), {measure.direction.name.lower()}",
                    seed=seed,
                    **{"KL*": from_truth},
                    KL=to_truth,
                    cpu=seconds,
                )


if __name__ == "__main__":
    main(tyro.cli(Settings))
