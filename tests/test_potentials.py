"""Mixture potentials against quadrature, differentiation, the Gaussian closed form, and simulation."""

import math

import pytest
import torch

from sbridge.benchmarks.pairs import GaussianPair, MixturePair
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.exact import MixtureControl, MixtureKernel, MixturePotential
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.exact.tilts import DensePotentialAt, PotentialAt, SpectralPotentialAt, Spectrum
from sbridge.laws import Gaussian, GaussianMixture, Samples
from sbridge.linear import LinearMap
from sbridge.measures import PathMeasure
from sbridge.processes import BrownianMotion, DriftProcess, OrnsteinUhlenbeck, VariancePreserving
from sbridge.storage.registry import decode, encode

DENSE = torch.tensor([[1.0, 0.3], [-0.2, 0.7]], dtype=torch.float64)
PROCESSES = {
    "brownian": BrownianMotion(0.8, horizon=1.3),
    "diagonal": BrownianMotion(torch.tensor([0.5, 1.5])),
    "dense": OrnsteinUhlenbeck(rate=DENSE, sigma=torch.tensor([[1.0, 0.4], [0.0, 0.6]]), mean=0.3),
    "ou": OrnsteinUhlenbeck(rate=1.3, sigma=0.9, mean=0.4, horizon=0.7),
    "vp": VariancePreserving(),
}
KINDS = ("full", "diagonal", "negative")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def potential(process, kind, count=3):
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)[:count]
    means, roots = 1.5 * randn(count, 2, seed=1), 0.6 * randn(count, 2, 2, seed=2)
    full = roots @ roots.mT + 0.2 * torch.eye(2, dtype=torch.float64)
    if kind == "full":
        return MixturePotential.of(process, GaussianMixture(weights, means, full))
    if kind == "diagonal":
        return MixturePotential(process, weights.log(), means, 1.0 / full.diagonal(dim1=1, dim2=2))
    inverse = process.transition(0.0, process.horizon).precision.expanded(2)
    return MixturePotential(process, weights.log(), means, 0.3 * torch.linalg.inv(full) - 0.5 * inverse)


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def transition_nodes(process, t, x, nodes=80):
    """Gauss–Hermite points and weights of ``X_T`` given ``X_t = x`` (one row)."""
    import numpy as np

    points, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(nodes))
    law = process.transition(t, process.horizon)
    grid = torch.cartesian_prod(points, points)
    weight = torch.outer(weights, weights).reshape(-1) / (2.0 * math.pi)
    return law.mean(x) + law.root(grid), weight


@pytest.mark.parametrize("fraction", [0.0, 0.4, 0.95])
def test_potential_and_conditional_moments_are_quadratures(process, kind, fraction):
    g, t = potential(process, kind), fraction * process.horizon
    for x in (randn(1, 2, seed=3), 1.5 * randn(1, 2, seed=4)):
        y, weight = transition_nodes(process, t, x)
        tilted = weight * g(y).exp()
        total = tilted.sum()
        assert torch.allclose(g.log_potential(t, x), total.log(), rtol=1e-6, atol=1e-6)
        mean = tilted @ y / total
        spread = (tilted.unsqueeze(1) * (y - mean)).mT @ (y - mean) / total
        law = g.conditional(x, t)
        assert torch.allclose(law.mean()[0], mean, rtol=1e-5, atol=1e-5)
        assert torch.allclose(g.far_mean(t, x)[0], mean, rtol=1e-5, atol=1e-5)
        assert torch.allclose(law.covariance()[0], spread, rtol=1e-4, atol=1e-5)


def test_density_of_the_plan_is_tilt_times_transition(process, kind):
    g, x, y = potential(process, kind), randn(6, 2, seed=3), randn(6, 2, seed=4)
    expected = g(y) + process.log_transition(0.0, x, process.horizon, y) - g.log_normaliser(x)
    assert torch.allclose(g.conditional(x).log_density(y), expected, rtol=1e-9, atol=1e-9)


def test_gradient_is_the_derivative_and_solves_the_backward_equation(process, kind):
    """``∂_t log φ + b·∇log φ + ½ tr(σσᵀ∇² log φ) + ½|σᵀ∇log φ|² = 0``."""
    g, t = potential(process, kind), 0.3 * process.horizon
    x = randn(5, 2, seed=5).requires_grad_()
    value = g.log_potential(t, x)
    (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    assert torch.allclose(g.gradient(t, x), gradient, rtol=1e-9, atol=1e-10)
    sigma, h = process.scale(t), 1e-4 * process.horizon
    control = MixtureControl(g)(t, x)
    assert torch.allclose(control, sigma.T(gradient))
    hessian = torch.stack([torch.autograd.grad(gradient[:, i].sum(), x, retain_graph=True)[0] for i in range(2)], 1)
    diffusion = (sigma @ sigma.T).expanded(2)
    ahead, behind = (g.log_potential(s, x) for s in (t + h, t - h))
    rate = (ahead - behind) / (2 * h)
    second = 0.5 * (hessian * diffusion).sum((1, 2)) + 0.5 * control.square().sum(1)
    residual = rate + (process.drift(t, x) * gradient).sum(1) + second
    assert residual.abs().max() < 1e-5 * (1.0 + second.abs().max())


def test_one_time_per_row_is_each_row_at_its_time(process, kind):
    g, x = potential(process, kind), randn(5, 2, seed=6)
    times = torch.linspace(0.0, process.horizon, 5, dtype=torch.float64)
    for name in ("log_potential", "gradient", "far_mean"):
        together = getattr(g, name)(times, x)
        alone = torch.cat([getattr(g, name)(float(t), x[i : i + 1]) for i, t in enumerate(times)])
        assert torch.allclose(together, alone, rtol=1e-10, atol=1e-11), name
    law = g.conditional(x, times[:1].expand(5).clone())
    assert torch.allclose(law.mean(), g.conditional(x).mean())
    assert torch.allclose(law.covariance(), g.conditional(x).covariance())


def test_at_the_horizon_it_is_the_mixture(process):
    weights, means = torch.tensor([0.6, 0.4], dtype=torch.float64), randn(2, 2, seed=1)
    mixture = GaussianMixture(weights, means, torch.eye(2, dtype=torch.float64).expand(2, 2, 2) * 0.5)
    g, y = MixturePotential.of(process, mixture), randn(9, 2, seed=2)
    assert torch.allclose(g(y), mixture.log_density(y))


def test_forms_of_a_covariance_agree(process):
    weights, means, sizes = torch.ones(1, dtype=torch.float64), randn(1, 2), 0.5 + randn(1, 2, seed=8).square()
    full = MixturePotential.of(process, GaussianMixture(weights, means, torch.diag_embed(sizes)))
    diagonal = MixturePotential(process, full.logits, full.shifts, 1.0 / sizes)
    x = randn(7, 2, seed=9)
    assert torch.allclose(full.log_potential(0.2, x), diagonal.log_potential(0.2, x))
    assert torch.allclose(full.gradient(0.2, x), diagonal.gradient(0.2, x))
    assert torch.allclose(full.conditional(x).covariance(), diagonal.conditional(x).covariance())


def test_draws_have_the_conditional_law(process, kind):
    g, n = potential(process, kind), 40_000
    law = g.conditional(randn(1, 2, seed=3).expand(n, 2))
    drawn, mean, spread = law.sample(seeded(4)), law.mean()[0], law.covariance()[0]
    z = (drawn.mean(0) - mean) / (spread.diagonal() / n).sqrt()
    assert z.abs().max() < 4
    centred = drawn - mean
    products = centred[:, :, None] * centred[:, None]
    z = (products.mean(0) - spread) / (products.std(0) / math.sqrt(n))
    assert z.abs().max() < 4.5
    assert law.log_density(drawn).mean() > law.log_density(drawn + 0.3).mean()


def test_simulated_control_reaches_the_plan():
    pair = MixturePair(2, 1.0)
    n = 20_000
    x = torch.tensor([[0.5, -0.3]], dtype=torch.float64).expand(n, 2)
    stepped = PathMeasure(pair.reference, MixtureControl(pair.potential), pair.source).transport(x, seed=1)
    mean, spread = pair.moments(x[:1])
    z = (stepped.mean(0) - mean[0]) / (spread[0].diagonal() / n).sqrt()
    assert z.abs().max() < 5  # 100 steps: some bias is left
    assert torch.allclose(stepped.mT.cov(), spread[0], rtol=0.05, atol=0.05 * float(spread[0].diagonal().max()))


def test_one_component_is_the_gaussian_bridge(process):
    """The potential of a Gaussian coupling is quadratic: its precision is negative where the target is wide."""
    A, B = 0.7 * torch.eye(2, dtype=torch.float64), torch.tensor([[9.0, 2.0], [2.0, 6.0]], dtype=torch.float64)
    coupling = GaussianCoupling(randn(2), A, randn(2, seed=1), B, process)
    law = process.transition(0.0, process.horizon)
    whole = law.precision.expanded(2)
    inverse = torch.linalg.inv(coupling.end_covariance)
    at_zero = torch.zeros(1, 2, dtype=torch.float64)
    mean, _ = coupling.end_given_start(at_zero)
    shift = (inverse @ mean[0] - whole @ law.mean(at_zero)[0]).unsqueeze(0)
    g = MixturePotential(process, torch.zeros(1, dtype=torch.float64), shift, (inverse - whole).unsqueeze(0))
    x, t = randn(6, 2, seed=3), 0.4 * process.horizon
    expected = coupling.end_given_start(x)
    assert torch.allclose(g.conditional(x).mean(), expected[0], rtol=1e-8)
    assert torch.allclose(g.conditional(x).covariance()[0], expected[1], rtol=1e-8)
    gain, offset = coupling.forward_gain(t)
    assert torch.allclose(MixtureControl(g)(t, x), x @ gain.mT + offset, rtol=1e-7, atol=1e-8)


def test_float32_states_give_float32_of_five_digits(process, kind):
    g, x = potential(process, kind), randn(6, 2, seed=3)
    for name in ("log_potential", "gradient", "far_mean"):
        single = getattr(g, name)(0.1, x.float())
        assert single.dtype == torch.float32
        assert torch.allclose(single.double(), getattr(g, name)(0.1, x), rtol=1e-5, atol=1e-5)


def test_a_saved_potential_is_the_same(process):
    g, x = potential(process, "full"), randn(6, 2, seed=3)
    again = decode(*encode(MixtureKernel(g))).potential
    assert torch.equal(again.log_potential(0.1, x), g.log_potential(0.1, x))


@pytest.mark.parametrize("pair", [MixturePair(3, 0.5), GaussianPair(PROCESSES["ou"], 3)])
def test_rows_of_a_pair_have_its_end_moments(pair):
    n = 40_000
    _, y = pair.sample(n, seed=1)
    mean, spread = pair.end_moments
    z = (y.double().mean(0) - mean) / (spread.diagonal() / n).sqrt()
    assert z.abs().max() < 4.5
    assert torch.allclose(y.double().mT.cov(), spread, rtol=0.05, atol=0.05 * float(spread.diagonal().max()))
    assert pair.sample(10, seed=2)[1].dtype == torch.float32


def test_recipe_of_the_mixture_pair():
    first, again, other = MixturePair(4, 1.0, 0).potential, MixturePair(4, 0.1, 0).potential, MixturePair(4, 1.0, 1)
    assert torch.equal(first.shifts, again.shifts)
    assert not torch.allclose(first.shifts, other.potential.shifts)
    covariances = torch.linalg.inv(first.precisions)
    means = (covariances @ first.shifts.unsqueeze(2)).squeeze(2)
    assert torch.allclose(means.norm(dim=1), torch.full((5,), 5.0, dtype=torch.float64))
    sizes = torch.linalg.eigvalsh(covariances)
    assert sizes.min() > 0.5
    assert sizes.max() < 2.0


def test_bad_input_is_told():
    brownian, one = BrownianMotion(1.0), torch.ones(1)
    # The annotation is checked at run time in tests; the error is for those who run without.
    with pytest.raises((UnsupportedError, TypeError), match="LinearProcess"):
        MixturePotential(DriftProcess(lambda t, x: -x, 1.0), one, one[None], one[None])
    with pytest.raises(InvalidInputError, match=r"logits \(K,\), shifts"):
        MixturePotential(brownian, one, torch.ones(2, 3), torch.ones(1, 3))
    with pytest.raises(InvalidInputError, match=r"components \[1\] tilt the reference"):
        MixturePotential(brownian, torch.zeros(2), torch.zeros(2, 1), torch.tensor([[0.0], [-1.01]]))
    with pytest.raises(InvalidInputError, match="must be finite"):
        MixturePotential(brownian, one * math.nan, one[None], one[None])
    with pytest.raises(InvalidInputError, match="dimension 3"):
        MixturePotential(BrownianMotion(torch.ones(3)), one, torch.ones(1, 2), torch.ones(1, 2))
    g = MixturePotential(brownian, one, torch.ones(1, 2), torch.ones(1, 2))
    with pytest.raises(InvalidInputError, match="x must have shape"):
        g(torch.ones(3, 1))
    with pytest.raises(InvalidInputError, match="one per row"):
        g.gradient(torch.zeros(2, dtype=torch.float64), torch.ones(3, 2))
    with pytest.raises(InvalidInputError, match="time must lie"):
        g.gradient(1.5, torch.ones(3, 2))
    with pytest.raises(InvalidInputError, match="positive dim"):
        MixturePair(2, 0.0)
    assert isinstance(Samples(MixturePair(2, 1.0).sample(5, seed=0)[0]), Samples)
    assert isinstance(MixturePair(2, 1.0).source, Gaussian)


@pytest.mark.parametrize("name", ["brownian", "ou", "vp"])
@pytest.mark.parametrize("each", [False, True], ids=["one time", "a time a row"])
@pytest.mark.parametrize("kind", ["full", "negative"])
def test_eigenvectors_give_what_matrices_give(name, each, kind):
    """Of a reference whose covariance is a multiple of the identity; at ``T`` too."""
    process, x = PROCESSES[name], randn(6, 2, seed=3)
    given = potential(process, kind)
    maps = LinearMap(given.precisions, dense=True)
    spectrum = Spectrum.of(given.logits, given.shifts, given.precisions)
    times = torch.linspace(0.0, process.horizon, 6, dtype=torch.float64)
    for t in [times] if each else [0.0, 0.6 * process.horizon, process.horizon]:
        ahead = process.transition(t, process.horizon)
        one = SpectralPotentialAt(ahead, spectrum, x)
        other = DensePotentialAt(PotentialAt.of(ahead, given.logits, given.shifts, maps, x.device), x)
        for found, expected in (
            (one.exponents, other.exponents),
            (one.gradient, other.gradient),
            (one.far.means, other.far.means),
            (one.far.covariances, other.far.covariances),
        ):
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
