"""Bridge problems with a state cost: solved as plain bridges, and accounted for in values, reports and files."""

import math

import pytest
import torch
from families import SOLVERS, tensor
from torch import Tensor

import sbridge as sb
from sbridge.errors import InvalidInputError, NonFiniteError, UnsupportedError
from sbridge.evaluation import Certificate, EvaluationBudget
from sbridge.evaluation.report import WITH_COST
from sbridge.exact import GaussianCoupling
from sbridge.fitting import choose_solver
from sbridge.laws.scaling import AffineScaling, CommonScale
from sbridge.pde import Grid, solve_schroedinger
from sbridge.problems import not_plain
from sbridge.processes import Direction
from sbridge.solutions import Bridge, load
from sbridge.solvers import Solver

SOURCE = sb.Gaussian(tensor([0.5, -1.0]), tensor([[1.0, 0.3], [0.3, 0.6]]))
TARGET = sb.Gaussian(tensor([-0.4, 0.8]), tensor([[0.5, -0.1], [-0.1, 1.2]]))
COST = sb.costs.Quadratic(tensor([[2.0, 0.4], [0.4, 1.5]]), tensor([0.5, -1.0]), 0.3)
SADDLE = sb.costs.Quadratic(tensor([[2.0, 0.4], [0.4, -0.5]]), tensor([0.5, -1.0]), 0.3)
REFERENCE = sb.OrnsteinUhlenbeck(0.4, 0.8, tensor([1.0, 0.0]))
PROBLEM = sb.BridgeProblem(SOURCE, TARGET, REFERENCE, state_cost=COST)
SAMPLES = [
    sb.Samples(end.sample(4000, torch.Generator().manual_seed(seed))) for seed, end in ((0, SOURCE), (1, TARGET))
]


def exact(problem: sb.BridgeProblem) -> tuple[GaussianCoupling, float]:
    """The coupling, and ``min KL + E∫V``, of Gaussian ends."""
    plain = problem.absorbed()
    source, target, left = plain.source, plain.target, plain.state_cost
    assert isinstance(source, sb.Gaussian)
    assert isinstance(target, sb.Gaussian)
    assert isinstance(left, sb.costs.AbsorbedCost)
    coupling = GaussianCoupling(source.mean, source.covariance, target.mean, target.covariance, plain.linear_reference)
    start = left.start.expectation(source.mean, source.covariance)
    return coupling, coupling.value + start - left.end.expectation(target.mean, target.covariance)


def test_a_plain_problem_stays_as_it_is():
    problem = sb.BridgeProblem(SOURCE, TARGET, REFERENCE)
    assert problem.absorbed() is problem
    assert problem.state_cost is None
    assert sb.solve(problem, sb.GaussianBridge(), seed=0).state_cost is None
    assert not_plain("It", problem) is None


@pytest.mark.parametrize(
    "solver", [sb.GaussianBridge(), sb.MixtureBridge(components=(1,)), sb.SinkhornBridge(max_rows=1000)]
)
def test_solvers_solve_the_problem_with_the_cost(solver):
    """Plan and middle are those of the closed form, and not those of the plain bridge."""
    problem = sb.BridgeProblem(*SAMPLES, REFERENCE, state_cost=COST)
    bridge, x = sb.solve(problem, solver, seed=0), SAMPLES[0].rows
    y, middle = bridge.transport(x, seed=1), bridge.interpolate(x, 0.5, seed=1)
    cross = (x - x.mean(0)).mT @ (y - y.mean(0)) / len(x)
    coupling, _ = exact(PROBLEM)
    plain = GaussianCoupling(coupling.m0, coupling.A, coupling.mT, coupling.B, REFERENCE)
    found, wanted, other = (
        torch.cat([cross.flatten(), mean, covariance.flatten()])
        for cross, mean, covariance in (
            (cross, middle.mean(0), middle.mT.cov()),
            (coupling.coupling, *coupling.marginal(0.5)),
            (plain.coupling, *plain.marginal(0.5)),
        )
    )
    assert float((found - wanted).abs().max()) < 0.06
    assert float((other - wanted).abs().max()) > 0.15


@pytest.mark.parametrize("scaling", [None, CommonScale()])
def test_the_report_says_what_is_minimised(scaling):
    solver, rows = sb.GaussianBridge(sb.TimeGrid.uniform(25)), [end.rows for end in SAMPLES]
    bridge = sb.fit(SOURCE, TARGET, reference=REFERENCE, state_cost=COST, solver=solver, scaling=scaling)
    _, value = exact(PROBLEM)
    few = {"seed": 0, "metrics": (sb.metrics.EnergyDistance(),), "baselines": ()}
    for one, ends in ((bridge, rows), (bridge.reversed(), rows[::-1])):
        report = sb.evaluate(one, *ends, limits=EvaluationBudget(rows=1000, paths=1000), **few)
        found = report.quantity(WITH_COST)
        assert abs(found.value - value) < 4.0 * found.standard_error
        assert "E∫V dt of the forward process" in " ".join(report.text().split())
    plain = sb.evaluate(
        sb.fit(SOURCE, TARGET, reference=REFERENCE, solver=solver),
        *rows,
        limits=EvaluationBudget(rows=100, paths=20),
        **few,
    )
    assert WITH_COST not in [quantity.name for quantity in plain.path]


def test_a_certificate_bounds_energy_and_cost():
    solver = sb.GaussianBridge(sb.TimeGrid.uniform(25))
    bridge = sb.fit(SOURCE, TARGET, reference=REFERENCE, state_cost=COST, solver=solver)
    _, value = exact(PROBLEM)
    limits = EvaluationBudget(rows=1000, paths=200)
    found = sb.certify(bridge, *(end.rows for end in SAMPLES), seed=0, limits=limits, solver=sb.MixtureBridge((1,)))
    assert found.state_cost is not None
    bound = found.lower_bound.value + found.state_cost.value
    assert abs(bound - value) < 4.0 * math.hypot(found.lower_bound.standard_error, found.state_cost.standard_error)
    assert "the state cost adds" in found.table()
    again = Certificate.from_json(found.to_json())
    assert again.table() == found.table()


ENDS = (
    sb.GaussianMixture(tensor([0.4, 0.6]), tensor([[-1.0], [1.0]]), tensor([[[0.2]], [[0.3]]])),
    sb.GaussianMixture(tensor([0.7, 0.3]), tensor([[-0.5], [1.2]]), tensor([[[0.3]], [[0.2]]])),
)


@pytest.mark.parametrize(
    ("reference", "matrix", "slope"),
    [(sb.BrownianMotion(1.0), -1.0, 0.7), (sb.OrnsteinUhlenbeck(0.5, 0.8, 0.3), 1.5, -0.4)],
)
def test_the_grid_finds_the_same_value_and_plan_without_the_closed_form(reference, matrix, slope):
    cost, grid = sb.costs.Quadratic(tensor([[matrix]]), tensor([slope]), 0.2), Grid.of(-6.0, 6.0, 300)
    plain = sb.BridgeProblem(*ENDS, reference, state_cost=cost).absorbed()
    short = solve_schroedinger(plain.reference, *ENDS, grid)
    long = solve_schroedinger(reference, *ENDS, grid, state_cost=cost.running)
    left, density = plain.state_cost, (torch.as_tensor(short.density(t)) * grid.volume for t in (0.0, 1.0))
    assert isinstance(left, sb.costs.AbsorbedCost)
    start, end = (float(p @ psi(grid.points)) for p, psi in zip(density, (left.start, left.end), strict=True))
    assert short.value + start - end == pytest.approx(long.value, abs=2e-3)
    assert float(abs(short.plan() - long.plan()).sum()) * grid.volume**2 < 4e-3


def test_units_do_not_change_costs():
    scaling = AffineScaling(tensor([3.0, -1.0]), tensor([2.0, 0.5]))
    x = SAMPLES[0].rows[:5]

    def wave(t: float, x: Tensor) -> Tensor:
        return (x[:, 0] - t).sin() + x[:, 1]

    scaled = sb.BridgeProblem(*SAMPLES, REFERENCE, state_cost=wave).rescaled(scaling)
    torch.testing.assert_close(scaled.state_cost(0.3, scaling.to_model(x)), wave(0.3, x))
    for cost in (COST, SADDLE):
        problem = sb.BridgeProblem(SOURCE, TARGET, REFERENCE, state_cost=cost)
        outside, inside = problem.absorbed().rescaled(scaling), problem.rescaled(scaling).absorbed()
        assert exact(outside)[1] == pytest.approx(exact(problem)[1], rel=1e-12)
        assert exact(inside)[1] == pytest.approx(exact(problem)[1], rel=1e-12)
        assert outside.absorbed() is outside


def test_files_of_plain_bridges_do_not_change(tmp_path):
    sb.fit(SOURCE, TARGET, reference=REFERENCE).save(tmp_path / "bridge")
    assert "state_cost" not in (tmp_path / "bridge.json").read_text()
    assert load(tmp_path / "bridge").state_cost is None


def test_files_keep_what_the_cost_adds(tmp_path):
    bridge = sb.fit(SOURCE, TARGET, reference=REFERENCE, state_cost=SADDLE)
    bridge.save(tmp_path / "bridge")
    again, x = load(tmp_path / "bridge"), SAMPLES[0].rows[:5]
    assert isinstance(again.state_cost, sb.costs.AbsorbedCost)
    torch.testing.assert_close(again.reversed().state_cost.between(x, -x), bridge.state_cost.between(x, -x))
    torch.testing.assert_close(again.interpolate(x, 0.5, seed=0), bridge.interpolate(x, 0.5, seed=0))


@pytest.mark.parametrize(
    "solver", [one for one in SOLVERS if not isinstance(one, sb.IPF)], ids=lambda solver: type(solver).__name__
)
def test_every_solver_says_which_costs_it_does_not_take(solver: Solver):
    target = sb.Density(lambda x: -0.5 * x.square().sum(1), 2) if isinstance(solver, sb.AdjointBridge) else SAMPLES[1]
    problem = sb.BridgeProblem(SAMPLES[0], target, REFERENCE, state_cost=lambda t, x: x.square().sum(1))
    name = type(solver).__name__
    with pytest.raises(UnsupportedError, match=rf"{name} takes no state cost that is a plain .*costs\.Quadratic"):
        sb.solve(problem, solver, seed=0)
    quadratic = sb.BridgeProblem(SAMPLES[0], target, REFERENCE, state_cost=COST)
    assert f"{name} takes a quadratic state cost as part" in str(solver.refusal(quadratic))
    assert solver.refusal(quadratic.absorbed()) is None


def test_proportional_fitting_learns_any_differentiable_cost():
    """Between standard normal ends with ``V = 2x²``: the variance half way is .4934, without the cost 1.0590."""
    rows = torch.randn(2, 4000, 1, generator=torch.Generator().manual_seed(0))
    ends = [sb.Samples(one) for one in rows]
    problem = sb.BridgeProblem(*ends, sb.BrownianMotion(1.0), state_cost=lambda t, x: 2.0 * x[:, 0].square())
    ipf = sb.IPF(half_steps=8, updates=75, grid=sb.TimeGrid.cosine(25), paths=1024)
    assert isinstance(ipf.half_bridge(problem, Direction.FORWARD), sb.solvers.DensityRatio)
    bridge = sb.solve(problem, ipf, seed=0)
    for one, start, tolerance in ((bridge, rows[0], 0.06), (bridge.reversed(), rows[1], 0.2)):
        assert float(one.interpolate(start, 0.5, seed=1).var()) == pytest.approx(0.4934, abs=tolerance)
    limits = EvaluationBudget(rows=1000, paths=1000)
    report = sb.evaluate(bridge, *rows, seed=0, metrics=(sb.metrics.EnergyDistance(),), baselines=(), limits=limits)
    action, energy = (report.quantity(name) for name in (WITH_COST, "energy, forward"))
    cost = (
        2.0 * sum(float(bridge.interpolate(rows[0], t, seed=2).square().mean()) for t in (0.1, 0.3, 0.5, 0.7, 0.9)) / 5
    )
    assert action.value - energy.value == pytest.approx(cost, abs=0.15)
    with pytest.raises(UnsupportedError, match="no certificate for a state cost that is a function"):
        sb.certify(bridge, *rows, seed=0)


def test_half_bridges_that_would_lose_the_cost_are_refused():
    problem = sb.BridgeProblem(*SAMPLES, REFERENCE, state_cost=lambda t, x: x.square().sum(1))
    for ways in ({"forward": sb.solvers.MeanMatching()}, {"backward": sb.solvers.PinnedPaths()}):
        assert "takes no state cost that is a plain function" in str(sb.IPF(**ways).refusal(problem))
    steps = sb.BridgeProblem(*SAMPLES, REFERENCE, state_cost=lambda t, x: (x[:, 0] > 0).to(x))
    assert "running cost depends on x but has no gradient" in str(sb.IPF().refusal(steps))


def test_the_choice_of_a_solver_knows_the_cost():
    assert isinstance(choose_solver(PROBLEM).solver, sb.GaussianBridge)
    function = sb.BridgeProblem(SOURCE, TARGET, REFERENCE, state_cost=lambda t, x: x.square().sum(1))
    assert isinstance(choose_solver(function).solver, sb.IPF)
    density = sb.Density(lambda x: -0.5 * x.square().sum(1), 2)
    with pytest.raises(UnsupportedError, match="plain function"):
        choose_solver(sb.BridgeProblem(SOURCE, density, REFERENCE, state_cost=lambda t, x: x.square().sum(1)))


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        (lambda t, x: x.square(), r"the state cost must return one number per row, shape \(8,\).*got shape \(8, 2\)"),
        (lambda t, x: 1.0, r"the state cost must return one number per row.*got float"),
        (2.0, r"state_cost must be a function \(t, x\) -> \(batch,\), a costs.Quadratic\(matrix, vector\), or None"),
        (sb.costs.Quadratic.isotropic(1.0, 3), "the state cost has dimension 3, the data have 2"),
    ],
)
def test_costs_of_another_shape_are_refused(cost, said):
    with pytest.raises(InvalidInputError, match=said):
        sb.BridgeProblem(SOURCE, TARGET, REFERENCE, state_cost=cost)


def test_a_cost_without_values_says_where():
    with pytest.raises(NonFiniteError, match=r"the state cost is NaN .* at t = 0\.5 and states of the target in"):
        sb.BridgeProblem(
            *SAMPLES, REFERENCE, state_cost=lambda t, x: x[:, 0] * (math.nan if t == 0.5 and x[0, 1] > 0.6 else 1.0)
        )


def test_repulsion_and_references_without_closed_form():
    repelled = sb.costs.Quadratic.isotropic(-5.0, 2)
    with pytest.raises(InvalidInputError, match="repels too strongly for the horizon 1"):
        sb.fit(SOURCE, TARGET, reference=sb.BrownianMotion(1.0), state_cost=repelled)
    curved = sb.DriftProcess(lambda t, x: -x.sin(), 1.0)
    with pytest.raises(UnsupportedError, match=r"closed form under a BrownianMotion or .*got DriftProcess"):
        sb.fit(SOURCE, TARGET, reference=curved, state_cost=COST)


def test_a_course_has_the_cost_on_every_leg():
    course = sb.fit_course([SOURCE, TARGET, SOURCE], [0.0, 1.0, 3.0], sigma=0.8, state_cost=COST)
    for bridge in course.bridges:
        assert isinstance(bridge, Bridge)
        wanted = sb.costs.quadratic_reference(sb.BrownianMotion(0.8, bridge.horizon), COST)
        torch.testing.assert_close(bridge.reference.drift(0.4, SAMPLES[0].rows), wanted.drift(0.4, SAMPLES[0].rows))
