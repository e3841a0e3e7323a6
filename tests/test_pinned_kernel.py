"""The pinned kernel by Bayes' formula, its reversal, its mean over starts, and the bound on mixtures."""

import pytest
import torch
from families import DIM, FEW, states

from sbridge.diffusion import ExactScore
from sbridge.diffusion.conversions import mean_field_drift
from sbridge.diffusion.pinned import draw_earlier, draw_start, log_pinned_kernel, pinned_kernel, pinned_kl
from sbridge.diffusion.posterior import posterior
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Density, Gaussian, GaussianMixture, Samples
from sbridge.processes import DriftProcess

DATA = GaussianMixture(
    torch.tensor([0.7, 0.3]).double(),
    states(2, 3),
    torch.stack([0.3 * torch.eye(DIM), torch.diag(torch.tensor([0.1, 0.5, 0.2]))]).double(),
)


@pytest.mark.parametrize("process", FEW.values(), ids=FEW)
def test_the_kernel_is_bayes_formula(process):
    x0, x, y = states(6, 1), states(6, 2), states(6, 3)
    s, t = 0.3 * process.horizon, 0.8 * process.horizon
    bayes = process.log_transition(s, x, t, y) + process.log_transition(0.0, x0, s, x)
    bayes = bayes - process.log_transition(0.0, x0, t, y)
    assert torch.allclose(log_pinned_kernel(process, s, t, x0, x, y), bayes, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("process", FEW.values(), ids=FEW)
def test_the_reversal_has_the_drift_of_the_kernel(process):
    """Mean and covariance of q(x_s | x_0, x_t) obey the equations of the linear reversal (4.3), by differences in s."""
    x0, y, t, h = states(1, 1), states(1, 3), 0.8 * process.horizon, 1e-5 * process.horizon
    s = 0.4 * process.horizon
    before, law, after = (pinned_kernel(process, r, t) for r in (s - h, s, s + h))
    mean = law.mean(x0, y)
    speed = (before.mean(x0, y) - after.mean(x0, y)) / (2 * h)  # in reversed time
    assert torch.allclose(speed, mean_field_drift(process, s, mean, x0), rtol=1e-5, atol=1e-5)
    zero = torch.zeros(1, DIM).double()
    matrix = mean_field_drift(process, s, torch.eye(DIM).double(), x0.expand(DIM, -1)) - mean_field_drift(
        process, s, zero, x0
    )
    covariance, scale = law.covariance.expanded(DIM), process.scale(s).expanded(DIM)
    rate = (before.covariance.expanded(DIM) - after.covariance.expanded(DIM)) / (2 * h)
    assert torch.allclose(rate, matrix.mT @ covariance + covariance @ matrix + scale @ scale.mT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("data", [DATA, Gaussian(DATA.means[0], DATA.covariances[0]), Samples(states(12, 4))])
def test_the_start_given_a_state(data):
    for name in ("OU, matrix rate, matrix σ", "VP linear, long"):
        process = FEW[name]
        exact, t, n = ExactScore(process, data), 0.3 * process.horizon, 20_000
        x = states(1, 5).expand(n, -1)
        starts = draw_start(exact, t, x, seed=1)
        error = (starts.var(0) / n).sqrt() + 1e-9
        assert ((starts.mean(0) - exact.start_mean(t, x[:1])[0]).abs() < 4.5 * error).all()
        if isinstance(data, Samples):
            assert bool((starts[:50].unsqueeze(1) == data.rows).all(2).any(1).all())


def test_mixing_over_starts_reverses_the_noising():
    """(4.5): one long step back from draws of ρ_t; the joint law of (X_s, X_t) is that of the noising."""
    process = FEW["OU, diagonal rate, matrix σ"]
    exact, n = ExactScore(process, DATA), 30_000
    s, t = 0.1 * process.horizon, 0.9 * process.horizon
    x_s = exact.marginal(s).sample(n, torch.Generator().manual_seed(1))
    law = process.transition(s, t)
    x_t = law.mean(x_s) + law.root(states(n, 2))
    found = draw_earlier(exact, s, t, x_t, seed=3)
    for test in (
        lambda a, b: a[:, 0],
        lambda a, b: a[:, 1] ** 2,
        lambda a, b: a[:, 0] * b[:, 1],
        lambda a, b: a[:, 2] * b[:, 2],
    ):
        gap = test(found, x_t) - test(x_s, x_t)
        assert abs(float(gap.mean())) < 4.5 * float(gap.std()) / n**0.5


def test_divergence_of_kernels():
    process = FEW["OU, matrix rate, matrix σ"]
    s, t = 0.3 * process.horizon, 0.8 * process.horizon
    a, b, y = states(5, 1), states(5, 2), states(5, 3)
    law = pinned_kernel(process, s, t)
    p, q = (torch.distributions.MultivariateNormal(law.mean(x, y), law.covariance.expanded(DIM)) for x in (a, b))
    assert torch.allclose(pinned_kl(process, s, t, a, b), torch.distributions.kl_divergence(p, q), rtol=1e-8)


def test_single_precision():
    process = FEW["VP linear, long"]
    exact, x = ExactScore(process, DATA), states(5, 1, torch.float32)
    assert draw_earlier(exact, 0.3, 1.0, x, seed=0).dtype == torch.float32
    assert log_pinned_kernel(process, 0.3, 1.0, x, x, x).dtype == torch.float32


def test_refusals():
    process = FEW["VP linear, long"]
    exact, x = ExactScore(process, DATA), states(5, 1)
    with pytest.raises(InvalidInputError, match="0 ≤ s < t"):
        pinned_kernel(process, 0.5, 0.5)
    with pytest.raises(InvalidInputError, match="0 ≤ s < t"):
        pinned_kernel(process, 0.5, 3.0)
    with pytest.raises(UnsupportedError, match="needs a LinearProcess"):
        pinned_kernel(DriftProcess(lambda t, y: y, 1.0), 0.1, 0.5)
    with pytest.raises(InvalidInputError, match="t > 0"):
        draw_start(exact, 0.0, x, seed=0)
    eye = torch.eye(DIM).double()
    with pytest.raises(UnsupportedError, match="GaussianMixture"):
        posterior(Density(lambda y: y[:, 0], DIM), eye, eye, x)
    with pytest.raises(InvalidInputError, match="observation of a distribution"):
        posterior(DATA, eye[:2], eye, x)
    with pytest.raises(InvalidInputError, match="no density"):
        posterior(DATA, eye[[0, 0]], 0 * eye[:2, :2], x[:, :2])


def test_the_posterior_of_a_dense_observation_is_that_of_precisions():
    g = torch.Generator().manual_seed(0)
    prior, matrix, noise = torch.randn(3, DIM, DIM, generator=g).double()
    prior, noise = (one @ one.mT + 0.5 * torch.eye(DIM) for one in (prior, noise))
    mean, y = states(1, 5)[0], states(4, 6)
    found = posterior(Gaussian(mean, prior), matrix, noise, y)
    gain = matrix.mT @ torch.linalg.inv(noise)
    covariance = torch.linalg.inv(torch.linalg.inv(prior) + gain @ matrix)
    torch.testing.assert_close(found.covariances[0], covariance)
    torch.testing.assert_close(found.mean, (torch.linalg.inv(prior) @ mean + y @ gain.mT) @ covariance)
