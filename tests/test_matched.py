"""Simulation-free bridge matching: its answers against the grid and closed forms, its states, what it refuses."""

import math

import pytest
import torch
from families import IN_THE_PLANE, gaussians
from torch import Tensor

from sbridge.controls import MLP
from sbridge.couplings import EntropicCoupling, IndependentCoupling, MinibatchCoupling
from sbridge.errors import FileFormatError, InvalidInputError, UnsupportedError
from sbridge.fitting import solve
from sbridge.laws import Density, Gaussian, Samples
from sbridge.problems import BridgeProblem
from sbridge.processes import (
    BrownianMotion,
    DriftProcess,
)
from sbridge.solvers import IMF, MatchedBridge, check_solver
from sbridge.time import TimeGrid
from sbridge.training import Optimisation, StateDict


def tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quick(**options: object) -> MatchedBridge:
    """A run of ten steps that touches everything."""
    settings: dict[str, object] = {
        "coupling": IndependentCoupling(),
        "updates": 10,
        "refresh": 3,
        "pairs": 40,
        "network": MLP(8, 2),
        "optimisation": Optimisation(batch=48, warm_up=2),
        "grid": TimeGrid.uniform(4),
    }
    return MatchedBridge(**{**settings, **options})


# --- the right answer


def test_of_independent_pairs_it_is_the_markovian_projection_and_no_bridge():
    """Ends N(±1, 1), σ = 1: ``Cov(X_0, X_T)`` is (√5 − 1)/2 = .618 for the bridge, .546 for the projection.

    Its drift has slope ``−(1 − t)/(1 − t + t²)``, so the covariance is ``exp(−π/(3√3))``. Both keep the ends.
    """
    ends = Gaussian(torch.full((1,), -1.0), torch.eye(1)), Gaussian(torch.ones(1), torch.eye(1))
    problem = BridgeProblem(*ends, BrownianMotion(1.0))
    wanted = {IndependentCoupling(): math.exp(-math.pi / (3 * 3**0.5)), MinibatchCoupling(256): (5**0.5 - 1) / 2}
    for coupling, covariance in wanted.items():
        solver = quick(
            coupling=coupling,
            updates=300,
            refresh=75,
            pairs=4096,
            network=MLP(16, 1),
            optimisation=Optimisation(learning_rate=1e-2, batch=256, warm_up=20, ema_decay=0.98),
            grid=TimeGrid.uniform(30),
        )
        x = problem.source.sample(20_000, seeded(3))
        y = solve(problem, solver, seed=0).transport(x, seed=4)
        assert abs(float(y.mean()) - 1.0) < 0.05
        assert abs(float(y.var()) - 1.0) < 0.08
        assert abs(float(torch.cat([x, y], 1).mT.cov()[0, 1]) - covariance) < 0.03


# --- states


def run(solver: MatchedBridge, problem: BridgeProblem, state: object, until: int) -> object:
    while state.step < until:
        state, info = solver.step(problem, state)
        assert set(info) == {"loss"}
    return state


def same(left: StateDict, right: StateDict) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[key], right[key]) if isinstance(left[key], Tensor) else left[key] == right[key] for key in left
    )


@pytest.mark.parametrize("coupling", [EntropicCoupling(30), MinibatchCoupling(400)], ids=["entropic", "minibatch"])
@pytest.mark.parametrize("stop", [0, 2, 3, 7, 10])
def test_a_run_taken_up_again_ends_in_the_same_bits(stop, coupling):
    solver, problem = quick(coupling=coupling), gaussians(IN_THE_PLANE["OU, matrix"], torch.float32)
    whole = run(solver, problem, solver.init(problem, 3), 10).state_dict()
    saved = run(solver, problem, solver.init(problem, 3), stop).state_dict()
    again = solver.resume(problem, saved)
    assert same(again.state_dict(), saved)
    assert same(run(solver, problem, again, 10).state_dict(), whole)


@pytest.mark.parametrize("name", IN_THE_PLANE)
def test_it_keeps_the_laws_of_a_solver(name, dtype):
    check_solver(quick(), gaussians(IN_THE_PLANE[name], dtype), seed=4)


@pytest.mark.parametrize("coupling", [EntropicCoupling(30), MinibatchCoupling(400)], ids=["entropic", "minibatch"])
def test_it_keeps_them_from_plans_of_weighted_rows(coupling):
    rows = torch.randn(40, 2, generator=seeded(1))
    problem = BridgeProblem(Samples(rows, torch.ones(40) / 40), Samples(rows + 1), IN_THE_PLANE["OU, matrix"])
    check_solver(quick(coupling=coupling, updates=4), problem, seed=4)


def test_it_is_the_first_part_of_imf():
    """The same plan, pairs, times and networks: without stages IMF takes the same steps."""
    problem = gaussians(IN_THE_PLANE["Brownian"])
    shared = {"refresh": 3, "network": MLP(8, 2), "optimisation": Optimisation(batch=48), "grid": TimeGrid.uniform(4)}
    start = EntropicCoupling(50)
    one = solve(problem, MatchedBridge(start, updates=7, pairs=40, **shared), seed=2)
    other = solve(problem, IMF(start, pretraining=7, stages=0, pairs=40, **shared), seed=2)
    x = problem.source.sample(9, seeded(1))
    assert torch.equal(one.forward.control(0.3, x), other.forward.control(0.3, x))
    assert torch.equal(one.backward.control(0.3, x), other.backward.control(0.3, x))


# --- what cannot be


def test_what_it_refuses():
    normal = Gaussian(torch.zeros(2), torch.eye(2))
    curved = BridgeProblem(normal, normal, DriftProcess(lambda t, x: -x.sin(), 1.0))
    with pytest.raises(UnsupportedError, match="MatchedBridge needs transitions in closed form, which DriftProcess"):
        solve(curved, quick(), seed=0)
    density = Density(lambda x: -x.square().sum(1), 2)
    for ends in ((normal, density), (density, normal)):
        with pytest.raises(UnsupportedError, match=r"MatchedBridge needs ends that can be sampled, .*: draw samples"):
            solve(BridgeProblem(*ends, BrownianMotion(1.0)), quick(), seed=0)


@pytest.mark.parametrize("name", ["updates", "refresh", "pairs"])
def test_counts_must_be_positive(name):
    with pytest.raises(InvalidInputError, match=f"{name} must be positive, got 0"):
        MatchedBridge(**{name: 0})


def test_a_state_of_another_solver_is_named():
    with pytest.raises(FileFormatError, match=r"no number 'seed'.*another solver"):
        quick().resume(gaussians(BrownianMotion(1.0)), {"step": 3})
