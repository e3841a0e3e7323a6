"""Gaussian ends against the closed form: ``python -m sbridge.benchmarks.gaussian_ends``.

Means ∓0.1, unit covariances, σ = 1, T = 1; 10 000 training samples a side. Scored on 100 000 fresh source samples:
mean over coordinates of Cov(X_0, X_1), whose exact value is (√5 − 1)/2, and both path divergences to the process
with the closed-form control, for the forward and for the backward process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import tyro

from sbridge.analytic import GaussianCoupling
from sbridge.benchmarks.tables import SOLVERS, mean, row, timed
from sbridge.fitting import fit
from sbridge.laws import Gaussian
from sbridge.measures import path_kl
from sbridge.processes import BrownianMotion, Direction
from sbridge.random import derive, generator
from sbridge.solutions import Bridge
from sbridge.solvers.gaussian import GaussianControl

EXACT = (math.sqrt(5.0) - 1.0) / 2.0
_SHIFT = 0.1


@dataclass(frozen=True)
class Settings:
    """Options of this benchmark.

    Args:
        dims: dimensions.
        seeds: data seeds.
        solvers: names of rows of the solver table.
        rows: training samples a side.
        fresh: fresh samples for the scores; a tenth of them for each divergence.
    """

    dims: tuple[int, ...] = (5, 20, 50)
    seeds: int = 3
    solvers: tuple[str, ...] = ("IMF (default)", "IMF, independent start")
    rows: int = 10_000
    fresh: int = 100_000


def main(settings: Settings) -> None:
    """Prints a line per solver, dimension and direction."""
    for name in settings.solvers:
        for dim in settings.dims:
            runs = [run(name, dim, seed, settings) for seed in range(settings.seeds)]
            for direction in Direction:
                scores = [scores[direction] for scores, _ in runs]
                cells = {key: mean([score[key] for score in scores]) for key in scores[0]}
                worst = max(abs(score["cov"] / EXACT - 1.0) for score in scores)
                seconds = mean([seconds for _, seconds in runs])
                row(f"{name} d={dim} {direction.name.lower()}", **cells, worst=f"{worst:.2%}", seconds=seconds)


def run(name: str, dim: int, seed: int, settings: Settings) -> tuple[dict[Direction, dict[str, float]], float]:
    """Fits one data seed; the scores of both directions and the seconds of the fit."""
    mean0, identity = torch.full((dim,), -_SHIFT), torch.eye(dim)
    ends = Gaussian(mean0, identity), Gaussian(-mean0, identity)
    draws = generator(derive(seed, "data"))
    x0, x1 = (end.sample(settings.rows, draws) for end in ends)
    reference = BrownianMotion(sigma=1.0)
    bridge, seconds = timed(lambda: fit(x0, x1, reference=reference, solver=SOLVERS[name], seed=seed))
    exact = GaussianCoupling(mean0, identity, -mean0, identity, reference)
    return {direction: score(bridge, exact, ends, direction, settings.fresh) for direction in Direction}, seconds


def score(
    bridge: Bridge, exact: GaussianCoupling, ends: tuple[Gaussian, Gaussian], direction: Direction, fresh: int
) -> dict[str, float]:
    """Covariance and variance on fresh samples, and both divergences with their Monte Carlo standard errors."""
    there = (bridge.forward, ends[0]), (bridge.backward, ends[1])
    measure, start = there[0 if direction is Direction.FORWARD else 1]
    near = start.sample(fresh, generator(derive(7, "fresh")))
    far = measure.transport(near, seed=11)
    covariance = ((near - near.mean(0)) * (far - far.mean(0))).mean(0).mean()
    learned = replace(measure, start=start, end_kernel=None)
    truth = replace(learned, control=GaussianControl(exact, direction))
    to_truth = path_kl(learned, truth, fresh // 10, seed=12)
    from_truth = path_kl(truth, learned, fresh // 10, seed=13)
    return {
        "cov": float(covariance),
        "var": float(far.var(0).mean()),
        "KL(fit‖exact)": to_truth.value,
        "KL(exact‖fit)": from_truth.value,
        "mc_se": max(to_truth.standard_error, from_truth.standard_error),
    }


if __name__ == "__main__":
    main(tyro.cli(Settings))
