"""Nelson's velocities of bridges against closed forms, and what they say about energy and entropy."""

import dataclasses
import math

import pytest
import torch

from sbridge.diffusion.exact import ExactScore
from sbridge.diffusion.reverse import reverse_diffusion
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.fitting import solve
from sbridge.functionals import dissipation, entropy_production, integrate
from sbridge.identities import Setting, identities, velocities
from sbridge.identities.settings import PROCESSES, mixture
from sbridge.laws import Gaussian
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion, OrnsteinUhlenbeck
from sbridge.solutions import Bridge
from sbridge.solvers import GaussianBridge
from sbridge.time import TimeGrid

DENSE = OrnsteinUhlenbeck(
    torch.tensor([[1.0, 0.3], [-0.2, 0.7]]), torch.tensor([[1.0, 0.4], [0.0, 0.6]]), mean=0.3, horizon=1.5
)


def line(mean, variance):
    return Gaussian(torch.tensor([mean], dtype=torch.float64), torch.tensor([[variance]], dtype=torch.float64))


def closed_form(t, sigma, a, b, shift):
    """Mean and variance of the Brownian bridge between ``N(0, a)`` and ``N(shift, b)`` over [0, 1], and their rates.

    The correlation of the plan has the covariance ``c = √(ab + σ⁴/4) − σ²/2``.
    """
    c = math.sqrt(a * b + sigma**4 / 4) - sigma**2 / 2
    spread = (1 - t) ** 2 * a + 2 * t * (1 - t) * c + t**2 * b + sigma**2 * t * (1 - t)
    rate = -2 * (1 - t) * a + 2 * (1 - 2 * t) * c + 2 * t * b + sigma**2 * (1 - 2 * t)
    return shift * t, spread, shift, rate


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_velocities_of_a_brownian_bridge_on_a_line(dtype):
    sigma, a, b, shift = 0.8, 0.5, 2.0, 1.5
    problem = BridgeProblem(line(0.0, a), line(shift, b), BrownianMotion(sigma))
    bridge = solve(problem, GaussianBridge(), seed=0)
    x = torch.linspace(-2.0, 3.0, 9, dtype=dtype)[:, None]
    for t in (0.1, 0.5, 0.9):
        mean, spread, speed, rate = closed_form(t, sigma, a, b, shift)
        expected = {
            "current_velocity": speed + 0.5 * rate / spread * (x - mean),
            "osmotic_velocity": -0.5 * sigma**2 / spread * (x - mean),
            "score": -(x - mean) / spread,
        }
        for one in (bridge, bridge.reversed()):
            for name, value in expected.items():
                found = getattr(one, name)(t, x)
                assert found.dtype == dtype
                torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5)


def test_velocities_add_up_to_the_two_drifts():
    """``v + ũ = b + σu`` and ``v − ũ = b − σû``."""
    start = Gaussian(torch.zeros(2).double(), 0.4 * torch.eye(2).double())
    end = Gaussian(torch.ones(2).double(), torch.eye(2).double())
    bridge = solve(BridgeProblem(start, end, DENSE), GaussianBridge(), seed=0)
    x, t = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 0.7
    v, osmotic, b, sigma = (
        bridge.current_velocity(t, x),
        bridge.osmotic_velocity(t, x),
        DENSE.drift(t, x),
        DENSE.scale(t),
    )
    torch.testing.assert_close(v + osmotic, b + sigma(bridge.forward.control(t, x)))
    torch.testing.assert_close(v - osmotic, b - sigma(bridge.backward.control(t, x)))
    mean, covariance = GaussianCoupling(start.mean, start.covariance, end.mean, end.covariance, DENSE).marginal(t)
    torch.testing.assert_close(bridge.score(t, x), -torch.linalg.solve(covariance, (x - mean).mT).mT)


def test_score_of_a_reverse_diffusion_is_that_of_its_data():
    process, data = PROCESSES["VP"], mixture(2)
    exact = ExactScore(process, data)
    bridge = reverse_diffusion(process, data, exact)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for one in (bridge, bridge.reversed()):
        torch.testing.assert_close(one.score(0.3, x), exact(0.3, x))
        velocity = 0.5 * float(process.scale(0.3).values) ** 2 * exact(0.3, x)
        torch.testing.assert_close(one.osmotic_velocity(0.3, x), velocity)


def test_a_bridge_without_controls_has_no_osmotic_velocity():
    x = torch.ones(3, 2)
    measure = solve(
        BridgeProblem(Gaussian(torch.zeros(2), torch.eye(2)), Gaussian(torch.ones(2), torch.eye(2)), DENSE),
        GaussianBridge(),
        seed=0,
    )
    none = Bridge(*(dataclasses.replace(one, control=None) for one in (measure.forward, measure.backward)))
    assert torch.equal(none.osmotic_velocity(0.3, x), torch.zeros_like(x))
    assert torch.equal(none.score(0.3, x), torch.zeros_like(x))


def test_energy_and_entropy_of_a_bridge():
    """``½E∫|σu|² = ½E∫|v|² + ½E∫|ũ|² − ½σ²(H_T − H_0)``; entropy production is ``∫ 2|v|²/σ²``, the same both ways."""
    sigma, a, b, shift = 0.8, 0.5, 2.0, 1.5
    problem = BridgeProblem(line(0.0, a), line(shift, b), BrownianMotion(sigma))
    bridge = solve(problem, GaussianBridge(TimeGrid.uniform(80)), seed=0)

    def log_density(t, x):
        mean, spread, *_ = closed_form(float(t), sigma, a, b, shift)
        return line(mean, spread).log_density(x)

    for measure in (bridge.forward, bridge.backward):
        paths = measure.sample(5000, seed=1)
        made = entropy_production(paths, measure.control, log_density)
        lost = dissipation(paths, bridge.current_velocity)
        gap = made - lost
        assert lost.estimate.value > 5
        assert abs(gap.estimate.value) < 3 * gap.estimate.standard_error + gap.allowance
        assert gap.allowance < 0.02 * lost.estimate.value

    def square(field):
        return integrate(bridge.forward.sample(5000, seed=2), lambda t, x: 0.5 * field(t, x).square().sum(1))

    energy = square(lambda t, x: sigma * bridge.forward.control(t, x))
    parts = square(bridge.current_velocity) + square(bridge.osmotic_velocity)
    gap = (energy - parts).estimate
    growth = 0.5 * math.log(b / a)
    assert abs(gap.value + 0.5 * sigma**2 * growth) < 3 * gap.standard_error + (energy - parts).allowance + 2e-3


OWN = [one for one in identities() if one.body.__module__ == velocities.__name__]


@pytest.mark.parametrize("kind", ["OU", "VP", "VE", "dense"])
def test_identity_holds(kind):
    where = Setting(kind, DENSE if kind == "dense" else PROCESSES[kind], mixture(2))
    assert all(check.holds for check in OWN[0](where)), OWN[0](where)


@pytest.mark.parametrize("name", ["current_velocity", "osmotic_velocity"])
def test_a_damaged_identity_is_seen(monkeypatch, name):
    original = getattr(Bridge, name)
    monkeypatch.setattr(Bridge, name, lambda self, t, x: 1.001 * original(self, t, x))
    holds = [check.holds for check in OWN[0](Setting("OU", PROCESSES["OU"], mixture(2)))]
    assert holds == [name == "current_velocity", name == "osmotic_velocity"] * 2
