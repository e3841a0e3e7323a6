"""Samplers of unnormalised densities: exact controls and learned ones, and what their chains reach.

``OMP_NUM_THREADS=1 python -m docs.benchmarks.densities --seeds 0 1 2``, and with ``--learned`` the rows of
:class:`~sbridge.solvers.PosteriorMatching`, learned on 50 steps and judged on 200. Each row is one density, one control
and one way to step: log Z, the effective sample size in % of the paths, the evidence lower and upper bounds (the latter
from exact draws), the largest error of a mode's weight, and CPU seconds for each thousand paths and for training.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import tyro
from torch import Tensor

from sbridge.benchmarks.densities import Target, forty_modes, funnel
from sbridge.benchmarks.exact_controls import FunnelControl, mixture_control, stationary_noise
from sbridge.benchmarks.output import row
from sbridge.benchmarks.tables import mean
from sbridge.controls import Control
from sbridge.errors import InvalidInputError
from sbridge.evaluation import evidence_upper_bound, log_normaliser
from sbridge.fitting import solve
from sbridge.laws import Gaussian
from sbridge.measures import ControlledKernel, MatchedKernel, PathMeasure, StepKernel
from sbridge.problems import ControlProblem
from sbridge.problems.sampling import sampling_problem
from sbridge.processes import LinearProcess, log_snr_grid
from sbridge.random import derive
from sbridge.solutions import ControlSolution
from sbridge.solvers import PosteriorMatching, PosteriorNetwork
from sbridge.time import TimeGrid

_LEARNED_STEPS, _DRAWS = 50, 4096
KERNELS: dict[str, StepKernel] = {"the reference's": ControlledKernel(), "matched": MatchedKernel(1e-3, 1e3)}


@dataclass(frozen=True)
class Case:
    """A density with a reference.

    Args:
        make: the density.
        scales: stationary standard deviations of the reference.
        horizon: of the reference, of rate 1.
        resolution: of the grid.
        paths: of a row with an exact control.
        harmonics: of the network's inputs.
    """

    make: Callable[[], Target]
    scales: Tensor
    horizon: float
    resolution: float
    paths: int
    harmonics: int

    def exact(self, target: Target, process: LinearProcess) -> Control:
        """The exact control."""
        if target.mixture is not None:
            return mixture_control(target.mixture, process, float(self.scales[0]))
        return FunnelControl(self.scales, self.horizon)


CASES = {
    "forty modes": Case(forty_modes, torch.full((2,), 30.0), 3.0, 0.3, 16_384, 6),
    "funnel": Case(funnel, torch.tensor([3.0] + 9 * [6.0]), 4.0, 0.02, 1024, 0),
}


@dataclass(frozen=True)
class Settings:
    """Options.

    Args:
        only: densities by name; all by default.
        steps: of the grids.
        seeds: of paths.
        uniform: equal steps beside those equal in the log signal-to-noise ratio.
        learned: learned controls instead of the exact ones.
        paths: of a row with a learned control.
    """

    only: tuple[str, ...] = tuple(CASES)
    steps: tuple[int, ...] = (100, 200)
    seeds: tuple[int, ...] = (0, 1, 2)
    uniform: bool = False
    learned: bool = False
    paths: int = 8192


def numbers(solution: ControlSolution, target: Target, kernel: StepKernel, n: int, seed: int) -> dict[str, float]:
    """What a row shows."""
    begun = time.process_time()
    found = log_normaliser(solution, n, seed=derive(seed, "judge"), kernel=kernel)
    seconds = time.process_time() - begun
    weighted = target.mean_observables(found.x, found.weights.values)
    numbers = {
        "log Z": found.log_normaliser.value - target.log_normaliser,
        "s.e.": found.log_normaliser.standard_error,
        "ESS %": 100.0 * found.weights.effective_sample_size / n,
        "ELBO": found.lower_bound.value - target.log_normaliser,
        "worst mode": float((weighted - target.expectations).abs().max()),
        "s per 1000": 1000.0 * seconds / n,
    }
    draws = target.sample(min(n, _DRAWS), seed=derive(seed, "draws"))
    upper = evidence_upper_bound(solution, draws, seed=derive(seed, "upper"), kernel=kernel)
    return numbers | {"EUBO": upper.value - target.log_normaliser}


def show(name: str, rows: list[dict[str, float]]) -> None:
    """Prints the mean of rows with its standard error."""
    found = {key: mean([one[key] for one in rows]) for key in rows[0]}
    row(name, **{key: f"{one.value:.4f} ± {one.standard_error:.4f}" for key, one in found.items()})


def learned(name: str, case: Case, problem: ControlProblem, target: Target, settings: Settings) -> None:
    """Prints the rows of learned controls."""
    solver = PosteriorMatching(
        grid=log_snr_grid(problem.process, _LEARNED_STEPS, case.resolution),
        network=PosteriorNetwork(harmonics=case.harmonics),
    )
    rows = []
    for seed in settings.seeds:
        begun = time.process_time()
        solution = solve(problem, solver, seed=seed)
        seconds = time.process_time() - begun
        grid = log_snr_grid(problem.process, settings.steps[-1], case.resolution)
        fine = ControlSolution(problem, replace(solution.measure, grid=grid))
        rows.append({**numbers(fine, target, KERNELS["matched"], settings.paths, seed), "training s": seconds})
        row(f"{name}, seed {seed}", **{key: f"{value:.4f}" for key, value in rows[-1].items()})
    show(f"{name}, learned", rows)


def main(settings: Settings) -> None:
    """Prints the table."""
    for name in settings.only:
        if name not in CASES:
            raise InvalidInputError(f"no density {name}: {', '.join(CASES)}.")
        case = CASES[name]
        target, process = case.make(), stationary_noise(case.scales, case.horizon)
        start = Gaussian(torch.zeros(target.dim), case.scales.square().diag())
        problem = sampling_problem(target.law, process, start)
        if settings.learned:
            learned(name, case, problem, target, settings)
            continue
        control = case.exact(target, process)
        grids: dict[str, TimeGrid] = {}
        for steps in settings.steps:
            if settings.uniform:
                grids[f"{steps}, uniform"] = TimeGrid.uniform(steps)
            grids[f"{steps}, log SNR"] = log_snr_grid(process, steps, case.resolution)
        for label, grid in grids.items():
            solution = ControlSolution(problem, PathMeasure(process, control, start, grid=grid))
            for variance, kernel in KERNELS.items():
                rows = [numbers(solution, target, kernel, case.paths, seed) for seed in settings.seeds]
                show(f"{name}, {label}, {variance}", rows)


if __name__ == "__main__":
    main(tyro.cli(Settings))
