"""Functionals of paths against closed forms, Itô's formula, and each other."""

import math

import pytest
import torch

from sbridge.controls.divergence import rademacher
from sbridge.diffusion.conversions import ScoreControl
from sbridge.diffusion.exact import ExactScore
from sbridge.diffusion.reverse import reverse_diffusion
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.functionals import (
    LeftPoint,
    PathValues,
    RightPoint,
    action,
    action_difference,
    action_gap,
    constraint,
    denoising_constant,
    denoising_elbo,
    denoising_score_matching,
    entropy_change,
    explicit_score_matching,
    implicit_constant,
    implicit_elbo,
    implicit_score_matching,
    integrate,
    integrated_entropy_rate,
    killed_log_ratio,
    row_elbo,
)
from sbridge.laws import Density, Gaussian, GaussianMixture, Samples
from sbridge.measures import Direction, PathMeasure, energies, energy, log_ratio, martingale, path_kl
from sbridge.processes import BrownianMotion, DriftProcess, OrnsteinUhlenbeck, VarianceExploding, VariancePreserving
from sbridge.time import TimeGrid

DENSE = torch.tensor([[1.0, 0.4], [-0.2, 0.6]], dtype=torch.float64)
RATE = torch.tensor([[1.0, 0.3], [-0.2, 0.7]], dtype=torch.float64)
PROCESSES = {
    "vp": VariancePreserving(),
    "ve": VarianceExploding(0.1, 4.0),
    "diagonal": BrownianMotion(torch.tensor([0.5, 1.5])),
    "dense": OrnsteinUhlenbeck(rate=RATE, sigma=DENSE, mean=0.3),
}
S_MIN = 0.02
EYE = torch.eye(2, dtype=torch.float64)
START = Gaussian(torch.tensor([0.3, -0.4], dtype=torch.float64), 0.3 * EYE)


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture():
    means = torch.tensor([[1.5, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.6, 0.4], dtype=torch.float64), means, torch.stack([0.1 * EYE, 0.3 * EYE]))


def geometric(steps=60):
    return TimeGrid((0.0, *(S_MIN ** (1.0 - k / steps) for k in range(steps)), 1.0))


def noising(process, n=4000, data=None, seed=1, steps=60):
    return PathMeasure(process, None, data or mixture(), grid=geometric(steps)).sample(n, seed=seed)


def wrong(exact):
    return lambda t, x: exact(t, x) + 0.4 + 0.5 * torch.sin(x @ DENSE)


def zero(values, slack=0.0):
    """Whether the mean is zero: within four standard errors and what halving the step changes."""
    return abs(values.estimate.value) < 4 * values.estimate.standard_error + values.allowance + slack


def push(t, x):
    """A control that is neither linear nor a gradient."""
    return torch.stack([torch.cos(x[:, 1]) + t, torch.sin(x[:, 0])], 1)


def field(t, x):
    return torch.sin(x[:, 0] + 2.0 * t) * torch.cos(0.7 * x[:, 1]) + t * x[:, 0] * x[:, 1]


DRIVEN = PROCESSES | {"pendulum": DriftProcess(lambda t, x: torch.sin(x.flip(1)) - t, 0.8)}


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("kind", ["dense", "diagonal", "pendulum"])
def test_the_multiplier_vanishes_for_the_control_that_made_the_paths(direction, kind):
    """Itô: E[J(T) − J(0)] = E∫(∂_t + generator)J for any J; not for another control."""
    measure = PathMeasure(DRIVEN[kind], push, START, direction, TimeGrid.uniform(100))
    paths = measure.sample(6000, seed=2)
    found = constraint(paths, push, field, quadrature=LeftPoint())
    assert found.estimate.standard_error < 0.04
    # The chain's weak error is of first order and the same for both grids of the paths: it is bounded by hand.
    assert zero(found, slack=0.01)
    assert not zero(constraint(paths, None, field, quadrature=LeftPoint()), slack=0.01)


def test_each_term_of_the_action_counts_once():
    """Paths that stand still: ``S = ½|u|² + V + ∂_tJ + (b + σu)·∇J + ½tr(σσᵀ∇²J) + J(0) − J(T)`` by hand."""
    process = PROCESSES["dense"]
    paths = PathMeasure(process, None, START, grid=TimeGrid.uniform(4)).sample(5, seed=1)
    paths = type(paths)(paths.x[:1].expand_as(paths.x), paths.noise, paths.v, paths.chain)
    x, hessian = paths.x[0], torch.tensor([[1.0, 0.5], [0.5, -2.0]], dtype=torch.float64)

    def quadratic(t, y):
        return t * 3.0 + 0.5 * ((y @ hessian) * y).sum(1)

    found = action(paths, lambda t, y: 2.0 * y, quadratic, lambda t, y: y[:, 0])
    gradient = x @ hessian
    moved = process.drift(0.0, x) + 2.0 * x @ DENSE.mT
    expected = 2.0 * x.square().sum(1) + x[:, 0] + (moved * gradient).sum(1)
    expected = expected + 0.5 * float((DENSE @ DENSE.mT @ hessian).trace())  # 3 of ∂_tJ and −3 of the ends cancel
    assert torch.allclose(found.values, expected)
    probed = action(
        paths, lambda t, y: 2.0 * y, quadratic, lambda t, y: y[:, 0], probes=rademacher(x, 4000, generator())
    )
    assert torch.allclose(probed.values, expected, atol=0.1)


@pytest.mark.parametrize("kind", ["vp", "dense"])
def test_the_gap_of_the_action_is_explicit_score_matching(kind):
    process = PROCESSES[kind]
    exact = ExactScore(process, mixture())
    score, paths = wrong(exact), noising(process, n=300, steps=20)
    u, best = ScoreControl(process, score), ScoreControl(process, exact)
    gap = explicit_score_matching(paths, score, exact, s_min=S_MIN)
    assert torch.allclose(action_gap(paths, u, best, start_time=S_MIN).values, gap.values)

    def log_field(t, x):
        return -exact.log_density(t, x)

    # Along paths read forward, the reversal's action: same integrand, since only terms in u differ.
    short = action_difference(paths, u, best, log_field, start_time=S_MIN)
    assert torch.allclose(short.values, gap.values, rtol=1e-8, atol=1e-10)
    if kind == "vp":
        whole = action(paths, u, log_field, start_time=S_MIN) - action(paths, best, log_field, start_time=S_MIN)
        assert torch.allclose(whole.values, short.values, rtol=1e-8, atol=1e-8)


def test_at_the_optimum_the_action_is_its_cost():
    """``S[p*, u*, J] = ½E∫|u*|² + V``: the value, for reverse diffusion ``−E log ρ_T + E log ρ_{s_min}`` (§3.3)."""
    process = PROCESSES["vp"]
    exact = ExactScore(process, mixture())
    grid = TimeGrid(tuple((k / 100) ** 2 for k in range(101)))
    bridge = reverse_diffusion(process, mixture(), exact, prior=exact.marginal(1.0), grid=grid)
    paths = bridge.backward.sample(4000, seed=3)

    def divergence_of_drift(t, x):
        return torch.full_like(x[:, 0], float(2 * process.linear(t).values))

    control = ScoreControl(process, exact)
    found = action(paths, control, lambda t, x: -exact.log_density(t, x), divergence_of_drift)
    value = exact.log_density(0.0, paths.x[-1]) - exact.log_density(1.0, paths.x[0])
    assert zero(found - PathValues.exact(value), slack=0.02)
    assert abs(found.estimate.value) > 0.5


def test_with_the_left_point_the_gap_is_the_kl_of_the_chains():
    measure = PathMeasure(PROCESSES["dense"], push, START, grid=TimeGrid.uniform(8))
    other = PathMeasure(PROCESSES["dense"], None, START, grid=TimeGrid.uniform(8))
    paths = measure.sample(500, seed=4)
    found = action_gap(paths, push, None, quadrature=LeftPoint()).estimate
    expected = path_kl(measure, other, 500, seed=4)
    assert math.isclose(found.value, expected.value, rel_tol=1e-9)
    assert math.isclose(energy(paths).value, expected.value, rel_tol=1e-9)


@pytest.mark.parametrize("direction", Direction)
def test_the_log_ratio_to_the_reference_is_energy_and_martingale(direction):
    measure = PathMeasure(PROCESSES["dense"], lambda t, x: (x + t).sin(), START, direction, TimeGrid.uniform(12))
    paths = measure.sample(50, seed=4)
    found = martingale(paths, measure.control) + energies(paths)
    torch.testing.assert_close(found, log_ratio(paths, measure.control, None), rtol=1e-10, atol=1e-10)


def test_killing_adds_its_integral_to_the_log_ratio():
    """The path law conditioned to survive ``V = ½k²x²`` has KL ``−log φ(0, x)`` and lives with the mass ``φ(0, x)``."""
    sigma, k, x = 0.8, 1.1, 0.7
    start = Samples(torch.full((2, 1), x, dtype=torch.float64))

    def best(t, y):
        return -k * math.tanh(k * sigma * (1.0 - t)) * y

    def rate(t, y):
        return 0.5 * k * k * y[:, 0].square()

    paths = PathMeasure(BrownianMotion(sigma), best, start, grid=TimeGrid.uniform(200)).sample(8000, seed=5)
    found = killed_log_ratio(paths, best, None, rate)
    mass = math.cosh(k * sigma) ** -0.5 * math.exp(-0.5 * k / sigma * x * x * math.tanh(k * sigma))
    assert abs(found.estimate.value + math.log(mass)) < 4 * found.estimate.standard_error + 2e-3
    survival = PathValues.exact((-found.values).exp())
    assert abs(survival.estimate.value - mass) < 4 * survival.estimate.standard_error + 2e-3
    # Any other control costs more; without killing the ratio is Girsanov's.
    other = PathMeasure(BrownianMotion(sigma), None, start, grid=TimeGrid.uniform(50)).sample(4000, seed=5)
    assert killed_log_ratio(other, None, None, rate).estimate.value > -math.log(mass) + 0.01
    plain = killed_log_ratio(paths, best, None, lambda t, y: 0.0 * y[:, 0])
    assert torch.allclose(plain.values, log_ratio(paths, best, None).double())


def test_score_matching_functionals_differ_by_their_constants(process):
    exact = ExactScore(process, mixture())
    score, paths = wrong(exact), noising(process)
    explicit = explicit_score_matching(paths, score, exact, s_min=S_MIN)
    denoising = denoising_score_matching(paths, score, s_min=S_MIN) - denoising_constant(paths, exact, s_min=S_MIN)
    constant = implicit_constant(paths, exact, s_min=S_MIN)
    assert explicit.estimate.value > 0.3
    assert zero(denoising - explicit)
    assert zero(implicit_score_matching(paths, score, s_min=S_MIN) + constant - explicit)
    probes = rademacher(paths.x[0], 1, generator(5))
    assert zero(implicit_score_matching(paths, score, s_min=S_MIN, probes=probes) + constant - explicit)
    assert not zero(denoising_score_matching(paths, score, s_min=S_MIN) - explicit)
    assert not zero(implicit_score_matching(paths, score, s_min=S_MIN) - explicit)


def test_the_functional_is_the_integral_of_the_quadrature():
    """A deterministic integrand: the error and the allowance have the order of the rule."""
    paths = noising(PROCESSES["vp"], n=2, steps=32)

    def exponential(t, x):
        return torch.full_like(x[:, 0], math.exp(t))

    exact = math.e - math.exp(S_MIN)
    found = integrate(paths, exponential, start_time=S_MIN)
    error, coarse = float(found.values[0]) - exact, float(found.coarse[0]) - exact
    assert abs(coarse / error - 4.0) < 0.1
    assert math.isclose(found.allowance, coarse - error, rel_tol=1e-9)
    for rule, sign in ((LeftPoint(), -1), (RightPoint(), 1)):
        one = integrate(paths, exponential, rule, S_MIN)
        assert sign * (float(one.values[0]) - exact) > 0.02
    odd = integrate(noising(PROCESSES["vp"], n=2, steps=5), exponential, start_time=S_MIN)
    assert abs(float(odd.coarse[0]) - exact) < 0.5


def test_elbo_is_the_log_likelihood_for_the_true_score_and_less_for_others(process):
    exact, paths = ExactScore(process, mixture()), noising(process, steps=100)
    prior, index = exact.marginal(1.0), 1
    truth = PathValues.exact(exact.log_density(S_MIN, paths.x[index]))
    for bound in (
        implicit_elbo(paths, exact, prior, s_min=S_MIN),
        denoising_elbo(paths, exact, prior, s_min=S_MIN),
    ):
        assert zero(bound - truth)
        assert bound.estimate.standard_error < 0.2
    score = wrong(exact)
    gap = explicit_score_matching(paths, score, exact, s_min=S_MIN)
    # E log ρ − ELBO = path KL: the bound for another score is lower by just that, in the mean.
    assert zero(implicit_elbo(paths, score, prior, s_min=S_MIN) - truth + gap)
    assert zero(denoising_elbo(paths, score, prior, s_min=S_MIN) - truth + gap)


def test_elbo_of_single_rows(process):
    exact = ExactScore(process, mixture())
    measure = PathMeasure(process, None, mixture(), grid=geometric(100))
    x = torch.tensor([[1.4, 0.1], [-0.6, 0.8], [0.2, 0.5]], dtype=torch.float64)
    truth = exact.log_density(S_MIN, x)
    found = row_elbo(measure, x, exact, exact.marginal(1.0), seed=1, draws=1000, s_min=S_MIN)
    assert found.values.shape == (3,)
    assert bool(((found.values - truth).abs() < 4 * found.standard_errors + found.allowance).all())
    worse = row_elbo(measure, x, wrong(exact), exact.marginal(1.0), seed=1, draws=1000, s_min=S_MIN)
    assert worse.average.value < truth.mean() - 0.1
    # At t = 0 the rows are the data, and the score of a mixture is finite.
    start = row_elbo(measure, x, exact, exact.marginal(1.0), seed=1, draws=1000)
    assert bool(((start.values - exact.log_density(0.0, x)).abs() < 4 * start.standard_errors + start.allowance).all())


def test_entropy_balance(process):
    exact, paths = ExactScore(process, mixture()), noising(process)
    change = entropy_change(paths, exact.log_density, s_min=S_MIN)
    production = integrated_entropy_rate(paths, exact, s_min=S_MIN)
    assert zero(change - production)
    assert not zero(change + production)


def test_entropy_change_of_a_gaussian_is_its_log_determinant():
    process = OrnsteinUhlenbeck(rate=0.8, sigma=1.1)
    data = Gaussian(torch.zeros(2, dtype=torch.float64), torch.diag(torch.tensor([0.2, 0.5], dtype=torch.float64)))
    exact = ExactScore(process, data)
    paths = noising(process, n=20_000, data=data)
    before, after = (exact.marginal(t).covariance.logdet() for t in (S_MIN, 1.0))
    found = entropy_change(paths, exact.log_density, s_min=S_MIN).estimate
    assert abs(found.value - 0.5 * float(after - before)) < 4 * found.standard_error
    made = integrated_entropy_rate(paths, exact, s_min=S_MIN).estimate
    assert abs(made.value - 0.5 * float(after - before)) < 4 * made.standard_error + 1e-3


def test_functionals_of_the_reversal_have_the_sign_of_its_time():
    """Along exactly reversed paths the same integrals come out."""
    process = PROCESSES["vp"]
    exact = ExactScore(process, mixture())
    bridge = reverse_diffusion(process, mixture(), exact, prior=exact.marginal(1.0), grid=geometric(100))
    back, there = bridge.backward.sample(3000, seed=6), noising(process, n=3000, steps=100)
    for functional in (
        lambda paths: explicit_score_matching(paths, wrong(exact), exact, s_min=S_MIN),
        lambda paths: entropy_change(paths, exact.log_density, s_min=S_MIN),
    ):
        a, b = functional(back).estimate, functional(there).estimate
        assert abs(a.value - b.value) < 4 * math.hypot(a.standard_error, b.standard_error) + 0.04 * abs(b.value)


def test_float32_paths_give_the_same_values():
    process, data = PROCESSES["vp"], mixture()
    exact = ExactScore(process, data)
    paths = noising(process, n=200)
    single = type(paths)(
        paths.x.float(),
        paths.noise.float(),
        paths.v.float(),
        PathMeasure(process, None, data, grid=geometric()).chain(torch.zeros(1)),
    )
    for functional in (
        lambda p: denoising_score_matching(p, wrong32(exact), s_min=S_MIN) - denoising_constant(p, exact, s_min=S_MIN),
        lambda p: implicit_score_matching(p, wrong32(exact), s_min=S_MIN),
        lambda p: integrated_entropy_rate(p, exact, s_min=S_MIN),
    ):
        found, expected = functional(single), functional(paths)
        assert found.values.dtype == torch.float64
        assert torch.allclose(found.values, expected.values, rtol=1e-3, atol=2e-3)


def wrong32(exact):
    return lambda t, x: exact(t, x) + 0.4 + 0.5 * torch.sin(x @ DENSE.to(x))


def test_bad_input_is_told():
    process = PROCESSES["vp"]
    exact, paths = ExactScore(process, mixture()), noising(process, n=8, steps=4)
    with pytest.raises(InvalidInputError, match="s_min must be positive"):
        denoising_score_matching(paths, exact, s_min=0.0)
    with pytest.raises(InvalidInputError, match="s_min must be positive"):
        denoising_constant(paths, exact, s_min=0.0)
    with pytest.raises(InvalidInputError, match="not a knot"):
        explicit_score_matching(paths, exact, exact, s_min=0.0123)
    with pytest.raises(InvalidInputError, match="not a knot"):
        explicit_score_matching(paths, exact, exact, s_min=1.0)
    with pytest.raises(InvalidInputError, match="score must return the shape"):
        explicit_score_matching(paths, lambda t, x: x[:, 0], exact, s_min=S_MIN)
    points = ExactScore(process, Samples(torch.randn(5, 2, generator=generator())))
    with pytest.raises(InvalidInputError, match="infinite at t = 0"):
        implicit_score_matching(paths, points, s_min=0.0)
    controlled = PathMeasure(process, push, START, grid=geometric(4)).sample(8, seed=1)
    with pytest.raises(InvalidInputError, match="without a control"):
        denoising_score_matching(controlled, exact, s_min=S_MIN)
    well = PathMeasure(DriftProcess(lambda t, x: -x, 1.0), None, START, grid=geometric(4)).sample(8, seed=1)
    with pytest.raises(UnsupportedError, match="LinearProcess"):
        explicit_score_matching(well, exact, exact, s_min=S_MIN)
    with pytest.raises(InvalidInputError, match="normalised density"):
        implicit_elbo(paths, exact, Density(lambda x: -x.square().sum(1), 2), s_min=S_MIN)
    with pytest.raises(InvalidInputError, match="normalised density"):
        denoising_elbo(paths, exact, Samples(torch.randn(5, 2, generator=generator())), s_min=S_MIN)
    measure, x = PathMeasure(process, None, mixture(), grid=geometric(4)), torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match="not a knot"):
        row_elbo(measure, x, exact, exact.marginal(1.0), seed=1, s_min=0.7)
    with pytest.raises(InvalidInputError, match="at least two draws"):
        row_elbo(measure, x, exact, exact.marginal(1.0), seed=1, draws=1)
    with pytest.raises(InvalidInputError, match="field J must return one number per row"):
        action(paths, None, lambda t, x: x)
    with pytest.raises(InvalidInputError, match="state cost V must return one number per row"):
        action(paths, None, field, lambda t, x: x)
    with pytest.raises(InvalidInputError, match="killing rate V must return"):
        killed_log_ratio(paths, None, None, lambda t, x: x)
