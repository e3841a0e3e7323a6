"""The closed form as two simulated processes: end laws, one law in both directions, flow, kernels, moments.

The chain of a Gaussian bridge is linear and Gaussian, so its moments are propagated without sampling; what is left
is the first-order error in the step, whose order is measured.
"""

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from families import DIM, FEW, LINEAR
from torch import Tensor

from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.fitting import fit, solve
from sbridge.laws import Density, Gaussian, GaussianMixture, Samples
from sbridge.measures import Direction, PathMeasure, jeffreys
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion, DriftProcess
from sbridge.solutions import Bridge
from sbridge.solvers import GaussianBridge
from sbridge.time import TimeGrid


def tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covariance(seed: int, dim: int = DIM) -> Tensor:
    root = torch.randn(dim, dim, generator=seeded(seed), dtype=torch.float64)
    return root @ root.mT + 0.2 * torch.eye(dim, dtype=torch.float64)


START, END = covariance(1), 0.5 * covariance(2)
M0, MT = tensor([0.5, -1.0, 2.0]), tensor([-1.0, 0.3, 1.0])
EYE = torch.eye(DIM, dtype=torch.float64)


@cache
def bridge(name: str, steps: int = 100, grid: Callable[[int], TimeGrid] = TimeGrid.uniform) -> Bridge:
    problem = BridgeProblem(Gaussian(M0, START), Gaussian(MT, END), LINEAR[name])
    return solve(problem, GaussianBridge(grid(steps)), seed=0)


def exact(name: str) -> GaussianCoupling:
    return GaussianCoupling(M0, START, MT, END, LINEAR[name])


def chain_moments(measure: PathMeasure) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Mean and covariance of every state of the simulated chain, and its covariance with the first state."""
    chain = measure.chain(EYE)
    probe = torch.cat([torch.zeros(1, DIM, dtype=torch.float64), EYE])
    mean, spread, flow = measure.start.mean, measure.start.covariance, EYE
    found = [(mean, spread, spread)]
    times = torch.tensor(chain.step_times, dtype=torch.float64).repeat_interleave(len(probe))
    controls = measure.control(times, probe.repeat(chain.length, 1)).reshape(chain.length, *probe.shape)
    for j, u in enumerate(controls):
        pushed = chain.push(j, probe, chain.root_durations[j] * u)
        matrix, root = (pushed[1:] - pushed[0]).mT, chain.root(j).expanded(DIM)
        mean, flow = matrix @ mean + pushed[0], matrix @ flow
        spread = matrix @ spread @ matrix.mT + root @ root.mT
        found.append((mean, spread, measure.start.covariance @ flow.mT))
    return found


def errors(bridge: Bridge, coupling: GaussianCoupling) -> Tensor:
    """Of end mean, end covariance and covariance of the ends, for both directions; relative to the ends' spread."""
    found = []
    for measure, mean, spread, joint in (
        (bridge.forward, MT, END, coupling.coupling),
        (bridge.backward, M0, START, coupling.coupling.mT),
    ):
        first, last = chain_moments(measure)[0], chain_moments(measure)[-1]
        size = torch.outer(first[1].diagonal(), spread.diagonal()).sqrt()
        found.append(((last[0] - mean) / spread.diagonal().sqrt()).abs().max())
        found.append(((last[1] - spread) / torch.outer(spread.diagonal(), spread.diagonal()).sqrt()).abs().max())
        found.append(((last[2] - joint) / size).abs().max())
    return torch.stack(found)


@pytest.mark.parametrize("name", [*FEW, "VP cosine", "VE scalar", "OU, zero rate, matrix σ"])
def test_both_chains_reach_ends_and_plan_at_first_order(name):
    coarse, fine = (errors(bridge(name, n, TimeGrid.cosine), exact(name)) for n in (100, 200))
    assert float(fine.max()) < 0.12
    assert bool(((coarse - 2 * fine).abs() < 0.25 * coarse + 1e-4).all())


@pytest.mark.parametrize("name", FEW)
def test_marginals_in_between_agree(name):
    """Of the forward chain, the backward chain and the closed form, at the quarters of the horizon."""
    one, coupling = bridge(name, 200), exact(name)
    forward, backward = chain_moments(one.forward), chain_moments(one.backward)
    for k in (50, 100, 150):
        mean, spread = coupling.marginal(k / 200 * one.horizon)
        for found in (forward[k], backward[200 - k]):
            torch.testing.assert_close(found[0], mean, rtol=0, atol=0.05 * float(spread.diagonal().sqrt().max()))
            torch.testing.assert_close(found[1], spread, rtol=0, atol=0.05 * float(spread.diagonal().max()))


def test_paths_have_the_moments_of_the_chain(dtype):
    n, name = 20_000, "OU, matrix rate, matrix σ"
    problem = BridgeProblem(
        Gaussian(M0.to(dtype), START.to(dtype)), Gaussian(MT.to(dtype), END.to(dtype)), LINEAR[name]
    )
    one = solve(problem, GaussianBridge(TimeGrid.uniform(50)), seed=0)
    for measure, exactly in ((one.forward, bridge(name, 50).forward), (one.backward, bridge(name, 50).backward)):
        paths = measure.sample(n, seed=4)
        assert paths.x.dtype == dtype
        first, last = paths.x[0].double(), paths.x[-1].double()
        mean, spread, joint = chain_moments(exactly)[-1]
        start = exactly.start.covariance
        z = (last.mean(0) - mean) / (spread.diagonal() / n).sqrt()
        assert float(z.abs().max()) < 4
        found = torch.cat([first, last], 1).mT.cov()
        for part, wanted, left in ((found[3:, 3:], spread, spread), (found[:3, 3:], joint, start)):
            error = ((wanted.square() + torch.outer(left.diagonal(), spread.diagonal())) / n).sqrt()
            assert float(((part - wanted) / error).abs().max()) < 4.5


@pytest.mark.parametrize("name", ["OU, matrix rate, matrix σ", "VP linear, long"])
def test_forward_and_backward_are_one_law_up_to_the_step(name):
    """Their Jeffreys divergence halves with the step."""
    found = [jeffreys(bridge(name, n).forward, bridge(name, n).backward, 10_000, seed=1) for n in (20, 40)]
    coarse, fine = found
    error = math.hypot(coarse.standard_error, 2 * fine.standard_error)
    assert abs(coarse.value - 2 * fine.value) < 3 * error + 0.15 * coarse.value
    assert coarse.value > 20 * coarse.standard_error


@pytest.mark.parametrize("name", [name for name in FEW if "(t)" not in name])
def test_the_current_velocity_carries_the_marginals(name):
    """``ẋ = v(t, x)`` by Runge–Kutta takes mean and covariance of the source to those of the target."""
    one, steps = bridge(name), 120 if "long" in name else 30
    v, h = one.current_velocity, one.horizon / steps
    x = torch.cat([M0.unsqueeze(0), M0 + EYE])
    for k in range(steps):
        a = v(k * h, x)
        b = v((k + 0.5) * h, x + 0.5 * h * a)
        c = v((k + 0.5) * h, x + 0.5 * h * b)
        d = v(min((k + 1) * h, one.horizon), x + h * c)
        x = x + h / 6 * (a + 2 * b + 2 * c + d)
    matrix = (x[1:] - x[0]).mT
    torch.testing.assert_close(x[0], MT, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(matrix @ START @ matrix.mT, END, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", FEW)
def test_velocity_is_half_the_difference_of_the_two_drifts(name):
    """``v = ½ [(b + σu) − (−b + σû)]``, the same for the reversed bridge, at one time or several."""
    one, x = bridge(name), torch.randn(4, DIM, generator=seeded(3), dtype=torch.float64)
    times = torch.linspace(0, one.horizon, 4, dtype=torch.float64)
    for t in (0.3 * one.horizon, times):
        b, sigma = one.reference.drift(t, x), one.reference.scale(t)
        forward, backward = b + sigma(one.forward.control(t, x)), -b + sigma(one.backward.control(t, x))
        torch.testing.assert_close(one.current_velocity(t, x), 0.5 * (forward - backward))
        assert torch.equal(one.reversed().current_velocity(t, x), one.current_velocity(t, x))


@pytest.mark.parametrize("name", FEW)
def test_a_control_takes_times_in_bulk(name, dtype):
    one, x = bridge(name), torch.randn(5, DIM, generator=seeded(3), dtype=torch.float64).to(dtype)
    times = torch.linspace(0, one.horizon, 5, dtype=torch.float64)
    for control in (one.forward.control, one.backward.control):
        found = control(times, x)
        assert found.dtype == dtype
        rows = torch.cat([control(float(t), x[i : i + 1]) for i, t in enumerate(times)])
        torch.testing.assert_close(found, rows, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("direction", list(Direction))
def test_the_kernel_draws_the_conditional_law(direction, dtype):
    name, n = "OU, matrix rate, matrix σ", 40_000
    one, coupling = bridge(name), exact(name)
    one = one if direction is Direction.FORWARD else one.reversed()
    x = torch.tensor([[0.3, -0.5, 1.0]], dtype=dtype).expand(n, DIM)
    mean, spread = coupling.end_given_start(x) if direction is Direction.FORWARD else coupling.start_given_end(x)
    drawn = one.transport(x, seed=5)
    assert drawn.dtype == dtype
    z = (drawn - mean).double().mean(0) / (spread.double().diagonal() / n).sqrt()
    assert float(z.abs().max()) < 4
    error = ((spread.square() + torch.outer(spread.diagonal(), spread.diagonal())) / n).sqrt().double()
    assert float(((drawn.double().mT.cov() - spread) / error).abs().max()) < 4.5
    torch.testing.assert_close(one.conditional_mean(x[:3], seed=0), mean[:3])
    assert torch.equal(one.transport(x, seed=5), drawn)
    assert not torch.equal(one.transport(x, seed=6), drawn)


def test_interpolation_has_the_marginals():
    name, n = "OU, matrix rate, matrix σ", 40_000
    one, coupling = bridge(name), exact(name)
    t = 0.35 * one.horizon
    mean, spread = coupling.marginal(t)
    for run, law in ((one, one.forward.start), (one.reversed(), one.backward.start)):
        found = run.interpolate(law.sample(n, seeded(7)), t, seed=8)
        assert float(((found.mean(0) - mean) / (spread.diagonal() / n).sqrt()).abs().max()) < 4
        error = ((spread.square() + torch.outer(spread.diagonal(), spread.diagonal())) / n).sqrt()
        assert float(((found.mT.cov() - spread) / error).abs().max()) < 4.5


def test_float32_survives_nearly_parallel_coordinates():
    """Correlation 1 − 5·10⁻¹⁰ at the ends: no root of the conditional covariance exists in float32."""
    x = torch.randn(300, 3, generator=seeded(1), dtype=torch.float64)
    x[:, 2] = x[:, 1] * 1.3 + 3e-5 * x[:, 2]
    rows = x.float()
    drawn = fit(rows, rows + 1, solver=GaussianBridge()).transport(rows, seed=0)
    assert bool(drawn.isfinite().all())
    torch.testing.assert_close(drawn[:, 2] - 1, (drawn[:, 1] - 1) * 1.3, rtol=0, atol=1e-3)


# --- sampled ends


def test_sampled_ends_are_replaced_by_their_moments(dtype):
    x0 = torch.rand(50, 2, generator=seeded(1), dtype=torch.float64).to(dtype)
    x1 = torch.rand(70, 2, generator=seeded(2), dtype=torch.float64).to(dtype).square() + 2
    one = solve(BridgeProblem(Samples(x0), Samples(x1), BrownianMotion(0.5)), GaussianBridge(), seed=0)
    coupling = one.forward.control.coupling
    for mean, spread, rows in ((coupling.m0, coupling.A, x0.double()), (coupling.mT, coupling.B, x1.double())):
        torch.testing.assert_close(mean, rows.mean(0), rtol=1e-12, atol=0)
        torch.testing.assert_close(spread, rows.mT.cov(), rtol=1e-12, atol=0)
    assert torch.equal(one.forward.start.rows, x0)
    assert torch.equal(one.backward.start.rows, x1)


def test_weights_enter_the_moments(dtype):
    """Rows that count twice are rows that are there twice; weights need sum to one only to rounding."""
    x = torch.rand(20, 2, generator=seeded(1), dtype=torch.float64).to(dtype)
    weights = torch.ones(20, dtype=dtype)
    weights[:5] = 2.0
    doubled = torch.cat([x, x[:5]]).double()
    for factor in (1.0, 1.0 + 5e-5):
        end = Samples(x, factor * weights / 25)
        one = solve(BridgeProblem(end, Samples(x + 1), BrownianMotion(0.5)), GaussianBridge(), seed=0)
        coupling = one.forward.control.coupling
        torch.testing.assert_close(coupling.m0, doubled.mean(0), rtol=1e-6, atol=0)
        # frequency weights would divide by 24 of 25, these divide by 1 − Σ w²
        share = 24 / 25 / (1 - float((weights.double() / 25).square().sum()))
        torch.testing.assert_close(coupling.A, doubled.mT.cov() * share, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fault", ["few rows", "as many rows as columns", "copied column", "constant column"])
def test_rows_in_a_subspace_are_refused(fault, seed):
    """However the rounding falls: half of such covariances have a Cholesky root."""
    rows = torch.randn(60, 6, generator=seeded(seed), dtype=torch.float64)
    good = rows.clone()
    if fault == "few rows":
        rows = rows[:3]
    if fault == "as many rows as columns":
        rows = rows[:6]
    if fault == "copied column":
        rows[:, 3] = 2 * rows[:, 1] - rows[:, 0]
    if fault == "constant column":
        rows[:, 2] = 0.1
    for ends, name in (((rows, good), "source"), ((good, rows), "target")):
        with pytest.raises(InvalidInputError, match=f"{len(rows)} rows of the {name} span fewer than their 6.*PCA"):
            fit(*ends, reference=BrownianMotion(1.0), solver=GaussianBridge())


def test_columns_of_very_different_size_are_no_subspace():
    rows = torch.randn(60, 3, generator=seeded(1), dtype=torch.float64) * tensor([1e-6, 1.0, 1e6])
    fit(rows, rows + 1, reference=BrownianMotion([1e-6, 1.0, 1e6]), solver=GaussianBridge())


def test_what_it_refuses():
    normal = Gaussian(torch.zeros(2), torch.eye(2))
    mixture = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2).unsqueeze(0))
    curved = DriftProcess(lambda t, x: -x.sin(), 1.0)
    solver = GaussianBridge()
    assert solver.refusal(BridgeProblem(normal, Samples(torch.randn(5, 2)), BrownianMotion(1.0))) is None
    for end in (mixture, Density(lambda x: -x.square().sum(1), 2)):
        problem = BridgeProblem(normal, end, BrownianMotion(1.0))
        with pytest.raises(UnsupportedError, match=f"Gaussians or samples, got {type(end).__name__}: draw samples"):
            solve(problem, solver, seed=0)
    with pytest.raises(UnsupportedError, match="mean and covariance of the target, a Density, are not known"):
        solver.finish(problem, solver.init(problem, 0))
    with pytest.raises(
        UnsupportedError, match="GaussianBridge needs transitions in closed form, which DriftProcess does not have"
    ):
        solve(BridgeProblem(normal, normal, curved), solver, seed=0)
