"""Trust regions of control losses: the tempered target, its adjoint, and solvers within them."""

import dataclasses

import pytest
import torch
from quadratic import Feedback, small

from sbridge.controls import MLP
from sbridge.errors import ConvergenceWarning, InvalidInputError, NonFiniteError, UnsupportedError
from sbridge.evaluation import control_error
from sbridge.fitting import solve
from sbridge.laws import Gaussian, Point
from sbridge.measures import PathMeasure
from sbridge.objectives.adjoint import adjoint_targets, lean_adjoint, mixed_targets
from sbridge.objectives.control import log_weight
from sbridge.problems import ControlProblem, StoppingSet
from sbridge.processes import BrownianMotion, DriftProcess, ExactTransition, OrnsteinUhlenbeck
from sbridge.solvers import (
    AdjointMatching,
    Annealing,
    ControlSolver,
    EarlierStart,
    LogVariance,
    ReciprocalAdjointMatching,
    Replay,
    RiccatiStart,
    TrustRegion,
    check_solver,
)
from sbridge.time import TimeGrid
from sbridge.training import Optimisation

GRID = TimeGrid.uniform(10)
WIDE = Gaussian(torch.tensor([0.5, -1.0]), torch.eye(2))


@pytest.mark.parametrize("share", [0.7, 1.0])
def test_mixed_targets_have_the_mean_of_the_optimal_kernels(share: float) -> None:
    """Weighted regressions of the targets and of ``v + ξ/√Δ`` on the states have the same coefficients."""
    case, n = small(), 100_000
    control = Feedback(share * case.optimal.gains)
    measure = PathMeasure(case.problem.process, control, case.problem.start, grid=GRID)
    paths = measure.simulate(measure.starts(n, seed=1), seed=2)
    weights = log_weight(paths, case.problem.costs).softmax(0)
    targets = mixed_targets(paths, case.problem.costs, weights)
    size = float(1.0 / weights.square().sum())
    for k in (0, 4, 9):
        direct = paths.v[k] + paths.noise[k] / paths.chain.root_durations[k]
        x = torch.cat([torch.ones(n, 1, dtype=torch.float64), paths.x[k].double()], 1)[:, : 1 if k == 0 else 3]
        gap = (targets[k] - direct).double()
        scores = x.unsqueeze(2) * gap.unsqueeze(1)
        mean = (weights[:, None, None] * scores).sum(0)
        assert bool((mean.abs() < 4.5 * scores.flatten(1).std(0).reshape(mean.shape) / size**0.5).all()), k
        assert float(targets[k].std(0).max()) < 0.5 * float(direct.std(0).min())  # and far less noise


@pytest.mark.parametrize("horizon", [0.3, 3.0])
def test_mixed_targets_have_no_noise_where_coordinates_are_independent_gaussians(horizon: float) -> None:
    """With a quadratic cost adjoint state and noise alone are noisy; their mixture is the control itself."""
    process, m, v = OrnsteinUhlenbeck(-1.0, 1.3, 0.0, horizon), 0.4, torch.tensor([0.6, 2.0]).double()
    problem = ControlProblem(
        process, Point(torch.tensor([0.2, -0.5]).double()), None, lambda x: ((x - m).square() / (2.0 * v)).sum(1)
    )
    exact = RiccatiStart().control(problem, GRID, ExactTransition())
    measure = PathMeasure(process, lambda t, x: 0.9 * exact(t, x), problem.start, grid=GRID, rule=ExactTransition())
    paths = measure.sample(20_000, seed=1)
    weights = log_weight(paths, problem.costs).softmax(0)
    targets = mixed_targets(paths, problem.costs, weights)
    lean = adjoint_targets(paths.chain, lean_adjoint(paths, problem.costs))
    for k in (0, 5, 9):
        x = torch.cat([torch.ones(20_000, 1).double(), paths.x[k]], 1)[:, : 1 if k == 0 else 3]
        noise, raw = (y - x @ torch.linalg.lstsq(x, y).solution for y in (targets[k], lean[k]))
        assert float(noise.std()) < 0.05 * float(raw.std()), k


def test_the_mixture_has_the_least_spread_of_all_that_are_quadratic_in_a_coordinate() -> None:
    """At the last step, in the normal equations: ``Σ w gap (y − v) xʲ = 0`` for ``j ≤ 2``, and not beyond."""
    problem = ControlProblem(
        OrnsteinUhlenbeck(-1.0, 1.3),
        Gaussian(WIDE.mean.double(), WIDE.covariance.double()),
        None,
        lambda x: (0.5 * x**2 + 0.05 * x**4).sum(1),
    )
    paths = PathMeasure(problem.process, lambda t, x: -0.5 * x, problem.start, grid=GRID).sample(2000, seed=1)
    weights = log_weight(paths, problem.costs).softmax(0)
    y = mixed_targets(paths, problem.costs, weights)[-1]
    adjoint = adjoint_targets(paths.chain, lean_adjoint(paths, problem.costs))[-1]
    gap = paths.v[-1] + paths.noise[-1] / paths.chain.root_durations[-1] - adjoint
    terms = [weights[:, None] * gap * (y - paths.v[-1]) * paths.x[-2] ** j for j in range(4)]
    sums = [float((one.sum(0).abs() / one.abs().sum(0)).max()) for one in terms]
    assert max(sums[:3]) < 1e-4
    assert sums[3] > 1e-2


def bounded(make: type, **options: object) -> ControlSolver:
    settings = {"network": MLP(16, 2), "grid": GRID, "trust_region": TrustRegion()}
    return make(**(settings | options))


@pytest.mark.parametrize("start", [None, WIDE], ids=["point", "wide"])
def test_log_variance_within_a_trust_region_reaches_the_optimum(start: Gaussian | None) -> None:
    case = small(dtype=torch.float32)
    problem = case.problem if start is None else dataclasses.replace(case.problem, start=start)
    options = Optimisation(learning_rate=5e-3, batch=128, ema_decay=0.99, warm_up=20)
    found = solve(problem, bounded(LogVariance, updates=300, optimisation=options), seed=1)
    assert control_error(found, case.optimal, 4000, seed=2).value < 0.03


def test_adjoint_matching_within_a_trust_region_reaches_the_optimum() -> None:
    case = small(dtype=torch.float32)
    options = Optimisation(learning_rate=5e-3, batch=512, ema_decay=0.99, warm_up=20)
    replay = Replay(paths=1024, updates=20, kept=2)
    found = solve(case.problem, bounded(AdjointMatching, updates=400, optimisation=options, replay=replay), seed=1)
    assert control_error(found, case.optimal, 4000, seed=2).value < 0.02


@pytest.mark.parametrize("make", [LogVariance, AdjointMatching])
def test_solvers_within_a_trust_region_keep_the_laws(make: type) -> None:
    replay = Replay(paths=1024 if make is AdjointMatching else 32, updates=3, kept=2)
    options = {"optimisation": Optimisation(batch=16, warm_up=2), "trust_region": TrustRegion(100.0)}
    check_solver(bounded(make, updates=8, network=MLP(8, 2), replay=replay, **options), small().problem)


def test_stopped_paths_have_a_trust_region_too() -> None:
    problem = dataclasses.replace(small().problem, stopping=StoppingSet(lambda x: x[:, 0] - 1.5))
    replay = Replay(paths=32, updates=3, kept=2)
    options = {"optimisation": Optimisation(batch=16, warm_up=2), "trust_region": TrustRegion(100.0)}
    solver = bounded(LogVariance, updates=8, network=MLP(8, 2), replay=replay, **options)
    check_solver(solver, problem, seed=1)
    paths = PathMeasure(problem.process, None, problem.start, grid=GRID).sample(3, seed=0)
    with pytest.raises(UnsupportedError, match="with a stopping set use"):
        mixed_targets(paths, problem.costs, torch.full((3,), 1.0 / 3.0))


@pytest.mark.parametrize("make", [AdjointMatching, LogVariance])
def test_a_trust_region_that_is_too_small_for_the_updates_is_told(make: type) -> None:
    problem = dataclasses.replace(small(dtype=torch.float32).problem, terminal_cost=lambda x: 30.0 * x[:, 0])
    solver = bounded(make, updates=3, trust_region=TrustRegion(1e-3))
    with pytest.warns(ConvergenceWarning, match=r"a share of \d+% is missing after 3 updates, since .* 0.001 nats"):
        solve(problem, solver, seed=0)


@pytest.mark.parametrize("make", [AdjointMatching, ReciprocalAdjointMatching])
def test_a_gradient_that_is_not_finite_is_shown_with_its_place(make: type) -> None:
    """``√|x − x|`` is zero, and the gradient that torch finds is not a number."""
    problem = ControlProblem(
        BrownianMotion(1.0), Point(torch.zeros(2)), None, lambda x: (x[:, 0] - x[:, 0].detach()).abs().sqrt()
    )
    with pytest.raises(NonFiniteError, match=r"gradient of the terminal cost is NaN .* ends, such as x = \("):
        solve(problem, make(grid=GRID), seed=0)


def test_options_that_do_not_go_together() -> None:
    for make in (LogVariance, AdjointMatching):
        with pytest.raises(InvalidInputError, match="trust_region and annealing both bring the terminal cost in"):
            make(trust_region=TrustRegion(), annealing=Annealing())
    with pytest.raises(InvalidInputError, match=r"needs 1024 or more at a time, got 256: .* trust_region=None"):
        AdjointMatching(replay=Replay())


def test_a_solver_that_is_worse_than_nothing_says_so_and_names_another() -> None:
    """``u = 3x`` against a cost of ``|x|²``: learning of a few updates cannot mend it."""
    cost = lambda x: x.square().sum(1)  # noqa: E731
    solver = LogVariance(updates=2, network=MLP(8, 2), grid=GRID, start=EarlierStart(lambda t, x: 3.0 * x))
    linear = ControlProblem(BrownianMotion(1.0), Point(torch.ones(2)), None, cost)
    bent = ControlProblem(DriftProcess(lambda t, x: -x, 1.0, 1.0, 2), Point(torch.ones(2)), None, cost)
    said = r"LogVariance did not improve on no control: the objective is \d+.*Use "
    with pytest.warns(ConvergenceWarning, match=said + r"ReciprocalAdjointMatching\(\)"):
        solve(linear, solver, seed=0)
    with pytest.warns(ConvergenceWarning, match=said + r"LogVariance\(trust_region=TrustRegion\(\)\)"):
        solve(bent, solver, seed=0)
    solve(bent, dataclasses.replace(solver, start=EarlierStart(lambda t, x: -0.5 * x)), seed=0)
