"""Log-likelihood through the probability flow against closed-form densities."""

import pytest
import torch

from sbridge.controls import MLP, Hutchinson, ProbeLaw
from sbridge.diffusion import ExactScore, NetworkScore, reverse_diffusion
from sbridge.diffusion.likelihood import log_likelihood
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Gaussian, GaussianMixture, Samples
from sbridge.processes import BrownianMotion, OrnsteinUhlenbeck, VarianceExploding, VariancePreserving
from sbridge.simulation.ode import DormandPrince, Heun, RungeKutta4
from sbridge.time import TimeGrid

RATE = torch.tensor([[1.0, 0.3], [-0.2, 0.7]], dtype=torch.float64)
PROCESSES = {
    "brownian": BrownianMotion(0.8),
    "diagonal": BrownianMotion(torch.tensor([0.5, 1.5])),
    "dense": OrnsteinUhlenbeck(rate=RATE, sigma=torch.tensor([[1.0, 0.4], [0.0, 0.6]]), mean=0.3),
    "ou": OrnsteinUhlenbeck(rate=1.3, sigma=0.9, mean=0.4, horizon=1.7),
    "vp": VariancePreserving(),
    "ve": VarianceExploding(0.1, 4.0),
}
TIGHT = DormandPrince(1e-9, 1e-9)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture():
    roots = 0.4 * torch.randn(3, 2, 2, generator=generator(5), dtype=torch.float64)
    covariances = roots @ roots.mT + 0.2 * torch.eye(2, dtype=torch.float64)
    means = 2.0 * torch.randn(3, 2, generator=generator(6), dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), means, covariances)


def exact_bridge(process, data):
    score = ExactScore(process, data)
    return reverse_diffusion(process, data, score, prior=score.marginal(process.horizon))


@pytest.mark.parametrize("name", PROCESSES)
def test_likelihood_is_the_exact_density(name):
    data = mixture()
    x = data.sample(20, generator(1))
    found = log_likelihood(exact_bridge(PROCESSES[name], data), x, method=DormandPrince(1e-8, 1e-8))
    assert torch.allclose(found.values, data.log_density(x), atol=1e-6)
    assert found.evaluations > 0


def test_later_times_give_the_density_of_noised_data():
    data, process = mixture(), PROCESSES["vp"]
    bridge, x = exact_bridge(process, data), 1.5 * torch.randn(20, 2, generator=generator(2), dtype=torch.float64)
    found = log_likelihood(bridge, x, s_min=0.2, method=DormandPrince(1e-8, 1e-8))
    assert torch.allclose(found.values, ExactScore(process, data).log_density(0.2, x), atol=1e-6)
    reverse = log_likelihood(bridge.reversed(), x, s_min=0.2, method=DormandPrince(1e-8, 1e-8))
    assert torch.equal(found.values, reverse.values)


def test_points_need_a_later_start_and_then_are_exact():
    process = VariancePreserving()
    data = Samples(torch.randn(30, 2, generator=generator(3), dtype=torch.float64))
    score = ExactScore(process, data)
    # With T large the law at the end is the prior, up to e^{-10}.
    bridge = reverse_diffusion(process, data, score)
    x = data.rows[:10] + 0.1
    with pytest.raises(InvalidInputError, match="infinite at t = 0"):
        log_likelihood(bridge, x)
    found = log_likelihood(bridge, x, s_min=0.05, method=DormandPrince(1e-8, 1e-8))
    assert torch.allclose(found.values, score.log_density(0.05, x), atol=2e-3)


def test_the_prior_is_what_is_pushed_back():
    """A prior that is not ρ_T: the density of a Gaussian pushed along an affine flow, in closed form."""
    process = OrnsteinUhlenbeck(rate=0.7, sigma=1.1)
    data = Gaussian(torch.tensor([0.5], dtype=torch.float64), torch.tensor([[0.3]], dtype=torch.float64))
    prior = Gaussian(torch.tensor([1.0], dtype=torch.float64), torch.tensor([[2.0]], dtype=torch.float64))
    score = ExactScore(process, data)
    end = score.marginal(1.0)
    ratio = (data.covariance / end.covariance).sqrt()
    pushed = Gaussian(data.mean + (prior.mean - end.mean) * ratio[0], prior.covariance * ratio.square())
    x = torch.linspace(-2, 3, 9, dtype=torch.float64)[:, None]
    found = log_likelihood(reverse_diffusion(process, data, score, prior=prior), x, method=TIGHT)
    assert torch.allclose(found.values, pushed.log_density(x), atol=1e-7)


@pytest.mark.parametrize("method", [Heun(), RungeKutta4()])
def test_fixed_steps_converge(method):
    data, process = mixture(), PROCESSES["ou"]
    score, x = ExactScore(process, data), data.sample(20, generator(1))
    errors = []
    for steps in (20, 40):
        bridge = reverse_diffusion(
            process, data, score, prior=score.marginal(process.horizon), grid=TimeGrid.refined(steps, 0.5)
        )
        found = log_likelihood(bridge, x, method=method)
        errors.append(float((found.values - data.log_density(x)).abs().mean()))
    assert errors[1] < errors[0] / (2.0 if isinstance(method, Heun) else 4.0)


@pytest.mark.parametrize("law", list(ProbeLaw))
def test_hutchinson_is_unbiased(law):
    data, process = mixture(), PROCESSES["dense"]
    x = data.sample(1, generator(1)).expand(2000, -1)
    found = log_likelihood(
        exact_bridge(process, data), x, method=DormandPrince(1e-6, 1e-6), divergence=Hutchinson(1, law), seed=4
    )
    error = float(found.values.std()) / 2000**0.5
    assert error > 1e-4
    assert abs(float(found.values.mean() - data.log_density(x[:1]))) < 4 * error
    again = log_likelihood(exact_bridge(process, data), x[:5], divergence=Hutchinson(1, law), seed=4)
    other = log_likelihood(exact_bridge(process, data), x[:5], divergence=Hutchinson(1, law), seed=5)
    assert not torch.equal(again.values, other.values)


def test_single_precision():
    data = mixture()
    x = data.sample(20, generator(1)).float()
    found = log_likelihood(exact_bridge(PROCESSES["vp"], data), x)
    assert found.values.dtype == torch.float32
    assert torch.allclose(found.values.double(), data.log_density(x.double()), atol=2e-3)


def test_a_network_has_a_likelihood_that_integrates_to_one():
    process = VariancePreserving()
    torch.manual_seed(0)
    network = NetworkScore(MLP(16, 2), process, 1)
    for parameter in network.parameters():  # its last layer starts at zero
        torch.nn.init.normal_(parameter, std=0.4, generator=generator(1))
    data = Gaussian(torch.zeros(1), torch.eye(1))
    bridge = reverse_diffusion(process, data, network)
    x = torch.linspace(-6.0, 6.0, 201)[:, None]
    values = log_likelihood(bridge, x, s_min=0.01).values
    assert float(torch.trapezoid(values.exp(), x[:, 0])) == pytest.approx(1.0, abs=2e-3)
    assert not all(p.grad is not None for p in network.parameters())


def test_refusals():
    data = mixture()
    process = PROCESSES["vp"]
    score = ExactScore(process, data)
    bridge = reverse_diffusion(process, data, score, prior=Samples(torch.randn(5, 2).double()))
    with pytest.raises(UnsupportedError, match="prior=end_distribution"):
        log_likelihood(bridge, data.means)
    with pytest.raises(InvalidInputError, match="s_min must be"):
        log_likelihood(exact_bridge(process, data), data.means, s_min=1.0)
    opaque = reverse_diffusion(process, data, lambda t, x: torch.from_numpy(score(t, x).detach().numpy().copy()))
    with pytest.raises(InvalidInputError, match="but the bridge has dimension 2"):
        log_likelihood(exact_bridge(process, data), data.means[:, :1])
    with pytest.raises(UnsupportedError, match="differentiate the score"):
        log_likelihood(opaque, data.means, s_min=0.1)
