"""Doob transforms against quadrature, Riccati, Gaussian bridges and simulation."""

import math

import pytest
import torch
from doob import DoobControl, GaussianTilt

from sbridge.exact import MixtureControl, MixturePotential
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.exact.riccati import Riccati
from sbridge.laws import Gaussian, GaussianMixture, Samples
from sbridge.measures import PathMeasure, importance_weights, log_ratio
from sbridge.problems import Quadratic
from sbridge.processes import BrownianMotion, ExactTransition, OrnsteinUhlenbeck, VariancePreserving
from sbridge.time import TimeGrid

F64 = torch.float64
PROCESSES = {
    "brownian": BrownianMotion(0.8),
    "vp": VariancePreserving(mean=0.2),
    "dense": OrnsteinUhlenbeck(
        rate=torch.tensor([[1.0, 0.3], [-0.2, 0.7]]), sigma=torch.tensor([[1.0, 0.4], [0.0, 0.6]]), mean=0.3
    ),
}


def mixture():
    g = torch.Generator().manual_seed(3)
    roots = 0.5 * torch.randn(3, 2, 2, generator=g, dtype=F64)
    covariances = roots @ roots.mT + 0.1 * torch.eye(2, dtype=F64)
    means = 1.5 * torch.randn(3, 2, generator=g, dtype=F64)
    return GaussianMixture(torch.tensor([0.5, 0.3, 0.2], dtype=F64), means, covariances)


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]


def points(n=6):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=F64)


def end_distribution(process, x):
    law = process.transition(0.0, process.horizon)
    return Gaussian(law.mean(x[None])[0], law.covariance.expanded(2))


def test_tilt_is_the_density_of_the_mixture_and_over_divides_it():
    law, x = mixture(), points()
    tilt = GaussianTilt.of(law)
    assert torch.allclose(tilt.log_density(x), law.log_density(x), rtol=1e-12)
    wide = Gaussian(torch.tensor([0.1, -0.2], dtype=F64), 0.7 * torch.eye(2, dtype=F64))
    assert torch.allclose(tilt.over(wide).cost(x), wide.log_density(x) - law.log_density(x), rtol=1e-11)


def test_potential_is_the_convolved_mixture(process):
    # φ(t, x) = Σ w N(m; μ, Σ + Q)
    law, x = mixture(), points()
    control = DoobControl(process, GaussianTilt.of(law))
    for t in (0.0, 0.4, 1.0):
        step = process.transition(t, 1.0)
        spread = GaussianMixture(law.weights, law.means, law.covariances + step.covariance.expanded(2))
        assert torch.allclose(control.log_potential(t, x), spread.log_density(step.mean(x)), rtol=1e-11, atol=1e-11)


def test_control_is_sigma_times_the_gradient_of_the_log_potential(process):
    control = DoobControl(process, GaussianTilt.of(mixture()))
    for t in (0.0, 0.4, 1.0):
        x = points().requires_grad_()
        (gradient,) = torch.autograd.grad(control.log_potential(t, x).sum(), x)
        assert torch.allclose(control(t, x), gradient @ process.scale(t).expanded(2), rtol=1e-9, atol=1e-10)


def test_quotient_of_densities_steers_a_point_to_the_mixture(process):
    law, x0 = mixture(), torch.tensor([0.3, -0.4], dtype=F64)
    control = DoobControl(process, GaussianTilt.of(law).over(end_distribution(process, x0)))
    # the quotient integrates to one against the transition, so its log is zero: log Z = 0
    assert float(control.log_potential(0.0, x0[None])) == pytest.approx(0.0, abs=1e-10)
    start = Samples(x0.expand(2, 2))
    measure = PathMeasure(process, control, start, grid=TimeGrid.uniform(200), rule=ExactTransition())
    ends = measure.sample(6000, seed=0).x[-1]
    mean = law.weights @ law.means
    second = torch.einsum("k,kde->de", law.weights, law.covariances + law.means.unsqueeze(2) * law.means.unsqueeze(1))
    centred = ends - mean
    covariance = second - mean.outer(mean)
    assert bool(((ends.mean(0) - mean).abs() < 0.06).all())
    assert torch.allclose(centred.mT @ centred / len(ends), covariance, atol=0.1)


def test_path_weights_of_the_exact_control_have_little_variance(process):
    law, x0 = mixture(), torch.tensor([[0.3, -0.4]], dtype=F64)
    tilt = GaussianTilt.of(law)
    control = DoobControl(process, tilt)
    spreads = []
    for steps in (50, 200):
        measure = PathMeasure(process, control, Samples(x0.expand(2, 2)), grid=TimeGrid.uniform(steps))
        paths = measure.sample(4000, seed=1)
        weights = tilt.log_density(paths.x[-1]) - log_ratio(paths, control, None)
        spreads.append(float(weights.std()))
        found = importance_weights(weights)
        # exact steps: the chain's own tilted value is that of the limit
        error = math.sqrt(4000 / found.effective_sample_size - 1.0) / math.sqrt(4000)
        assert abs(found.log_mean - float(control.log_potential(0.0, x0))) < 4.0 * error
    assert spreads[1] < 0.75 * spreads[0]


def test_one_gaussian_is_a_riccati_problem(process):
    target = Gaussian(torch.tensor([0.5, -0.2], dtype=F64), torch.tensor([[0.5, 0.1], [0.1, 0.3]], dtype=F64))
    tilt = GaussianTilt.of(target)
    vector, constant = -tilt.vectors[0], -float(tilt.constants)
    riccati = Riccati(process, Quadratic.isotropic(0.0, 2), Quadratic(0.5 * tilt.precisions[0], vector, constant))
    control, x = DoobControl(process, tilt), points()
    assert torch.allclose(-control.log_potential(0.0, x), riccati.value_function(x), rtol=1e-10)
    for t in (0.0, 0.6, 1.0):
        assert torch.allclose(control(t, x), riccati.control(t, x), rtol=1e-9, atol=1e-10)


def test_quotient_tilt_agrees_with_the_gaussian_bridge_from_a_narrow_start(process):
    x0 = torch.tensor([0.3, -0.4], dtype=F64)
    target = Gaussian(torch.tensor([0.5, -0.2], dtype=F64), torch.tensor([[0.5, 0.1], [0.1, 0.3]], dtype=F64))
    control = DoobControl(process, GaussianTilt.of(target).over(end_distribution(process, x0)))
    narrow = 1e-10 * torch.eye(2, dtype=F64)
    matrix, offset = GaussianCoupling(x0, narrow, target.mean, target.covariance, process).forward_gain(0.5)
    x = points()
    assert torch.allclose(control(0.5, x), x @ matrix.mT + offset, atol=1e-6)


def test_mixture_potentials_agree_with_it_by_another_formula(process):
    """Potential and control of :class:`MixturePotential`, also for the quotient of two densities."""
    law, x = mixture(), points(50)
    density = GaussianTilt.of(law)
    quotient = density.over(end_distribution(process, torch.tensor([0.3, -0.4], dtype=F64)))
    for tilt in (density, quotient):
        doob = DoobControl(process, tilt)
        potential = MixturePotential(process, tilt.constants, tilt.vectors, tilt.precisions)
        control = MixtureControl(potential)
        for t in (0.0, 0.3, 1.0):
            assert torch.allclose(control(t, x), doob(t, x), rtol=1e-10, atol=1e-11)
            assert torch.allclose(potential.log_potential(t, x), doob.log_potential(t, x), rtol=1e-11, atol=1e-11)
