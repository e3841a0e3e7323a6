"""The mixture bridge: likelihood against autograd, recovery of known plans, both directions, resumption, refusals."""

import math

import pytest
import torch

from sbridge.benchmarks.bures import conditional_uvp, marginal_uvp
from sbridge.benchmarks.light import LightRecipe
from sbridge.benchmarks.pairs import GaussianPair, MixturePair
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.exact import MixtureControl, MixtureKernel
from sbridge.fitting import fit, solve
from sbridge.laws import Density, Gaussian, Point, Samples
from sbridge.measures import PathMeasure
from sbridge.metrics import BuresUVP
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion, Direction, DriftProcess, OrnsteinUhlenbeck, VariancePreserving
from sbridge.solvers.conformance import check_solver
from sbridge.solvers.gaussian import GaussianBridge
from sbridge.solvers.mixture import Covariance, MixtureBridge
from sbridge.solvers.mixture.components import Components, Coordinates, Quadratics
from sbridge.solvers.mixture.likelihood import Likelihood, Rows, m_step
from sbridge.solvers.mixture.optimise import Chart, EarlyStopping, fit_em, fit_lbfgs, shrink_covariances

DENSE = OrnsteinUhlenbeck(
    rate=torch.tensor([[1.0, 0.3], [-0.2, 0.7]]), sigma=torch.tensor([[1.0, 0.4], [0.0, 0.6]]), mean=0.3
)
REFERENCES = {"brownian": BrownianMotion(0.9), "dense": DENSE, "vp": VariancePreserving()}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def measure_of(pair, potential):
    control, kernel = MixtureControl(potential), MixtureKernel(potential)
    return PathMeasure(pair.reference, control, pair.source, end_kernel=kernel)


def excess(pair, measure, conditions=60, draws=400):
    x = pair.source.sample(conditions, seeded(5)).float()
    moments, variance = pair.moments(x), float(pair.end_moments[1].trace())
    scores = [conditional_uvp(m, x, moments, variance, seed=3, draws=draws) for m in (measure, pair.truth)]
    return scores[0].mean(), scores[1].mean(), (scores[0] - scores[1]).std() / math.sqrt(conditions)


def likelihood(dim, diagonal, reference=REFERENCES["brownian"], dtype=torch.float64):
    x, y = randn(300, dim, seed=1).to(dtype), (1.4 * randn(400, dim, seed=2) + randn(400, 1, seed=3).sign()).to(dtype)
    c = Coordinates.of(reference, x, y, diagonal=diagonal)
    weights = torch.rand(300, generator=seeded(4), dtype=torch.float64)
    return Likelihood(c, Rows(c.source(x), weights / weights.sum()), Rows(c.target(y))), x, y, weights / weights.sum()


def parts(c, count):
    dim = len(c.n)
    roots = 0.4 * randn(count, dim, dim, seed=5) + torch.eye(dim, dtype=torch.float64)
    full = roots @ roots.mT
    spreads = full.diagonal(dim1=1, dim2=2) if c.diagonal else full
    return Components(randn(count, seed=6), 0.5 * randn(count, dim, seed=7), spreads)


# The likelihood ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("diagonal", [False, True])
def test_likelihood_is_the_dual_of_the_potential(name, diagonal):
    """``D`` equals ``E g − E log c`` of the potential in the user's coordinates, up to what all components share."""
    found, x, y, weights = likelihood(2, diagonal, REFERENCES[name])
    c = found.coordinates
    gaps = []
    for candidate in (parts(c, 3), parts(c, 1)):
        g = c.potential(candidate)
        gaps.append(found.statistics(candidate)[0] - float(g(y).mean() - weights @ g.log_normaliser(x)))
    assert abs(gaps[0] - gaps[1]) < 1e-9


@pytest.mark.parametrize(("dim", "count", "diagonal"), [(2, 5, False), (7, 2, False), (3, 4, True)])
def test_claims_are_the_gradient(dim, count, diagonal):
    """Both ways of evaluating the forms (monomials, blocks) against autograd, weights included."""
    found, *_ = likelihood(dim, diagonal)
    given = parts(found.coordinates, count)
    forms = given.target_forms(found.coordinates.s), given.source_forms(found.coordinates.s)
    for rows, form in zip((found.target, found.source), forms, strict=True):
        leaves = [part.clone().requires_grad_() for part in (form.constants, form.linear, form.quadratic)]
        z = rows.rows
        full = torch.diag_embed(leaves[2]) if diagonal else leaves[2]
        quadratic = torch.einsum("nd,kde,ne->nk", z, full, z)
        sums = torch.logsumexp(leaves[0] + z @ leaves[1].mT + quadratic, 1)
        value = sums.mean() if rows.weights is None else rows.weights @ sums
        gradients = torch.autograd.grad(value, leaves)
        total, claims = rows.statistics(form)
        assert total == pytest.approx(float(value.detach()), rel=1e-12)
        assert rows.mean_log_sum(form) == pytest.approx(float(value.detach()), rel=1e-12)
        for mine, theirs in zip((claims.masses, claims.firsts, claims.seconds), gradients, strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("diagonal", [False, True])
def test_matching_stands_still_where_the_likelihood_does(diagonal):
    found, *_ = likelihood(2, diagonal)
    given = found.start(2, seeded())
    value, given = fit_em(found, given, 400, 1e-13)
    better, moved, _ = fit_lbfgs(found, given, 200, 1e-15)
    assert better - value < 1e-6
    again = m_step(moved, *found.statistics(moved)[1:], found.coordinates)
    assert torch.allclose(again.means, moved.means, atol=1e-2)
    assert torch.allclose(again.covariances, moved.covariances, atol=1e-2)


@pytest.mark.parametrize("widths", [(2,), (1,)])
def test_one_component_is_the_gaussian_bridge_of_all_rows(widths):
    """In coordinates that are fitted and in those that are not."""
    pair = GaussianPair(DENSE, 2)
    x, y = (rows.double() for rows in pair.sample(3000, seed=1))
    solver = MixtureBridge(components=(1,), widths=widths)
    bridge = fit(x, y, reference=DENSE, solver=solver, seed=0)
    closed, probe = fit(x, y, reference=DENSE, solver=GaussianBridge(), seed=0), randn(5, 2, seed=9)
    for t in (0.0, 0.5, 1.0):
        assert torch.allclose(bridge.forward.control(t, probe), closed.forward.control(t, probe), rtol=1e-3, atol=1e-3)
    assert torch.allclose(bridge.conditional_mean(probe, seed=0), closed.conditional_mean(probe, seed=0), atol=1e-3)


# Known plans -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0])
def test_it_recovers_a_mixture_plan(epsilon):
    pair = MixturePair(2, epsilon)
    x, y = pair.sample(10_000, seed=1)
    bridge = fit(x, y, reference=pair.reference, solver=MixtureBridge(), seed=0)
    score, floor, error = excess(pair, bridge.forward)
    assert score - floor < 0.1 + 3 * error
    assert bridge.forward.control.potential.components >= 2
    rows = bridge.transport(pair.source.sample(20_000, seeded(6)).float(), seed=1)
    assert marginal_uvp(rows, *pair.end_moments) < 0.15


@pytest.mark.slow
def test_it_recovers_a_mixture_plan_in_sixteen_dimensions():
    pair = MixturePair(16, 1.0)
    x, y = pair.sample(50_000, seed=1)
    bridge = fit(x, y, reference=pair.reference, solver=MixtureBridge(), seed=0)
    score, floor, error = excess(pair, bridge.forward)
    assert score - floor < 0.1 + 3 * error
    assert bridge.forward.control.potential.components == 5


def test_both_directions_are_one_process():
    """Rows pulled back and pushed forward again have the joint law of the plan: both cross covariances agree."""
    pair = MixturePair(2, 1.0)
    x, y = pair.sample(2000, seed=1)
    bridge = fit(x, y, reference=pair.reference, solver=MixtureBridge(components=(5,)), seed=0)
    there = torch.cat([x, bridge.transport(x, seed=2)], 1).double().mT.cov()
    back = torch.cat([bridge.reversed().transport(y, seed=3), y], 1).double().mT.cov()
    assert (there - back).abs().max() < 0.25
    assert (there[:2, 2:] - back[:2, 2:]).abs().max() < 0.2  # two standard errors
    stepped = PathMeasure(
        pair.reference, bridge.backward.control, bridge.backward.start, Direction.BACKWARD, bridge.backward.grid
    )
    simulated = torch.cat([stepped.transport(y, seed=4), y], 1).double().mT.cov()
    assert (simulated - back).abs().max() < 0.15


def test_it_beats_the_published_recipe_of_few_steps():
    pair = MixturePair(2, 1.0)
    x, y = pair.sample(5000, seed=1)
    light = LightRecipe(steps=300).fit(x, y, 1.0, seed=0)
    bridge = fit(x, y, reference=pair.reference, solver=MixtureBridge(), seed=0)
    own, published = (excess(pair, m)[0] for m in (bridge.forward, measure_of(pair, light)))
    assert own < published
    longer = LightRecipe(steps=1500).fit(x, y, 1.0, seed=0)
    assert excess(pair, measure_of(pair, longer))[0] < published


def test_perfect_draws_score_the_floor():
    pair = MixturePair(3, 1.0)
    x = pair.source.sample(300, seeded(1)).float()
    moments, variance = pair.moments(x), float(pair.end_moments[1].trace())
    score = conditional_uvp(pair.truth, x, moments, variance, seed=0, draws=200)
    # BW² of n draws of N(m, S): ½ tr S/n + (d + 1) tr S/8n + O(n⁻²) for S near a multiple of the identity
    traces = moments[1].diagonal(dim1=1, dim2=2).sum(1)
    expected = 200.0 / variance * traces * (0.5 + 4 / 8) / 200
    assert float(score.mean() / expected.mean()) == pytest.approx(1.0, abs=0.15)
    y = pair.truth.transport(x, seed=1)
    other = BuresUVP()(y, pair.truth.transport(x, seed=2), seeded())
    assert other > 0
    assert marginal_uvp(y, y.double().mean(0), y.double().mT.cov()) < 1e-8


# The solver --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", list(Covariance))
@pytest.mark.parametrize("weighted", [False, True])
def test_the_solver_keeps_the_laws(covariance, weighted, dtype):
    x, y = (rows.to(dtype) for rows in MixturePair(2, 1.0).sample(300, seed=1))
    weights = torch.rand(300, generator=seeded(1), dtype=dtype) if weighted else None
    source = Samples(x, None if weights is None else weights / weights.sum())
    solver = MixtureBridge(components=(1, 3), rows=200, iterations=4, covariance=covariance)
    check_solver(solver, BridgeProblem(source, Samples(y), DENSE), seed=0)


def test_laws_in_closed_form_are_drawn_from():
    pair = GaussianPair(BrownianMotion(1.0), 2)
    problem = BridgeProblem(pair.source, pair.target, pair.reference)
    solver = MixtureBridge(components=(1, 2), max_rows=20_000, rows=4000)
    bridge = solve(problem, solver, seed=0)
    assert bridge.forward.start is problem.source
    x = randn(50, 2, seed=2)
    assert torch.allclose(bridge.conditional_mean(x, seed=0), pair.coupling.end_given_start(x)[0], atol=0.1)
    assert bridge.forward.control.potential.components == 1


@pytest.mark.parametrize(
    ("values", "stopped"),
    [
        ((-3.0, 0.0, 0.5, 2.0), (False, False, False, False)),
        ((5.0, 4.0, 3.0), (False, False, False)),
        ((0.0, 0.5, 0.4, 0.6), (False, False, True, True)),
    ],
)
def test_a_fit_is_hopeless_where_held_out_rows_fall_below_the_mark(values, stopped, monkeypatch):
    """Only a fall, and only below what another fit has; a fit that rises from below, or falls from above, goes on."""
    found, *_ = likelihood(2, False)
    given, left = parts(found.coordinates, 2), iter(values)
    monkeypatch.setattr(Likelihood, "value", lambda self, parts: next(left))
    watch = EarlyStopping(found, 1.0)
    assert tuple(watch(given) for _ in values) == stopped


def test_more_components_than_the_rows_bear_are_given_up_in_matching(monkeypatch):
    """What is chosen is the same without the watch, which saves all of L-BFGS for the rejected number."""
    pair = MixturePair(8, 1.0)
    problem = BridgeProblem(*(Samples(rows) for rows in pair.sample(2000, seed=1)), pair.reference)
    rounds = []
    for watched in (True, False):
        with monkeypatch.context() as patch:
            if not watched:
                patch.setattr(EarlyStopping, "__call__", lambda self, parts: False)
            solver, tried = MixtureBridge(components=(1, 5, 20), max_rows=2000), []
            state = solver.init(problem, 0)
            while not solver.finished(problem, state):
                state, info = solver.step(problem, state)
                tried.append(int(info["components"]))
        rounds.append((tried.count(20), state.components))
    (short, chosen), (long, same) = rounds
    assert (short, long) == (1, 2)
    assert torch.equal(chosen.means, same.means)


def test_held_out_rows_choose_the_number_of_components():
    pair = MixturePair(2, 0.1)
    x, y = pair.sample(4000, seed=1)
    found = []
    solve(
        BridgeProblem(Samples(x), Samples(y), pair.reference),
        MixtureBridge(),
        seed=0,
        callbacks=[lambda state, info: found.append(info["components"])],
    )
    assert found[0] == 1.0
    assert max(found) > 2.0
    assert found[-1] >= 2.0
    assert found[-1] < 50.0


def test_far_ends_and_different_scales_change_nothing_but_units():
    """``x ↦ 1000 + 30 x`` with σ scaled alike: the same bridge."""
    pair = MixturePair(2, 1.0)
    x, y = (rows.double() for rows in pair.sample(2000, seed=1))
    solver = MixtureBridge(components=(3,))
    one = fit(x, y, reference=pair.reference, solver=solver, seed=0)
    other = fit(1000 + 30 * x, 1000 + 30 * y, reference=BrownianMotion(30.0), solver=solver, seed=0)
    probe = randn(8, 2, seed=3)
    found = (other.conditional_mean(1000 + 30 * probe, seed=0) - 1000) / 30
    assert torch.allclose(found, one.conditional_mean(probe, seed=0), atol=1e-4)


def test_what_it_refuses():
    normal, x = Gaussian(torch.zeros(2), torch.eye(2)), torch.randn(40, 2, generator=seeded())
    solver, brownian = MixtureBridge(), BrownianMotion(1.0)
    density = Density(lambda x: -x.square().sum(1), 2)
    with pytest.raises(
        UnsupportedError, match="MixtureBridge needs transitions in closed form, which DriftProcess does not have"
    ):
        solve(BridgeProblem(normal, normal, DriftProcess(lambda t, x: -x, 1.0)), solver, seed=0)
    with pytest.raises(UnsupportedError, match="can be sampled"):
        solve(BridgeProblem(normal, density, brownian), solver, seed=0)
    with pytest.raises(InvalidInputError, match=r"20 component\(s\) in 2 dimensions need 60 samples per end"):
        fit(x, x, reference=brownian, solver=MixtureBridge(components=(20,)))
    with pytest.raises(InvalidInputError, match="40 samples of the target span fewer than their 2 dimensions"):
        fit(x, x[:, :1].expand(40, 2).contiguous(), reference=brownian, solver=solver)
    with pytest.raises(InvalidInputError, match=r"in torch.float32.*give the samples in float64, or multiply σ by"):
        fit(x, x + 1, reference=BrownianMotion(1e-4), solver=solver)
    with pytest.raises(UnsupportedError, match="vary in every direction"):
        fit(x, Point(torch.zeros(2)), reference=brownian, solver=solver)
    fit(x.double(), x.double() + 1, reference=BrownianMotion(1e-4), solver=MixtureBridge(components=(1,)))
    with pytest.raises(InvalidInputError, match="has 2 columns, x1 has 1"):
        fit(x, x[:, :1], reference=brownian, solver=solver)
    for options in ({"components": (5, 2)}, {"components": ()}, {"rows": 2}, {"held_out": 1.0}, {"iterations": 0}):
        with pytest.raises(InvalidInputError):
            MixtureBridge(**options)
    with pytest.raises(InvalidInputError, match="50 components start in different target rows"):
        LightRecipe().fit(x, x, 1.0, seed=0)


# Shapes that rows do not show --------------------------------------------------------------------------------


def apart(found, given):
    """How far each component's shape is from that of the Gaussian bridge."""
    s = found.coordinates.s
    if given.covariances.ndim == 2:
        return (given.covariances / s - 1.0).square().sum(1)
    white = given.covariances / (s.unsqueeze(1) * s).sqrt() - torch.eye(len(s), dtype=torch.float64)
    return white.square().sum((1, 2))


@pytest.mark.parametrize("diagonal", [False, True])
def test_chance_is_pulled_away_and_plain_shapes_stay(diagonal):
    """Shares drawn by lot give shapes that are chance alone; components a tenth as wide are no chance."""
    x, y = randn(4000, 6, seed=1), randn(4000, 6, seed=2)
    c = Coordinates.of(REFERENCES["brownian"], x, y, diagonal=diagonal)
    found = Likelihood(c, Rows(c.source(x)), Rows(c.target(y)))
    lots = torch.nn.functional.one_hot(torch.randint(3, (4000,), generator=seeded(3)), 3).double()
    claims = [side.statistics_of(lots, diagonal=diagonal) for side in (found.source, found.target)]
    by_chance = m_step(parts(c, 3), *claims, c)
    pulled, pulls = shrink_covariances(found, by_chance)
    assert bool((pulls > 0.1).all())  # of masses of a third
    assert bool((apart(found, pulled) < 0.75 * apart(found, by_chance)).all())
    narrow = Components(by_chance.logits, by_chance.means, 0.1 * by_chance.covariances)
    pulled, pulls = shrink_covariances(found, narrow)
    assert bool((pulls < 0.01).all())
    torch.testing.assert_close(pulled.covariances, narrow.covariances, rtol=0.06, atol=4e-3)


def test_pulls_end_in_the_shape_of_the_gaussian_bridge():
    found, *_ = likelihood(2, diagonal=False)
    start = found.start(3, seeded())
    free = fit_lbfgs(found, start, 60, 1e-12)[1]
    values = []
    for strength in (0.1, 10.0, 1e4):
        pulls = torch.full((3,), strength, dtype=torch.float64)
        value, held, _ = fit_lbfgs(found, start, 60, 1e-12, pulls)
        values.append(value)
        assert value <= found.statistics(held)[0] + 1e-12  # less the pull
        assert bool((apart(found, held) <= apart(found, free) + 1e-6).all())
    assert values == sorted(values, reverse=True)
    torch.testing.assert_close(held.covariances, torch.diag(found.coordinates.s).expand(3, 2, 2), rtol=0, atol=1e-3)


def test_a_component_that_claims_nothing_is_pulled_by_a_finite_weight():
    found, *_ = likelihood(2, diagonal=False)
    given = parts(found.coordinates, 2)
    lost = Components(given.logits - torch.tensor([0.0, 800.0]), given.means, given.covariances)
    pulled, pulls = shrink_covariances(found, lost)
    assert bool(pulls.isfinite().all())
    assert bool(pulled.covariances.isfinite().all())


def test_weighted_rows_count_as_many_as_they_are_worth():
    rows, weights = randn(4, 2), torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    assert Rows(rows).count == 4.0
    assert Rows(rows, weights).count == pytest.approx(2.0)


def test_pulls_help_where_noise_is_small_and_rows_are_few(monkeypatch):
    """Sixteen dimensions, ε = 0.1, 4000 rows: a smaller error with pulls than without."""
    pair, solver = MixturePair(16, 0.1), MixtureBridge(components=(5,), rounds=1, iterations=20)
    x, y = pair.sample(4000, seed=1)
    scores = []
    for chosen in (shrink_covariances, lambda likelihood, given: (given, torch.zeros(5, dtype=torch.float64))):
        monkeypatch.setattr("sbridge.solvers.mixture.bridge.shrink_covariances", chosen)
        bridge = fit(x, y, reference=pair.reference, solver=solver, seed=0)
        scores.append(float(excess(pair, bridge.forward)[0]))
    assert scores[0] < 0.9 * scores[1]


def test_numbers_of_components_are_judged_by_rows_that_no_shape_has_seen():
    """The coordinates, towards whose shape components are pulled, come from the rows that are fitted alone."""
    x, y = randn(200, 2, seed=1), randn(200, 2, seed=2)
    problem = BridgeProblem(Samples(x), Samples(y), BrownianMotion(1.0))
    solver = MixtureBridge(components=(1,))
    state = solver.init(problem, 0)
    everything = Coordinates.of(problem.linear_reference, x, y, diagonal=False)
    rows = state.data.sides[0].rows
    fitted = [side.rows[40:] for side in state.data.sides]
    assert len(state.view.judge.source.rows) == 40
    assert torch.allclose(state.coordinates.n, Coordinates.of(problem.linear_reference, *fitted, diagonal=False).n)
    assert not torch.allclose(state.coordinates.n, everything.n)
    assert len(rows) == 200


# Leading coordinates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFERENCES)
def test_in_coordinates_left_out_the_plan_is_the_gaussian_bridge(name):
    """The potential is that of the same components with ``S = diag(s)`` there, the likelihood differs by a constant."""
    whole, *_ = likelihood(2, False, REFERENCES[name])
    c, given = whole.coordinates.leading(1), []
    for seed in (0, 1):
        spreads = 0.3 + torch.rand(3, 1, 1, generator=seeded(seed), dtype=torch.float64)
        given.append(Components(randn(3, seed=seed), randn(3, 1, seed=seed), spreads))
    narrow = Likelihood(c, *(Rows(side.rows[:, :1], side.weights) for side in (whole.source, whole.target)))
    wide = [one.widened(whole.coordinates.s) for one in given]
    gaps = [whole.value(other) - narrow.value(one) for one, other in zip(given, wide, strict=True)]
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-12)
    assert gaps[0] == pytest.approx(-0.5 * float(whole.coordinates.s[1].log()), abs=1e-12)
    x = randn(5, 2, seed=8)
    for one, other in zip(given, wide, strict=True):
        assert torch.equal(other.narrowed(1).covariances, one.covariances)
        found, expected = c.potential(one), whole.coordinates.potential(other)
        torch.testing.assert_close(found(x), expected(x), rtol=1e-12, atol=1e-12)


def test_weights_count_in_coordinates_that_are_not_fitted():
    """There the plan is the Gaussian bridge of the weighted moments."""
    x, y = randn(800, 4, seed=1), randn(800, 4, seed=2) * torch.tensor([3.0, 1.0, 1.0, 1.0])
    weights = torch.where(y[:, 3] > 0, 1.5, 0.5)
    ends = Samples(x), Samples(y, weights / weights.sum())
    found, exact = (
        solve(BridgeProblem(*ends, BrownianMotion(1.0)), solver, seed=0)
        for solver in (MixtureBridge(components=(1,), widths=(1,)), GaussianBridge())
    )
    probe = randn(6, 4, seed=3)
    torch.testing.assert_close(
        found.conditional_mean(probe, seed=0), exact.conditional_mean(probe, seed=0), rtol=0, atol=5e-3
    )


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("name", REFERENCES)
def test_a_plan_is_the_same_in_other_coordinates(name, diagonal):
    """Those of other rows: potentials differ by a constant."""
    found, x, y, _ = likelihood(2, diagonal, REFERENCES[name])
    scales = torch.tensor([0.6, 1.7], dtype=torch.float64)
    other = Coordinates.of(REFERENCES[name], x * scales + 1.0, (y - 0.7) / scales, diagonal=diagonal)
    given, z = parts(found.coordinates, 3), randn(6, 2, seed=8)
    gap = other.potential(found.coordinates.carried(given, other))(z) - found.coordinates.potential(given)(z)
    torch.testing.assert_close(gap, gap[:1].expand(6), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("diagonal", [False, True])
def test_the_curvature_of_one_component_is_one_or_two(diagonal):
    """Second derivatives of ``−D`` by the parameters of a shape, at the Gaussian bridge: a diagonal matrix."""
    c = likelihood(3, diagonal)[0].coordinates
    chart, n = Chart(c, 1), c.n if diagonal else torch.diag(c.n)
    spreads = c.s if diagonal else torch.diag(c.s)
    point = chart.point(Components(torch.zeros(1).double(), torch.zeros(1, 3).double(), spreads.unsqueeze(0)))

    def fall(shape):
        here = chart.components(torch.cat([point[:4], shape]))
        below, above = (
            form.constants + (form.quadratic * n).sum() for form in (here.source_forms(c.s), here.target_forms(c.s))
        )
        return (below - above)[0]

    hessian = torch.autograd.functional.hessian(fall, point[4:])
    i, j = torch.tril_indices(3, 3)
    wanted = torch.ones(3) if diagonal else torch.where(i == j, 1.0, 2.0)
    torch.testing.assert_close(hessian, torch.diag(wanted).double(), rtol=1e-9, atol=1e-9)


def ends(structured, rows=4000):
    """Two clusters in two columns; in two others of less variance noise, correlated by cluster if ``structured``."""
    sign = randn(rows, 1, seed=3).sign()
    x = randn(rows, 4, seed=1) * torch.tensor([2.0, 2.0, 0.7, 0.7])
    y = torch.cat([4 * sign, 4 * sign, torch.zeros(rows, 2)], 1) + randn(rows, 4, seed=2)
    if structured:
        y[:, 3:] = 0.4 * y[:, 3:] + 0.9 * sign * y[:, 2:3]
    return Samples(x), Samples(y)


@pytest.mark.parametrize("structured", [False, True])
def test_held_out_rows_choose_the_number_of_coordinates(structured):
    problem = BridgeProblem(*ends(structured), BrownianMotion(1.0))
    solver = MixtureBridge(components=(2, 20), widths=(2, 4))
    state = solver.init(problem, 0)
    while not solver.finished(problem, state):
        state, _ = solver.step(problem, state)
    assert state.last
    assert state.coordinates.width == (4 if structured else 2)
    assert state.components.means.shape == (2, state.coordinates.width)
    apart = solver.finish(problem, state).forward.control.potential.precisions.diff(dim=0)[0]
    assert (apart[2:, 2:].abs().max() > 0.5) == structured


@pytest.mark.parametrize("structured", [False, True])
def test_a_fit_goes_on_from_any_number_of_coordinates(structured):
    problem = BridgeProblem(*ends(structured, 400), BrownianMotion(1.0))
    solver = MixtureBridge(components=(2,), widths=(2, 3, 4), iterations=3)
    state, kept = solver.init(problem, 0), []
    while not solver.finished(problem, state):
        kept.append(state.state_dict())
        state, _ = solver.step(problem, state)
    for saved in kept:
        other = solver.resume(problem, saved)
        while not solver.finished(problem, other):
            other, _ = solver.step(problem, other)
        assert torch.equal(other.components.means, state.components.means)
        assert torch.equal(other.components.covariances, state.components.covariances)
    assert len({saved["width_index"] for saved in kept}) > 1


def test_more_columns_than_components_can_have_shapes_in():
    """Where all structure lies in few directions, few coordinates find it, whatever the axes."""
    turn, _ = torch.linalg.qr(randn(40, 40, seed=5))
    pair = MixturePair(2, 1.0)
    few = [side.double() for side in pair.sample(4000, seed=1)]
    x, y = (torch.cat([side, randn(4000, 38, seed=7 + i)], 1) @ turn for i, side in enumerate(few))
    bridge = fit(x, y, reference=pair.reference, solver=MixtureBridge(widths=(4,)), seed=0)
    fresh = [side.double() for side in pair.sample(500, seed=2)]
    probe = torch.cat([fresh[0], torch.zeros(500, 38)], 1).double() @ turn
    found = bridge.conditional_mean(probe, seed=0) @ turn.mT
    exact, _ = pair.moments(fresh[0])
    assert (found[:, :2] - exact).square().sum(1).mean() < 0.02 * float(pair.end_moments[1].trace())
    assert found[:, 2:].square().sum(1).mean() < 0.2


def test_exponents_that_underflow_change_no_sum():
    """In float32 the exponential of −90 is no normal number; sums are those of float64."""
    rows = torch.linspace(-30.0, 30.0, 61).unsqueeze(1)
    constants, linear = torch.zeros(3).double(), torch.tensor([[-3.0], [0.0], [3.0]]).double()
    forms = Quadratics(constants, linear, torch.full((3, 1), -0.1, dtype=torch.float64))
    single, double = Rows(rows).statistics(forms), Rows(rows.double()).statistics(forms)
    assert single[0] == pytest.approx(double[0], rel=1e-6)
    exact = torch.logsumexp(linear.mT * rows.double() - 0.1 * rows.double().square(), 1).mean()
    assert double[0] == pytest.approx(float(exact), rel=1e-12)
    assert Rows(rows.double()).mean_log_sum(forms) == pytest.approx(float(exact), rel=1e-12)
    torch.testing.assert_close(single[1].seconds, double[1].seconds, rtol=1e-5, atol=1e-7)


def test_shares_too_small_to_count_are_none():
    found, *_ = likelihood(2, False)
    given = parts(found.coordinates, 2)
    lost = Components(given.logits - torch.tensor([0.0, 200.0]), given.means, given.covariances)
    _, *claims = found.statistics(lost)
    assert [float(one.masses[1]) for one in claims] == [0.0, 0.0]
    assert [float(one.masses[0]) for one in claims] == pytest.approx([1.0, 1.0], abs=1e-12)
