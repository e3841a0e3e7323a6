"""fit, prepare, choices, courses: what must not depend on units, order or names, and what bad input is told."""

import numpy as np
import pytest
import torch

import sbridge as sb
from sbridge.errors import InvalidInputError, NonFiniteError, UnsupportedError
from sbridge.fitting import prepare
from sbridge.training import Optimisation
from sbridge.transport import Sinkhorn

SMALL = sb.IMF(
    start=sb.EntropicCoupling(rows=200), pretraining=30, stages=2, updates=20, refresh=10, pairs=200,
    network=sb.MLP(width=16, depth=2), optimisation=Optimisation(batch=64),
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
        torch.testing.assert_close(scaled.velocity(t, X0), plain.velocity(t, X0), rtol=1e-5, atol=1e-6)
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
    torch.testing.assert_close(there.velocity(0.3, X0), -back.velocity(0.7, X0), rtol=1e-8, atol=1e-8)


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
    assert "16% of the data's spread" in str(choice)


def test_choices_are_said():
    prepared = prepare(X0, X1)
    assert isinstance(prepared.solver, sb.IMF)
    assert prepared.notes[0].startswith("reference: Brownian motion, sigma = ")
    assert prepared.notes[1].startswith("solver: IMF(")
    given = prepare(X0, X1, reference=REFERENCE, solver=sb.GaussianBridge())
    assert given.notes == ()
    normal = sb.Gaussian(torch.zeros(2), torch.eye(2))
    assert sb.choose_solver(sb.BridgeProblem(normal, normal, REFERENCE)) == sb.GaussianBridge()


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
    [([0.0, 1.0], "2 times"), ([0.0, 2.0, 1.0], "rise strictly")],
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


def test_what_no_solver_takes_is_said():
    drifting = sb.DriftProcess(lambda t, x: -(x**3), sigma=1.0)
    with pytest.raises(UnsupportedError, match="linear reference"):
        prepare(X0, X1, reference=drifting)
    density = sb.Density(lambda x: -x.square().sum(1), 2)
    with pytest.raises(UnsupportedError, match="unnormalised density"):
        sb.choose_solver(sb.BridgeProblem(sb.Samples(X0), density, REFERENCE))
    mixture = sb.GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    with pytest.raises(UnsupportedError, match="SinkhornBridge needs samples"):
        sb.solve(sb.BridgeProblem(sb.Samples(X0), mixture, REFERENCE), sb.SinkhornBridge(), seed=0)


def test_training_that_diverges_says_where_and_why():
    wild = sb.IMF(
        start=sb.IndependentCoupling(), pretraining=40, stages=0, pairs=64,
        network=sb.MLP(width=8, depth=1), optimisation=Optimisation(learning_rate=1e30, batch=16, warm_up=0),
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match=r"loss became .* at step \d+.*learning rate"):
        sb.fit(X0.float(), X1.float(), solver=wild)
