"""Bridges whose ends may change: optimality of the closed form, plans against POT, limits, masses, refusals."""

import math

import pytest
import torch
from families import SOLVERS, tensor
from torch import Tensor

import sbridge as sb
from sbridge.errors import InvalidInputError, NonFiniteError, NotConvergedError, UnsupportedError
from sbridge.evaluation import EvaluationBudget
from sbridge.exact import SoftGaussianCoupling, balanced
from sbridge.fitting import choose_solver, prepare
from sbridge.laws.scaling import AffineScaling, CommonScale
from sbridge.metrics import EnergyDistance
from sbridge.problems import Reweighting, not_plain
from sbridge.solvers import Solver
from sbridge.transport import EntropicProblem, Sinkhorn, unbalanced

HARD = math.inf
SOURCE = sb.Gaussian(tensor([0.5, -1.0]), tensor([[1.0, 0.3], [0.3, 0.6]]))
TARGET = sb.Gaussian(tensor([-0.4, 0.8]), tensor([[0.5, -0.1], [-0.1, 1.2]]))
TURNING = sb.OrnsteinUhlenbeck(tensor([[0.5, 0.8], [-0.6, 0.4]]), tensor([[0.8, 0.0], [0.3, 0.6]]), tensor([1.0, 0.0]))
PENALTIES = [(1.0, 3.0), (HARD, 2.0), (0.7, HARD), (0.0, 1.0), (2.0, 0.0), (300.0, 40.0)]
EXACT = sb.SinkhornBridge(sinkhorn=Sinkhorn(tolerance=1e-11))


def draws(end: sb.Gaussian, n: int, seed: int) -> Tensor:
    return end.sample(n, torch.Generator().manual_seed(seed))


X0, XT = draws(SOURCE, 60, 0), draws(TARGET, 70, 1)
A, B = (torch.arange(1.0, n + 1.0, dtype=torch.float64) / (n * (n + 1) / 2) for n in (60, 70))


def noisy(n: int, seed: int) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unchecked(kind: type, **fields: object) -> None:
    """Makes an object of wrong types, as without the type checks of these tests."""
    made = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    made.__post_init__()


# --- Gaussians


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("penalties", PENALTIES)
def test_the_gaussian_plan_is_optimal(penalties, power):
    """``log dP/dR + λ₀ log dP_0/dp_0 + λ_T log dP_T/dp_T`` is a constant, the value: the condition is sufficient."""
    found = SoftGaussianCoupling(SOURCE, TARGET, TURNING, sb.ends.SoftEnds(*penalties), power)
    start, end = found.ends
    x, y = noisy(50, 2), noisy(50, 3)
    mean, covariance = found.coupling.end_given_start(x)
    log_plan = start.log_density(x) + sb.Gaussian(tensor([0.0, 0.0]), covariance).log_density(y - mean)
    log_reference = SOURCE.log_density(x) + TURNING.log_transition(0.0, x, 1.0, y) + power * TARGET.log_density(y)
    left = log_plan - log_reference
    ratios = start.log_density(x) - SOURCE.log_density(x), end.log_density(y) - TARGET.log_density(y)
    for penalty, ratio in zip(penalties, ratios, strict=True):
        # The potential of a hard end may be any function: what depends on that end alone is taken out.
        left = left + (0.0 if math.isinf(penalty) else penalty) * ratio
    if math.isinf(penalties[0]) or math.isinf(penalties[1]):
        left = left - _explained_by(x if math.isinf(penalties[0]) else y, left)
        torch.testing.assert_close(left, torch.zeros_like(left), rtol=0.0, atol=1e-9)
    else:
        torch.testing.assert_close(left, torch.full_like(left, found.value), rtol=0.0, atol=1e-10)


def _explained_by(x: Tensor, values: Tensor) -> Tensor:
    """The best quadratic function of two columns."""
    design = torch.stack([torch.ones_like(values), *x.T, *(x**2).T, x[:, 0] * x[:, 1]], 1)
    return design @ torch.linalg.lstsq(design, values.unsqueeze(1)).solution[:, 0]


def test_a_fast_reversion_that_forgets_its_start_is_no_obstacle():
    forgetful = sb.OrnsteinUhlenbeck(50.0, 1.0)
    found = SoftGaussianCoupling(SOURCE, TARGET, forgetful, sb.ends.SoftEnds(1.0, 2.0))
    start, end = found.ends
    torch.testing.assert_close(start.covariance, SOURCE.covariance, rtol=1e-9, atol=0.0)
    # P_T minimises KL(q ‖ N(0, 1/100)) + 2 KL(q ‖ p_T): the product of their powers.
    precision = (100.0 * torch.eye(2, dtype=torch.float64) + 2.0 * torch.linalg.inv(TARGET.covariance)) / 3.0
    torch.testing.assert_close(torch.linalg.inv(end.covariance), precision, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("penalties", PENALTIES)
def test_samples_of_gaussians_lose_and_gain_as_the_closed_form_says(penalties):
    """The plug-in plan of 500 rows, whose reference is the product of the ends times the kernel: ``power = 1``."""
    x0, xT = draws(SOURCE, 500, 4), draws(TARGET, 500, 5)
    process, soft = sb.BrownianMotion(1.0), sb.ends.SoftEnds(*penalties)
    exact = SoftGaussianCoupling(SOURCE, TARGET, process, soft, 1.0)
    plain = balanced(sb.BridgeProblem(sb.Samples(x0), sb.Samples(xT), process, balance=soft))
    ratios = (plain.balance.growth(x0), x0, SOURCE), (plain.balance.explained(xT), xT, TARGET)
    for (found, rows, given), end in zip(ratios, exact.ends, strict=True):
        wanted = (end.log_density(rows) - given.log_density(rows)).exp()
        assert float((found - wanted).abs().mean()) < 0.1
    if HARD not in penalties:
        # POT's mass has no normaliser of the kernel: (2π)^{d/2} here, over the whole exponent.
        shift = math.log(2.0 * math.pi) / (1.0 + sum(penalties))
        assert math.log(plain.balance.mass) == pytest.approx(math.log(exact.mass) + shift, abs=0.1)


# --- samples


@pytest.mark.parametrize("penalties", PENALTIES)
def test_the_plan_of_samples_is_that_of_pot(penalties):
    import ot

    epsilon = 0.4
    found = unbalanced(EntropicProblem(X0, XT, epsilon, A, B), *penalties)
    cost, reg = torch.cdist(X0, XT).square(), 2.0 * epsilon
    marginal = tuple(reg * one for one in penalties)
    wanted = ot.unbalanced.sinkhorn_unbalanced(A, B, cost, reg, marginal, numItermax=100_000, stopThr=1e-13)
    torch.testing.assert_close(found.plan, wanted, rtol=0.0, atol=1e-8)
    torch.testing.assert_close((found.plan * cost).sum(), (wanted * cost).sum(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(found.mass, float(wanted.sum()), rtol=1e-6, atol=0.0)

    ends = sb.Samples(X0, A), sb.Samples(XT, B)
    problem = sb.BridgeProblem(*ends, sb.BrownianMotion(math.sqrt(epsilon)), balance=sb.ends.SoftEnds(*penalties))
    bridge = sb.solve(problem, EXACT, seed=0)
    start, end, whole = bridge.forward.start, bridge.backward.start, wanted.sum()
    for law, given, sums in ((start, A, wanted.sum(1)), (end, B, wanted.sum(0))):
        torch.testing.assert_close(given if law.weights is None else law.weights, sums / whole, rtol=1e-5, atol=1e-9)
    growth, explained = bridge.balance.growth(X0), bridge.balance.explained(XT)
    torch.testing.assert_close(growth, wanted.sum(1) / A / whole, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(explained, wanted.sum(0) / B / whole, rtol=1e-5, atol=1e-8)
    shares = wanted / wanted.sum(1, keepdim=True)
    conditional = bridge.conditional_mean(X0, seed=0)
    torch.testing.assert_close(conditional, shares @ XT, rtol=1e-5, atol=1e-5)


def test_without_a_price_an_end_is_plain_bit_for_bit():
    problems = [
        sb.BridgeProblem(sb.Samples(X0), sb.Samples(XT), TURNING, balance=balance)
        for balance in (None, sb.ends.SoftEnds(HARD, HARD))
    ]
    plain, hard = (sb.solve(problem, EXACT, seed=0) for problem in problems)
    assert hard.balance is None
    assert torch.equal(plain.transport(X0, seed=1), hard.transport(X0, seed=1))
    assert torch.equal(plain.forward.control(0.3, X0), hard.forward.control(0.3, X0))


@pytest.mark.parametrize("ends", [(sb.Samples(X0), sb.Samples(XT)), (SOURCE, TARGET)])
def test_an_infinite_price_is_the_limit(ends):
    solver = EXACT if isinstance(ends[0], sb.Samples) else sb.GaussianBridge()
    near, wanted = (
        sb.fit(*ends, reference=TURNING, balance=balance, solver=solver).conditional_mean(X0, seed=0)
        for balance in (sb.ends.SoftEnds(1e7, 1e7), None)
    )
    torch.testing.assert_close(near, wanted, rtol=0.0, atol=1e-5)


def test_new_rows_grow_as_rows_of_the_data_do():
    soft = sb.ends.SoftEnds(2.0, HARD)
    with_row, without = (
        balanced(sb.BridgeProblem(sb.Samples(rows, weights), sb.Samples(XT), TURNING, balance=soft))
        for rows, weights in ((X0, _but_last(A)), (X0[:-1], A[:-1] / A[:-1].sum()))
    )
    found, wanted = (one.balance.growth(X0) for one in (without, with_row))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    assert float(without.balance.growth(noisy(5, 1).float()).dtype == torch.float32)


def _but_last(weights: Tensor) -> Tensor:
    """The weights with the last one almost zero."""
    changed = weights.clone()
    changed[-1] = 1e-12
    return changed / changed.sum()


def test_rows_beyond_the_limit_follow_from_the_others():
    x0, xT = draws(SOURCE, 600, 6), draws(TARGET, 600, 7)
    problem = sb.BridgeProblem(sb.Samples(x0), sb.Samples(xT), TURNING, balance=sb.ends.SoftEnds(2.0, 3.0))
    whole, part = (balanced(problem, rows=rows).balance for rows in (600, 300))
    for some, of_all in ((part.growth(x0), whole.growth(x0)), (part.explained(xT), whole.explained(xT))):
        assert float(some.mean()) == pytest.approx(1.0)
        assert float((some - of_all).abs().mean()) < 0.06


# --- masses


def test_masses_are_those_of_the_hard_end_or_of_the_whole_price():
    import ot

    ends = sb.Samples(X0, A, mass=3.0), sb.Samples(XT, B, mass=5.0)
    process = sb.BrownianMotion(1.0)
    hard_target = balanced(sb.BridgeProblem(*ends, process, balance=sb.ends.SoftEnds(2.0, HARD))).balance
    assert hard_target.mass == 5.0
    assert float(hard_target.descendants(X0) @ A) == pytest.approx(5.0 / 3.0)
    assert balanced(sb.BridgeProblem(*ends, process, balance=sb.ends.SoftEnds(HARD, 2.0))).balance.mass == 3.0
    # R starts with mass 3, and is weighted by the normalised target.
    soft = balanced(sb.BridgeProblem(*ends, process, balance=sb.ends.SoftEnds(1.0, 4.0))).balance
    cost, reference = torch.cdist(X0, XT).square(), 3.0 * A[:, None] * B
    plan = ot.unbalanced.sinkhorn_unbalanced(
        3.0 * A, 5.0 * B, cost, 2.0, (2.0, 8.0), c=reference, numItermax=100_000, stopThr=1e-13
    )
    assert soft.mass == pytest.approx(float(plan.sum()), rel=1e-6)


def test_row_numbers_are_no_masses():
    assert sb.Samples(X0).mass == 1.0
    with pytest.raises(InvalidInputError, match=r"mass 60, the target 1, and neither end may change.*SoftEnds"):
        sb.BridgeProblem(sb.Samples(X0, mass=60), sb.Samples(XT), TURNING)
    for mass in (0.0, -1.0, math.nan):
        with pytest.raises(InvalidInputError, match="mass of samples must be positive and finite"):
            sb.Samples(X0, mass=mass)
    scaled = sb.Samples(X0, mass=2.0).rescaled(AffineScaling(tensor([1.0, 0.0]), tensor([2.0, 2.0])))
    assert scaled.mass == 2.0


# --- known growth


def test_known_growth_weights_the_source():
    """``e^{rate T}`` over two units of time, against the bridge of rows that are weighted by hand, bit for bit."""
    process, growth = sb.BrownianMotion(1.0, horizon=2.0), sb.ends.Growth(lambda x: 0.4 * x[:, 0])
    factors = (0.8 * X0[:, 0]).exp()
    problem = sb.BridgeProblem(sb.Samples(X0, A, mass=60), sb.Samples(XT, mass=90), process, balance=growth)
    bridge = sb.solve(problem, EXACT, seed=0)
    mean = float(A @ factors)
    weights = A * factors / mean
    torch.testing.assert_close(bridge.forward.start.weights, weights, rtol=1e-12, atol=0.0)
    by_hand = sb.solve(sb.BridgeProblem(sb.Samples(X0, weights), sb.Samples(XT), process), EXACT, seed=0)
    torch.testing.assert_close(bridge.conditional_mean(X0, seed=0), by_hand.conditional_mean(X0, seed=0))
    torch.testing.assert_close(bridge.balance.growth(X0), factors / mean)
    torch.testing.assert_close(bridge.balance.descendants(X0), factors)
    assert bridge.balance.mass == pytest.approx(60.0 * mean)
    scaling = AffineScaling(tensor([0.3, -2.0]), tensor([2.5, 0.4]))
    again = balanced(problem.rescaled(scaling)).balance
    torch.testing.assert_close(again.growth(scaling.to_model(X0)), bridge.balance.growth(X0))


def test_growth_that_cannot_be_used_is_refused():
    with pytest.raises(InvalidInputError, match="Growth: rate must be a function of states, got 2"):
        unchecked(sb.ends.Growth, rate=2.0)
    with pytest.raises(UnsupportedError, match="needs samples at the source, got Gaussian"):
        sb.fit(SOURCE, TARGET, reference=TURNING, balance=sb.ends.Growth(lambda x: x[:, 0]))
    with pytest.raises(InvalidInputError, match="growth rate must return one number per row"):
        sb.fit(X0, XT, reference=TURNING, balance=sb.ends.Growth(lambda x: x))
    with pytest.raises(NonFiniteError, match="growth rate is NaN or infinite"):
        sb.fit(X0, XT, reference=TURNING, balance=sb.ends.Growth(lambda x: x[:, 0].log()))


# --- fit, files, reports


@pytest.mark.parametrize("solver", [sb.SinkhornBridge(), sb.GaussianBridge(), None])
@pytest.mark.parametrize("scaling", [None, CommonScale()])
def test_every_solver_gets_the_ends_that_were_chosen(solver, scaling):
    soft = sb.ends.SoftEnds(2.0, HARD)
    x0, xT = draws(SOURCE, 300, 8), draws(TARGET, 300, 9)
    bridge = sb.fit(x0, xT, reference=TURNING, balance=soft, solver=solver, scaling=scaling)
    wanted = balanced(sb.BridgeProblem(sb.Samples(x0), sb.Samples(xT), TURNING, balance=soft))
    torch.testing.assert_close(bridge.forward.start.weights, wanted.source.weights, rtol=1e-6, atol=1e-12)
    assert bridge.backward.start.weights is None
    assert float(bridge.balance.growth(x0).mean()) == pytest.approx(1.0)
    assert torch.equal(bridge.reversed().balance.growth(x0), bridge.balance.growth(x0))


def test_a_scaled_problem_has_the_same_growth():
    scaling = AffineScaling(tensor([0.3, -2.0]), tensor([2.5, 0.4]))
    problem = sb.BridgeProblem(sb.Samples(X0), sb.Samples(XT), TURNING, balance=sb.ends.SoftEnds(2.0, 5.0))
    first, last = balanced(problem).rescaled(scaling), balanced(problem.rescaled(scaling))
    rows, ends = scaling.to_model(X0), scaling.to_model(XT)
    torch.testing.assert_close(first.balance.growth(rows), balanced(problem).balance.growth(X0))
    torch.testing.assert_close(first.balance.growth(rows), last.balance.growth(rows), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(first.balance.explained(ends), last.balance.explained(ends), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("ends", [(sb.Samples(X0), sb.Samples(XT)), (SOURCE, TARGET)])
def test_files_keep_growth(ends, tmp_path):
    solver = sb.SinkhornBridge() if isinstance(ends[0], sb.Samples) else sb.GaussianBridge()
    bridge = sb.fit(*ends, reference=TURNING, balance=sb.ends.SoftEnds(2.0, 5.0), solver=solver)
    bridge.save(tmp_path / "bridge")
    again = sb.load(tmp_path / "bridge")
    assert torch.equal(again.balance.growth(X0), bridge.balance.growth(X0))
    assert torch.equal(again.balance.explained(XT), bridge.balance.explained(XT))
    assert again.balance.mass == bridge.balance.mass


def test_reports_and_certificates_are_about_the_chosen_ends():
    """Rows of the given ends would miss both ends, and have another energy (11.3 nats instead of 3.1)."""
    soft = sb.ends.SoftEnds(5.0, 5.0)
    solver = sb.GaussianBridge(grid=sb.TimeGrid.uniform(30))
    bridge = sb.fit(SOURCE, TARGET, reference=TURNING, balance=soft, solver=solver)
    x0, xT = draws(SOURCE, 2000, 10), draws(TARGET, 2000, 11)
    judge = sb.MixtureBridge(components=(1,), rounds=1, matchings=5, iterations=10)
    limits = EvaluationBudget(rows=300, paths=300)
    report = sb.evaluate(bridge, x0, xT, seed=0, limits=limits, baselines=(), metrics=(EnergyDistance(),))
    assert any("ends of this bridge are soft" in note for note in report.notes)
    for task in ("forward", "backward"):
        own, perfect = (report.score(task, name, "energy distance") for name in ("bridge", "perfect samples"))
        assert own.value < perfect.value + 5.0 * own.standard_error
    found = sb.certify(bridge, x0, xT, seed=0, solver=judge, limits=limits)
    value = SoftGaussianCoupling(SOURCE, TARGET, TURNING, soft).coupling.value
    for bound in (found.energy, found.lower_bound):
        assert bound.value == pytest.approx(value, abs=5.0 * bound.standard_error)
    assert found.verdict.word != "fail"
    assert "ends that change: the source is" in str(prepare(SOURCE, TARGET, reference=TURNING, balance=SOFT).notes)


SOFT = sb.ends.SoftEnds(1.0, 1.0)


def test_a_course_grows_leg_by_leg():
    course = sb.fit_course([X0, XT, X0], [0.0, 1.0, 3.0], sigma=0.8, balance=SOFT, solver=sb.SinkhornBridge())
    assert [type(bridge.balance) for bridge in course.bridges] == [Reweighting, Reweighting]


# --- what is refused


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_solvers_take_soft_ends_once_they_are_chosen(solver: Solver):
    alone = isinstance(solver, sb.AdjointBridge)
    ends = (sb.Samples(X0), sb.Density(TARGET.log_density, 2) if alone else sb.Samples(XT))
    problem = sb.BridgeProblem(*ends, sb.BrownianMotion(1.0), balance=SOFT)
    name = type(solver).__name__
    assert f"{name} takes soft ends or growth once the ends are chosen: pass exact.balanced(problem)" in str(
        solver.refusal(problem)
    )
    if not alone:
        assert not_plain(name, balanced(problem)) is None


def test_the_default_solver_is_chosen_by_the_chosen_ends():
    problem = sb.BridgeProblem(sb.Samples(X0), sb.Samples(XT), TURNING, balance=SOFT)
    assert isinstance(choose_solver(problem).solver, sb.SinkhornBridge)
    assert isinstance(choose_solver(sb.BridgeProblem(SOURCE, TARGET, TURNING, balance=SOFT)).solver, sb.GaussianBridge)


def test_what_cannot_be_solved_is_refused():
    process = sb.BrownianMotion(1.0)
    with pytest.raises(UnsupportedError, match="need samples at both ends, or a Gaussian at both; got Samples and"):
        sb.fit(X0, TARGET, reference=process, balance=SOFT)
    with pytest.raises(UnsupportedError, match="A problem with soft ends needs transitions in closed form"):
        sb.fit(X0, XT, reference=sb.DriftProcess(lambda t, x: -x, 1.0), balance=SOFT)
    with pytest.raises(UnsupportedError, match="ends that may change and a state cost are not solved together"):
        sb.fit(X0, XT, reference=process, balance=SOFT, state_cost=sb.costs.Quadratic.isotropic(1.0, 2))
    fields = {"source": sb.Samples(X0), "target": sb.Samples(XT), "reference": process, "state_cost": None}
    with pytest.raises(InvalidInputError, match=r"balance must be an ends.SoftEnds\(source, target\) in nats, an ends"):
        unchecked(sb.BridgeProblem, balance=2.0, **fields)
    for wrong in (-1.0, math.nan, "3", None, True):
        with pytest.raises(InvalidInputError, match="SoftEnds: target must be a number of nats"):
            unchecked(sb.ends.SoftEnds, source=1.0, target=wrong)
    with pytest.raises(InvalidInputError, match="the plan degenerates to a matching"):
        sb.fit(X0, XT, reference=sb.BrownianMotion(1e-5), balance=SOFT)


def test_the_iteration_says_when_it_does_not_converge():
    problem = EntropicProblem(X0, XT, 0.01)
    with pytest.raises(NotConvergedError, match="row sums of the unbalanced plan are not optimal"):
        unbalanced(problem, 100.0, HARD, max_evaluations=2)
    for wrong in ((HARD, HARD), (-1.0, 1.0), (math.nan, 1.0)):
        with pytest.raises(InvalidInputError, match="penalties must be 0 or more, and one of them finite"):
            unbalanced(problem, *wrong)
