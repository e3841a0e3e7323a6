"""Learning the score as a control, from the density alone: error against the exact score.

``OMP_NUM_THREADS=1 python -m docs.benchmarks.reversal --seeds 0 1 2`` solves ``sbridge.reversal_problem`` for Gaussian
mixtures noised by an Ornstein–Uhlenbeck process (rate 1, stationary variance 1) and prints, for each, the error
``E|u − σ∇log ρ|² / E|σ∇log ρ|²`` at 34 times between 0 and .99 of the reversal, in states of the exact marginals; no
control has error 1. With it are the largest error of a mode's share on 4000 paths (standard error about .008) and the
CPU seconds of the fit, without the seconds in which PyTorch loads its compiler for the first optimiser of a process.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
import tyro

from sbridge.benchmarks.output import row, say
from sbridge.benchmarks.pairs import MixturePair
from sbridge.controls import AdditiveMLP
from sbridge.diffusion import ExactScore, reversal_problem
from sbridge.errors import InvalidInputError, NonFiniteError, NotConvergedError, check_known
from sbridge.fitting import solve
from sbridge.laws import GaussianMixture
from sbridge.processes import OrnsteinUhlenbeck
from sbridge.random import generator
from sbridge.solutions import ControlSolution
from sbridge.solvers import (
    AdjointMatching,
    ControlSolver,
    GaussianStart,
    LogVariance,
    ReciprocalAdjointMatching,
    Replay,
    TrustRegion,
    ZeroStart,
)
from sbridge.time import TimeGrid
from sbridge.training import Optimisation

_SIGMA, _TIMES, _ROWS, _PATHS = math.sqrt(2.0), 34, 2000, 4000


def on_a_sphere(dim: int, seed: int = 0) -> GaussianMixture:
    """The potential of a :class:`MixturePair` as data: five equally likely Gaussians with means on a sphere."""
    potential = MixturePair(dim, 1.0, seed).potential
    covariances = torch.linalg.inv(potential.precisions)
    means = (covariances @ potential.shifts.unsqueeze(-1)).squeeze(-1)
    weights = torch.full((len(means),), 1.0 / len(means))
    return GaussianMixture(weights, means.float(), (0.5 * (covariances + covariances.mT)).float())


DATA = {
    1: GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.5], [1.0]]), 0.09 * torch.ones(2, 1, 1)),
    2: GaussianMixture(
        torch.tensor([0.5, 0.3, 0.2]),
        torch.tensor([[-2.0, 0.0], [1.5, 1.5], [1.0, -2.0]]),
        0.15 * torch.eye(2).expand(3, 2, 2),
    ),
    16: on_a_sphere(16),
}


SOLVERS: dict[str, ControlSolver] = {
    "ReciprocalAdjointMatching": ReciprocalAdjointMatching(),
    "AdjointMatching": AdjointMatching(),
    "LogVariance, trust region": LogVariance(
        updates=900,
        optimisation=Optimisation(learning_rate=7e-3, batch=128, ema_decay=0.99),
        grid=TimeGrid.uniform(60),
        start=GaussianStart(),
        trust_region=TrustRegion(),
    ),
    "AdjointMatching, lean": AdjointMatching(
        updates=3000,
        network=AdditiveMLP(),
        optimisation=Optimisation(learning_rate=5e-3, batch=1024, ema_decay=0.99),
        start=ZeroStart(),
        replay=Replay(),
        trust_region=None,
    ),
}
"""The first two with default options, the others with one set each."""


@dataclass(frozen=True)
class Settings:
    """Options.

    Args:
        dims: 1 (two modes), 2 (three modes of unequal weights) and 16 (five modes).
        horizons: T of the noising process; mean reversion leaves ``e^{−T}`` of the data.
        solvers: names, of :data:`SOLVERS`.
        seeds: of the fits.
    """

    dims: tuple[int, ...] = (1, 2, 16)
    horizons: tuple[float, ...] = (0.5, 1.5, 3.0)
    solvers: tuple[str, ...] = ("ReciprocalAdjointMatching", "AdjointMatching")
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        if not set(self.dims) <= set(DATA):
            raise InvalidInputError(f"dims must be among {', '.join(map(str, DATA))}, got {self.dims}.")
        check_known("solver", self.solvers, SOLVERS)


def error(solution: ControlSolution, exact: ExactScore) -> float:
    """The relative error of the control, over time and states of the exact marginals."""
    draws, missed, size = generator(99), 0.0, 0.0
    for fraction in torch.linspace(0.0, 0.99, _TIMES).tolist():
        t = exact.process.horizon * (1.0 - fraction)
        x = exact.marginal(t).sample(_ROWS, draws)
        best = _SIGMA * exact(t, x)
        with torch.no_grad():
            found = solution.control(torch.tensor(exact.process.horizon - t), x)
        missed += float((found - best).square().mean())
        size += float(best.square().mean())
    return missed / size


def main(settings: Settings) -> None:
    """Prints the table."""
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    for dim in settings.dims:
        for horizon in settings.horizons:
            noising = OrnsteinUhlenbeck(1.0, _SIGMA, 0.0, horizon)
            problem, exact = reversal_problem(noising, DATA[dim]), ExactScore(noising, DATA[dim])
            say(f"d = {dim}, T = {horizon:g}")
            for name in settings.solvers:
                for seed in settings.seeds:
                    start = time.process_time()
                    try:
                        solution = solve(problem, SOLVERS[name], seed=seed)
                    except (NotConvergedError, NonFiniteError) as failure:
                        row(name, seed=seed, ended=str(failure).split(":")[0])
                        continue
                    seconds = time.process_time() - start
                    ends = solution.sample(_PATHS, seed=5).x[-1]
                    nearest = torch.cdist(ends, DATA[dim].means).argmin(1)
                    shares = nearest.bincount(minlength=len(DATA[dim].weights)) / _PATHS
                    lost = float((shares - DATA[dim].weights).abs().max())
                    row(
                        name,
                        seed=seed,
                        error=f"{error(solution, exact):.4f}",
                        share=f"{lost:.3f}",
                        cpu=f"{seconds:.0f} s",
                    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
