"""Optimal transport: POT's plans and costs, our Sinkhorn, the Gaussian-kernel cloud, the baseline maps."""

import itertools
import math

import ot
import pytest
import torch
from hypothesis import given, settings, strategies as st

from sbridge import transport
from sbridge.errors import InvalidInputError, NotConvergedError
from sbridge.storage.registry import decode, encode
from sbridge.transport import (
    Cloud,
    EntropicProblem,
    Sinkhorn,
    cloud as cloud_module,
    entropic_plan,
    exact_cost,
    exact_plan,
    sinkhorn,
    sinkhorn_converged,
    sinkhorn_finish,
    sinkhorn_init,
    sinkhorn_step,
)
from sbridge.transport.sinkhorn import _log, _relaxation, _relaxed

TIGHT = Sinkhorn(tolerance=1e-10)


def rows(n, dim, seed=0, dtype=torch.float64, shift=0.0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) + shift


def weights(n, seed):
    w = 0.2 + torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return w / w.sum()


def half_squares(x, y):
    return 0.5 * (x[:, None] - y[None]).square().sum(-1)


# ---- conversions


def test_epsilon_and_regularisation():
    assert transport.epsilon_of(0.5, 2.0) == 0.5
    assert transport.regularisation(0.3) == 0.6


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_conversions_refuse_what_is_not_positive(value):
    with pytest.raises(InvalidInputError, match="epsilon must be positive"):
        transport.regularisation(value)
    with pytest.raises(InvalidInputError, match="sigma must be positive"):
        transport.epsilon_of(value, 1.0)
    with pytest.raises(InvalidInputError, match="horizon must be positive"):
        transport.epsilon_of(1.0, value)


# ---- exact plans and costs


def test_exact_plan_is_the_best_permutation(dtype):
    x, y = rows(5, 3, 1, dtype), rows(5, 3, 2, dtype)
    plan, cost = exact_plan(x, y), exact_cost(x, y)
    assert plan.dtype == cost.dtype == dtype
    best = min(
        float(sum((x[i] - y[j]).square().sum() for i, j in enumerate(order))) / 5
        for order in itertools.permutations(range(5))
    )
    assert float(cost) == pytest.approx(best, rel=1e-5)
    assert ((plan > 0.1).sum(0) == 1).all()


def test_exact_plan_with_weights_has_its_marginals():
    x, y, a, b = rows(7, 2, 1), rows(4, 2, 2), weights(7, 3), weights(4, 4)
    plan = exact_plan(x, y, a, b)
    torch.testing.assert_close(plan.sum(1), a)
    torch.testing.assert_close(plan.sum(0), b)
    assert float((plan * 2 * half_squares(x, y)).sum()) == pytest.approx(float(exact_cost(x, y, a, b)))


def test_exact_cost_in_one_dimension_is_by_sorting(dtype):
    x, y = rows(200, 1, 1, dtype), rows(200, 1, 2, dtype, shift=0.5)
    by_sorting = (x.sort(0).values - y.sort(0).values).square().mean()
    torch.testing.assert_close(exact_cost(x, y), by_sorting, rtol=1e-5, atol=0)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_exact_cost_of_a_shift_and_of_an_order(seed, dim):
    x, shift = rows(12, dim, seed), rows(1, dim, seed + 1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(exact_cost(x, (x + shift)[order]), shift.square().sum())


def test_simplex_failure_is_an_error(monkeypatch):
    def give_up(a, b, cost, **options):
        return cost, {"warning": "numItermax reached before optimality."}

    monkeypatch.setattr(ot, "emd", give_up)
    with pytest.raises(NotConvergedError, match="numItermax reached"):
        exact_plan(rows(3, 1), rows(3, 1))


def test_sliced_cost(dtype):
    x, y = rows(50, 1, 1, dtype), rows(50, 1, 2, dtype)
    one = torch.ones(3, 1)
    torch.testing.assert_close(transport.sliced_cost(x, y, one), exact_cost(x, y), rtol=1e-5, atol=0)
    # Sorted rows in pairs, and by quantiles: rows that come twice each are the same measure.
    twice = transport.sliced_cost(x, torch.cat([y, y]), one)
    torch.testing.assert_close(transport.sliced_cost(x, y, one), twice, rtol=1e-5, atol=0)
    # Sizes that differ, more directions than a block, and a shift: W2² along θ is (θ·shift)².
    z, shift = rows(30, 2, 3, dtype), torch.tensor([1.0, -2.0], dtype=dtype)
    angle = torch.linspace(0, 3, 40, dtype=dtype)
    directions = torch.stack([angle.cos(), angle.sin()], 1)
    expected = (directions @ shift).square().mean()
    value = transport.sliced_cost(z, torch.cat([z, z]) + shift, directions)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)


# ---- POT's Sinkhorn, the independent reference


def test_pot_plan_solves_the_dual_system():
    x, y, epsilon = rows(8, 2, 1), rows(6, 2, 2), 0.3
    plan = entropic_plan(x, y, epsilon, tolerance=1e-10)
    torch.testing.assert_close(plan.sum(1), torch.full((8,), 1 / 8, dtype=x.dtype))
    torch.testing.assert_close(plan.sum(0), torch.full((6,), 1 / 6, dtype=x.dtype))
    # log π + cost/ε is a sum of a function of i and one of j, which fixes cost and ε: both factors 2 are seen.
    both = plan.log() + half_squares(x, y) / epsilon
    torch.testing.assert_close(both - both[:1] - both[:, :1] + both[0, 0], torch.zeros_like(both))


def test_pot_plan_raises_when_it_does_not_converge():
    with pytest.raises(
        NotConvergedError, match=r"marginal error of .* after .* iterations; the tolerance is 1e-12 at ε = 0.001"
    ):
        entropic_plan(rows(20, 2, 1), rows(20, 2, 2), 1e-3, tolerance=1e-12, max_iterations=100)


# ---- our Sinkhorn


@pytest.mark.parametrize("epsilon", [0.2, 1.0])
@pytest.mark.parametrize("n", [40, 25])
def test_sinkhorn_agrees_with_pot(epsilon, n):
    x, y = rows(n, 3, 1), rows(40, 3, 2, shift=1.0)
    ours = sinkhorn(EntropicProblem(x, y, epsilon), TIGHT)
    assert float((ours.plan() - entropic_plan(x, y, epsilon, tolerance=1e-10)).abs().sum()) < 1e-6
    assert ours.error <= 1e-10


def test_sinkhorn_float32_agrees_with_float64():
    x, y = rows(300, 10, 1), rows(200, 10, 2)
    fine = sinkhorn(EntropicProblem(x, y, 0.5), TIGHT).plan()
    single = sinkhorn(EntropicProblem(x.float(), y.float(), 0.5), Sinkhorn(tolerance=1e-5)).plan()
    assert single.dtype == torch.float32
    assert float((single - fine).abs().sum()) < 1e-3


def test_sinkhorn_with_weights(dtype):
    x, y, a, b = rows(30, 2, 1, dtype), rows(20, 2, 2, dtype), weights(30, 3), weights(20, 4)
    solution = sinkhorn(EntropicProblem(x, y, 0.2, a, b), Sinkhorn(tolerance=1e-5))
    f, g, plan = solution.f, solution.g, solution.plan()
    expected = a[:, None] * b * ((f[:, None] + g - half_squares(x.double(), y.double())) / 0.2).exp()
    torch.testing.assert_close(plan, expected.to(dtype), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(plan.sum(1), a.to(dtype))
    assert float((plan.sum(0) - b).abs().sum()) < 3e-5


def test_error_is_that_of_the_rows_after_a_column_update(dtype):
    x, y, a, b = rows(30, 2, 1, dtype), rows(20, 2, 2, dtype), weights(30, 3), weights(20, 4)
    problem, options, seen = EntropicProblem(x, y, 0.05, a, b), Sinkhorn(tolerance=1e-3, batch=3), []
    state, cost = sinkhorn_init(problem, options), half_squares(x.double(), y.double())
    while not sinkhorn_converged(problem, state, options):
        state = sinkhorn_step(problem, state, options)
        if state["error"] < 2.0:
            f = state["f"][:, None]
            g = -0.05 * torch.logsumexp((f - cost) / 0.05 + a.log()[:, None], 0)
            plan = a[:, None] * b * ((f + g - cost) / 0.05).exp()
            torch.testing.assert_close(plan.sum(0), b)
            seen.append((float((plan.sum(1) - a).abs().sum()), state["error"]))
            # The solution holds that very g, up to the constant.
            gap = sinkhorn_finish(problem, state).g - g
            assert float(gap.max() - gap.min()) < 1e-7
    true, reported = torch.tensor(seen).T
    assert len(seen) > 3
    torch.testing.assert_close(reported, true, rtol=1e-3, atol=1e-5)


def test_wide_epsilon_gives_the_independent_plan(dtype):
    x, y, a = rows(9, 2, 1, dtype), rows(7, 2, 2, dtype), weights(9, 3)
    plan = sinkhorn(EntropicProblem(x, y, 1e6, a), Sinkhorn(tolerance=1e-5)).plan()
    torch.testing.assert_close(plan, (a / 7).to(dtype)[:, None].expand(9, 7), rtol=1e-3, atol=0)


def test_narrow_epsilon_gives_the_exact_plan(dtype):
    x, y = rows(20, 2, 1, dtype), rows(20, 2, 2, dtype)
    plan = sinkhorn(EntropicProblem(x, y, 2e-3), Sinkhorn(tolerance=1e-4, max_iterations=100_000)).plan()
    assert float((plan - exact_plan(x, y)).abs().sum()) < 0.02


def test_covariance_between_gaussian_samples():
    # Bridge of N(0, 1) with itself at ε = 1: Cov(X_0, X_1) = (√5 − 1)/2. With the sample variances A, B in its
    # place, C = (√(4AB + ε²) − ε)/2, most of the sampling error cancels.
    gaps = []
    for seed in range(12):
        x, y = rows(400, 1, 2 * seed), rows(400, 1, 2 * seed + 1)
        plan = sinkhorn(EntropicProblem(x, y, 1.0)).plan()
        covariance = float((x - x.mean()).mT @ plan @ (y - y.mean()))
        expected = 0.5 * (math.sqrt(4 * float(x.var() * y.var()) + 1) - 1)
        gaps.append(covariance - expected)
    gaps = torch.tensor(gaps)
    assert abs(float(gaps.mean())) < 4 * float(gaps.std()) / math.sqrt(12) + 0.004
    assert float(gaps.std()) < 0.02


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 1.0]))
def test_sinkhorn_invariances(seed, epsilon):
    x, y, shift = rows(12, 2, seed), rows(9, 2, seed + 1), 10 * rows(1, 2, seed + 2)
    plan = sinkhorn(EntropicProblem(x, y, epsilon), TIGHT).plan()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    permuted = sinkhorn(EntropicProblem(x[order], y, epsilon), TIGHT).plan()
    torch.testing.assert_close(permuted, plan[order], rtol=1e-6, atol=1e-10)
    # Both ends moved, each by its own vector: the plan stays. Both scaled by 3: ε by 9.
    moved = sinkhorn(EntropicProblem(x + shift, y - shift, epsilon), TIGHT).plan()
    torch.testing.assert_close(moved, plan, rtol=1e-6, atol=1e-10)
    scaled = sinkhorn(EntropicProblem(3 * x, 3 * y, 9 * epsilon), TIGHT).plan()
    torch.testing.assert_close(scaled, plan, rtol=1e-6, atol=1e-10)
    swapped = sinkhorn(EntropicProblem(y, x, epsilon), TIGHT)
    torch.testing.assert_close(swapped.plan().mT, plan, rtol=1e-6, atol=1e-10)


def test_high_dimension_small_epsilon_float32():
    # ε a thousandth of the mean cost, as in single-cell data.
    x, y = rows(600, 50, 1, torch.float32), rows(500, 50, 2, torch.float32, shift=1.0)
    epsilon = float(half_squares(x, y).mean()) / 1000
    solution = sinkhorn(EntropicProblem(x, y, epsilon))
    columns = solution.plan().sum(0)
    assert solution.error <= 1e-3
    assert float((columns - 1 / 500).abs().sum()) <= 1.1e-3


def test_far_clusters_survive_underflow(dtype):
    # Kernel entries between the clusters are e^{−10⁷}; unequal sizes force mass across.
    x = torch.cat([rows(30, 2, 1, dtype), rows(10, 2, 2, dtype, shift=1e3)])
    y = torch.cat([rows(20, 2, 3, dtype), rows(20, 2, 4, dtype, shift=1e3)])
    plan = sinkhorn(EntropicProblem(x, y, 0.1), Sinkhorn(tolerance=1e-3)).plan()
    assert float(plan[:30, 20:].sum()) == pytest.approx(0.25, abs=1e-3)
    assert float((plan.sum(0) - 1 / 40).abs().sum()) < 2e-3


def test_the_dual_never_falls_at_the_final_level():
    x, y, epsilon = rows(150, 5, 1), rows(150, 5, 2, shift=2.0), 0.05
    options = Sinkhorn(tolerance=1e-6, batch=4, relaxation=1.99, decrease=0.01, warm_batch=1)
    problem, cost = EntropicProblem(x, y, epsilon), half_squares(x, y)
    state, values = sinkhorn_init(problem, options), []
    while not sinkhorn_converged(problem, state, options):
        state = sinkhorn_step(problem, state, options)
        if state["error"] < 2.0:
            mass = ((state["f"][:, None] + state["g"] - cost) / epsilon).exp().mean()
            values.append(float(state["f"].mean() + state["g"].mean() - epsilon * (mass - 1)))
    assert len(values) > 5
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(values))
    assert values[-1] > values[0] + 1e-6


def test_relaxation_is_undone_where_it_would_overshoot():
    w = torch.tensor([1.0], dtype=torch.float64)
    near, far = torch.tensor([0.01], dtype=torch.float64), torch.tensor([-3.0], dtype=torch.float64)
    torch.testing.assert_close(_relaxed(torch.zeros_like(w), near, w, 1.8), -1.8 * near)
    torch.testing.assert_close(_relaxed(torch.zeros_like(w), far, w, 1.8), -far)
    assert float(_relaxed(torch.zeros_like(w), -100 * w, w, 1.0)) == 40.0


def test_relaxation_follows_the_rate():
    # At ω = 1 the rate is η itself, and the best ω of that η contracts by ω − 1.
    best = 2 / (1 + math.sqrt(0.1))
    assert _relaxation(1.0, 0.9) == pytest.approx(best)
    assert _relaxation(best, best - 1) == pytest.approx(best)
    assert _relaxation(1.5, 0.99) > 1.5
    assert _relaxation(1.9, 0.1) == _relaxation(1.9, 1.2) == _relaxation(1.9, 0.0) == 1.9
    assert _relaxation(1.0, 1 - 1e-12) == 1.99


def test_relaxation_saves_iterations():
    x, y = rows(100, 5, 1), rows(100, 5, 2, shift=1.0)
    problem = EntropicProblem(x, y, 0.03)
    fast = sinkhorn(problem, Sinkhorn(tolerance=1e-5))
    state, slow = sinkhorn_init(problem), Sinkhorn(tolerance=1e-5, relaxation=1.0, max_iterations=10**6)
    state["relaxation"] = 1.0
    while not sinkhorn_converged(problem, state, slow):
        state = sinkhorn_step(problem, state, slow)
        state["relaxation"] = 1.0
    assert fast.iterations < 0.3 * int(state["iterations"])


def test_a_stopped_run_continues_bit_for_bit(dtype, tmp_path):
    problem, options = (
        EntropicProblem(rows(200, 5, 1, dtype), rows(150, 5, 2, dtype), 0.05),
        Sinkhorn(tolerance=1e-4),
    )
    whole = sinkhorn(problem, options)
    state = sinkhorn_init(problem, options)
    for count in itertools.count():
        if sinkhorn_converged(problem, state, options):
            break
        if count % 2:
            torch.save(state, tmp_path / "state.pt")
            state = torch.load(tmp_path / "state.pt")
        kept = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()}
        after = sinkhorn_step(problem, state, options)
        assert all(bool((torch.as_tensor(state[key]) == torch.as_tensor(kept[key])).all()) for key in kept)
        assert all(isinstance(value, (torch.Tensor, int, float)) for value in after.values())
        state = after
    again = sinkhorn_finish(problem, state)
    assert torch.equal(again.g, whole.g)
    assert torch.equal(again.f, whole.f)
    assert (again.error, again.iterations) == (whole.error, whole.iterations)


def test_batches_do_not_change_the_iteration(dtype):
    # Eight iterations at one ω are the same in one batch or in four: the pass between batches only changes gauge.
    problem = EntropicProblem(rows(60, 3, 1, dtype), rows(50, 3, 2, dtype), 0.1, weights(60, 3))
    whole, parts = Sinkhorn(batch=8), Sinkhorn(batch=2)
    state = sinkhorn_init(problem, whole)
    while state["epsilon"] > problem.epsilon:
        state = sinkhorn_step(problem, state, whole)
    once, split = sinkhorn_step(problem, state, whole), state
    for _ in range(4):
        split = sinkhorn_step(problem, split | {"relaxation": state["relaxation"]}, parts)
    tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 1e-12}
    torch.testing.assert_close(split["f"], once["f"], **tolerance)
    torch.testing.assert_close(split["g"], once["g"], **tolerance)
    assert split["error"] == pytest.approx(once["error"], rel=1e-3)
    assert split["iterations"] == once["iterations"]


def test_no_level_but_the_last_counts_as_converged():
    problem = EntropicProblem(rows(6, 3, 1), rows(5, 3, 2), 0.1)
    done = sinkhorn_init(problem) | {"epsilon": 0.1, "error": 1e-4}
    assert sinkhorn_converged(problem, done)
    assert not sinkhorn_converged(problem, done, Sinkhorn(tolerance=1e-5))
    assert not sinkhorn_converged(problem, done | {"epsilon": 0.2})


def test_underflow_is_bounded():
    assert _log(torch.zeros(1)).tolist() == pytest.approx([math.log(1e-30)])


def test_sinkhorn_says_why_it_stopped_and_can_go_on():
    problem, short = (
        EntropicProblem(rows(50, 2, 1), rows(50, 2, 2), 1e-2),
        Sinkhorn(max_iterations=120, tolerance=1e-6),
    )
    with pytest.raises(NotConvergedError, match=r"error is .* at ε = 0\.01 .* the tolerance is 1e-06 .* Raise max"):
        sinkhorn(problem, short)
    state = sinkhorn_init(problem, short)
    while int(state["iterations"]) < short.max_iterations:
        state = sinkhorn_step(problem, state, short)
    longer = Sinkhorn(tolerance=1e-6)
    while not sinkhorn_converged(problem, state, longer):
        state = sinkhorn_step(problem, state, longer)
    assert state["error"] <= 1e-6


def test_normalisers_are_the_potential_on_the_data_and_the_formula_elsewhere(dtype):
    x, y, b, new = rows(30, 3, 1, dtype), rows(20, 3, 2, dtype), weights(20, 4), rows(5, 3, 7, dtype)
    solution = sinkhorn(EntropicProblem(x, y, 0.3, None, b))
    normaliser = solution.forward.log_normaliser
    torch.testing.assert_close(-0.3 * normaliser(x, 0.3), solution.f, check_dtype=False)
    exponent = (solution.g - half_squares(new.double(), y.double())) / 0.3 + b.log()
    torch.testing.assert_close(normaliser(new, 0.3), torch.logsumexp(exponent, 1), check_dtype=False)
    assert float((solution.g * b).sum()) == pytest.approx(0.0, abs=1e-10)
    # Backwards: the law of x given y_j is column j of the plan, up to the error of its sum.
    back = solution.backward.weights(y, 0.3)
    plan = solution.plan()
    torch.testing.assert_close(back, (plan / plan.sum(0)).mT, rtol=1e-4, atol=1e-7)


BAD_PROBLEMS = {
    "x has 2 columns and y has 3": lambda x: (x, rows(4, 3), 1.0),
    "NaN": lambda x: (x / 0 * 0, x, 1.0),
    "with y.to": lambda x: (x, x.float(), 1.0),
    "epsilon must be positive and finite, got 0": lambda x: (x, x, 0.0),
    "epsilon must be positive and finite, got nan": lambda x: (x, x, math.nan),
    "a must hold 4 positive numbers": lambda x: (x, x, 1.0, torch.tensor([0.5, 0.5, 0.0, 0.0])),
    "b must hold 4 positive numbers": lambda x: (x, x, 1.0, None, torch.ones(4)),
    "shape": lambda x: (x[0], x, 1.0),
}


@pytest.mark.parametrize("message", BAD_PROBLEMS)
def test_bad_problems(message):
    with pytest.raises(InvalidInputError, match=message):
        EntropicProblem(*BAD_PROBLEMS[message](rows(4, 2)))


@pytest.mark.parametrize(
    "bad", [{"tolerance": 0.0}, {"relaxation": 2.0}, {"decrease": 1.0}, {"batch": 0}, {"max_iterations": 0}]
)
def test_bad_options(bad):
    with pytest.raises(InvalidInputError, match="Sinkhorn needs"):
        Sinkhorn(**bad)


@pytest.mark.parametrize("function", [exact_plan, exact_cost, lambda x, y: entropic_plan(x, y, 1.0)])
def test_plans_refuse_pairs_that_do_not_fit(function):
    with pytest.raises(InvalidInputError, match="2 columns and y has 3"):
        function(rows(4, 2), rows(4, 3))
    with pytest.raises(InvalidInputError, match="NaN"):
        function(rows(4, 2) * math.nan, rows(4, 2))


def test_exact_plan_refuses_bad_weights():
    with pytest.raises(InvalidInputError, match="a must hold 4 positive numbers with sum 1, got shape"):
        exact_plan(rows(4, 2), rows(4, 2), torch.ones(3) / 3)


# ---- the cloud


def direct(x, y, logits, variance):
    v = torch.as_tensor(variance, dtype=torch.float64).reshape(-1, 1)
    return logits.double() - half_squares(x.double(), y.double()) / v


@pytest.mark.parametrize("variance", [0.5, torch.linspace(0.1, 2.0, 11, dtype=torch.float64)], ids=["one", "per row"])
def test_cloud_is_a_softmax(dtype, variance, monkeypatch):
    monkeypatch.setattr(cloud_module, "_CHUNK", 16)  # three rows a block
    x, y, logits = rows(11, 3, 1, dtype), rows(5, 3, 2, dtype), rows(5, 1, 3).flatten()
    exponent, cloud = direct(x, y, logits, variance), Cloud(y, logits)
    expected = exponent.softmax(1).to(dtype)
    torch.testing.assert_close(cloud.weights(x, variance), expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(cloud.mean(x, variance), expected @ y, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(cloud.log_normaliser(x, variance), exponent.logsumexp(1), rtol=1e-5, atol=1e-6)


def test_cloud_keeps_digits_far_from_the_origin():
    # Exponents of order 10⁹ before the shift: in float32 nothing would be left.
    x, y = rows(20, 3, 1, torch.float32, shift=1000.0), rows(30, 3, 2, torch.float32, shift=1000.0)
    logits = torch.zeros(30)
    expected = direct(x, y, logits, 1e-3).softmax(1)
    torch.testing.assert_close(Cloud(y, logits).weights(x, 1e-3).double(), expected, rtol=1e-4, atol=1e-6)


def test_cloud_draws_with_its_weights():
    y, logits = rows(4, 2, 2), rows(4, 1, 3).flatten()
    x = rows(1, 2, 1).expand(20_000, 2)
    drawn = Cloud(y, logits).draw(x, 0.7, torch.Generator().manual_seed(5))
    expected = direct(x[:1], y, logits, 0.7).softmax(1)[0]
    counts = torch.bincount(drawn, minlength=4).double()
    errors = (counts / 20_000 - expected) / (expected * (1 - expected) / 20_000).sqrt()
    assert float(errors.abs().max()) < 4


def test_cloud_draws_do_not_depend_on_blocks(monkeypatch, dtype):
    cloud, x = Cloud(rows(50, 2, 2, dtype), torch.zeros(50)), rows(300, 2, 1, dtype)
    whole = cloud.draw(x, 0.2, torch.Generator().manual_seed(5))
    monkeypatch.setattr(cloud_module, "_CHUNK", 50 * 7)
    assert torch.equal(whole, cloud.draw(x, 0.2, torch.Generator().manual_seed(5)))


def test_cloud_draws_only_points_of_positive_weight(dtype):
    y = torch.tensor([[0.0], [1.0], [500.0]], dtype=dtype)
    drawn = Cloud(y, torch.zeros(3)).draw(torch.zeros(5000, 1, dtype=dtype), 0.1, torch.Generator().manual_seed(1))
    assert set(drawn.tolist()) == {0, 1}


def test_cloud_draws_no_point_of_weight_zero_at_the_very_start(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.zeros(*shape, dtype=torch.float64))
    y = torch.tensor([[500.0], [0.0]])
    assert Cloud(y, torch.zeros(2)).draw(torch.zeros(1, 1), 0.1, torch.Generator()).tolist() == [1]


def test_cloud_weights_are_zero_or_normal_numbers(dtype):
    """Subnormal numbers would make every sum several times slower."""
    y = torch.linspace(0.0, 40.0, 400, dtype=dtype).reshape(-1, 1)
    found = Cloud(y, torch.zeros(400)).weights(torch.zeros(1, 1, dtype=dtype), 1.0)
    assert bool(((found == 0) | (found >= torch.finfo(dtype).tiny)).all())
    assert 0 < int((found == 0).sum()) < 400
    assert float(found.sum()) == pytest.approx(1.0)


def test_cloud_is_differentiable():
    cloud = Cloud(rows(6, 2, 2), rows(6, 1, 3).flatten())
    x = rows(3, 2, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: cloud.mean(z, 0.4), (x,))
    assert torch.autograd.gradcheck(lambda z: cloud.log_normaliser(z, 0.4), (x,))
    # Tweedie: ∇ log Σ_j w_j N(x; y_j, v) = (E[y | x] − x)/v.
    (score,) = torch.autograd.grad(cloud.log_normaliser(x, 0.4).sum(), x)
    torch.testing.assert_close(score, ((cloud.mean(x, 0.4) - x) / 0.4).detach())


def test_cloud_refuses_bad_input():
    cloud = Cloud(rows(6, 2), torch.zeros(6))
    with pytest.raises(InvalidInputError, match="one logit per row"):
        Cloud(rows(6, 2), torch.zeros(5))
    with pytest.raises(InvalidInputError, match=r"shape \(rows, 2\)"):
        cloud.mean(rows(3, 3), 1.0)
    for bad in (0.0, math.nan, torch.ones(4), torch.tensor([1.0, -1.0, 1.0])):
        with pytest.raises(InvalidInputError, match="variance must be positive"):
            cloud.mean(rows(3, 2), bad)


# ---- baseline maps


def test_exact_map_follows_the_plan_and_the_nearest_row(dtype):
    x, y = rows(15, 2, 1, dtype), rows(15, 2, 2, dtype)
    mapped, plan = transport.exact_map(x, y), exact_plan(x, y)
    torch.testing.assert_close(mapped(x), y[plan.argmax(1)])
    torch.testing.assert_close(mapped(x[3:5] + 1e-4), mapped(x[3:5]))
    # Unequal sides: barycentres, which keep the mean.
    z = rows(10, 2, 3, dtype)
    torch.testing.assert_close(transport.exact_map(x, z)(x).mean(0), z.mean(0))


def test_nearest_rows(monkeypatch):
    x, y = rows(500, 3, 1, shift=50.0), rows(700, 3, 2, shift=50.0)
    exact = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert torch.equal(transport.maps.nearest_rows(x, y), exact)


def test_entropic_map_is_the_barycentre_of_the_plan(dtype):
    x, y = rows(40, 2, 1, dtype), rows(30, 2, 2, dtype, shift=1.0)
    mapped = transport.entropic_map(x, y, 0.5)
    plan = sinkhorn(EntropicProblem(x, y, 0.5)).plan()
    torch.testing.assert_close(mapped(x), plan @ y * 40, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mapped(x + 1e-6), mapped(x), rtol=1e-3, atol=1e-4)
    assert float(mapped(x).var(0).sum()) < float(y.var(0).sum())


def test_gaussian_map_moves_the_moments(dtype):
    x = rows(100, 3, 1, dtype) @ torch.tensor([[2.0, 1, 0], [0, 1, 0], [0, 0, 0.3]], dtype=dtype)
    y = rows(120, 3, 2, dtype, shift=2.0) @ torch.tensor([[1.0, 0, 0], [0.5, 1, 0], [0, 3.0, 1]], dtype=dtype)
    mapped = transport.gaussian_map(x, y)
    torch.testing.assert_close(mapped(x).mean(0), y.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cov(mapped(x).mT), torch.cov(y.mT), rtol=1e-3, atol=1e-3)
    # Optimal: the matrix is symmetric and positive.
    torch.testing.assert_close(mapped.matrix, mapped.matrix.mT)
    assert float(torch.linalg.eigvalsh(mapped.matrix)[0]) > 0


def test_gaussian_map_in_one_dimension():
    x, y = rows(50, 1, 1), 3 * rows(60, 1, 2) + 1
    expected = y.mean() + (x - x.mean()) * (y.std() / x.std())
    torch.testing.assert_close(transport.gaussian_map(x, y)(x), expected)


def test_gaussian_map_needs_a_covariance():
    flat = rows(10, 2) * torch.tensor([1.0, 0.0])
    with pytest.raises(InvalidInputError, match="singular"):
        transport.gaussian_map(flat, rows(10, 2))
    with pytest.raises(InvalidInputError, match="at least two rows"):
        transport.gaussian_map(rows(1, 2), rows(10, 2))


def test_maps_and_options_can_be_stored():
    x, y = rows(20, 2, 1), rows(20, 2, 2)
    for mapped in (
        transport.exact_map(x, y),
        transport.entropic_map(x, y, 0.5),
        transport.gaussian_map(x, y),
    ):
        again = decode(*encode(mapped))
        assert torch.equal(again(x), mapped(x))
    assert decode(*encode(Sinkhorn(batch=7))) == Sinkhorn(batch=7)
    assert transport.NearestRowMap.holds_training_rows
    assert Cloud.holds_training_rows
