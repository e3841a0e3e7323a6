"""Conditional scores: exact for Gaussians, mixtures and points; guidance against them; what is sampled."""

import pytest
import torch
from families import DIM, FEW, states

from sbridge.diffusion import ExactScore, reverse_diffusion
from sbridge.diffusion.guidance import (
    GuidedScore,
    IsotropicCovariance,
    LinearObservation,
    TweedieCovariance,
    conditioned,
)
from sbridge.diffusion.samplers import FlowSampler, StochasticSampler
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Gaussian, GaussianMixture, Samples
from sbridge.processes import OrnsteinUhlenbeck, VarianceExploding, VariancePreserving
from sbridge.storage.registry import decode, encode
from sbridge.time import TimeGrid

ROOT = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.4, 0.3, 0.7]]).double()
DATA = Gaussian(torch.tensor([0.5, -0.2, 0.1]).double(), ROOT @ ROOT.mT)
MIXED = LinearObservation(torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]).double(), 0.3)
Y = torch.tensor([0.7, -0.4]).double()


@pytest.mark.parametrize("process", FEW.values(), ids=FEW)
def test_guidance_is_the_conditional_score_of_gaussians(process):
    """For any linear process and any time: the score of the conditioned data, noised."""
    guided = GuidedScore(process, ExactScore(process, DATA), MIXED, Y[None])
    exact = ExactScore(process, conditioned(DATA, MIXED, Y))
    x = states(6, 2)
    for fraction in (0.05, 0.5, 1.0):
        t = fraction * process.horizon
        assert torch.allclose(guided(t, x), exact(t, x), rtol=1e-6, atol=1e-7)
    times = torch.linspace(0.2, 0.9, 6).double() * process.horizon
    assert torch.allclose(guided(times, x), exact(times, x), rtol=1e-6, atol=1e-7)


def test_isotropic_covariance_is_exact_for_isotropic_gaussians():
    data = Gaussian(DATA.mean, 0.49 * torch.eye(3).double())
    for name in ("OU, matrix rate, matrix σ", "VP linear, long"):
        process = FEW[name]
        guided = GuidedScore(process, ExactScore(process, data), MIXED, Y[None], IsotropicCovariance(0.7))
        exact, x = ExactScore(process, conditioned(data, MIXED, Y)), states(6, 2)
        for fraction in (0.1, 1.0):
            t = fraction * process.horizon
            assert torch.allclose(guided(t, x), exact(t, x), rtol=1e-7, atol=1e-8)


def test_observation_without_noise_conditions_gaussians():
    """The textbook's conditional mean and covariance, from the law and from samples of the guided reversal."""
    seen = LinearObservation.of_coordinates([0], 3)
    y = torch.tensor([1.4]).double()
    law = conditioned(DATA, seen, y, unknown=[1, 2])
    block = DATA.covariance[1:, 0] / DATA.covariance[0, 0]
    mean = DATA.mean[1:] + block * (y - DATA.mean[0])
    covariance = DATA.covariance[1:, 1:] - torch.outer(block, DATA.covariance[0, 1:])
    assert torch.allclose(law.mean, mean)
    assert torch.allclose(law.covariance, covariance)
    n = 4000
    for process in (VariancePreserving(), OrnsteinUhlenbeck(rate=0.5, sigma=ROOT + 0.1)):
        guided = GuidedScore(process, ExactScore(process, DATA), seen, y[None])
        prior = Gaussian(DATA.mean, 2.0 * torch.eye(3).double())
        grid = TimeGrid((0.0, *(1e-3 ** (1.0 - k / 120) for k in range(120)), 1.0))
        # where the reversal starts: the conditioned law, noised
        step = process.transition(0.0, process.horizon)
        gain = DATA.covariance[:, 0] / DATA.covariance[0, 0]
        centre = DATA.mean + gain * (y - DATA.mean[0])
        within = DATA.covariance - torch.outer(gain, DATA.covariance[0])
        phi = step.map.expanded(3)
        prior = Gaussian(
            step.mean(centre[None])[0], phi @ within @ phi.mT + step.covariance.expanded(3) + 1e-12 * torch.eye(3)
        )
        bridge = reverse_diffusion(process, DATA, guided, prior=prior, grid=grid)
        x = StochasticSampler()(bridge, n, seed=1)
        assert ((x[:, 0] - y).abs() < 1e-6).all()
        error = (covariance.diagonal() / n).sqrt()
        assert ((x[:, 1:].mean(0) - mean).abs() < 4.5 * error + 0.01).all()
        assert torch.allclose(x[:, 1:].T.cov(), covariance, atol=0.05 * float(covariance.trace()))


def test_the_log_likelihood_is_that_of_the_noise():
    x = states(5, 3)
    exact = torch.distributions.Normal(x @ MIXED.matrix.mT, 0.3).log_prob(Y).sum(1)
    torch.testing.assert_close(MIXED.log_likelihood(Y)(x), exact, rtol=1e-12, atol=1e-12)


def test_a_covariance_that_rounds_to_zero_is_raised_to_the_rounding_of_the_prior():
    process, rows = FEW["OU, matrix rate, matrix σ"], torch.zeros(4, 2, DIM).double()
    law = process.transition(0.0, 0.4)
    root = MIXED.matrix @ law.map.inverse().expanded(DIM)
    prior = root @ law.covariance.expanded(DIM) @ root.mT  # of A X_0 for a flat one
    least = 10.0 * torch.finfo(torch.float64).eps * float(prior.diagonal().mean())
    found = TweedieCovariance()(process, 0.4, rows, MIXED.matrix)
    torch.testing.assert_close(found, (least * torch.eye(2).double()).expand(4, 2, 2), rtol=1e-9, atol=0.0)


def test_each_row_has_its_own_observation():
    process = VariancePreserving()
    y = torch.stack([Y, Y + 1.0, Y - 0.5])
    guided, x = GuidedScore(process, ExactScore(process, DATA), MIXED, y), states(3, 2)
    for i in range(3):
        single = GuidedScore(process, ExactScore(process, DATA), MIXED, y[i : i + 1])
        assert torch.allclose(guided(0.4, x)[i], single(0.4, x)[i])


def test_conditioned_mixtures_and_points():
    """Weights by Bayes' formula, against self-normalised importance sampling."""
    mixture = GaussianMixture(
        torch.tensor([0.7, 0.3]).double(), states(2, 3), torch.stack([DATA.covariance, 0.2 * torch.eye(3).double()])
    )
    law = conditioned(mixture, MIXED, Y)
    rows = mixture.sample(200_000, torch.Generator().manual_seed(1))
    misfit = (rows @ MIXED.matrix.mT - Y) / 0.3
    weights = torch.softmax(-0.5 * misfit.square().sum(1), 0)
    size = 1.0 / float(weights.square().sum())
    mean = weights @ rows
    spread = (weights @ (rows - mean).square()).sqrt()
    assert ((law.weights @ law.means - mean).abs() < 4.5 * spread / size**0.5).all()
    seen = torch.stack(
        [
            Gaussian(MIXED.matrix @ m, MIXED.matrix @ c @ MIXED.matrix.mT + MIXED.noise).log_density(Y[None])[0]
            for m, c in zip(mixture.means, mixture.covariances, strict=True)
        ]
    )
    assert torch.allclose(law.weights, torch.softmax(mixture.weights.log() + seen, 0), rtol=1e-9)
    few = Samples(rows[:500])
    points = conditioned(few, MIXED, Y)
    assert torch.allclose(points.rows, few.rows)
    assert torch.allclose(points.weights, torch.softmax(-0.5 * misfit[:500].square().sum(1), 0), rtol=1e-6)
    process = VariancePreserving()
    bridge = reverse_diffusion(process, points, ExactScore(process, points), grid=TimeGrid.refined(60, 0.4))
    found = FlowSampler()(bridge, 2000, seed=1)
    exact, again = points.weights @ points.rows, found.mean(0)
    assert ((again - exact).abs() < 4.5 * found.std(0) / 2000**0.5 + 0.01).all()


def test_guidance_of_a_mixture_pulls_towards_the_observation():
    """An approximation, to be judged: closer to the conditional law than no guidance is."""
    mixture = GaussianMixture(
        torch.tensor([0.5, 0.5]).double(),
        torch.tensor([[-1.0, -1.0], [1.0, 1.0]]).double(),
        0.1 * torch.eye(2).double().expand(2, 2, 2),
    )
    process, seen = VariancePreserving(), LinearObservation.of_coordinates([0], 2, 0.3)
    y = torch.tensor([0.9]).double()
    grid = TimeGrid.refined(80, 0.4)
    exact = conditioned(mixture, seen, y)
    score = ExactScore(process, mixture)
    guided = GuidedScore(process, score, seen, y[None])
    means = [
        StochasticSampler()(reverse_diffusion(process, mixture, one, grid=grid), 1500, seed=2).mean(0)
        for one in (guided, score)
    ]
    target = exact.weights @ exact.means
    assert float((means[0] - target).norm()) < 0.2
    assert float((means[1] - target).norm()) > 1.0


def test_single_precision_gradients_and_files():
    process = VariancePreserving()
    guided = GuidedScore(process, ExactScore(process, DATA), MIXED, Y[None])
    x = states(4, 1, torch.float32)
    assert guided(0.5, x).dtype == torch.float32
    assert torch.allclose(guided(0.5, x).double(), guided(0.5, x.double()), atol=1e-4)
    x = states(2, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: guided(0.5, z), x)
    saved = decode(*encode(guided))
    assert torch.equal(saved(0.5, x), guided(0.5, x))
    assert isinstance(saved.covariance, TweedieCovariance)


def test_refusals():
    process, score = VarianceExploding(0.1, 2.0), ExactScore(VarianceExploding(0.1, 2.0), DATA)
    with pytest.raises(InvalidInputError, match=r"\(1, 2\)"):
        GuidedScore(process, score, MIXED, Y)
    with pytest.raises(UnsupportedError, match="cannot differentiate"):
        GuidedScore(process, lambda t, x: score(t, x).detach(), MIXED, Y[None])(0.5, states(2, 1))
    with pytest.raises(InvalidInputError, match="states have"):
        GuidedScore(process, score, MIXED, Y[None])(0.5, torch.ones(2, 2))
    with pytest.raises(InvalidInputError, match="different indices"):
        LinearObservation.of_coordinates([0, 3], 3)
    with pytest.raises(InvalidInputError, match="non-negative"):
        LinearObservation(torch.eye(DIM), -1.0)
    with pytest.raises(InvalidInputError, match="matrix"):
        LinearObservation(torch.ones(3))
    with pytest.raises(InvalidInputError, match="must have shape"):
        conditioned(DATA, MIXED, Y[:1])
    with pytest.raises(InvalidInputError, match="positive definite"):
        conditioned(DATA, LinearObservation.of_coordinates([0], 3), Y[:1])
    with pytest.raises(InvalidInputError, match="scale of the data"):
        IsotropicCovariance(0.0)
