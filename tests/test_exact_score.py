"""Exact scores against differentiated densities, Tweedie's formula, simulation, and each other."""

import math

import numpy as np
import pytest
import torch

from sbridge.diffusion.conversions import (
    ControlScore,
    ScoreControl,
    mean_field_drift,
    noise_from_score,
    score_from_noise,
    score_from_start,
    start_from_score,
    start_from_velocity,
    velocity_from_start,
)
from sbridge.diffusion.exact import ExactScore
from sbridge.diffusion.reverse import end_distribution, moments, reverse_diffusion
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Density, Gaussian, GaussianMixture, Samples
from sbridge.measures import jeffreys, path_kl
from sbridge.processes import (
    BrownianMotion,
    DriftProcess,
    OrnsteinUhlenbeck,
    VarianceExploding,
    VariancePreserving,
)
from sbridge.time import TimeGrid

DENSE = torch.tensor([[1.0, 0.3], [-0.2, 0.7]], dtype=torch.float64)
PROCESSES = {
    "brownian": BrownianMotion(0.8),
    "diagonal": BrownianMotion(torch.tensor([0.5, 1.5])),
    "dense": OrnsteinUhlenbeck(rate=DENSE, sigma=torch.tensor([[1.0, 0.4], [0.0, 0.6]]), mean=0.3),
    "ou": OrnsteinUhlenbeck(rate=1.3, sigma=0.9, mean=0.4),
    "vp": VariancePreserving(),
    "ve": VarianceExploding(0.1, 4.0),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture(dim=2, count=3):
    g = generator(5)
    roots = torch.randn(count, dim, dim, generator=g, dtype=torch.float64) * 0.4
    covariances = roots @ roots.mT + 0.2 * torch.eye(dim, dtype=torch.float64)
    means = 2.0 * torch.randn(count, dim, generator=g, dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)[:count], means, covariances)


def laws():
    m = mixture()
    return {
        "gaussian": Gaussian(m.means[0], m.covariances[0]),
        "mixture": m,
        "samples": Samples(m.sample(40, generator(1))),
        "weighted": Samples(m.sample(4, generator(1)), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)),
    }


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]


@pytest.fixture(params=["gaussian", "mixture", "samples", "weighted"])
def law(request):
    return laws()[request.param]


def points(n=7):
    return 2.0 * torch.randn(n, 2, generator=generator(3), dtype=torch.float64)


def times(n=7):
    return torch.linspace(0.1, 1.0, n, dtype=torch.float64)


def test_score_is_the_gradient_and_divergence_its_trace(process, law):
    score, x = ExactScore(process, law), points().requires_grad_()
    (gradient,) = torch.autograd.grad(score.log_density(0.4, x).sum(), x)
    value = score(0.4, x)
    assert torch.allclose(value, gradient, rtol=1e-9, atol=1e-10)
    trace = sum(torch.autograd.grad(value[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
    assert torch.allclose(score.divergence(0.4, x), trace, rtol=1e-8, atol=1e-9)


def test_one_time_per_row_is_each_row_at_its_time(process, law):
    score, x, t = ExactScore(process, law), points(), times()
    for name in ("__call__", "log_density", "start_mean", "divergence"):
        together = getattr(score, name)(t, x)
        alone = torch.cat([getattr(score, name)(float(s), row[None]) for s, row in zip(t, x, strict=True)])
        assert torch.allclose(together, alone, rtol=1e-10, atol=1e-11), name


def test_density_of_a_mixture_is_that_of_its_noised_law(process):
    score, x = ExactScore(process, mixture()), points()
    assert torch.allclose(score.log_density(0.7, x), score.marginal(0.7).log_density(x), rtol=1e-11, atol=1e-11)


def test_density_of_samples_is_the_mixture_of_transitions(process):
    rows = points(5)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1], dtype=torch.float64)
    x = points(4) + 0.1
    parts = torch.stack([process.log_transition(0.0, row.expand(4, 2), 0.3, x) for row in rows], 1)
    expected = torch.logsumexp(parts + weights.log(), 1)
    assert torch.allclose(ExactScore(process, Samples(rows, weights)).log_density(0.3, x), expected, rtol=1e-11)


def test_posterior_mean_and_score_are_related_by_tweedie(process, law):
    score, x, t = ExactScore(process, law), points(), times()
    for moment in (0.4, t):
        mean = start_from_score(process, moment, x, score(moment, x))
        assert torch.allclose(mean, score.start_mean(moment, x), rtol=1e-8, atol=1e-8)
        assert torch.allclose(score_from_start(process, moment, x, mean), score(moment, x), rtol=1e-8, atol=1e-8)


def test_posterior_mean_is_a_regression_of_starts_on_states(process):
    law, t, g = mixture(), 0.3, generator(2)
    start = law.sample(200_000, g)
    step = process.transition(0.0, t)
    x = step.mean(start) + step.root.to(start)(torch.randn(start.shape, generator=g, dtype=start.dtype))
    features = torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x, x.square(), x.tanh()], 1)
    residual = start - ExactScore(process, law).start_mean(t, x)
    moments = features[:, :, None] * residual[:, None, :]
    z = moments.mean(0) / (moments.std(0) / math.sqrt(len(x)))
    assert z.abs().max() < 4.5  # 14 means of zero


def test_noise_and_velocity_conversions_invert():
    process, x, t = VariancePreserving(), points(), times()
    score = ExactScore(process, mixture())
    for moment in (0.5, t):
        s = score(moment, x)
        noise = noise_from_score(process, moment, s)
        assert torch.allclose(score_from_noise(process, moment, noise), s)
        start = score.start_mean(moment, x)
        velocity = velocity_from_start(process, moment, x, start)
        law = process.transition(0.0, moment)
        alpha, root = law.map.values, law.root.values
        assert torch.allclose(velocity, alpha * noise - root * start)
        assert torch.allclose(start_from_velocity(process, moment, x, velocity), start)
        assert torch.allclose(root * velocity, alpha * x - start)
    with pytest.raises(UnsupportedError, match="stationary_std 1"):
        velocity_from_start(VariancePreserving(stationary_std=2.0), 0.5, x, x)


def test_mean_field_form_is_the_score_form(process, law):
    score, x, t = ExactScore(process, law), points(), 0.6
    variance = process.scale(t) @ process.scale(t).T
    expected = variance(score(t, x)) - process.drift(t, x)
    assert torch.allclose(mean_field_drift(process, t, x, score.start_mean(t, x)), expected, rtol=1e-8, atol=1e-8)


def test_score_control_and_back(process):
    score, x = ExactScore(process, mixture()), points()
    control = ScoreControl(process, score)
    assert torch.allclose(control(0.5, x), process.scale(0.5).T(score(0.5, x)))
    assert torch.allclose(ControlScore(process, control)(0.5, x), score(0.5, x))
    with pytest.raises(InvalidInputError, match="returned shape"):
        ScoreControl(process, lambda t, x: x[:, :1])(0.5, x)


def test_float32_states_keep_five_digits(process, law):
    score, x = ExactScore(process, law), points()
    single = score(0.3, x.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), score(0.3, x), rtol=1e-4, atol=1e-5)


def test_at_time_zero_a_mixture_has_its_own_score():
    law, x = mixture(), points().requires_grad_()
    (expected,) = torch.autograd.grad(law.log_density(x).sum(), x)
    assert torch.allclose(ExactScore(VariancePreserving(), law)(0.0, x), expected)


def test_both_directions_of_an_exact_reversal_are_one_measure(process):
    law = mixture()
    score = ExactScore(process, law)
    prior = score.marginal(1.0)
    gaps = []
    for steps in (50, 200):
        grid = TimeGrid(tuple((k / steps) ** 2 for k in range(steps + 1)))
        bridge = reverse_diffusion(process, law, score, prior=prior, grid=grid)
        gaps.append(jeffreys(bridge.forward, bridge.backward, 2000, seed=1))
    assert abs(gaps[1].value) < 0.3 * abs(gaps[0].value) + 3 * gaps[1].standard_error  # first order in the step
    worse = reverse_diffusion(process, law, lambda t, x: 0.5 * score(t, x), prior=prior, grid=grid)
    assert path_kl(bridge.backward, worse.backward, 2000, seed=1).value > 0.15


def test_the_end_law_has_the_moments_of_the_noised_data(process, law):
    end = end_distribution(process, law)
    g = generator(4)
    start = law.sample(100_000, g)
    step = process.transition(0.0, 1.0)
    x = step.mean(start) + step.root.to(start)(torch.randn(start.shape, generator=g, dtype=start.dtype))
    spread = x.std(0)
    assert ((x.mean(0) - end.mean) / spread).abs().max() < 4.5 / math.sqrt(len(x))
    assert torch.allclose(x.T.cov(), end.covariance, rtol=0.03, atol=0.03 * float(spread.max()) ** 2)


def test_bad_input_is_told():
    law, x = mixture(), points()
    samples = Samples(points(3))
    with pytest.raises(UnsupportedError, match="needs Samples"):
        ExactScore(VariancePreserving(), Density(lambda x: x.sum(1), 2))
    with pytest.raises(InvalidInputError, match="dimension"):
        ExactScore(BrownianMotion(torch.ones(3)), law)
    score = ExactScore(VariancePreserving(), samples)
    with pytest.raises(InvalidInputError, match="infinite at t = 0"):
        score(0.0, x)
    with pytest.raises(InvalidInputError, match="time must lie"):
        score(1.5, x)
    with pytest.raises(InvalidInputError, match="one per row"):
        score(times(3), x)
    with pytest.raises(InvalidInputError, match="x must have shape"):
        score(0.5, x[:, :1])
    with pytest.raises(UnsupportedError, match="kernel density"):
        score.marginal(0.5)
    with pytest.raises(UnsupportedError, match="prior="):
        end_distribution(DriftProcess(lambda t, x: -x, 1.0), law)
    with pytest.raises(UnsupportedError, match="no known moments"):
        end_distribution(VariancePreserving(), Density(lambda x: x.sum(1), 2))


@pytest.mark.parametrize("weighted", [False, True])
def test_moments_of_float32_rows_keep_their_digits(weighted):
    """A column far from zero beside a narrow one: sums in float32 would lose digits that the rows have."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(100_000, 2, generator=g) * torch.tensor([1.0, 0.1]) + torch.tensor([3000.0, 700.0])
    weights = torch.rand(len(rows), generator=g) if weighted else None
    weights = None if weights is None else weights / weights.sum()
    mean, covariance = moments(Samples(rows, weights))
    exact = torch.full((len(rows),), 1.0) if weights is None else weights
    expected = torch.from_numpy(np.cov(rows.double().numpy().T, aweights=exact.double().numpy(), ddof=0))
    assert mean.dtype == covariance.dtype == torch.float32
    centre = torch.from_numpy(np.average(rows.double().numpy(), axis=0, weights=exact.double().numpy()))
    torch.testing.assert_close(mean.double(), centre, rtol=6e-8, atol=0.0)
    torch.testing.assert_close(covariance.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_noise_of_a_single_point_is_that_which_was_drawn(process):
    """``x = Φx_0 + k + Lε`` has the score ``−Q⁻¹Lε``, from which ``ε`` comes back."""
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for t in (0.4, torch.linspace(0.2, 0.8, 5, dtype=torch.float64)):
        law = process.transition(0.0, t)
        score = -law.covariance.inverse()(law.root(noise))
        torch.testing.assert_close(noise_from_score(process, t, score), noise, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(score_from_noise(process, t, noise), score, rtol=1e-9, atol=1e-9)
