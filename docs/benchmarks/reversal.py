"""Learning the score as a control, from the density alone: error against the exact score.

``OMP_NUM_THREADS=1 python -m docs.benchmarks.reversal --seeds 0 1 2`` solves ``sbridge.reversal_problem`` for Gaussian
mixtures noised by an Ornstein–Uhlenbeck process (rate 1, stationary variance 1) and prints, for each, the error
``E|u − σ∇log ρ|² / E|σ∇log ρ|²`` at 34 times between 0 and .99 of the reversal, in states of the exact marginals; no
control has error 1. With it are the largest error of a mode's share on 4000 paths (standard error about .008) and the
CPU seconds.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
import tyro

from sbridge.benchmarks.output import row, say
from sbridge.diffusion import ExactScore, reversal_problem
from sbridge.errors import InvalidInputError, NonFiniteError, NotConvergedError
from sbridge.fitting import solve
from sbridge.laws import GaussianMixture
from sbridge.processes import OrnsteinUhlenbeck
from sbridge.random import generator
from sbridge.solutions import ControlSolution
from sbridge.solvers import AdjointMatching, ControlSolver, ReciprocalAdjointMatching, Replay, TrustRegion

_SIGMA, _TIMES, _ROWS, _PATHS = math.sqrt(2.0), 34, 2000, 4000
DATA = {
    1: GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.5], [1.0]]), 0.09 * torch.ones(2, 1, 1)),
    2: GaussianMixture(
        torch.tensor([0.5, 0.3, 0.2]),
        torch.tensor([[-2.0, 0.0], [1.5, 1.5], [1.0, -2.0]]),
        0.15 * torch.eye(2).expand(3, 2, 2),
    ),
}


@dataclass(frozen=True)
class Settings:
    """Options.

    Args:
        dims: 1 (two modes) and 2 (three modes of unequal weights).
        horizons: T of the noising process; mean reversion leaves ``e^{−T}`` of the data.
        updates: of every solver.
        seeds: of the fits.
    """

    dims: tuple[int, ...] = (1, 2)
    horizons: tuple[float, ...] = (0.5, 1.5, 3.0)
    updates: int = 3000
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        if not set(self.dims) <= set(DATA):
            raise InvalidInputError(f"dims must be among {', '.join(map(str, DATA))}, got {self.dims}.")


def solvers(updates: int) -> dict[str, ControlSolver]:
    """The solvers of the table, each with one set of options."""
    weighted = Replay(paths=1024, updates=20, kept=3)
    return {
        "ReciprocalAdjointMatching, trust region": ReciprocalAdjointMatching(
            updates=updates, replay=weighted, trust_region=TrustRegion()
        ),
        "AdjointMatching": AdjointMatching(updates=updates),
    }


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
    for dim in settings.dims:
        for horizon in settings.horizons:
            noising = OrnsteinUhlenbeck(1.0, _SIGMA, 0.0, horizon)
            problem, exact = reversal_problem(noising, DATA[dim]), ExactScore(noising, DATA[dim])
            say(f"d = {dim}, T = {horizon:g}")
            for name, solver in solvers(settings.updates).items():
                for seed in settings.seeds:
                    start = time.process_time()
                    try:
                        solution = solve(problem, solver, seed=seed)
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
