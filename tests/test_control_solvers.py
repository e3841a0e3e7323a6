"""Control solvers: they keep the laws of solvers, reach the chain's optimum, and say what they cannot do."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from quadratic import Feedback, small

from sbridge.controls import MLP, AdditiveMLP, FourierMLP, SumControl
from sbridge.errors import (
    ConvergenceWarning,
    FileFormatError,
    InvalidInputError,
    NonFiniteError,
    NotConvergedError,
    UnsupportedError,
)
from sbridge.evaluation import (
    control_error,
    evaluate_control,
    fixed_point_residual,
    objective_and_value,
    signal_to_noise,
)
from sbridge.fitting import solve
from sbridge.laws import Gaussian, Point
from sbridge.measures import PathMeasure
from sbridge.problems import BridgeProblem, ControlProblem, Costs, StoppingSet
from sbridge.processes import BrownianMotion, DriftProcess, OrnsteinUhlenbeck
from sbridge.random import generator
from sbridge.simulation import Backprop, Detached, ReversibleAdjoint
from sbridge.solutions import ControlSolution, load_control
from sbridge.solvers import (
    IMF,
    AdjointMatching,
    Annealing,
    ControlSolver,
    CrossEntropy,
    EarlierStart,
    LogVariance,
    Moment,
    ReciprocalAdjointMatching,
    RelativeEntropy,
    Replay,
    TrustRegion,
    check_solver,
)
from sbridge.time import TimeGrid
from sbridge.training import Optimisation

GRID = TimeGrid.uniform(10)
PATHS = Optimisation(learning_rate=5e-3, batch=128, ema_decay=0.99, warm_up=20)
SOLVERS: dict[str, Callable[..., ControlSolver]] = {
    "adjoint matching": AdjointMatching,
    "lean adjoint matching": lambda **options: AdjointMatching(trust_region=None, replay=Replay(), **options),
    "relative entropy": RelativeEntropy,
    "relative entropy, adjoint": lambda **options: RelativeEntropy(gradient=ReversibleAdjoint(), **options),
    "log-variance": LogVariance,
    "moment": Moment,
    "cross-entropy": CrossEntropy,
}
TERMINAL = ControlProblem(
    OrnsteinUhlenbeck([[1.0, 0.3], [-0.2, 0.5]], [0.8, 1.2]),
    Point(torch.tensor([0.5, -1.0])),
    None,
    lambda x: (x - 1.0).square().sum(1),
)


def tiny(make: Callable[..., ControlSolver], **options: object) -> ControlSolver:
    """Eight updates that touch everything."""
    settings: dict[str, object] = {"updates": 8, "network": MLP(8, 2), "grid": GRID}
    settings["optimisation"] = Optimisation(batch=16, warm_up=2)
    solver = make(**(settings | options))
    if isinstance(solver, (AdjointMatching, ReciprocalAdjointMatching)):
        weighted = isinstance(solver, AdjointMatching) and solver.trust_region is not None
        solver = dataclasses.replace(solver, replay=Replay(paths=1024 if weighted else 8, updates=3, kept=2))
        solver = dataclasses.replace(solver, trust_region=TrustRegion(100.0)) if weighted else solver
    return solver


# --- the laws of solvers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", SOLVERS.values(), ids=SOLVERS)
def test_every_solver_keeps_the_laws(make: Callable[..., ControlSolver], dtype: torch.dtype) -> None:
    problem = small(dtype=dtype).problem
    solver = tiny(make)
    if dtype is torch.float32:
        solver = dataclasses.replace(solver, start=EarlierStart(_registered()))
    elif getattr(solver, "trust_region", None) is None:
        solver = dataclasses.replace(solver, annealing=Annealing(0.1, 0.5))
    check_solver(solver, problem, seed=3)


def test_reciprocal_matching_keeps_the_laws() -> None:
    check_solver(tiny(ReciprocalAdjointMatching, trust_region=TrustRegion(100.0)), TERMINAL, seed=1)


def test_likelihood_ratio_solvers_keep_the_laws_with_a_stopping_set() -> None:
    problem = dataclasses.replace(small().problem, stopping=StoppingSet(lambda x: x[:, 0] - 1.5))
    for make in (LogVariance, Moment, CrossEntropy):
        check_solver(tiny(make), problem, seed=1)


def _registered() -> SumControl:
    return SumControl((solve(small().problem, tiny(LogVariance), seed=9).control,))


# --- they solve


@pytest.mark.parametrize(
    ("name", "updates", "error"),
    [
        ("adjoint matching", 200, 0.02),
        ("lean adjoint matching", 400, 0.02),
        ("relative entropy", 150, 0.03),
        ("log-variance", 200, 0.03),
        ("moment", 200, 0.03),
        ("cross-entropy", 200, 0.1),
    ],
)
def test_from_zero_to_the_optimum_of_the_chain(name: str, updates: int, error: float) -> None:
    case = small(dtype=torch.float32)
    options: dict[str, object] = {"updates": updates, "network": MLP(16, 2), "grid": GRID, "optimisation": PATHS}
    if "adjoint matching" in name:
        options["optimisation"] = Optimisation(learning_rate=5e-3, batch=512, ema_decay=0.99, warm_up=20)
    solution = solve(case.problem, SOLVERS[name](**options), seed=1)
    found = control_error(solution, case.optimal, 4000, seed=2)
    assert found.value < error, found
    top, value = objective_and_value(solution, 4000, seed=3)
    _, best, tilted = case.riccati()
    assert best - 4 * top.standard_error < top.value < best + 0.03
    assert abs(value.value - tilted) < 4 * value.standard_error + 1e-4


def test_the_reversible_adjoint_trains_too() -> None:
    case = small(dtype=torch.float32)
    solver = RelativeEntropy(
        updates=120, network=MLP(16, 2), grid=GRID, optimisation=PATHS, gradient=ReversibleAdjoint()
    )
    found = control_error(solve(case.problem, solver, seed=1), case.optimal, 2000, seed=2)
    assert found.value < 0.15, found  # its optimum is that of another scheme with as few steps


def test_a_stopped_problem_is_learned_from_likelihood_ratios() -> None:
    """Half of the excess of zero control, and more, in 150 updates."""
    process = DriftProcess(lambda t, x: -4.0 * x * (x.square() - 1.0), 1.0, 1.0, 1)
    problem = ControlProblem(
        process,
        Point(torch.tensor([-1.0])),
        lambda t, x: torch.ones_like(x[:, 0]),
        None,
        StoppingSet(lambda x: x[:, 0]),
    )
    grid = TimeGrid.uniform(50)
    zero = ControlSolution(problem, PathMeasure(process, None, problem.start, grid=grid))
    before, _ = objective_and_value(zero, 20_000, seed=1)
    solver = LogVariance(updates=150, grid=grid, network=MLP(16, 2), optimisation=PATHS)
    after, value = objective_and_value(solve(problem, solver, seed=0), 20_000, seed=1)
    # −log E α lies below the best objective, so the excess over it is an upper bound.
    assert after.value - value.value < 0.5 * (before.value - value.value)


def test_a_warm_start_at_the_optimum_stays_there() -> None:
    case = small(dtype=torch.float32)
    solver = AdjointMatching(updates=20, network=MLP(8, 2), grid=GRID, start=EarlierStart(case.optimal))
    solution = solve(case.problem, solver, seed=0)
    assert isinstance(solution.control, SumControl)
    assert control_error(solution, case.optimal, 2000, seed=1).value < 1e-2


def test_a_saddle_is_left_for_both_wells() -> None:
    """``b = −∇Σ(x_i² − 1)²``, ``g = 2Σ(x_i² − 1)²`` from 0: linear controls do not help, so a plain network waits."""
    process = DriftProcess(lambda t, x: -4.0 * x * (x.square() - 1.0), 1.0, 1.0, 4)
    problem = ControlProblem(process, Point(torch.zeros(4)), None, lambda x: 2.0 * (x.square() - 1.0).square().sum(1))
    grid = TimeGrid.uniform(30)
    zero = ControlSolution(problem, PathMeasure(process, None, problem.start, grid=grid))
    before, value = objective_and_value(zero, 20_000, seed=1)
    solution = solve(problem, AdjointMatching(updates=300, grid=grid, network=FourierMLP(32, 2)), seed=0)
    after, _ = objective_and_value(solution, 20_000, seed=1)
    # −log E α lies below the best objective, so this is an upper bound of what is left.
    assert after.value - value.value < 0.5 * (before.value - value.value)
    # The weight of a well is a random variable of mean ½ over seeds, with a standard deviation of about .01.
    share = (solution.sample(4096, seed=2).x[-1] > 0).double().mean(0)
    assert bool(((share - 0.5).abs() < 5 * 0.01 + 4 * 0.5 / 4096**0.5).all())


def test_networks_work_in_units_of_the_states() -> None:
    """States ten times as large under a process ten times as noisy: the same control of the same noise."""
    solutions = []
    for unit in (1.0, 10.0):
        start = Point(torch.full((2,), unit))
        problem = ControlProblem(BrownianMotion(unit), start, None, lambda x, unit=unit: (x / unit).square().sum(1))
        solutions.append(solve(problem, LogVariance(updates=20, grid=GRID, network=AdditiveMLP(8, 2)), seed=0))
    x = torch.randn(6, 2, generator=generator(1))
    small_, large = (solution.control(0.5, unit * x) for unit, solution in zip((1.0, 10.0), solutions, strict=True))
    torch.testing.assert_close(small_, large, rtol=1e-3, atol=1e-4)
    assert float(small_.abs().max()) > 0.01


def test_adjoint_matching_that_runs_away_says_so() -> None:
    steep = ControlProblem(
        BrownianMotion(2.0), Point(torch.zeros(5)), None, lambda x: (x.square() - 4.0).square().sum(1)
    )
    solver = AdjointMatching(updates=200, grid=TimeGrid.uniform(20), network=MLP(32, 2))
    lean = dataclasses.replace(solver, trust_region=None, replay=Replay())
    with pytest.raises(NotConvergedError, match=r"AdjointMatching diverged: .* Use LogVariance"):
        solve(steep, lean, seed=0)
    zero = ControlSolution(steep, PathMeasure(steep.process, None, steep.start, grid=solver.grid))
    with pytest.warns(ConvergenceWarning, match="has not reached the whole cost"):
        bounded = solve(steep, solver, seed=0)
    (before, _), (after, _) = (objective_and_value(one, 4000, seed=1) for one in (zero, bounded))
    assert after.value < 0.6 * before.value  # .43: a trust region does not run away


def test_a_start_that_blows_up_is_told_before_training() -> None:
    process = DriftProcess(lambda t, x: x**3, 1.0, 1.0, 1)
    problem = ControlProblem(process, Point(torch.full((1,), 30.0)), None, lambda x: x[:, 0])
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        solve(problem, LogVariance(), seed=0)


def test_annealing_raises_the_terminal_cost_to_itself() -> None:
    annealing = Annealing(first=0.01, share=0.5)
    assert [annealing.factor(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.01, 0.1, 1.0, 1.0])
    costs = Costs(None, lambda x: x.sum(1))
    x = torch.ones(3, 2)
    torch.testing.assert_close(annealing.costs(costs, 0.25).end(x), 0.1 * costs.end(x))
    assert annealing.costs(costs, 0.6) is costs
    for wrong in ({"first": 0.0}, {"share": 1.5}):
        with pytest.raises(InvalidInputError, match=r"\(0, 1\]"):
            Annealing(**wrong)


# --- diagnostics


def test_diagnostics_at_the_optimum_and_away_from_it() -> None:
    case = small()
    near = ControlSolution(case.problem, PathMeasure(case.problem.process, case.optimal, case.problem.start, grid=GRID))
    far = dataclasses.replace(
        near, measure=dataclasses.replace(near.measure, control=Feedback(0.6 * case.optimal.gains))
    )
    report = evaluate_control(near, n=2000, seed=0, known=case.optimal)
    assert report.control_error is not None
    assert report.control_error.value == 0.0
    assert report.signal_to_noise is None
    assert 0.0 < report.gap < 0.2
    assert "effective" in str(report)
    assert "signal" not in str(report)
    assert report.fixed_point_residual is not None
    assert abs(report.fixed_point_residual.value) < 4 * report.fixed_point_residual.standard_error
    residual = fixed_point_residual(far, seed=1)
    assert residual.value > 0.05 + 4 * residual.standard_error
    assert control_error(far, case.optimal, 2000, seed=1).value == pytest.approx(0.16, rel=1e-6)


def test_no_control_at_all_is_judged_too() -> None:
    case = small()
    idle = ControlSolution(case.problem, PathMeasure(case.problem.process, None, case.problem.start, grid=GRID))
    report = evaluate_control(idle, n=500, seed=0, known=case.optimal)
    assert report.fixed_point_residual is None
    assert report.control_error is not None
    assert report.control_error.value == pytest.approx(1.0)


def test_the_signal_of_the_gradient_sinks_with_training() -> None:
    case = small(dtype=torch.float32)
    options = {"network": MLP(16, 2), "grid": GRID, "optimisation": PATHS}
    early, late = (
        signal_to_noise(solve(case.problem, LogVariance(updates=n, **options), seed=1), seed=2) for n in (5, 150)
    )
    assert early is not None
    assert late is not None
    assert early > 10 * abs(late)
    assert early > 1


# --- what they refuse


def test_solvers_that_differentiate_refuse_stopping_and_costs_without_gradients() -> None:
    case = small().problem
    stopped = dataclasses.replace(case, stopping=StoppingSet(lambda x: x[:, 0] - 1.0))
    stepped = dataclasses.replace(case, terminal_cost=lambda x: (x > 0).any(1).double())
    for make in (AdjointMatching, RelativeEntropy, ReciprocalAdjointMatching):
        for problem in (stopped, stepped):
            if make is ReciprocalAdjointMatching:
                problem = dataclasses.replace(problem, process=BrownianMotion(1.0), running_cost=None)
            with pytest.raises(UnsupportedError, match="LogVariance, Moment or CrossEntropy"):
                solve(problem, make(), seed=0)


def test_a_step_too_large_for_the_drift_is_named_with_one_that_would_do() -> None:
    process = DriftProcess(lambda t, x: -300.0 * x, 1.0, 1.0, 2)
    problem = ControlProblem(process, Point(torch.ones(2)), None, lambda x: x.square().sum(1))
    said = r"contracts at rate 300 .* Euler steps of 0.01 are unstable beyond a rate of 200. TimeGrid.uniform\(300\)"
    with pytest.raises(InvalidInputError, match=said):
        solve(problem, LogVariance(), seed=0)
    assert solve(problem, tiny(LogVariance, grid=TimeGrid.uniform(300)), seed=0).dim == 2


def test_problems_and_solvers_of_different_kinds_do_not_meet() -> None:
    gaussian = Gaussian(torch.zeros(2), torch.eye(2))
    bridge = BridgeProblem(gaussian, gaussian, BrownianMotion(1.0))
    with pytest.raises(UnsupportedError, match="LogVariance solves a ControlProblem, got a BridgeProblem"):
        solve(bridge, LogVariance(), seed=0)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="IMF solves a BridgeProblem, got a ControlProblem"):
        solve(TERMINAL, IMF(), seed=0)  # type: ignore[arg-type]


def test_options_out_of_range() -> None:
    for make in (
        lambda: LogVariance(updates=0),
        lambda: Replay(paths=0),
        lambda: RelativeEntropy(gradient=Detached()),
    ):
        with pytest.raises(InvalidInputError):
            make()
    assert RelativeEntropy(gradient=Backprop()) == RelativeEntropy()


# --- files


def test_a_solution_is_saved_without_its_problem(tmp_path: Path) -> None:
    problem = small().problem
    solution = solve(problem, tiny(AdjointMatching), seed=0)
    solution.save(tmp_path / "control")
    again = load_control(tmp_path / "control", problem)
    assert torch.equal(again.sample(5, seed=1).x, solution.sample(5, seed=1).x)
    with pytest.raises(InvalidInputError, match="saved for dimension 2 and horizon 1"):
        load_control(tmp_path / "control", ControlProblem(BrownianMotion(1.0), Point(torch.zeros(3))))
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(FileFormatError, match="not a saved control"):
        load_control(tmp_path / "other", problem)


def test_equal_seeds_and_an_earlier_control_leave_the_objective_finite() -> None:
    problem = small().problem
    first = solve(problem, tiny(Moment), seed=4)
    second = solve(problem, tiny(LogVariance, start=EarlierStart(first.control)), seed=4)
    assert math.isfinite(objective_and_value(second, 64, seed=0)[0].value)
