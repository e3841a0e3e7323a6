"""Divergences: traces against closed forms, Hutchinson's mean and variance."""

import pytest
import torch

from sbridge.controls import ExactTrace, Hutchinson, ProbeLaw
from sbridge.diffusion import ExactScore
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import GaussianMixture
from sbridge.processes import VariancePreserving

J = torch.tensor([[0.5, 2.0, -1.0], [0.3, -0.7, 0.4], [1.5, 0.2, 0.9]], dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_trace_of_a_nonlinear_field(dtype):
    x = torch.randn(5, 3, generator=generator(), dtype=torch.float64).to(dtype)

    def field(t, y):
        return t * torch.sin(y @ J.to(y).mT)

    values, found = ExactTrace().probes(x, 0)(field, 0.7, x)
    assert torch.equal(values, field(0.7, x))
    exact = 0.7 * (torch.cos(x @ J.to(x).mT) * J.to(x).diagonal()).sum(1)
    assert torch.allclose(found, exact, atol=1e-6 if dtype == torch.float32 else 1e-13)
    assert found.dtype == dtype
    assert not found.requires_grad or torch.is_grad_enabled()


def test_trace_agrees_with_the_divergence_of_an_exact_score():
    means = torch.randn(4, 3, generator=generator(1), dtype=torch.float64)
    data = GaussianMixture(
        torch.full((4,), 0.25, dtype=torch.float64), means, 0.1 * torch.eye(3).double().expand(4, 3, 3)
    )
    score = ExactScore(VariancePreserving(), data)
    x = torch.randn(6, 3, generator=generator(2), dtype=torch.float64)
    assert torch.allclose(ExactTrace().probes(x, 0)(score, 0.3, x)[1], score.divergence(0.3, x), atol=1e-10)


@pytest.mark.parametrize("law", list(ProbeLaw))
def test_hutchinson_has_its_mean_and_variance(law):
    n = 40_000
    x = torch.zeros(n, 3, dtype=torch.float64)
    with torch.no_grad():
        _, found = Hutchinson(1, law).probes(x, 3)(lambda t, y: y @ J.mT, 0.0, x)
    both = J + J.mT
    square = both.square()
    variance = 0.5 * float(square.sum() - (square.diagonal().sum() if law is ProbeLaw.RADEMACHER else 0.0))
    assert abs(float(found.mean() - J.trace())) < 4 * (variance / n) ** 0.5
    assert float(found.var()) == pytest.approx(variance, rel=0.06)
    _, averaged = Hutchinson(4, law).probes(x[:4000], 3)(lambda t, y: y @ J.mT, 0.0, x[:4000])
    assert float(averaged.var()) == pytest.approx(variance / 4, rel=0.12)


def test_probes_stay_and_seeds_matter():
    x = torch.randn(4, 3, generator=generator(), dtype=torch.float64)
    probes = Hutchinson().probes(x, 1)
    assert torch.equal(probes(lambda t, y: y @ J.mT, 0.0, x)[1], probes(lambda t, y: y @ J.mT, 0.5, 2 * x)[1])
    assert not torch.equal(probes.directions, Hutchinson().probes(x, 2).directions)


def test_divergence_is_differentiable_where_asked():
    x = torch.randn(4, 3, generator=generator(), dtype=torch.float64, requires_grad=True)
    _, found = ExactTrace().probes(x, 0)(lambda t, y: y**3, 0.0, x)
    found.sum().backward()
    assert torch.allclose(x.grad, 6.0 * x)
    with torch.no_grad():
        values, found = ExactTrace().probes(x, 0)(lambda t, y: y**3, 0.0, x)
    assert not values.requires_grad
    assert not found.requires_grad


def test_refusals():
    x = torch.ones(2, 3)
    with pytest.raises(UnsupportedError, match="cannot differentiate"):
        ExactTrace().probes(x, 0)(lambda t, y: y.detach(), 0.0, x)
    with pytest.raises(InvalidInputError, match="probes must be positive"):
        Hutchinson(0)
