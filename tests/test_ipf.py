"""Iterative proportional fitting: every half-step against the grid, its end against closed forms, its states."""

import pytest
import torch
from torch import Tensor

from sbridge.controls import MLP, Hutchinson
from sbridge.laws import Gaussian, Samples
from sbridge.measures import Direction
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion, DriftProcess, OrnsteinUhlenbeck, Process, VariancePreserving
from sbridge.registry import register
from sbridge.solvers import IPF, AdjointHalfBridge, HalfBridge, MaximumLikelihood, MeanMatching, check_solver
from sbridge.solvers.ipf import IPFState
from sbridge.time import TimeGrid
from sbridge.training import Flat, Optimisation

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD


def tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@register
class DoubleWell(torch.nn.Module):
    """``b = −2x(x² − 1)`` in every coordinate."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, object] = {}

    def forward(self, t: float | Tensor, x: Tensor) -> Tensor:
        return -2.0 * x * (x.square() - 1.0)


def well(dimension: int | None = None) -> DriftProcess:
    return DriftProcess(DoubleWell(), 0.8, 1.0, dimension)


M0, MT = tensor([-1.0, 0.2]), tensor([1.0, 0.5])
A, B = tensor([[0.5, 0.2], [0.2, 1.0]]), tensor([[1.5, -0.4], [-0.4, 0.7]])
RATE, SIGMA = tensor([[1.0, 0.6], [-0.8, 0.4]]), tensor([[0.8, 0.3], [0.1, 1.0]])
PLANE: dict[str, Process] = {
    "Brownian": BrownianMotion(1.0),
    "OU, matrix": OrnsteinUhlenbeck(RATE, SIGMA, [0.3, -0.5], 1.3),
    "VP": VariancePreserving(mean=[0.5, 0.0], horizon=0.5),
    "double well": well(),
}
HALF_BRIDGES: dict[str, HalfBridge] = {
    "mean matching": MeanMatching(),
    "likelihood": MaximumLikelihood(),
    "likelihood, probes": MaximumLikelihood(Hutchinson(2)),
    "adjoint": AdjointHalfBridge(),
}


def gaussians(reference: Process, dtype: torch.dtype = torch.float64) -> BridgeProblem:
    return BridgeProblem(Gaussian(M0.to(dtype), A.to(dtype)), Gaussian(MT.to(dtype), B.to(dtype)), reference)


def quick(**options: object) -> IPF:
    """A run of 12 steps that touches everything."""
    settings: dict[str, object] = {
        "half_steps": 3,
        "updates": 4,
        "refresh": 3,
        "paths": 24,
        "network": MLP(8, 2),
        "optimisation": Optimisation(batch=32, warm_up=2, learning_rate=1e-4),
        "grid": TimeGrid.uniform(4),
    }
    return IPF(**{**settings, **options})


# --- states


def run(solver: IPF, problem: BridgeProblem, state: IPFState, until: int) -> IPFState:
    while state.step < until:
        state, _ = solver.step(problem, state)
    return state


def same(left: Flat, right: Flat) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[key], right[key]) if isinstance(left[key], Tensor) else left[key] == right[key] for key in left
    )


@pytest.mark.parametrize("half_bridge", HALF_BRIDGES.values(), ids=HALF_BRIDGES)
@pytest.mark.parametrize("stop", [0, 3, 4, 6, 12])
def test_a_run_taken_up_again_ends_in_the_same_bits(stop, half_bridge):
    solver = quick(forward=half_bridge, backward=half_bridge)
    problem = gaussians(PLANE["OU, matrix"], torch.float32)
    whole = run(solver, problem, solver.init(problem, seeded(3)), 12).flat()
    flat = run(solver, problem, solver.init(problem, seeded(3)), stop).flat()
    again = solver.restore(problem, flat)
    assert same(again.flat(), flat)
    assert same(run(solver, problem, again, 12).flat(), whole)


@pytest.mark.parametrize("half_bridge", HALF_BRIDGES.values(), ids=HALF_BRIDGES)
@pytest.mark.parametrize("name", PLANE)
def test_it_keeps_the_laws_of_a_solver(name, half_bridge):
    dtype = torch.float32 if name == "Brownian" else torch.float64
    grid = TimeGrid.uniform(20 if name == "double well" else 4)  # its drift is steep
    solver = quick(half_steps=2, updates=2, forward=half_bridge, backward=half_bridge, grid=grid)
    check_solver(solver, gaussians(PLANE[name], dtype), generator=seeded(4))


def test_it_keeps_them_for_samples_with_weights():
    rows = 0.5 * torch.randn(40, 2, generator=seeded(1))
    problem = BridgeProblem(Samples(rows, torch.ones(40) / 40), Samples(rows + 1), well(2))
    check_solver(quick(half_steps=2, grid=TimeGrid.uniform(30)), problem, generator=seeded(4))
