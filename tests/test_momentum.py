"""Underdamped Langevin processes: closed forms, exact path measures, controls, refusals, and their identities."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from damages import scaled
from scipy.linalg import expm, solve_discrete_lyapunov

import sbridge as sb
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.functionals import dissipation, heat
from sbridge.identities import Setting, identities, momentum
from sbridge.identities.settings import PROCESSES, mixture
from sbridge.laws import Gaussian, Point
from sbridge.laws.scaling import AffineScaling
from sbridge.measures import Direction, MatchedKernel, PathMeasure, kernel_log_ratio, log_ratio, path_kl
from sbridge.objectives import lean_adjoint
from sbridge.problems.costs import Costs
from sbridge.processes import (
    BrownianMotion,
    Chain,
    EulerMaruyama,
    ExactTransition,
    KineticSplitting,
    OrnsteinUhlenbeck,
    UnderdampedDrift,
    UnderdampedLangevin,
    check_process,
    default_rule,
    rescale,
)
from sbridge.processes.constant import ConstantFlow
from sbridge.storage.registry import decode, encode, register
from sbridge.time import TimeGrid

STIFFNESS = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
PULLED = UnderdampedLangevin(torch.tensor([0.7, 0.2]), torch.tensor([1.3, 0.6]), STIFFNESS, [0.5, -1.0], horizon=1.2)
LINE = UnderdampedLangevin(0.5, 1.0, 1.5)


@register
@dataclass(frozen=True)
class Quartic:
    """The force of ¼|x|⁴."""

    def __call__(self, t, x):
        return -(x**3)


WELL = UnderdampedDrift(Quartic(), 0.5, 1.0)
SPRING = UnderdampedDrift(lambda t, x: -1.5 * x, 0.5, 1.0)


def pushing(t, x):
    """A control of the velocities."""
    return torch.cat([torch.zeros_like(x[:, :1]), 0.5 - x[:, :1] - 0.3 * x[:, 1:]], 1)


def chain(process, steps, direction=Direction.FORWARD):
    times = torch.linspace(0.0, process.horizon, steps + 1, dtype=torch.float64)
    return Chain(process, times, direction, default_rule(process), torch.empty(0, process.dim, dtype=torch.float64))


def affine(one, j):
    """Matrix, offset and covariance of an affine step."""
    dim = one.like.shape[1]
    offset = one.mean(j, torch.zeros(1, dim, dtype=torch.float64))
    root = one.root(j).values
    return (one.mean(j, torch.eye(dim, dtype=torch.float64)) - offset).mT, offset[0], root @ root.mT


@pytest.mark.parametrize("process", [PULLED, LINE, WELL, UnderdampedLangevin(0.0, 2.0, -1.0, positions=3)])
def test_they_follow_the_rules_of_a_process(process):
    check_process(process, process.dim)


def test_a_rescaled_one_does_too():
    scaling = AffineScaling(torch.tensor([1.0, 2.0, 0.0, 3.0]).double(), torch.tensor([2.0, 0.5, 1.0, 3.0]).double())
    check_process(rescale(PULLED, scaling), 4)


def test_transitions_are_matrix_exponentials():
    linear, noise = PULLED.linear(0.0).values.numpy(), np.diag([0.0, 0.0, 1.69, 0.36])
    block = expm(0.9 * np.block([[-linear, noise], [np.zeros((4, 4)), linear.T]]))
    law = PULLED.transition(0.1, 1.0)
    assert np.allclose(law.map.values, block[4:, 4:].T, atol=1e-14)
    assert np.allclose(law.covariance.values, block[4:, 4:].T @ block[:4, 4:], atol=1e-14)
    still = torch.tensor([[0.5, -1.0, 0.0, 0.0]], dtype=torch.float64)  # the force is zero there
    torch.testing.assert_close(law.mean(still), (law.map(still - still) + still), atol=1e-14, rtol=0)


@pytest.mark.parametrize("friction", [0.0, 1e-6, 0.8, 300.0])
def test_the_variance_of_free_positions_is_the_closed_form(friction):
    t, sigma = 0.7, 1.3
    found = UnderdampedLangevin(friction, sigma).transition(0.0, t).covariance.values[0, 0]
    e = -math.expm1(-friction * t) / friction if friction else t
    wanted = sigma**2 * t**3 / 3
    if friction > 0.1:
        wanted = sigma**2 / friction**2 * (t - 2 * e - math.expm1(-2 * friction * t) / (2 * friction))
    assert float(found) == pytest.approx(wanted, rel=1e-5 if friction == 1e-6 else 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("process", [LINE, WELL])
def test_path_measures_are_exact_for_the_chain(process, dtype):
    """At five coarse steps: weights have mean one, and densities of paths are products of Gaussian densities."""
    start = Gaussian(torch.zeros(2, dtype=dtype), torch.eye(2, dtype=dtype))
    one = PathMeasure(process, pushing, start, grid=TimeGrid.uniform(5))
    paths = one.sample(4000, seed=0)
    assert paths.x.dtype == dtype
    weights = (-log_ratio(paths, pushing, None)).exp()
    assert abs(float(weights.mean()) - 1.0) < 3.0 * float(weights.std()) / 4000**0.5
    back = PathMeasure(process, None, start, Direction.BACKWARD, grid=TimeGrid.uniform(5))
    wanted = torch.zeros(4000, dtype=torch.float64)
    x, there, here = paths.x.double(), chain(process, 5), chain(process, 5, Direction.BACKWARD)
    for j in range(5):
        u = pushing(0.0, x[j])
        mean = there.push(j, x[j], there.root_durations[j] * u)
        wanted += normal(there.root(j).values, x[j + 1] - mean)
        wanted -= normal(here.root(4 - j).values, x[j] - here.mean(4 - j, x[j + 1]))
    found = kernel_log_ratio(paths, one, back)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3 if dtype == torch.float32 else 1e-9, atol=1e-3)
    free = PathMeasure(process, None, start, grid=TimeGrid.uniform(5))
    value = path_kl(one, free, 4000, seed=0)
    gap = log_ratio(paths, pushing, None).double()
    assert abs(float(gap.mean()) - value.value) < 4.0 * float(gap.std()) / 4000**0.5


def normal(root, gap):
    return torch.distributions.MultivariateNormal(torch.zeros(2).double(), root @ root.mT).log_prob(gap)


def test_the_splitting_converges_to_the_process():
    """A linear force, by its chain: order 1 for the law at the end, 2 for the stationary variances."""
    exact = LINE.transition(0.0, 1.0)
    errors, stationary = [], []
    for steps in (40, 80):
        one = chain(SPRING, steps)
        phi, _, q = affine(one, 0)
        total = torch.zeros_like(q)
        for _ in range(steps):
            total = phi @ total @ phi.mT + q
        gaps = (torch.linalg.matrix_power(phi, steps) - exact.map.values, total - exact.covariance.values)
        errors.append([float(gap.norm()) for gap in gaps])
        found = solve_discrete_lyapunov(phi.numpy(), q.numpy())
        stationary.append([abs(found[0, 0] - 1.0 / 1.5), abs(found[1, 1] - 1.0), abs(found[0, 1])])
    assert np.allclose(np.log2(np.divide(*errors)), 1.0, atol=0.05)
    assert np.allclose(np.log2(np.divide(*stationary)), [2.0, 2.0, 1.0], atol=0.05)


@pytest.mark.parametrize("process", [LINE, SPRING])
def test_backward_steps_undo_the_mean_of_forward_steps(process):
    there, back = chain(process, 4), chain(process, 4, Direction.BACKWARD)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(back.mean(1, there.mean(2, x)), x)


@pytest.mark.parametrize(("process", "order"), [(LINE, 2), (SPRING, 1)])
def test_a_control_of_velocities_acts_as_a_force(process, order):
    """``u = (0, c)`` adds ``∫Φ (0, σc)`` as ``Δ → 0``; with a lower triangular root it adds hardly anything."""
    moved = []
    for steps in (20, 40):
        one, x = chain(process, steps), torch.zeros(1, 2, dtype=torch.float64)
        for j in range(steps):
            x = one.push(j, x, one.root_durations[j] * torch.tensor([[0.0, 0.8]], dtype=torch.float64))
        moved.append(x[0])
    pushed = UnderdampedLangevin(0.5, 1.0, 1.5, mean=0.8 / 1.5).transition(0.0, 1.0).offset
    first, second = ((one - pushed).norm() for one in moved)
    assert float(second) < 0.02
    assert math.log2(first / second) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("process", [PULLED, UnderdampedDrift(Quartic(), 0.5, 1.0, positions=2)])
def test_adjoint_states_are_gradients_along_the_uncontrolled_chain(process):
    paths = PathMeasure(process, None, Point(torch.zeros(4).double()), grid=TimeGrid.uniform(6)).sample(5, seed=1)
    adjoint = lean_adjoint(paths, Costs(terminal=lambda x: x[:, 0].square() + x[:, 3]))
    x = paths.x[0].clone().requires_grad_()
    end = x
    for j in range(6):
        end = paths.chain.push(j, end, paths.noise[j])
    (wanted,) = torch.autograd.grad((end[:, 0].square() + end[:, 3]).sum(), x)
    torch.testing.assert_close(adjoint[0], wanted)


def test_a_gaussian_bridge_in_phase_space_reaches_its_end():
    source = Gaussian(torch.zeros(4).double(), torch.eye(4).double())
    target = Gaussian(torch.tensor([1.0, 0.0, -1.0, 0.5]).double(), 0.5 * torch.eye(4).double())
    problem = sb.BridgeProblem(source, target, PULLED)
    bridge = sb.solve(problem, sb.solvers.GaussianBridge(grid=TimeGrid.uniform(120)), seed=0)
    ends = bridge.forward.sample(4000, seed=1).x[-1]
    assert torch.allclose(ends.mean(0), target.mean, atol=0.05)
    assert torch.allclose(ends.mT.cov(), target.covariance, atol=0.05)
    starts = bridge.backward.sample(4000, seed=2).x[-1]
    assert torch.allclose(starts.mT.cov(), source.covariance, atol=0.12)
    with pytest.raises(UnsupportedError, match="velocities alone"):
        bridge.score(0.5, ends)


def test_a_fit_in_phase_space_warns_of_nothing():
    g = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(200, 2, generator=g), torch.randn(200, 2, generator=g) + 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bridge = sb.fit(x0, x1, reference=LINE, solver=sb.GaussianBridge(), seed=0)
    assert torch.allclose(bridge.transport(x0, seed=1).mean(0), x1.mean(0), atol=0.25)


@pytest.mark.parametrize("process", [PULLED, WELL])
def test_they_are_saved(process):
    again = decode(*encode(process))
    x = torch.randn(3, process.dim, dtype=torch.float64)
    assert torch.equal(again.drift(0.3, x), process.drift(0.3, x))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"friction": -1.0}, "friction must not be negative"),
        ({"friction": [0.1, -0.1]}, "friction must not be negative"),
        ({"friction": torch.eye(2)}, "friction must be a number or a vector"),
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"sigma": -1.0}, "sigma must be positive"),
        ({"sigma": torch.eye(2)}, "sigma must be a number or a vector"),
        ({"sigma": math.nan}, "sigma must be finite"),
        ({"stiffness": torch.tensor([[1.0, 0.2], [0.0, 1.0]])}, "symmetric"),
        ({"stiffness": -1e6}, "potential repels"),
        ({"friction": [1.0, 1.0], "sigma": [1.0, 1.0, 1.0]}, "different dimensions"),
        ({"friction": [1.0, 1.0], "positions": 3}, "agrees with the coefficients"),
        ({"positions": 0}, "positive integer"),
        ({"positions": True}, "positive integer"),
        ({"horizon": 0.0}, "horizon must be a positive number"),
    ],
)
def test_bad_coefficients_are_refused(options, said):
    with pytest.raises(InvalidInputError, match=said):
        UnderdampedLangevin(**{"friction": 1.0, "sigma": 1.0} | options)


def test_bad_forces_and_states_are_refused():
    with pytest.raises(InvalidInputError, match="friction must not be negative"):
        UnderdampedDrift(Quartic(), -1.0, 1.0)
    with pytest.raises(InvalidInputError, match="2 columns, got 3"):
        WELL.drift(0.0, torch.zeros(4, 3))
    with pytest.raises(InvalidInputError, match=r"force must return the shape .* \(4, 1\)"):
        UnderdampedDrift(lambda t, x: x.sum(1), 1.0, 1.0).drift(0.0, torch.zeros(4, 2))
    for process in (WELL, LINE):
        with pytest.raises(InvalidInputError, match="dimension"):
            PathMeasure(process, None, Point(torch.zeros(3)))


def test_what_needs_noise_everywhere_is_refused():
    start = Point(torch.zeros(2))
    for process in (WELL, LINE):
        with pytest.raises(UnsupportedError, match="without noise"):
            PathMeasure(process, None, start, rule=EulerMaruyama()).sample(2, seed=0)
        with pytest.raises(UnsupportedError, match="no inverse"):
            process.inverse_scale(0.0)
    with pytest.raises(UnsupportedError, match="no inverse"):
        MatchedKernel().on(chain(LINE, 2), pushing)
    with pytest.raises(UnsupportedError, match="LinearProcess"):
        PathMeasure(WELL, None, start, rule=ExactTransition()).sample(2, seed=0)
    with pytest.raises(UnsupportedError, match="UnderdampedDrift"):
        PathMeasure(LINE, None, start, rule=KineticSplitting()).sample(2, seed=0)
    paths = PathMeasure(LINE, None, start, grid=TimeGrid.uniform(4)).sample(3, seed=0)
    with pytest.raises(UnsupportedError, match="no inverse"):
        dissipation(paths, LINE.drift)
    with pytest.raises(UnsupportedError, match="a velocity taken back changes its sign"):
        heat(paths)
    ends = Gaussian(torch.zeros(2), torch.eye(2))
    for process in (WELL, LINE):
        with pytest.raises(UnsupportedError, match="use UnderdampedLangevin with MatchedBridge"):
            sb.solve(sb.BridgeProblem(ends, ends, process), sb.solvers.IPF(), seed=0)
    with pytest.raises(UnsupportedError, match="use an UnderdampedLangevin process"):
        sb.solve(sb.BridgeProblem(ends, ends, WELL), sb.solvers.GaussianBridge(), seed=0)


OWN = {one.name: one for one in identities() if one.body.__module__ == momentum.__name__}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(("dim", "process"), [(1, "OU"), (2, "VE")])
def test_identities_hold(name, dim, process):
    for check in OWN[name](Setting("momentum", PROCESSES[process], mixture(dim), seed=4, samples=2000)):
        assert check.holds, check


def louder(owner):
    def damage(patch):
        original = owner.scale
        patch.setattr(owner, "scale", lambda self, t: original(self, t) * 1.05)

    return damage


def other_limit(patch):
    patch.setattr(momentum, "OrnsteinUhlenbeck", lambda rate, sigma, *a: OrnsteinUhlenbeck(rate, 1.01 * sigma, *a))


def lost_noise(patch):
    original = ConstantFlow.over

    def over(self, duration):
        phi, offset, covariance = original(self, duration)
        return phi, offset, covariance * 1.001

    patch.setattr(ConstantFlow, "over", over)


def forgotten_inertia(patch):
    """Ends that the limit has reached already."""
    patch.setattr(momentum, "_FRICTION", 1.0)


def quiet_plan(patch):
    patch.setattr(momentum, "BrownianMotion", lambda sigma, horizon: BrownianMotion(1.01 * sigma, horizon))


def clamped_ends(patch):
    """Another spline."""
    original = momentum.CubicSpline
    patch.setattr(momentum, "CubicSpline", lambda t, x, bc_type: original(t, x, bc_type="clamped"))


def some_friction(patch):
    def rubbed(friction, *a, **k):
        return UnderdampedLangevin(friction + 0.1, *a, **k)

    patch.setattr(momentum, "UnderdampedLangevin", rubbed)


BREAKS = [
    ("plan_with_momentum_is_brownian", quiet_plan),
    ("plan_with_momentum_is_brownian", some_friction),
    ("mean_with_momentum_is_the_natural_spline", clamped_ends),
    ("mean_with_momentum_is_the_natural_spline", some_friction),
    ("underdamped_langevin_keeps_its_equilibrium", louder(UnderdampedDrift)),
    ("underdamped_langevin_keeps_its_equilibrium", scaled(UnderdampedDrift, "kick", 0.9)),
    ("kramers_equation_residual", lost_noise),
    ("kramers_equation_residual", louder(UnderdampedLangevin)),
    ("overdamped_limit_has_order_one", other_limit),
    ("overdamped_limit_has_order_one", forgotten_inertia),
]


@pytest.mark.parametrize(("name", "damage"), BREAKS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BREAKS)])
def test_damage_is_seen(name, damage, monkeypatch):
    damage(monkeypatch)
    checks = OWN[name](Setting("momentum", PROCESSES["OU"], mixture(1), seed=4, samples=2000))
    assert not all(check.holds for check in checks)


def test_every_identity_is_damaged():
    assert {name for name, _ in BREAKS} == set(OWN)
