"""Benchmark densities: normalisers, expectations and samplers against each other."""

import math

import pytest
import torch
from scipy.integrate import dblquad, quad

from sbridge.benchmarks.densities import (
    DAMAGED,
    TEMPERATURES,
    challenger,
    double_wells,
    forty_modes,
    funnel,
    many_well,
    nine_modes,
    targets,
)
from sbridge.benchmarks.laplace import laplace
from sbridge.errors import NotConvergedError, UnsupportedError

TARGETS = {target.name: target for target in targets()}
SAMPLED = {name: target for name, target in TARGETS.items() if target.sampler is not None}


def plane(half, count):
    line = torch.linspace(-half, half, count, dtype=torch.float64)
    return torch.cartesian_prod(line, line), float(line[1] - line[0]) ** 2


@pytest.mark.parametrize("target", [nine_modes(1.5), forty_modes(log_normaliser=-0.5)], ids=["nine", "forty"])
def test_normaliser_and_mode_weights_by_sums_over_the_plane(target):
    points, cell = plane(60.0 if target.scale > 10 else 12.0, 601)
    density = target.law.log_density(points).exp() * cell
    assert math.log(float(density.sum())) == pytest.approx(target.log_normaliser, abs=1e-9)
    found = target.mean_observables(points, density / density.sum())
    assert torch.allclose(found, target.expectations, atol=1e-9)


def test_wells_by_adaptive_quadrature():
    z, _ = quad(lambda x: math.exp(-((x * x - 4.0) ** 2)), -5, 5, points=[-2, 0, 2], epsabs=1e-12)
    normal = math.sqrt(2.0 * math.pi)
    assert double_wells(5, 3, 4.0).log_normaliser == pytest.approx(3 * math.log(z) + 2 * math.log(normal), abs=1e-10)
    parts = [
        quad(lambda x: math.exp(-(x**4) + 6 * x * x + 0.5 * x), *ends, epsabs=1e-9, epsrel=1e-12)[0]
        for ends in ((-5, 0), (0, 5))
    ]
    target = many_well(4)
    assert target.log_normaliser == pytest.approx(4 * math.log(sum(parts) * normal), abs=1e-10)
    assert float(target.expectations[0]) == pytest.approx(parts[1] / sum(parts), abs=1e-9)


def test_evidence_by_adaptive_quadrature():
    target = challenger()
    assert len(TEMPERATURES) == len(DAMAGED) == 23
    assert sum(DAMAGED) == 7

    def density(b, a):
        return float(target.law.log_density(torch.tensor([[a, b]], dtype=torch.float64)).exp())

    z, _ = dblquad(density, -6.0, 3.0, -7.0, 3.0, epsabs=1e-16, epsrel=1e-5)
    assert math.log(z) == pytest.approx(target.log_normaliser, abs=1e-4)
    # maximum likelihood has damage at 31 °F next to certain
    assert 0.95 < float(target.expectations[0]) < 1.0


def test_maximum_likelihood_of_the_challenger_data_is_the_published_one():
    # logit of damage = 15.043 − 0.2322 °F (Dalal et al. 1989; any text on logistic regression)
    degrees, damaged = (torch.tensor(v, dtype=torch.float64) for v in (TEMPERATURES, DAMAGED))
    excess = torch.sigmoid(15.0429 - 0.232163 * degrees) - damaged
    assert abs(float(excess.sum())) < 1e-3
    assert abs(float((excess * degrees).sum())) < 0.1


@pytest.mark.parametrize("name", SAMPLED)
def test_exact_draws_have_the_exact_expectations(name):
    target, n = SAMPLED[name], 40_000
    x = target.sample(n, seed=1)
    values = target.observables(x)
    error = (values.mean(0) - target.expectations) / (values.std(0) / math.sqrt(n))
    assert float(error.abs().max()) < 4.0
    assert float((x.abs() < 3.0 * target.scale).all(1).double().mean()) > 0.99 or name == "funnel"


@pytest.mark.parametrize("name", SAMPLED)
def test_exact_draws_follow_the_density(name):
    # E[∇ log p] = 0 and E[x · ∇ log p] = −d for every density that vanishes at infinity
    target, n = SAMPLED[name], 40_000
    x = target.sample(n, seed=2).requires_grad_()
    (score,) = torch.autograd.grad(target.law.log_density(x).sum(), x)
    assert float((score.mean(0) / score.std(0)).abs().max()) * math.sqrt(n) < 4.0
    virial = (x * score).sum(1).detach()
    assert abs(float(virial.mean()) + target.dim) < 4.0 * float(virial.std()) / math.sqrt(n)


@pytest.mark.parametrize("name", TARGETS)
def test_energies_keep_dtype_and_have_gradients(name, dtype):
    target = TARGETS[name]
    x = torch.randn(5, target.dim, generator=torch.Generator().manual_seed(0), dtype=dtype).requires_grad_()
    energy = target.energy(x)
    assert energy.dtype == dtype
    assert energy.shape == (5,)
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    assert bool(torch.isfinite(gradient).all())


def test_funnel_is_normalised():
    first = torch.linspace(-5.0, 5.0, 201, dtype=torch.float64)
    second = torch.linspace(-100.0, 100.0, 4001, dtype=torch.float64)
    density = funnel(2, 0.7).law.log_density(torch.cartesian_prod(first, second)).exp()
    assert float(density.sum()) * 0.05 * 0.05 == pytest.approx(1.0, abs=1e-6)


def test_what_has_no_sampler_says_so():
    with pytest.raises(UnsupportedError, match="no exact sampler"):
        challenger().sample(3, seed=0)
    assert float(funnel().expectations.sum()) == pytest.approx(0.3173, abs=1e-4)


def test_laplace_is_exact_where_modes_are_gaussian():
    """Nine of them, nine widths apart: the others change a mode's height by e^-40."""
    found = laplace(nine_modes(1.5), seed=0)
    assert found.modes == 9
    assert found.log_normaliser == pytest.approx(1.5, abs=1e-8)
    torch.testing.assert_close(found.mixture.weights, torch.full((9,), 1.0 / 9.0, dtype=torch.float64))


def test_laplace_expands_every_mode():
    """E = (x² − 4)² has minima at ±2 with E″ = 32, in each of two columns."""
    found = laplace(double_wells(dim=2, wells=2), seed=0, starts=64)
    assert found.modes == 4
    torch.testing.assert_close(found.mixture.means.abs(), torch.full((4, 2), 2.0, dtype=torch.float64))
    assert found.log_normaliser == pytest.approx(2.0 * math.log(2.0 * math.sqrt(2.0 * math.pi / 32.0)), abs=1e-8)


def test_laplace_finds_no_mode_of_the_funnel():
    with pytest.raises(NotConvergedError, match="no mode of funnel was found from 4 starts"):
        laplace(funnel(), seed=0, starts=4)
