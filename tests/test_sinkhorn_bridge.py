"""The plug-in bridge: its plan against POT, its controls against autograd, its two directions against each other."""

import math

import pytest
import torch
from families import FEW, SIGMA
from torch import Tensor

from sbridge.errors import InvalidInputError, NotConvergedError, UnsupportedError
from sbridge.fitting import solve
from sbridge.laws import Gaussian, Samples
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion, DriftProcess, LinearProcess, OrnsteinUhlenbeck
from sbridge.solutions import Bridge
from sbridge.solvers import SinkhornBridge
from sbridge.time import TimeGrid
from sbridge.transport import Sinkhorn, entropic_plan

EXACT = SinkhornBridge(sinkhorn=Sinkhorn(tolerance=1e-11))
N, M = 9, 8


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(n: int, seed: int, dim: int = 3) -> Tensor:
    return 1.5 * torch.randn(n, dim, generator=seeded(seed), dtype=torch.float64)


X0, XT = rows(N, 1), rows(M, 2) + 0.5
B = torch.arange(1, M + 1, dtype=torch.float64) / (M * (M + 1) / 2)


def problem(reference: LinearProcess, weights: Tensor | None = None) -> BridgeProblem:
    return BridgeProblem(Samples(X0), Samples(XT, weights), reference)


def typed(reference: LinearProcess, dtype: torch.dtype) -> BridgeProblem:
    return BridgeProblem(Samples(X0.to(dtype)), Samples(XT.to(dtype)), reference)


def bridge(reference: LinearProcess, weights: Tensor | None = None) -> Bridge:
    return solve(problem(reference, weights), EXACT, seed=0)


def pairs(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """All ``(x_i, y_j)``, row by row."""
    return x.repeat_interleave(len(y), 0), y.repeat(len(x), 1)


def log_kernel(reference: LinearProcess, s: float, x: Tensor, t: float, y: Tensor) -> Tensor:
    """``log R(X_t = y_j | X_s = x_i)``, shape ``(n, m)``."""
    left, right = pairs(x, y)
    return reference.log_transition(s, left, t, right).reshape(len(x), len(y))


def plan(one: Bridge, weights: Tensor | None = None) -> Tensor:
    """``a_i softmax_j(ℓ_j + log R(y_j | x_i))`` from the logits and the reference's own density."""
    cloud = one.forward.control.far.cloud
    return torch.softmax(cloud.logits + log_kernel(one.reference, 0.0, X0, one.horizon, cloud.rows), 1) / N


def pot_plan(reference: LinearProcess) -> Tensor:
    """POT's plan at ε = 1 between ends whitened by a symmetric root."""
    law = reference.transition(0.0, reference.horizon)
    values, vectors = torch.linalg.eigh(law.covariance.expanded(3))
    white = (vectors / values.sqrt()) @ vectors.mT
    return entropic_plan(law.mean(X0) @ white, XT @ white, 1.0, tolerance=1e-10)


# --- the plan


@pytest.mark.parametrize("name", FEW)
def test_the_plan_is_that_of_pot(name):
    one = bridge(FEW[name])
    wanted = pot_plan(FEW[name])
    torch.testing.assert_close(plan(one), wanted, rtol=1e-6, atol=1e-10)
    means = (wanted @ XT) * N
    torch.testing.assert_close(one.conditional_mean(X0, seed=0), means, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(one.reversed().conditional_mean(XT, seed=0), (wanted.mT @ X0) * M, rtol=1e-6, atol=1e-8)


def test_a_brownian_plan_has_epsilon_sigma_squared_times_the_horizon():
    one = bridge(BrownianMotion(1.1, 1.7))
    torch.testing.assert_close(plan(one), entropic_plan(X0, XT, 1.21 * 1.7, tolerance=1e-10), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("name", ["Brownian, scalar σ", "OU, matrix rate, matrix σ"])
def test_draws_follow_the_plan(name, dtype):
    """40 000 ends from one row, counted: χ² with Bonferroni over rows."""
    n, one = 40_000, solve(typed(FEW[name], dtype), SinkhornBridge(), seed=0)
    weights = N * plan(bridge(FEW[name]))
    for i in (0, 4):
        drawn = one.transport(X0[i : i + 1].to(dtype).expand(n, 3), seed=3)
        assert drawn.dtype == dtype
        same = (drawn.unsqueeze(1) == XT.to(dtype)).all(2)
        assert bool((same.sum(1) == 1).all())
        index = same.int().argmax(1)
        counts, wanted = torch.bincount(index, minlength=M).double(), n * weights[i]
        kept = wanted > 5
        chi2, freedom = float(((counts - wanted).square() / wanted)[kept].sum()), int(kept.sum()) - 1
        # the plan was solved to 1e-3 in L1: an allowance for its bias beside that for chance
        assert chi2 < freedom + 4 * math.sqrt(2 * freedom) + n * 1e-6 / float(weights[i][kept].min())


# --- the controls


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("name", FEW)
def test_controls_are_gradients_of_the_log_potentials(name, fraction):
    """``u = σᵀ∇log Σ_j e^{ℓ_j} R(y_j | x)`` and ``û = σᵀ∇log Σ_i e^{ℓ_i} R(x | x_i)`` by automatic differentiation."""
    reference = FEW[name]
    one, t, horizon = bridge(reference), fraction * reference.horizon, reference.horizon
    x = rows(5, 7).requires_grad_()
    ahead, behind = one.forward.control.far.cloud, one.backward.control.far.cloud
    assert torch.equal(ahead.rows, XT)
    assert torch.equal(behind.rows, X0)
    value = torch.logsumexp(ahead.logits + log_kernel(reference, t, x, horizon, XT), 1)
    wanted = reference.scale(t).T(torch.autograd.grad(value.sum(), x)[0])
    torch.testing.assert_close(one.forward.control(t, x.detach()), wanted, rtol=1e-7, atol=1e-8)
    t = horizon - t
    value = torch.logsumexp(behind.logits + log_kernel(reference, 0.0, X0, t, x).mT, 1)
    wanted = reference.scale(t).T(torch.autograd.grad(value.sum(), x)[0])
    torch.testing.assert_close(one.backward.control(t, x.detach()), wanted, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("weights", [None, B], ids=["uniform", "weighted"])
@pytest.mark.parametrize("name", FEW)
def test_the_two_controls_make_one_process(name, weights):
    """``u + û = σᵀ∇log p_t`` with ``p_t = Σ_ij π_ij N(pinned bridge from x_i to y_j)``."""
    reference = FEW[name]
    one, t, x = bridge(reference, weights), 0.4 * reference.horizon, rows(6, 7).requires_grad_()
    joint, pinned = plan(one).flatten(), reference.pinned(t)
    torch.testing.assert_close(joint.reshape(N, M).sum(0), torch.full((M,), 1 / M).double() if weights is None else B)
    means = pinned.mean(*pairs(X0, XT))
    root = pinned.root.expanded(3)
    gaps = torch.linalg.solve_triangular(root, (x.unsqueeze(1) - means).mT, upper=False)
    log_p = torch.logsumexp(joint.log() - 0.5 * gaps.square().sum(1), 1)
    wanted = reference.scale(t).T(torch.autograd.grad(log_p.sum(), x)[0])
    found = one.forward.control(t, x.detach()) + one.backward.control(t, x.detach())
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", FEW)
def test_a_batch_of_times_is_time_by_time(name, dtype):
    one = bridge(FEW[name])
    x = rows(6, 7).to(dtype)
    times = torch.tensor([0.1, 0.5, 0.5, 0.8, 0.1, 0.3], dtype=torch.float64) * one.horizon
    for control in (one.forward.control, one.backward.control):
        found = control(times, x)
        assert found.dtype == dtype
        loop = torch.cat([control(float(t), x[i : i + 1]) for i, t in enumerate(times)])
        torch.testing.assert_close(found, loop, rtol=1e-4, atol=1e-4)
        assert torch.equal(control(times[0], x), control(float(times[0]), x))


@pytest.mark.parametrize("name", FEW)
def test_float32_agrees_with_float64_near_the_end(name):
    """Also for rows far from the origin, whose squares would lose their digits."""
    shift, t, x = 100.0, 0.98 * FEW[name].horizon, XT + 100.1
    one = solve(BridgeProblem(Samples(X0 + shift), Samples(XT + shift), FEW[name]), EXACT, seed=0)
    single = one.forward.control(t, x.float())
    exact = one.forward.control(t, x.float().double())
    torch.testing.assert_close(single.double(), exact, rtol=1e-2, atol=1e-2 * float(exact.abs().max()))


def test_controls_are_infinite_at_their_far_end():
    one = bridge(BrownianMotion(1.0, 2.0))
    with pytest.raises(InvalidInputError, match="infinite at its far end, t = 2; use a time before it"):
        one.forward.control(2.0, X0)
    with pytest.raises(InvalidInputError, match="infinite at its far end, t = 0; use a time after it"):
        one.current_velocity(torch.tensor(0.0), X0)
    assert bool(one.current_velocity(1.0, X0).isfinite().all())


# --- the processes


@pytest.mark.parametrize("name", ["Brownian, scalar σ", "OU, matrix rate, matrix σ", "VP linear, long"])
def test_simulated_ends_are_the_rows_in_their_proportions(name):
    """Forward and backward; the last step blurs every row by its own noise, which is small on this grid."""
    n, grid = 3000, TimeGrid.cosine(150)
    one = solve(problem(FEW[name], B), SinkhornBridge(sinkhorn=Sinkhorn(tolerance=1e-8), grid=grid), seed=0)
    for measure, far, share in ((one.forward, XT, B), (one.backward, X0, torch.full((N,), 1 / N).double())):
        ends = measure.sample(n, seed=1).x[-1]
        distance, index = torch.cdist(ends, far).min(1)
        assert float(distance.max()) < 0.2
        counts = torch.bincount(index, minlength=len(far)).double()
        z = (counts - n * share) / (n * share * (1 - share)).sqrt()
        assert float(z.abs().max()) < 4


def test_simulated_marginals_are_those_of_the_pinned_bridges():
    """Mean and covariance at t = T/3: forward, backward and by interpolation, against the mixture's."""
    reference, n, k = FEW["OU, matrix rate, matrix σ"], 10_000, 60
    solver = SinkhornBridge(sinkhorn=Sinkhorn(tolerance=1e-8), grid=TimeGrid.uniform(180))
    one = solve(problem(reference, B), solver, seed=0)
    t, joint = one.horizon / 3, plan(one).flatten()
    means = reference.pinned(t).mean(*pairs(X0, XT))
    mean = joint @ means
    spread = ((means - mean).mT * joint) @ (means - mean) + reference.pinned(t).covariance.expanded(3)
    start = one.forward.start.sample(n, seeded(3))
    for found in (
        one.forward.sample(n, seed=1).x[k],
        one.backward.sample(n, seed=1).x[-1 - k],
        one.interpolate(start, t, seed=2),
    ):
        assert float(((found.mean(0) - mean) / (spread.diagonal() / n).sqrt()).abs().max()) < 4.5
        error = ((spread.square() + torch.outer(spread.diagonal(), spread.diagonal())) / n).sqrt()
        assert float(((found.mT.cov() - spread) / error).abs().max()) < 5


# --- weights and many rows


@pytest.mark.parametrize("name", ["Brownian, scalar σ", "OU, matrix rate, matrix σ"])
def test_a_weight_of_two_is_a_row_that_is_there_twice(name):
    weights = torch.tensor([2.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64) / 10
    doubled = torch.cat([XT, XT[[0, 3]]])
    one = bridge(FEW[name], weights)
    two = solve(BridgeProblem(Samples(X0), Samples(doubled), FEW[name]), EXACT, seed=0)
    x, t = rows(5, 7), 0.3 * one.horizon
    for left, right in ((one.forward, two.forward), (one.backward, two.backward)):
        torch.testing.assert_close(left.control(t, x), right.control(t, x), rtol=1e-7, atol=1e-8)


def test_rows_beyond_the_limit_get_their_potential_by_one_transform():
    """``g(y) = −log Σ_i a_i e^{f_i} R(y | x_i)`` (up to a constant) over the rows that took part."""
    reference, limit = OrnsteinUhlenbeck(0.7, SIGMA, 0.3), 60
    x0, x1 = rows(150, 1), rows(200, 2) + 0.5
    large = BridgeProblem(Samples(x0), Samples(x1), reference)
    solver = SinkhornBridge(max_rows=limit, sinkhorn=Sinkhorn(tolerance=1e-11))
    one = solve(large, solver, seed=4)
    static = solver.init(large, 4).static
    white = reference.transition(0.0, reference.horizon).whitened(x0, x1)
    source, target = (
        (part[:, None] == whole).all(-1).nonzero()[:, 1]
        for part, whole in zip((static.x, static.y), white, strict=True)
    )
    assert len(source) == len(target) == limit
    assert len(source.unique()) == len(target.unique()) == limit
    few = BridgeProblem(Samples(x0[source]), Samples(x1[target]), reference)
    small = solve(few, EXACT, seed=0)
    for far, inner in ((one.forward, small.forward), (one.backward, small.backward)):
        logits, known = far.control.far.cloud.logits, inner.control.far.cloud.logits
        index = target if far is one.forward else source
        gap = logits[index] - known
        torch.testing.assert_close(gap, gap.mean().expand(limit), rtol=0, atol=1e-8)
    f = small.backward.control.far.cloud.logits
    g = -torch.logsumexp(f + log_kernel(reference, 0.0, x0[source], 1.0, x1).mT, 1)
    gap = one.forward.control.far.cloud.logits - g
    torch.testing.assert_close(gap, gap.mean().expand(200), rtol=0, atol=1e-8)
    reached = one.transport(x0.repeat(200, 1), seed=0)
    assert len(reached.unique(dim=0)) > limit


def test_a_large_enough_limit_changes_nothing():
    left, right = (
        bridge(BrownianMotion(1.0)),
        solve(problem(BrownianMotion(1.0)), SinkhornBridge(N, Sinkhorn(tolerance=1e-11)), seed=5),
    )
    assert torch.equal(left.forward.control(0.3, X0), right.forward.control(0.3, X0))


def test_rows_may_stand_in_any_order():
    shuffle = torch.randperm(M, generator=seeded(3))
    one = bridge(FEW["OU, matrix rate, matrix σ"], B)
    mixed = BridgeProblem(Samples(X0.flip(0)), Samples(XT[shuffle], B[shuffle]), one.reference)
    two = solve(mixed, EXACT, seed=0)
    x, t = rows(5, 7), 0.3 * one.horizon
    for left, right in ((one.forward, two.forward), (one.backward, two.backward)):
        torch.testing.assert_close(left.control(t, x), right.control(t, x), rtol=1e-7, atol=1e-8)


def test_one_dimension():
    x0, x1, reference = rows(6, 1, 1), rows(7, 2, 1) + 1, BrownianMotion(0.8)
    for one_d in (reference, BrownianMotion(torch.tensor([[0.8]]))):
        one = solve(BridgeProblem(Samples(x0), Samples(x1), one_d), EXACT, seed=0)
        wanted = entropic_plan(x0, x1, 0.64, tolerance=1e-10) * 6
        torch.testing.assert_close(one.conditional_mean(x0, seed=0), wanted @ x1, rtol=1e-6, atol=1e-8)


# --- what goes wrong


def test_an_iteration_that_does_not_converge_says_so():
    solver = SinkhornBridge(sinkhorn=Sinkhorn(tolerance=1e-9, max_iterations=4, batch=2, warm_batch=2))
    with pytest.raises(NotConvergedError, match=r"after 4 iterations; the tolerance is 1e-09 .* Raise max_iterations"):
        solve(problem(BrownianMotion(0.2)), solver, seed=0)


def test_what_it_refuses():
    normal = Gaussian(torch.zeros(3), torch.eye(3))
    with pytest.raises(
        UnsupportedError, match="needs samples in memory at both ends, got Gaussian: draw samples from it first"
    ):
        solve(BridgeProblem(Samples(X0), normal, BrownianMotion(1.0)), EXACT, seed=0)
    with pytest.raises(
        UnsupportedError, match="SinkhornBridge needs transitions in closed form, which DriftProcess does not have"
    ):
        solve(problem(DriftProcess(lambda t, x: -x.sin(), 1.0)), EXACT, seed=0)
    with pytest.raises(InvalidInputError, match="max_rows must be at least 2, got 1"):
        SinkhornBridge(max_rows=1)
    none = torch.cat([torch.zeros(1, dtype=torch.float64), B[1:] / B[1:].sum()])
    with pytest.raises(InvalidInputError, match="Drop rows of weight zero"):
        solve(problem(BrownianMotion(1.0), none), EXACT, seed=0)
