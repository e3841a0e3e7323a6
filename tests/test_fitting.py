"""fit, prepare, choices, courses: what must not depend on units, order or names, and what bad input is told."""

import numpy as np
import pytest
import torch

import sbridge as sb
from sbridge.benchmarks.pairs import MixturePair
from sbridge.errors import InvalidInputError, NonFiniteError, PrecisionWarning, TimesWarning, UnsupportedError
from sbridge.fitting.fit import _check_options, prepare
from sbridge.laws.arrays import check_precision
from sbridge.measures import Estimate
from sbridge.metrics import energy_distance
from sbridge.random import derive
from sbridge.solvers import IPF
from sbridge.training import Optimisation
from sbridge.transport import Sinkhorn

SMALL = sb.IMF(
    coupling=sb.couplings.EntropicCoupling(rows=200), pretraining=30, stages=2, updates=20, refresh=10, pairs=200,
    network=sb.networks.MLP(width=16, depth=2), optimisation=Optimisation(batch=64),
)  # fmt: skip


def rows(seed, n=300, shift=0.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.tensor([[1.0, 0.3], [0.0, 0.5]], dtype=dtype)
    return torch.randn(n, 2, generator=generator, dtype=dtype) @ mixed + shift


X0, X1 = rows(0), rows(1, shift=2.0)
REFERENCE = sb.BrownianMotion(sigma=0.8)


@pytest.mark.parametrize("solver", [sb.GaussianBridge(), sb.SinkhornBridge(sinkhorn=Sinkhorn(tolerance=1e-9))])
@pytest.mark.parametrize("scaling", [sb.NoScaling(), sb.CommonScale(), sb.PerCoordinate()])
def test_scaling_does_not_change_the_problem(solver, scaling):
    plain = sb.fit(X0, X1, reference=REFERENCE, solver=solver, scaling=sb.NoScaling())
    scaled = sb.fit(X0, X1, reference=REFERENCE, solver=solver, scaling=scaling)
    for t in (0.1, 0.6):
        torch.testing.assert_close(scaled.current_velocity(t, X0), plain.current_velocity(t, X0), rtol=1e-5, atol=1e-6)
    mean = scaled.conditional_mean(X0, seed=0)
    torch.testing.assert_close(mean, plain.conditional_mean(X0, seed=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", [sb.GaussianBridge(), sb.SinkhornBridge()])
def test_rescaled_space_is_rescaled_sigma(solver):
    one = sb.fit(X0, X1, reference=REFERENCE, solver=solver)
    ten = sb.fit(10 * X0, 10 * X1, reference=sb.BrownianMotion(sigma=8.0), solver=solver)
    torch.testing.assert_close(
        ten.conditional_mean(10 * X0, seed=0), 10 * one.conditional_mean(X0, seed=0), rtol=1e-6, atol=1e-6
    )


def test_swapped_ends_are_the_reversed_bridge():
    there = sb.fit(X0, X1, reference=REFERENCE, solver=sb.GaussianBridge())
    back = sb.fit(X1, X0, reference=REFERENCE, solver=sb.GaussianBridge())
    torch.testing.assert_close(
        there.reversed().conditional_mean(X1, seed=0), back.conditional_mean(X1, seed=0), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(there.current_velocity(0.3, X0), -back.current_velocity(0.7, X0), rtol=1e-8, atol=1e-8)


def test_order_of_rows_does_not_matter():
    order = torch.randperm(len(X1), generator=torch.Generator().manual_seed(5))
    one, other = (sb.fit(X0, y, reference=REFERENCE, solver=sb.SinkhornBridge()) for y in (X1, X1[order]))
    torch.testing.assert_close(
        one.conditional_mean(X0, seed=0), other.conditional_mean(X0, seed=0), rtol=1e-8, atol=1e-8
    )


def test_choose_sigma_is_a_tenth_of_the_pooled_variance():
    choice = sb.choose_sigma(X0, X1, horizon=4.0)
    spread = float(torch.cat([X0, X1]).std(0).mean())
    assert choice.epsilon == pytest.approx(0.1 * spread**2)
    assert choice.sigma**2 * 4.0 == pytest.approx(choice.epsilon)
    assert choice.shift == pytest.approx(float((X1.mean(0) - X0.mean(0)).square().mean().sqrt()))
    assert "16% of that of the data" in str(choice)


def test_choices_are_said():
    prepared = prepare(X0, X1)
    assert isinstance(prepared.solver, sb.MixtureBridge)
    assert prepared.choice is not None
    assert prepared.notes[0].startswith("reference: Brownian motion, sigma = ")
    assert prepared.notes[1].startswith("solver: MixtureBridge, since 300 rows in 2 columns are few for a network")
    given = prepare(X0, X1, reference=REFERENCE, solver=sb.GaussianBridge())
    assert given.notes == ()
    assert given.choice is None


NORMAL = sb.Gaussian(torch.zeros(2), torch.eye(2))
TWO = sb.GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.eye(2).expand(2, 2, 2))


def noise(rows: int, dim: int = 2) -> sb.Samples:
    return sb.Samples(torch.randn(rows, dim, generator=torch.Generator().manual_seed(rows)))


@pytest.mark.parametrize(
    ("source", "target", "solver", "reason"),
    [
        (NORMAL, NORMAL, sb.GaussianBridge, "since the bridge between Gaussians is known in closed form"),
        (NORMAL, TWO, sb.MixtureBridge, "since ends that can be sampled without limit in 2 columns suffice for"),
        (noise(999), TWO, sb.MixtureBridge, "since 999 rows in 2 columns are few for a network"),
        (TWO, noise(1000), sb.MixtureBridge, "since 1000 rows in 2 columns suffice for Gaussian components"),
        (noise(2000), noise(6), sb.SinkhornBridge, "since 6 rows in 2 columns are too few to choose a number"),
        (noise(2000), noise(199), sb.SinkhornBridge, "since 199 rows"),
        (noise(200), noise(2000), sb.MixtureBridge, "since 200 rows"),
        (noise(9, 9), noise(20, 9), sb.SinkhornBridge, "since 9 rows in 9 columns"),
        (noise(19, 9), noise(20, 9), sb.SinkhornBridge, "since 19 rows in 9 columns"),
        (noise(1200, 64), noise(1200, 64), sb.MixtureBridge, "since 1200 rows in 64 columns suffice"),
        (noise(402, 200), noise(1200, 200), sb.MixtureBridge, "since 402 rows in 200 columns are few for a network"),
        (noise(1200, 600), noise(1200, 600), sb.SinkhornBridge, "since 1200 rows in 600 columns are few"),
        (noise(2004, 1001), noise(2004, 1001), sb.IMF, "since 1001 columns are many for Gaussian components"),
        (noise(1200), sb.Samples(torch.ones(1200, 2)), sb.IMF, "since columns of the target are constant"),
        (sb.Samples(torch.ones(50, 2)), noise(50), sb.SinkhornBridge, "since 50 rows in 2 columns are few"),
    ],
    ids=[
        "Gaussian",
        "laws",
        "few rows",
        "many rows",
        "few at one end",
        "too few to hold some out",
        "enough to hold some out",
        "no more rows than columns",
        "fewer than one component needs",
        "64 columns",
        "many columns",
        "many columns and few rows",
        "too many columns",
        "flat",
        "few and flat",
    ],
)
def test_the_solver_is_chosen_by_ends_and_numbers_of_rows(source, target, solver, reason):
    choice = sb.choose_solver(sb.BridgeProblem(source, target, REFERENCE))
    assert choice.solver == solver()
    assert choice.reason.startswith(reason)
    assert str(choice) == f"{solver.__name__}, {choice.reason}"


@pytest.mark.parametrize("flip", [False, True])
def test_a_point_as_an_end_has_a_solver(flip):
    """Its plan is every pair, so one regression ends in the other end, either way."""
    rows = torch.randn(600, 2, generator=torch.Generator().manual_seed(1)) + 3.0
    ends = [sb.Point(torch.zeros(2)), sb.Samples(rows)]
    problem = sb.BridgeProblem(*(reversed(ends) if flip else ends), REFERENCE)
    assert sb.choose_solver(problem).solver == sb.MatchedBridge()
    bridge = sb.solve(problem, sb.MatchedBridge(updates=300), seed=0)
    away = bridge.backward if flip else bridge.forward
    found = away.sample(1000, seed=1).x[-1]
    assert (found.mean(0) - rows.mean(0)).abs().max() < 0.3
    assert (found.std(0) - rows.std(0)).abs().max() < 0.3


def test_two_densities_need_a_linear_reference():
    density = sb.Density(lambda x: -x.square().sum(1), 2)
    choice = sb.choose_solver(sb.BridgeProblem(density, density, REFERENCE))
    assert choice.solver == sb.AdjointBridge()
    assert "both ends are known by their densities alone" in choice.reason
    with pytest.raises(UnsupportedError, match="no solver between two unnormalised densities under DriftProcess"):
        sb.choose_solver(sb.BridgeProblem(density, density, sb.DriftProcess(lambda t, x: -(x**3), 1.0)))


@pytest.mark.parametrize(("rows", "solver"), [(30, sb.SinkhornBridge), (6002, sb.IMF)])
def test_no_covariance_of_many_columns_is_made_for_the_choice(monkeypatch, rows, solver):
    monkeypatch.setattr("sbridge.fitting.choice.span_fewer", lambda _: pytest.fail("made a covariance"))
    problem = sb.BridgeProblem(noise(rows, 3000), noise(rows, 3000), REFERENCE)
    assert sb.choose_solver(problem).solver == solver()


@pytest.mark.parametrize("dim", [2, 16])
@pytest.mark.parametrize("epsilon", [0.1, 1.0])
def test_of_few_rows_the_choice_ends_no_farther_from_held_out_rows_than_the_plug_in(dim, epsilon):
    """Energy distance to 2000 rows that no fit has seen, over five pairs of sets of 300 rows."""
    differences = []
    for seed in range(5):
        pair = MixturePair(dim, epsilon, seed)
        x0, x1 = pair.sample(300, seed=derive(seed, "train"))
        fresh0, fresh1 = pair.sample(2000, seed=derive(seed, "test"))
        chosen, plug_in = (
            energy_distance(sb.fit(x0, x1, reference=pair.reference, solver=solver).transport(fresh0, seed=1), fresh1)
            for solver in (None, sb.SinkhornBridge())
        )
        differences.append(float(chosen - plug_in))
    excess = Estimate.of(torch.tensor(differences))
    assert excess.value < 2 * excess.standard_error


@pytest.mark.parametrize(("dim", "epsilon"), [(2, 0.1), (2, 10.0), (16, 1.0)])
def test_of_many_rows_too(dim, epsilon):
    """One fit on 5000 rows a side, its end law and the plug-in's against ten lots of 1000 rows that no fit has seen."""
    pair = MixturePair(dim, epsilon, 3)
    x0, x1 = pair.sample(5000, seed=derive(3, "train"))
    chosen, plug_in = (
        sb.fit(x0, x1, reference=pair.reference, solver=solver) for solver in (None, sb.SinkhornBridge())
    )
    differences = []
    for lot in range(10):
        fresh0, fresh1 = pair.sample(1000, seed=derive(3, "test", lot))
        ours, theirs = (energy_distance(bridge.transport(fresh0, seed=lot), fresh1) for bridge in (chosen, plug_in))
        differences.append(float(ours - theirs))
    excess = Estimate.of(torch.tensor(differences))
    assert excess.value < 2 * excess.standard_error, excess


def test_equal_seeds_give_equal_bridges_and_leave_the_global_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, same, other = (sb.fit(X0, X1, solver=SMALL, seed=seed).transport(X0, seed=9) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.dtype == torch.float64


def test_arrays_and_tensors_are_the_same():
    array = sb.fit(X0.numpy(), X1.numpy(), reference=REFERENCE, solver=sb.GaussianBridge())
    tensor = sb.fit(X0, X1, reference=REFERENCE, solver=sb.GaussianBridge())
    assert torch.equal(array.transport(X0.numpy(), seed=0), tensor.transport(X0, seed=0))


def test_a_course_runs_through_its_snapshots_on_the_users_clock():
    snapshots = [rows(k, shift=float(k), n=400) for k in range(3)]
    course = sb.fit_course(snapshots, [10.0, 12.0, 15.0], sigma=0.5, solver=sb.GaussianBridge())
    assert [bridge.horizon for bridge in course.bridges] == [2.0, 3.0]
    assert torch.equal(course.interpolate(snapshots[0], 10.0, 10.0, seed=0), snapshots[0])
    for t, index in ((12.0, 1), (15.0, 2)):
        arrived = course.interpolate(snapshots[0], 10.0, t, seed=4)
        error = arrived.std(0) / len(arrived) ** 0.5
        assert bool(((arrived.mean(0) - snapshots[index].mean(0)).abs() < 4 * error).all())
    half = course.interpolate(snapshots[1], 12.0, 13.5, seed=4)
    mean = course.bridges[1].forward.marginals([1.5], 4000, seed=5)[0].mean(0)
    assert bool(((half.mean(0) - mean).abs() < 4 * half.std(0) / len(half) ** 0.5).all())


@pytest.mark.parametrize(
    ("times", "message"),
    [([0.0, 1.0], "2 times"), ([0.0, 2.0, 1.0], "increase strictly")],
)
def test_a_course_checks_its_times(times, message):
    with pytest.raises(InvalidInputError, match=message):
        sb.fit_course([X0, X1, X0], times, sigma=1.0)


def test_times_outside_a_course_are_refused():
    course = sb.fit_course([X0, X1], [0.0, 2.0], sigma=1.0, solver=sb.GaussianBridge())
    with pytest.raises(InvalidInputError, match="outside the course"):
        course.interpolate(X0, 0.0, 2.5, seed=0)
    with pytest.raises(InvalidInputError, match="before start"):
        course.interpolate(X0, 1.0, 0.5, seed=0)


def spoiled(value):
    bad = X0.clone()
    bad[7, 1] = value
    return bad


@pytest.mark.parametrize(
    ("x0", "x1", "message"),
    [
        (spoiled(float("nan")), X1, r"x0 has 1 row\(s\) with NaN.*row 7"),
        (X0, spoiled(float("inf")), r"x1 has 1 row\(s\) with NaN or infinite"),
        (X0[:1], X1, r"x0 has 1 row\(s\); at least 2"),
        (X0, X1[:, :1], "2 columns.* has 1"),
        (X0, X1[:, 0], r"x1 must have shape \(rows, columns\)"),
        (X0, X1.float(), "x0 has dtype torch.float64, x1 has dtype torch.float32"),
        (X0.long(), X1, r"x0 has dtype torch.int64; use x0.float\(\)"),
        (np.zeros((4, 2), dtype=int), X1, "x0 has dtype int64"),
        (torch.zeros_like(X0), torch.zeros_like(X1), "every column is constant"),
    ],
    ids=["nan", "infinity", "one row", "columns", "vector", "dtypes", "integers", "int array", "constant"],
)  # fmt: skip
def test_bad_ends_are_refused_at_the_door(x0, x1, message):
    with pytest.raises(InvalidInputError, match=message):
        prepare(x0, x1)


def test_a_constant_column_is_named_where_scaling_divides_by_it():
    flat = X0.clone()
    flat[:, 1] = 3.0
    with pytest.raises(InvalidInputError, match=r"columns \[1\] are constant"):
        prepare(flat, flat + torch.tensor([1.0, 0.0]), reference=REFERENCE, scaling=sb.PerCoordinate())


def test_a_seed_that_is_none_is_refused():
    for seed in (-1, 2**63):
        with pytest.raises(InvalidInputError, match="seed must be an integer"):
            prepare(X0, X1, seed=seed)


def test_a_reference_without_closed_transitions_gets_ipf_and_is_told_why():
    prepared = prepare(X0, X1, reference=sb.DriftProcess(lambda t, x: -(x**3), sigma=1.0))
    assert prepared.solver == IPF()
    assert "since DriftProcess has no transition in closed form" in prepared.notes[-1]


def test_what_no_solver_takes_is_said():
    drifting = sb.DriftProcess(lambda t, x: -(x**3), sigma=1.0)
    density = sb.Density(lambda x: -x.square().sum(1), 2)
    with pytest.raises(UnsupportedError, match="no default for an unnormalised density under DriftProcess"):
        sb.choose_solver(sb.BridgeProblem(sb.Samples(X0), density, drifting))
    mixture = sb.GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    with pytest.raises(UnsupportedError, match="SinkhornBridge needs samples"):
        sb.solve(sb.BridgeProblem(sb.Samples(X0), mixture, REFERENCE), sb.SinkhornBridge(), seed=0)


def test_training_that_diverges_says_where_and_why():
    wild = sb.IMF(
        coupling=sb.couplings.IndependentCoupling(), pretraining=40, stages=0, pairs=64,
        network=sb.networks.MLP(width=8, depth=1), optimisation=Optimisation(learning_rate=1e30, batch=16, warm_up=0),
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match=r"loss became .* at step \d+.*learning rate"):
        sb.fit(X0.float(), X1.float(), solver=wild)


# --- invariances under every reference

REFERENCES = {
    "Brownian, matrix": sb.BrownianMotion([[0.8, 0.3], [0.1, 1.0]], 2.0),
    "OU": sb.OrnsteinUhlenbeck(0.7, 0.9, [0.3, -0.5], 1.5),
    "OU, matrix": sb.OrnsteinUhlenbeck([[1.0, 0.6], [-0.8, 0.4]], [[0.8, 0.3], [0.1, 1.0]], 0.5),
    "VP": sb.VariancePreserving(mean=[1.0, 2.0]),
    "VE": sb.VarianceExploding([0.1, 0.3], 2.0),
}
SOLVERS = [sb.GaussianBridge(), sb.SinkhornBridge(sinkhorn=Sinkhorn(tolerance=1e-11))]
FEW_X0, FEW_X1 = rows(0, n=30), rows(1, n=40, shift=2.0)


def drifts(bridge, t, x):
    """Of the forward process, ``b + σu``, and of the backward one, ``−b + σû``."""
    b, sigma = bridge.reference.drift(t, x), bridge.reference.scale(t)
    return b + sigma(bridge.forward.control(t, x)), -b + sigma(bridge.backward.control(t, x))


@pytest.mark.parametrize("solver", SOLVERS, ids=["Gaussian", "Sinkhorn"])
@pytest.mark.parametrize("scaling", [sb.CommonScale(), sb.PerCoordinate()], ids=["common", "per coordinate"])
@pytest.mark.parametrize("name", REFERENCES)
def test_scaling_changes_no_draw_and_no_drift(name, scaling, solver):
    plain, scaled = (
        sb.fit(FEW_X0, FEW_X1, reference=REFERENCES[name], solver=solver, scaling=how)
        for how in (sb.NoScaling(), scaling)
    )
    t = 0.3 * plain.horizon
    for left, right in zip(drifts(scaled, t, FEW_X0), drifts(plain, t, FEW_X0), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-7)
    for one, other in ((scaled, plain), (scaled.reversed(), plain.reversed())):
        x = one.forward.start.rows
        assert torch.equal(x, other.forward.start.rows)
        for draw in ("transport", "conditional_mean"):
            torch.testing.assert_close(
                getattr(one, draw)(x, seed=3), getattr(other, draw)(x, seed=3), rtol=1e-6, atol=1e-6
            )
        torch.testing.assert_close(one.interpolate(x, t, seed=3), other.interpolate(x, t, seed=3), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS, ids=["Gaussian", "Sinkhorn"])
@pytest.mark.parametrize("name", ["Brownian, matrix", "OU"])
def test_under_a_reversible_reference_swapped_ends_swap_the_drifts(name, solver):
    there = sb.fit(FEW_X0, FEW_X1, reference=REFERENCES[name], solver=solver)
    back = sb.fit(FEW_X1, FEW_X0, reference=REFERENCES[name], solver=solver)
    t = 0.3 * there.horizon
    forward, backward = drifts(there, t, FEW_X0)
    swapped = drifts(back, there.horizon - t, FEW_X0)
    torch.testing.assert_close(swapped[1], forward, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(swapped[0], backward, rtol=1e-6, atol=1e-7)


def test_order_of_rows_does_not_matter_to_moments():
    order = torch.randperm(len(X1), generator=torch.Generator().manual_seed(5))
    one, other = (sb.fit(X0, y, reference=REFERENCE, solver=sb.GaussianBridge()) for y in (X1, X1[order]))
    torch.testing.assert_close(one.current_velocity(0.3, X0), other.current_velocity(0.3, X0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS, ids=["Gaussian", "Sinkhorn"])
def test_a_course_does_not_depend_on_the_unit_of_time(solver):
    snapshots = [rows(k, n=30, shift=float(k)) for k in range(3)]
    days = sb.fit_course(snapshots, [1.0, 3.0, 4.0], sigma=0.6, solver=solver)
    hours = sb.fit_course(snapshots, [24.0, 72.0, 96.0], sigma=0.6 / 24**0.5, solver=solver)
    for t in (1.7, 3.0, 3.5, 4.0):
        found = hours.interpolate(snapshots[0], 24.0, 24 * t, seed=2)
        torch.testing.assert_close(found, days.interpolate(snapshots[0], 1.0, t, seed=2), rtol=1e-6, atol=1e-6)


# --- choices and runs


def test_sigma_is_chosen_for_every_leg_of_a_course_and_scaling_is_passed_on():
    snapshots = [rows(0), 3 * rows(1), rows(2)]
    course = sb.fit_course(snapshots, [0.0, 1.0, 5.0], solver=sb.GaussianBridge(), scaling=sb.PerCoordinate())
    for leg, bridge in enumerate(course.bridges):
        wanted = sb.choose_sigma(snapshots[leg], snapshots[leg + 1], horizon=bridge.horizon).sigma
        assert bridge.reference.sigma == pytest.approx(wanted)
        assert bridge.forward.control.scaling.scale.shape == (2,)


@pytest.mark.parametrize("seed", [0, 1])
def test_laws_are_sampled_for_sigma(seed):
    normal = sb.Gaussian(torch.zeros(2), 4 * torch.eye(2))
    choice = sb.choose_sigma(normal, sb.Gaussian(torch.full((2,), 3.0), 4 * torch.eye(2)), seed=seed)
    assert choice.spread == pytest.approx((4 + 2.25) ** 0.5, rel=0.03)
    assert choice.shift == pytest.approx(3.0, rel=0.03)


def test_solvers_get_the_scaling_that_suits_them():
    assert prepare(X0, X1, solver=sb.GaussianBridge()).scaling.scale.tolist() == [1.0]
    scale = prepare(X0, X1, solver=SMALL).scaling.scale
    torch.testing.assert_close(scale, torch.cat([X0, X1]).std(0).mean().reshape(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", [sb.GaussianBridge(), sb.SinkhornBridge(), SMALL], ids=lambda s: type(s).__name__)
def test_the_dtype_of_the_data_is_that_of_all_results(solver, dtype):
    x0, x1 = X0[:60].to(dtype), X1[:50].to(dtype)
    bridge = sb.fit(x0, x1, solver=solver)
    results = [
        bridge.transport(x0, seed=0),
        bridge.conditional_mean(x0[:3], seed=0),
        bridge.interpolate(x0, 0.3, seed=0),
        bridge.current_velocity(0.3, x0),
        bridge.reversed().transport(x1, seed=0),
        bridge.forward.sample(5, seed=0).x,
    ]
    assert {result.dtype for result in results} == {dtype}
    assert all(bool(result.isfinite().all()) for result in results)


@pytest.mark.parametrize(
    "solver", [sb.SinkhornBridge(sinkhorn=Sinkhorn(batch=2)), SMALL], ids=lambda s: type(s).__name__
)
def test_a_run_resumed_at_any_step_gives_the_same_bridge(solver):
    flats = {}
    prepared = prepare(X0[:80], X1[:80], solver=solver, seed=4)
    whole = prepared.run(callbacks=[lambda state, info: flats.__setitem__(state.step, state.state_dict())])
    assert sorted(flats) == list(range(1, len(flats) + 1))
    wanted = [whole.transport(X0[:9], seed=1), whole.reversed().transport(X1[:9], seed=1)]
    for step in (1, len(flats) // 2, len(flats)):
        again = prepared.run(resume_from=flats[step])
        assert torch.equal(again.transport(X0[:9], seed=1), wanted[0])
        assert torch.equal(again.reversed().transport(X1[:9], seed=1), wanted[1])


# --- what is told


@pytest.mark.parametrize("kind", ["reference", "solver", "scaling"])
@pytest.mark.parametrize("value", ["IMF", sb.IMF, 1.0], ids=["name", "class", "number"])
def test_options_are_objects(kind, value):
    options = dict.fromkeys(("reference", "solver", "scaling")) | {kind: value}
    with pytest.raises(InvalidInputError, match=f"{kind} must be an object such as .*, or None; got "):
        _check_options(**options)


def test_ends_of_two_dtypes_are_refused_whatever_they_are():
    normal = sb.Gaussian(torch.zeros(2), torch.eye(2))
    for call in (prepare, sb.choose_sigma):
        with pytest.raises(
            InvalidInputError, match=r"x0 has dtype torch\.float64, x1 has dtype torch\.float32; convert"
        ):
            call(X0, normal)
        with pytest.raises(InvalidInputError, match=r"x0 has 2 columns, x1 has 1.*common coordinates"):
            call(X0, X1[:, :1])


def test_a_course_says_what_is_wrong_with_its_snapshots():
    with pytest.raises(InvalidInputError, match=r"x0 has 2 columns, x1 has 1.*common coordinates"):
        sb.fit_course([X0, X1[:, :1]], [0.0, 1.0])
    with pytest.raises(InvalidInputError, match="1 snapshots and 1 times given; at least two"):
        sb.fit_course([X0], [0.0])
    for times in ([0.0, 0.0], [1.0, 0.0]):
        with pytest.raises(InvalidInputError, match="times must increase strictly"):
            sb.fit_course([X0, X1], times)
    for times in ([0.0, float("nan")], [0.0, float("inf")]):
        with pytest.raises(InvalidInputError, match="times: the time is missing or infinite for 1 of 2"):
            sb.fit_course([X0, X1], times)
    course = sb.fit_course([X0, X1, X0], [0.0, 2.0, 3.0], sigma=1.0, solver=sb.GaussianBridge())
    with pytest.raises(InvalidInputError, match=r"start = 0\.5 is inside a leg; give rows at one of the snapshots"):
        course.interpolate(X0, 0.5, 1.0, seed=0)


def rows_and_times():
    """Rows of three snapshots in a mixed order, and their times."""
    order = torch.randperm(3 * len(X0), generator=torch.Generator().manual_seed(3))
    return torch.cat([X0, X1, X0 + 2])[order], torch.tensor([0.0, 0.3, 1.0]).repeat_interleave(len(X0))[order]


class Series:
    """What numpy makes an array of, as it does of a column of a data frame."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype)


@pytest.mark.parametrize("kind", ["numpy", "torch", "list", "series"])
def test_a_course_of_rows_that_carry_their_times(kind):
    rows, times = rows_and_times()
    kinds = {
        "numpy": np.asarray,
        "torch": lambda t: t,
        "list": lambda t: t.tolist(),
        "series": lambda t: Series(t.numpy()),
    }
    given = rows.numpy() if kind == "numpy" else rows
    stamps = kinds[kind](times.double().round(decimals=6))
    found = sb.fit_course(given, stamps, sigma=0.5, solver=sb.GaussianBridge())
    parts = [rows[times == t] for t in times.unique()]
    same = sb.fit_course(parts, (0, 0.3, 1), sigma=0.5, solver=sb.GaussianBridge())
    assert found.times == same.times == (0, 0.3, 1)
    for one, other in zip(found.bridges, same.bridges, strict=True):
        assert torch.equal(one.transport(X0, seed=1), other.transport(X0, seed=1))


def test_rows_with_labels_for_times():
    rows, times = rows_and_times()
    labels = [{0.0: "day0", 1.0: "day10"}.get(t, "day2") for t in times.tolist()]
    with pytest.warns(TimesWarning, match="day0 = 0, day2 = 2, day10 = 10"):
        assert sb.fit_course(rows, labels, sigma=1.0, solver=sb.GaussianBridge()).times == (0, 2, 10)


def test_messages_about_rows_and_times_stay_short():
    rows, times = rows_and_times()
    rising = np.arange(len(rows))
    for given, stamps, message in [
        (rows, times[:-1], rf"{len(rows)} rows and {len(rows) - 1} times given"),
        (rows, rising, rf"only one row has the time 0, 1, 2, .*…, .*\({len(rows)} in all\)"),
        (rows, np.zeros(len(rows)), "at least two times"),
        (rows, times[:, None], "one-dimensional"),
        (rows, np.where(rising == 5, np.nan, rising // 9), f"missing or infinite for 1 of {len(rows)}"),
        (rows, [f"cell{i}_day{i}" for i in rising], r"times holds cell0_day0, .*ordered category"),
        (list(rows.numpy()[:, None]), -rising, "must increase strictly"),
    ]:
        with pytest.raises(InvalidInputError, match=message) as caught:
            sb.fit_course(given, stamps)
        assert len(str(caught.value)) < 600


def test_times_that_differ_from_a_snapshot_by_rounding_are_that_snapshot():
    course = sb.fit_course([X0, X1, X0], [0.0, 0.3, 1.0], sigma=1.0, solver=sb.GaussianBridge())
    assert torch.equal(course.interpolate(X0, 0.1 + 0.2, 1.0, seed=2), course.interpolate(X0, 0.3, 1.0, seed=2))
    assert torch.equal(course.interpolate(X0, 0.0, 0.1 + 0.2, seed=2), course.interpolate(X0, 0.0, 0.3, seed=2))
    assert torch.equal(course.interpolate(X0, -1e-12, 1.0 + 1e-12, seed=2), course.interpolate(X0, 0.0, 1.0, seed=2))
    with pytest.raises(InvalidInputError, match=r"time 1\.00001 is outside the course, 0 … 1\."):
        course.interpolate(X0, 0.0, 1.00001, seed=0)
    with pytest.raises(InvalidInputError, match=r"must lie in \[0, 0\.3\], got 0\.3000001\."):
        course.bridges[0].interpolate(X0, 0.3000001, seed=0)


@pytest.mark.parametrize("horizon", [0.0, -1.0, float("nan")])
def test_sigma_needs_a_horizon(horizon):
    with pytest.raises(InvalidInputError, match="horizon must be a positive number"):
        sb.choose_sigma(X0, X1, horizon=horizon)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), [1.0, 0.0]])
def test_sigma_must_be_positive(sigma):
    with pytest.raises(InvalidInputError, match="sigma"):
        sb.fit(X0, X1, reference=sb.BrownianMotion(sigma), solver=sb.GaussianBridge())


def test_a_solver_refuses_before_it_begins_and_names_the_users_own_process():
    drifting = sb.DriftProcess(lambda t, x: -(x**3), sigma=1.0)
    with pytest.raises(UnsupportedError, match="which DriftProcess does not have: use a LinearProcess"):
        prepare(X0, X1, reference=drifting, solver=SMALL)
    with pytest.raises(InvalidInputError, match="reference process has dimension 3, the data have 2"):
        prepare(X0, X1, reference=sb.BrownianMotion([1.0, 2.0, 3.0]))


@pytest.mark.parametrize(
    ("solver", "scaling"), [(None, None), (sb.SinkhornBridge(), sb.NoScaling()), (sb.GaussianBridge(), None)]
)
@pytest.mark.parametrize("form", ["array", "tensor", "samples"])
def test_a_fit_owns_its_data(solver, scaling, form):
    """Arrays changed in place afterwards change nothing: neither what the bridge does nor what is saved."""
    x0, x1 = X0.clone().numpy(), X1.clone().numpy()
    if form == "tensor":
        x0, x1 = torch.from_numpy(x0), torch.from_numpy(x1)
    ends = [sb.Samples(torch.from_numpy(x)) for x in (x0, x1)] if form == "samples" else [x0, x1]
    bridge = sb.fit(*ends, reference=REFERENCE, solver=solver, scaling=scaling)

    def look():
        back = bridge.reversed()
        return bridge.transport(X0, seed=1), back.transport(X1, seed=1), bridge.forward.sample(20, seed=1).x[-1]

    before = look()
    x0 += 100
    x1 += 100
    for found, wanted in zip(look(), before, strict=True):
        assert torch.equal(found, wanted)
    assert float(bridge.forward.start.rows.max()) < 50


def test_float32_that_has_rounded_the_data_away_is_refused_or_said():
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(300, 2, generator=generator, dtype=torch.float64) for _ in range(2)]
    narrow = torch.tensor([1.0, 1e-6])  # but for rounding, the second column is constant

    def ends(offset, spread):
        return [(offset + spread * x).float() for x in noise]

    with pytest.raises(InvalidInputError, match=r"column 0 has magnitude 1.7e\+09 .* 128 apart .* Give float64"):
        sb.fit(*ends(1.7e9, 50.0), solver=sb.SinkhornBridge())
    with pytest.warns(PrecisionWarning, match=r"column 0 has magnitude 1e\+06 .* 0.0625 apart in float32"):
        sb.fit(*ends(1e6, 10.0), solver=sb.SinkhornBridge())
    for quiet in (ends(1e4, 10.0), ends(torch.tensor([0.0, 1.0]), narrow), [1.7e9 + 50 * x for x in noise]):
        check_precision(*quiet)


def test_a_course_takes_any_reference_and_is_saved_and_loaded(tmp_path):
    ends, times = [X0, X1, X0 + 1.0], (0.0, 2.0, 2.5)

    def reference(x0, x1, duration):
        return sb.OrnsteinUhlenbeck(0.7, 0.5, 0.2, duration)

    course = sb.fit_course(ends, times, reference=reference, solver=sb.GaussianBridge(), seed=4)
    seed = derive(4, "leg", 1)
    alone = sb.fit(*ends[1:], reference=reference(None, None, 0.5), solver=sb.GaussianBridge(), seed=seed)
    assert torch.equal(course.bridges[1].transport(X1, seed=5), alone.transport(X1, seed=5))
    course.save(tmp_path / "course")
    loaded = sb.Course.load(tmp_path / "course")
    assert loaded.times == times
    assert torch.equal(loaded.interpolate(X0, 0.0, 2.2, seed=1), course.interpolate(X0, 0.0, 2.2, seed=1))
    with pytest.raises(sb.SbridgeError, match="Omit sigma"):
        sb.fit_course(ends, times, reference=reference, sigma=1.0)
    with pytest.raises(sb.SbridgeError, match="horizon = duration = 2,"):
        sb.fit_course(ends, times, reference=lambda *_: sb.BrownianMotion(1.0))
    (tmp_path / "course/course.json").write_text((tmp_path / "course/course.json").read_text().replace("2.5", "3.5"))
    with pytest.raises(sb.SbridgeError, match="SHA-256"):
        sb.Course.load(tmp_path / "course")
