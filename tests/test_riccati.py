"""Riccati equations against published values, each other, independent integration and simulation."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from sbridge.errors import InvalidInputError, NonFiniteError, UnsupportedError
from sbridge.exact.riccati import ChainRiccati, Riccati
from sbridge.laws import Gaussian
from sbridge.measures import PathMeasure
from sbridge.problems import Quadratic
from sbridge.processes import (
    BrownianMotion,
    DriftProcess,
    EulerMaruyama,
    ExactTransition,
    OrnsteinUhlenbeck,
    VariancePreserving,
)
from sbridge.storage.registry import decode, encode
from sbridge.time import TimeGrid

DENSE = OrnsteinUhlenbeck(
    rate=torch.tensor([[0.7, 0.4], [-0.3, 0.2]]), sigma=torch.tensor([[1.0, 0.3], [0.0, 0.6]]), mean=0.4
)
RUNNING = Quadratic(torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64), torch.tensor([0.1, -0.4]), 0.2)
TERMINAL = Quadratic(torch.tensor([[1.0, -0.3], [-0.3, 0.8]], dtype=torch.float64), torch.tensor([-0.5, 0.3]), -0.1)
GRID = TimeGrid.uniform(12)


def points(n=5, dim=2):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize(
    ("rate", "f", "g", "steps", "expected"),
    [
        (-0.2, 0.2, 0.1, 50, (5.51815, 5.47216, 5.48952, 1.83323, 1.77045)),
        (-1.0, 1.0, 0.5, 50, (27.26453, 26.94075, 27.38152, 28.94819, 28.34428)),
        (-1.0, 1.0, 0.5, 150, (27.26453, 27.15581, 27.30506, 28.94819, 28.74839)),
    ],
)
def test_quadratic_problems_have_their_known_values(rate, f, g, steps, expected):
    # values by an independent program, with 5 decimals
    process = OrnsteinUhlenbeck(rate, 1.0)
    costs = Quadratic.isotropic(f, 20), Quadratic.isotropic(g, 20)
    limit, chain = Riccati(process, *costs), ChainRiccati(process, *costs, TimeGrid.uniform(steps))
    x = torch.full((1, 20), 0.5, dtype=torch.float64)
    functions = (
        limit.value_function,
        chain.tilted_value_function,
        chain.value_function,
        limit.energy_function,
        chain.energy_function,
    )
    found = [float(function(x)) for function in functions]
    assert found == pytest.approx(expected, abs=6e-6)


def test_linear_cost_is_met_by_a_control_that_ignores_the_state():
    process, zero = OrnsteinUhlenbeck(1.0, 1.0), Quadratic.isotropic(0.0, 10)
    end = Quadratic.linear(torch.ones(10, dtype=torch.float64))
    limit, chain = Riccati(process, zero, end), ChainRiccati(process, zero, end, TimeGrid.uniform(100))
    x = points(3, 10)
    assert float(limit.value_function(torch.zeros(1, 10))) == pytest.approx(-2.16166, abs=5e-6)
    assert float(chain.value_function(torch.zeros(1, 10))) == pytest.approx(-2.17593, abs=5e-6)
    assert float(chain.tilted_value_function(torch.zeros(1, 10))) == pytest.approx(-2.17593, abs=5e-6)
    assert float(limit.energy_function(x).mean()) == pytest.approx(4.32332, abs=5e-6)
    assert float(chain.energy_function(x).mean()) == pytest.approx(4.35186, abs=5e-6)
    assert torch.allclose(limit.control(0.3, x), torch.full_like(x, -math.exp(-0.7)), rtol=1e-11)
    for k in (0, 30, 99):
        assert torch.allclose(chain.control(k / 100, x), torch.full_like(x, -(0.99 ** (99 - k))), rtol=1e-11)


@pytest.mark.parametrize("process", [DENSE, VariancePreserving(mean=0.3), BrownianMotion(lambda t: 0.5 + t)])
def test_riccati_flow_agrees_with_direct_integration(process):
    solution = Riccati(process, RUNNING, TERMINAL)
    p, q = RUNNING.homogeneous.numpy(), TERMINAL.homogeneous.numpy()

    def slope(s, y):
        t = 1.0 - s
        a, noise = np.zeros((3, 3)), np.zeros((3, 3))
        a[:2, :2] = process.linear(t).expanded(2).numpy()
        a[:2, 2] = process.offset(t).expand(2).numpy()
        sigma = process.scale(t).expanded(2).numpy()
        noise[:2, :2] = sigma @ sigma.T
        f = y[:-1].reshape(3, 3)
        rise = a.T @ f + f @ a - 2 * f @ noise @ f + p
        return np.append(rise.reshape(-1), np.trace(noise @ f))

    run = solve_ivp(slope, (0, 1), np.append(q.reshape(-1), 0.0), rtol=1e-12, atol=1e-13, t_eval=[0.63, 1.0])
    for t, y in zip((0.37, 0.0), run.y.T, strict=True):
        value = solution.value_at(t).homogeneous
        expected = torch.from_numpy(y[:-1].reshape(3, 3))
        expected[2, 2] += y[-1]
        assert torch.allclose(value, expected, atol=1e-10)
        sigma = process.scale(t).expanded(2)
        gain = -2.0 * sigma.mT @ value[:2]
        assert torch.allclose(solution.gain(t), gain, atol=1e-10)


def test_stiff_problem_is_solved():
    # F = √(P/2) tanh(√(2P)(T − t)) solves Ḟ = 2F² − P, F(T) = 0; its rate is 2√(2P) = 2000
    solution = Riccati(BrownianMotion(1.0), Quadratic.isotropic(5e5, 1), Quadratic.isotropic(0.0, 1))
    assert float(solution.value_function.matrix) == pytest.approx(500.0, rel=1e-10)
    x = torch.ones(1, 1, dtype=torch.float64)
    for t in (0.2, 0.9995):
        assert float(solution.control(t, x)) == pytest.approx(-1000.0 * math.tanh(1000.0 * (1.0 - t)), rel=1e-9)


@pytest.mark.parametrize("process", [DENSE, VariancePreserving(mean=0.3)])
@pytest.mark.parametrize("rule", [EulerMaruyama(), ExactTransition()])
def test_chain_tends_to_the_limit_at_first_order(process, rule):
    limit = Riccati(process, RUNNING, TERMINAL)
    x, errors, energies = points(), [], []
    for steps in (100, 200, 400):
        chain = ChainRiccati(process, RUNNING, TERMINAL, TimeGrid.uniform(steps), rule)
        errors.append(float((chain.value_function(x) - limit.value_function(x)).abs().max()))
        energies.append(float((chain.energy_function(x) - limit.energy_function(x)).abs().max()))
    for found in (errors, energies):
        assert 0.8 < math.log2(found[1] / found[2]) < 1.25
    assert bool((chain.tilted_value_function(x) < chain.value_function(x)).all())


@pytest.mark.parametrize("rule", [EulerMaruyama(), ExactTransition()])
def test_chain_values_are_those_of_simulated_paths(rule):
    chain = ChainRiccati(DENSE, RUNNING, TERMINAL, GRID, rule)
    law = Gaussian(torch.tensor([0.3, -0.5], dtype=torch.float64), 0.2 * torch.eye(2, dtype=torch.float64))
    n, spans = 100_000, GRID.times(1.0).diff()

    def costs(paths):
        return sum(s * RUNNING(x) for s, x in zip(spans, paths.x, strict=False)) + TERMINAL(paths.x[-1])

    paths = PathMeasure(DENSE, chain.control, law, grid=GRID, rule=rule).sample(n, seed=1)
    energy = torch.einsum("k,kbd->b", spans, paths.v.square())
    for values, function in ((costs(paths) + 0.5 * energy, chain.value_function), (energy, chain.energy_function)):
        expected = function.expectation(law.mean, law.covariance)
        assert abs(float(values.mean()) - expected) < 4.0 * float(values.std()) / math.sqrt(n)
    x = torch.tensor([[0.3, -0.5]], dtype=torch.float64)
    free = PathMeasure(DENSE, None, law, grid=GRID, rule=rule).simulate(x.expand(n, 2), seed=2)
    weights = (-costs(free)).exp()
    expected = float((-chain.tilted_value_function(x)).exp())
    assert abs(float(weights.mean()) - expected) < 4.0 * float(weights.std()) / math.sqrt(n)


def test_optimum_is_stationary_in_the_control():
    # One step from a point: the cost of w = √Δ u is explicit, and its gradient vanishes at the gain.
    chain = ChainRiccati(DENSE, RUNNING, TERMINAL, TimeGrid.uniform(1))
    x = points(1)
    u = chain.control(0.0, x).requires_grad_()
    sigma = DENSE.scale(0.0).expanded(2)
    end = x + DENSE.drift(0.0, x) + u @ sigma.mT
    cost = 0.5 * u.square().sum() + RUNNING(x).sum() + TERMINAL.expectation(end[0].detach(), sigma @ sigma.mT)
    assert float(cost.detach()) == pytest.approx(float(chain.value_function(x)), rel=1e-12)
    (gradient,) = torch.autograd.grad(0.5 * u.square().sum() + TERMINAL(end).sum(), u)
    assert float(gradient.abs().max()) < 1e-12


@pytest.mark.parametrize("kind", [Riccati, ChainRiccati])
def test_control_takes_a_time_a_row_and_comes_back_from_a_file(kind, dtype):
    control = kind(DENSE, RUNNING, TERMINAL).control
    x, t = points().to(dtype), torch.tensor([0.0, 0.25, 0.5, 0.5, 1.0], dtype=dtype)
    u = control(t, x)
    assert u.dtype == dtype
    for k in range(5):
        assert torch.allclose(u[k : k + 1], control(float(t[k]), x[k : k + 1]), rtol=1e-5)
    assert torch.allclose(decode(*encode(control))(t, x), u, rtol=1e-6)


def test_bad_problems_are_refused():
    eye = Quadratic.isotropic(1.0, 2)
    with pytest.raises((UnsupportedError, TypeError), match=r"linear process|LinearProcess"):
        Riccati(DriftProcess(lambda t, x: -x, 1.0), eye, eye)
    with pytest.raises(InvalidInputError, match="must agree"):
        Riccati(DENSE, Quadratic.isotropic(1.0, 3), Quadratic.isotropic(1.0, 3))
    with pytest.raises(InvalidInputError, match="symmetric"):
        Quadratic(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    with pytest.raises(InvalidInputError, match="matrix"):
        Quadratic(torch.ones(2, 3))
    with pytest.raises(InvalidInputError, match="finite"):
        Quadratic(torch.full((1, 1), math.nan))
    for kind in (Riccati, ChainRiccati):
        with pytest.raises(NonFiniteError, match="infinite"):
            _ = kind(BrownianMotion(1.0), Quadratic.isotropic(0.0, 1), Quadratic.isotropic(-1.0, 1)).value_function
