"""One fit of a few steps for every solver, on any device: for tests that run over all of them."""

from collections.abc import Callable

import numpy as np
import torch

import sbridge as sb
from sbridge.controls import Hutchinson
from sbridge.laws import Law
from sbridge.solvers import IPF, AdjointBridge, AdjointHalfBridge, MaximumLikelihood, MeanMatching, Solver
from sbridge.solvers.control import PosteriorMatching, PosteriorNetwork
from sbridge.time import TimeGrid
from sbridge.training import Optimisation

G = np.random.default_rng(0)
X0, X1 = (G.standard_normal((40, 2)).astype(np.float32) + shift for shift in (0.0, 1.5))

SIGMA, RATE = torch.tensor([0.8, 1.0]), torch.tensor([[1.0, 0.4], [-0.4, 1.0]])
TINY = {
    "network": sb.networks.MLP(8, 2),
    "optimisation": Optimisation(batch=16, warm_up=1),
    "grid": TimeGrid.uniform(3),
}
IPF_STEPS = {"half_steps": 2, "updates": 2, "refresh": 2, "paths": 16, **TINY}
Place = str | torch.device | None
"""A device; ``None``: arrays of numpy, which have none."""


def given(array: np.ndarray, place: Place) -> np.ndarray | torch.Tensor:
    return array if place is None else torch.from_numpy(array).to(place)


def normal_density(x: torch.Tensor) -> torch.Tensor:
    return -0.5 * x.square().sum(1)


def far(x: torch.Tensor) -> torch.Tensor:
    return (x - 1.0).square().sum(1)


def bridge(place: Place, solver: Solver | None = None, source: object = X0, target: object = X1, **options: object):
    ends = (given(end, place) if isinstance(end, np.ndarray) else end for end in (source, target))
    return sb.fit(*ends, reference=sb.BrownianMotion(SIGMA), solver=solver, seed=0, **options)


def gaussian(place: Place) -> Law:
    return sb.Gaussian(given(np.zeros(2), place), given(np.eye(2), place))


def mixture(place: Place) -> Law:
    return sb.GaussianMixture(*(given(part, place) for part in (np.ones(1), np.zeros((1, 2)), np.eye(2)[None])))


def weighted(place: Place) -> Law:
    return sb.Samples(given(X1.astype(float), place), np.full(40, 1 / 40))


NORMAL = sb.Density(normal_density, 2)
FITS: dict[str, Callable[[Place], sb.Bridge]] = {
    "default": bridge,
    "SinkhornBridge": lambda place: bridge(place, sb.SinkhornBridge()),
    "GaussianBridge": lambda place: bridge(place, sb.GaussianBridge(), gaussian(place), X1.astype(float)),
    "GaussianMixture": lambda place: bridge(
        place,
        sb.MixtureBridge((1,), widths=(2,), rows=40, max_rows=80, iterations=4, matchings=2, rounds=1),
        mixture(place),
        weighted(place),
    ),
    "IMF": lambda place: bridge(place, sb.IMF(pretraining=2, stages=2, updates=2, refresh=2, pairs=32, **TINY)),
    "MatchedBridge": lambda place: bridge(place, sb.MatchedBridge(updates=3, refresh=2, pairs=32, **TINY)),
    "IPF": lambda place: bridge(
        place, IPF(forward=MeanMatching(), backward=MaximumLikelihood(Hutchinson(1)), **IPF_STEPS)
    ),
    "IPF, adjoint": lambda place: bridge(place, IPF(forward=AdjointHalfBridge(), **IPF_STEPS), X0, NORMAL),
    "AdjointBridge": lambda place: bridge(place, AdjointBridge(updates=2, **TINY), X0, NORMAL),
    "diffuse": lambda place: sb.diffuse(
        given(X0, place),
        solver=sb.ScoreMatching(updates=2, network=sb.networks.MLP(8, 1), grid=TimeGrid.uniform(30)),
        seed=0,
    ),
    "no scaling, Ornstein-Uhlenbeck": lambda place: sb.fit(
        given(X0, place),
        given(X1, place),
        reference=sb.OrnsteinUhlenbeck(RATE, 0.8),
        scaling=sb.NoScaling(),
        seed=0,
    ),
}

CONTROL_SOLVERS = {
    solver.__name__: solver
    for solver in (
        sb.AdjointMatching,
        sb.CrossEntropy,
        sb.LogVariance,
        sb.Moment,
        sb.ReciprocalAdjointMatching,
        sb.RelativeEntropy,
        PosteriorMatching,
    )
}


def solved(place: Place, name: str) -> sb.ControlSolution:
    """The way from the origin to ``(1, 1)`` by one of the control solvers."""
    start = sb.Point(given(np.zeros(2, np.float32), place))
    problem = sb.ControlProblem(sb.BrownianMotion(1.0), start, None, far)
    options = {"updates": 2, "grid": TimeGrid.uniform(3), "network": sb.networks.MLP(8, 2)}
    if name != "PosteriorMatching":
        return sb.solve(problem, CONTROL_SOLVERS[name](**options), seed=0)
    options["network"] = PosteriorNetwork(8, 1)
    return sb.solve(sb.sampling_problem(NORMAL, sb.BrownianMotion(1.0), start), PosteriorMatching(**options), seed=0)
