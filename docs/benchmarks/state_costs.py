"""State costs that are functions: ``OMP_NUM_THREADS=1 python -m docs.benchmarks.state_costs``.

``pairs``: the mixture pairs with a quadratic cost (ω = 1.5, 100 000 rows a side), whose bridge is known. `IPF` gets the
cost as a plain function. Beside it stand `MixtureBridge` with the same cost as a `Quadratic`, which is part of its
reference, and without a cost. Printed are the error of the drift over its mean square, along paths of the known bridge,
and the path KL from that bridge.

``obstacles``: a wall with two slits, and a round obstacle, between two Gaussians in the plane (20 000 rows a side,
σ = 0.8), against the grid: path KL in both directions of time with either measure first, ``E∫V dt``
and the share of paths that enter the obstacle (``V`` above a third of its height), of the fitted process and in
brackets of the grid's. The bridge without the cost stands beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import tyro
from torch import Tensor

from docs.benchmarks.wells import judged
from sbridge.benchmarks.output import row, say
from sbridge.benchmarks.pairs import StateCostPair
from sbridge.errors import check_known
from sbridge.fitting import fit, solve
from sbridge.laws import Gaussian, Samples
from sbridge.measures import PathMeasure
from sbridge.pde import Grid, solve_schroedinger
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion
from sbridge.processes.base import Time
from sbridge.random import generator
from sbridge.solutions import Bridge
from sbridge.solvers import IPF, MixtureBridge

_ROWS, _PATHS, _SIGMA, _HEIGHT = 20_000, 4000, 0.8, 60.0
_GRID = Grid.of([-3.6, -2.8], [3.6, 2.8], [144, 112])


@dataclass(frozen=True)
class Settings:
    """Options.

    Args:
        only: ``pairs``, ``obstacles``, or both.
        dims: of the pairs.
        seeds: of the fits.
    """

    only: tuple[str, ...] = ("pairs", "obstacles")
    dims: tuple[int, ...] = (2, 16)
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        check_known("table", self.only, ("pairs", "obstacles"))


def slits(t: Time, x: Tensor) -> Tensor:
    """A wall along the second axis with slits at ±0.7."""
    wall = torch.exp(-0.5 * (x[:, 0] / 0.1).square())
    open_at = torch.exp(-0.5 * ((x[:, 1].abs() - 0.7) / 0.2).square())
    return _HEIGHT * wall * (1.0 - open_at)


def obstacle(t: Time, x: Tensor) -> Tensor:
    """A round hill at the origin."""
    return _HEIGHT * torch.exp(-0.5 * x.square().sum(1) / 0.3**2)


COSTS: dict[str, Callable[[Time, Tensor], Tensor]] = {"two slits": slits, "round obstacle": obstacle}


def main(settings: Settings) -> None:
    """Prints the tables."""
    if "pairs" in settings.only:
        for dim in settings.dims:
            _pair(StateCostPair(dim, 1.0), settings.seeds)
    if "obstacles" in settings.only:
        for name, cost in COSTS.items():
            _obstacle(name, cost, settings.seeds)


def _pair(pair: StateCostPair, seeds: tuple[int, ...]) -> None:
    ends = [side.float() for side in pair.sample(100_000, seed=1)]
    level = 0.5 * pair.omega**2 / pair.epsilon

    def cost(t: Time, x: Tensor) -> Tensor:
        return level * x.square().sum(1)

    say(f"d = {pair.dim}")
    solvers = {
        "IPF(), cost as a function": ({"state_cost": cost}, IPF()),
        "MixtureBridge(), cost as a Quadratic": ({"state_cost": pair.state_cost}, MixtureBridge()),
        "MixtureBridge(), no cost": ({}, MixtureBridge()),
    }
    for name, (options, solver) in solvers.items():
        for seed in seeds:
            begun = time.process_time()
            bridge = fit(*ends, reference=pair.brownian, solver=solver, seed=seed, **options)  # type: ignore[arg-type]
            seconds = time.process_time() - begun
            relative, divergence = _drift_error(pair.truth, bridge, pair.epsilon)
            row(name, seed=seed, drift=f"{relative:.5f}", KL=f"{divergence:.4f}", cpu=f"{seconds:.0f} s")


def _drift_error(truth: PathMeasure, bridge: Bridge, variance: float) -> tuple[float, float]:
    """The error over the mean square of the drift, and half the error over σ², along paths of the truth."""
    paths, fitted, error, size = truth.sample(_PATHS, seed=5), bridge.forward, 0.0, 0.0
    for k, width in enumerate(paths.chain.root_durations):
        t, x = paths.chain.step_times[k], paths.x[k]
        wanted, found = (
            one.process.drift(t, rows) + one.process.scale(t).to(rows)(one.control(t, rows))  # type: ignore[misc]
            for one, rows in ((truth, x), (fitted, x.float()))
        )
        error += width**2 * float((found.double() - wanted).square().sum(1).mean())
        size += width**2 * float(wanted.square().sum(1).mean())
    return error / size, 0.5 * error / variance


def _obstacle(title: str, cost: Callable[[Time, Tensor], Tensor], seeds: tuple[int, ...]) -> None:
    laws = [Gaussian(torch.tensor([place, 0.0]), 0.15 * torch.eye(2)) for place in (-1.5, 1.5)]
    draws, process = generator(1), BrownianMotion(_SIGMA)
    ends = [Samples(law.sample(_ROWS, draws)) for law in laws]
    p, q = (Gaussian(law.mean.double(), law.covariance.double()) for law in laws)
    truth = solve_schroedinger(process, p, q, _GRID, state_cost=cost)
    say(f"{title}: {truth.value:.3f} nats")
    problem = BridgeProblem(ends[0], ends[1], process, state_cost=cost)
    for label, solver, given in (
        ("IPF()", IPF(), problem),
        ("IPF(), no cost", IPF(), replace(problem, state_cost=None)),
    ):
        for seed in seeds:
            begun = time.process_time()
            bridge = solve(given, solver, seed=seed)
            seconds = f"{time.process_time() - begun:.0f} s"
            for measure, control in ((bridge.forward, truth.control), (bridge.backward, truth.backward_control)):
                first, second = judged(measure, control)
                grid = replace(measure, control=lambda t, x, control=control: control(t, x.double()).to(x))
                spent, entered = zip(_along(measure, cost), _along(grid, cost), strict=True)
                told = {"V": "{:.3f} ({:.3f})".format(*spent), "inside": "{:.3f} ({:.3f})".format(*entered)}
                name = f"{label}, {measure.direction.name.lower()}"
                row(name, seed=seed, **{"KL*": first}, KL=second, **told, cpu=seconds)


def _along(measure: PathMeasure, cost: Callable[[Time, Tensor], Tensor]) -> tuple[float, float]:
    """``E∫V dt``, and the share of paths that enter the obstacle."""
    paths = measure.sample(_PATHS, seed=7)
    rates = torch.stack([cost(0.0, x) for x in paths.x[:-1]])
    durations = torch.tensor(paths.chain.root_durations).square()
    return float(durations.to(rates) @ rates.mean(1)), float((rates > _HEIGHT / 3.0).any(0).to(rates).mean())


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
