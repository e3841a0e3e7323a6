"""Score-matching losses row by row, and the divergence that the implicit one needs."""

import math

import pytest
import torch

from sbridge.controls.divergence import rademacher
from sbridge.diffusion.conversions import score_from_noise
from sbridge.diffusion.exact import ExactScore
from sbridge.errors import InvalidInputError
from sbridge.laws import GaussianMixture
from sbridge.linear import LinearMap
from sbridge.objectives.score_matching import (
    denoising,
    denoising_constant,
    denoising_target,
    divergence,
    explicit,
    implicit,
    implicit_constant,
    noise_units,
)
from sbridge.processes import BrownianMotion, OrnsteinUhlenbeck, VarianceExploding, VariancePreserving

DENSE = torch.tensor([[1.0, 0.4], [-0.2, 0.6]], dtype=torch.float64)
PROCESSES = {
    "vp": VariancePreserving(),
    "ve": VarianceExploding(0.1, 4.0),
    "diagonal": BrownianMotion(torch.tensor([0.5, 1.5])),
    "dense": OrnsteinUhlenbeck(rate=torch.tensor([[1.0, 0.3], [-0.2, 0.7]]), sigma=DENSE, mean=0.3),
}
WEIGHT = torch.tensor([[0.3, -0.5], [0.2, 0.4]], dtype=torch.float64)


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture():
    eye = torch.eye(2, dtype=torch.float64)
    means = torch.tensor([[1.5, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.6, 0.4], dtype=torch.float64), means, torch.stack([0.1 * eye, 0.3 * eye]))


def noised(process, t, n=100_000, seed=1):
    start = mixture().sample(n, generator(seed))
    noise = torch.randn(start.shape, generator=generator(seed + 1), dtype=start.dtype)
    law = process.transition(0.0, t)
    return law.mean(start) + law.root.to(start)(noise), noise


def wrong(exact):
    return lambda t, x: exact(t, x) + 0.4 + torch.sin(x @ WEIGHT)


def agree(a, b):
    gap = (a - b).detach()
    return abs(float(gap.mean())) < 4 * float(gap.std()) / math.sqrt(len(gap))


@pytest.mark.parametrize("t", [0.3, "rows"])
def test_three_losses_differ_by_their_constants(process, t):
    rows = 5000 if process is PROCESSES["dense"] else 100_000  # a dense process takes one eigenvalue problem a row
    if t == "rows":
        t = torch.linspace(0.1, 0.9, rows, dtype=torch.float64)[torch.randperm(rows, generator=generator())]
    exact = ExactScore(process, mixture())
    x, noise = noised(process, t, rows)
    score = wrong(exact)
    true, values = exact(t, x), score(t, x)
    left = explicit(process, t, values, true)
    assert agree(left, denoising(process, t, values, noise) - denoising_constant(process, t, noise, true))
    assert agree(left, implicit(process, t, x, score) + implicit_constant(process, t, true))
    assert not agree(left, denoising(process, t, values, noise))
    assert not agree(left, implicit(process, t, x, score))


def test_the_target_is_the_gradient_of_the_log_transition(process):
    x, noise = noised(process, 0.4, n=5)
    start = process.transition(0.0, 0.4).map.inverse()(
        x - process.transition(0.0, 0.4).root(noise) - process.transition(0.0, 0.4).offset
    )
    assert torch.allclose(
        denoising_target(process, 0.4, noise), process.conditional_score(0.4, x, start), rtol=1e-9, atol=1e-9
    )
    assert torch.equal(denoising_target(process, 0.4, noise), score_from_noise(process, 0.4, noise))


def test_in_noise_units_the_loss_is_half_the_square_of_the_noise_error(process):
    _, noise = noised(process, 0.4, n=6)
    guess = torch.randn(6, 2, generator=generator(3), dtype=torch.float64)
    score = denoising_target(process, 0.4, guess)
    expected = 0.5 * (guess - noise).square().sum(1)
    assert torch.allclose(denoising(process, 0.4, score, noise, noise_units), expected)


def test_the_exact_divergence_of_the_score_is_its_closed_form():
    process = PROCESSES["vp"]
    exact = ExactScore(process, mixture())
    x, _ = noised(process, 0.2, n=7)
    values, trace = divergence(lambda y: exact(0.2, y), x)
    assert torch.allclose(values, exact(0.2, x))
    assert torch.allclose(trace, exact.divergence(0.2, x))


@pytest.mark.parametrize("coefficient", [None, 0.7, torch.tensor([0.5, 2.0]), DENSE])
def test_divergence_takes_a_metric(coefficient):
    metric = None if coefficient is None else LinearMap.of(coefficient)
    x = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    matrix = torch.eye(2, dtype=torch.float64) if metric is None else metric.expanded(2)
    _, trace = divergence(lambda y: torch.sin(y @ WEIGHT.mT), x, None, metric)
    jacobian = torch.cos(x @ WEIGHT.mT).unsqueeze(2) * WEIGHT
    assert torch.allclose(trace, (matrix @ jacobian).diagonal(dim1=1, dim2=2).sum(1))


def test_hutchinson_has_the_mean_and_variance_it_says():
    jacobian = torch.tensor([[1.0, 2.0, 0.0], [-0.5, 0.3, 1.0], [0.7, 0.0, -1.0]], dtype=torch.float64)
    x = torch.zeros(1, 3, dtype=torch.float64).expand(40_000, 3)
    probes = rademacher(x, 1, generator(2))
    _, found = divergence(lambda y: y @ jacobian.mT, x, probes)
    off = (jacobian + jacobian.mT).fill_diagonal_(0.0)
    variance = 0.5 * float(off.square().sum())
    assert abs(float(found.mean()) - 0.3) < 4 * math.sqrt(variance / 40_000)
    assert abs(float(found.var()) / variance - 1) < 0.05
    _, averaged = divergence(lambda y: y @ jacobian.mT, x, rademacher(x, 4, generator(3)))
    assert abs(float(averaged.var()) / variance - 0.25) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_have_the_gradients_of_their_formulas(dtype):
    """For ``s = θ·f(x)``: derivatives in θ by hand, through the exact trace and through probes."""
    process, t = VariancePreserving(), 0.3
    x, noise = (one[:6].to(dtype) for one in noised(process, t, n=6))
    theta = torch.tensor(0.7, dtype=dtype, requires_grad=True)

    def score(t, y):
        return theta * torch.sin(y @ WEIGHT.to(y))

    beta = float(process.scale(t).values) ** 2
    f = torch.sin(x @ WEIGHT.to(x))
    jacobian = torch.cos(x @ WEIGHT.to(x)).unsqueeze(2) * WEIGHT.mT.to(x)
    trace = jacobian.diagonal(dim1=1, dim2=2).sum(1)
    (found,) = torch.autograd.grad(implicit(process, t, x, score).sum(), theta)
    assert torch.allclose(found, (beta * (0.7 * f.square().sum(1) + trace)).sum(), rtol=1e-4)
    probe = rademacher(x, 1, generator(1))
    (found,) = torch.autograd.grad(implicit(process, t, x, score, probe).sum(), theta)
    quadratic = torch.einsum("bi,bij,bj->b", probe[0], jacobian, probe[0])
    assert torch.allclose(found, (beta * (0.7 * f.square().sum(1) + quadratic)).sum(), rtol=1e-4)
    (found,) = torch.autograd.grad(denoising(process, t, score(t, x), noise).sum(), theta)
    expected = beta * ((0.7 * f - denoising_target(process, t, noise)) * f).sum()
    assert torch.allclose(found, expected, rtol=1e-4)
    with torch.no_grad():
        assert not implicit(process, t, x, score).requires_grad


def test_a_constant_field_has_no_divergence():
    x = torch.randn(4, 2, generator=generator())
    values, trace = divergence(lambda y: torch.ones(4, 2), x)
    assert torch.equal(values, torch.ones(4, 2))
    assert torch.equal(trace, torch.zeros(4))
    _, trace = divergence(lambda y: y[:, :1] * torch.tensor([1.0, 0.0]) + 2.0, x)  # does not see the second coordinate
    assert torch.equal(trace, torch.ones(4))


def test_bad_input_is_told():
    x = torch.randn(4, 2, generator=generator())
    with pytest.raises(InvalidInputError, match=r"probes must have shape \(probes, 4, 2\)"):
        divergence(lambda y: y, x, torch.ones(4, 2))
    with pytest.raises(InvalidInputError, match="score must return the shape"):
        divergence(lambda y: y[:, 0], x)
    with pytest.raises(InvalidInputError, match="positive integer"):
        rademacher(x, 0, generator())
