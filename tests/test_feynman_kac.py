"""Feynman–Kac weights and killing against closed forms, each other, and their orders in the time step."""

import math

import pytest
import torch

from sbridge.errors import InvalidInputError, NonFiniteError
from sbridge.functionals import LeftPoint, RightPoint, Trapezoid, feynman_kac, kill, log_weights, streamed
from sbridge.laws import Gaussian, Samples
from sbridge.measures import Direction, PathMeasure
from sbridge.processes import BrownianMotion, OrnsteinUhlenbeck
from sbridge.time import TimeGrid

SIGMA, K = 0.9, 1.3
DENSE = torch.tensor([[1.0, 0.0], [0.5, 0.7]], dtype=torch.float64)


def quadratic(t, x):
    return 0.5 * K**2 * x.square().sum(1)


def ones(x):
    return torch.ones_like(x[:, 0])


def at(*point):
    row = torch.tensor(point, dtype=torch.float64)
    return Samples(row.expand(2, -1).clone())


def brownian(start=0.6, steps=40, sigma=SIGMA, direction=Direction.FORWARD):
    return PathMeasure(BrownianMotion(sigma), None, at(start), direction, TimeGrid.uniform(steps))


def cosh_formula(x, sigma=SIGMA, k=K, horizon=1.0):
    """``E e^{−½k²∫X²}`` for Brownian motion from ``x`` (Cameron & Martin)."""
    rate = k * sigma * horizon
    return math.cosh(rate) ** -0.5 * math.exp(-0.5 * k / sigma * x * x * math.tanh(rate))


def mean(a, b, slack=0.0):
    """Whether an estimate agrees with a number."""
    return abs(a.estimate.value - b) < 4 * a.estimate.standard_error + a.allowance + slack


@pytest.mark.parametrize("direction", list(Direction))
def test_quadratic_killing_is_the_cosh_formula(direction):
    found = streamed(brownian(direction=direction), 40_000, lambda paths: feynman_kac(paths, ones, quadratic), seed=1)
    assert found.estimate.standard_error < 1.5e-3
    assert mean(found, cosh_formula(0.6))
    assert not mean(found, cosh_formula(0.6, k=1.1 * K))
    halved = streamed(brownian(), 40_000, lambda p: feynman_kac(p, ones, lambda t, x: 0.5 * quadratic(t, x)), seed=1)
    assert not mean(halved, cosh_formula(0.6))


def test_creation_has_its_closed_form_too():
    """``V = −½k²x²`` with ``kσT < π/2``: cosines for hyperbolic cosines."""
    k, x = 0.8, 0.4
    paths = brownian(x).sample(40_000, seed=2)
    found = feynman_kac(paths, ones, lambda t, y: -0.5 * k**2 * y.square().sum(1))
    rate = k * SIGMA
    expected = math.cos(rate) ** -0.5 * math.exp(0.5 * k / SIGMA * x * x * math.tan(rate))
    assert mean(found, expected)


def test_several_coordinates_under_dense_noise():
    """``V = ½ k² |σ⁻¹x|²`` separates in the coordinates of the noise."""
    start = torch.tensor([0.5, -0.8], dtype=torch.float64)
    inside = torch.linalg.solve(DENSE, start)
    measure = PathMeasure(BrownianMotion(DENSE), None, at(*start.tolist()), grid=TimeGrid.uniform(40))
    white = torch.linalg.inv(DENSE)
    found = feynman_kac(measure.sample(40_000, seed=3), ones, lambda t, x: 0.5 * K**2 * (x @ white.mT).square().sum(1))
    assert mean(found, math.prod(cosh_formula(float(z), sigma=1.0) for z in inside))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_polynomials_of_an_ornstein_uhlenbeck_process(dtype):
    """``E[ψ(X_T) | x]`` for ``ψ = x, x², x³``: moments of a Gaussian; a constant ``V`` multiplies by ``e^{−VT}``."""
    rate, sigma, x, horizon = 0.7, 0.8, 1.2, 1.5
    process = OrnsteinUhlenbeck(rate=rate, sigma=sigma, horizon=horizon)
    start = Samples(torch.full((2, 1), x, dtype=dtype))
    paths = PathMeasure(process, None, start, grid=TimeGrid.uniform(5)).sample(40_000, seed=4)
    m, v = x * math.exp(-rate * horizon), sigma**2 * -math.expm1(-2 * rate * horizon) / (2 * rate)
    for power, expected in ((1, m), (2, m * m + v), (3, m**3 + 3 * m * v)):
        found = feynman_kac(paths, lambda y, power=power: y[:, 0] ** power, lambda t, y: torch.full_like(y[:, 0], 0.3))
        assert found.values.dtype == torch.float64
        assert found.allowance < 1e-6
        assert abs(found.estimate.value - expected * math.exp(-0.3 * horizon)) < 4 * found.estimate.standard_error


def test_orders_of_the_quadratures():
    """Exact transitions, one rule each: |error| halves (ends) or quarters (trapezoid) with the step.

    Discretised, ``φ`` stays Gaussian and its backward recursion is exact: no noise in the orders.
    """

    def chained(first, last, steps):
        a = c = 0.0  # φ = exp(−½a x² − c)
        delta = 1.0 / steps
        for _ in range(steps):
            a += last * delta * K**2
            spread = 1.0 + a * SIGMA**2 * delta
            a, c = a / spread, c + 0.5 * math.log(spread)
            a += first * delta * K**2
        return math.exp(-0.5 * a * 0.36 - c)

    for rule, order in ((LeftPoint(), 1), (RightPoint(), 1), (Trapezoid(), 2)):
        errors = [chained(*rule.shares(), steps) - cosh_formula(0.6) for steps in (40, 80)]
        assert abs(math.log2(errors[0] / errors[1]) - order) < 0.1
        paths = brownian(steps=4).sample(100_000, seed=5)
        found = feynman_kac(paths, ones, quadratic, rule)
        assert abs(found.estimate.value - chained(*rule.shares(), 4)) < 4 * found.estimate.standard_error
        coarse = float(found.coarse.mean()) - chained(*rule.shares(), 2)
        assert abs(coarse) < 4 * found.estimate.standard_error


@pytest.mark.parametrize("quadrature", [LeftPoint(), RightPoint(), Trapezoid()])
@pytest.mark.parametrize("direction", list(Direction))
def test_killing_leaves_what_weights_say(quadrature, direction):
    paths = brownian(steps=10, direction=direction).sample(60_000, seed=6)
    killing = kill(paths, quadratic, seed=7, quadrature=quadrature)
    weights = log_weights(paths, quadratic, quadrature).values.exp()
    for psi in (ones(paths.x[-1]), paths.x[-1][:, 0], paths.x[-1][:, 0].square()):
        gap = killing.survived * psi - weights * psi
        assert abs(float(gap.mean())) < 4 * float(gap.std()) / math.sqrt(len(gap))
    alive = killing.alive
    assert bool(alive[0].all())
    assert not bool((alive[1:] & ~alive[:-1]).any())  # nobody returns
    assert torch.equal(killing.time.isinf(), killing.survived)


def test_the_times_of_death_are_exponential_for_a_constant_rate():
    measure = brownian(steps=3)
    paths = measure.sample(20_000, seed=8)
    for found, direction in (
        (kill(paths, lambda t, x: torch.full_like(x[:, 0], 2.0), seed=9).time, 1),
        (
            kill(
                brownian(steps=3, direction=Direction.BACKWARD).sample(20_000, seed=8),
                lambda t, x: torch.full_like(x[:, 0], 2.0),
                seed=9,
            ).time,
            -1,
        ),
    ):
        elapsed = found if direction > 0 else 1.0 - found
        for t in (0.1, 0.5, 0.9):
            share = float((elapsed.abs() <= t).double().mean())
            expected = -math.expm1(-2.0 * t)
            assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 20_000)


def test_killing_is_reproduced_by_its_seed_and_spares_everybody_at_rate_zero():
    paths = brownian(steps=4).sample(50, seed=1)
    a, b, c = (kill(paths, quadratic, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a.time, b.time)
    assert not torch.equal(a.time, c.time)
    assert bool(kill(paths, lambda t, x: 0.0 * x[:, 0], seed=1).survived.all())


def test_streaming_is_the_whole_sample():
    measure = PathMeasure(BrownianMotion(0.5), None, Gaussian(torch.zeros(2), torch.eye(2)), grid=TimeGrid.uniform(40))
    whole = log_weights(measure.sample(2500, seed=3), quadratic)
    parts = streamed(measure, 2500, lambda paths: log_weights(paths, quadratic), seed=3)
    assert torch.allclose(whole.values, parts.values)
    assert torch.allclose(whole.coarse, parts.coarse)


def test_bad_input_is_told():
    paths = brownian(steps=4).sample(8, seed=1)
    with pytest.raises(InvalidInputError, match=r"state cost V must return one number per row, shape \(8,\)"):
        log_weights(paths, lambda t, x: x.square())
    with pytest.raises(InvalidInputError, match="returned float"):
        log_weights(paths, lambda t, x: 1.0)
    with pytest.raises(InvalidInputError, match="terminal function"):
        feynman_kac(paths, lambda x: x, quadratic)
    with pytest.raises(NonFiniteError, match="NaN or infinite at t = 0"):
        log_weights(paths, lambda t, x: x[:, 0] / 0.0)
    with pytest.raises(InvalidInputError, match="creates mass"):
        kill(paths, lambda t, x: x[:, 0] - 5.0, seed=1)
    with pytest.raises(InvalidInputError, match="one number per row"):
        kill(paths, lambda t, x: x, seed=1)
