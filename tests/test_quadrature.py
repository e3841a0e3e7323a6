"""Dynamic programming on a line against Riccati, its limit, known values and simulation."""

import math

import pytest
import torch

from sbridge.benchmarks.quadrature import (
    Barrier,
    ChainOnLine,
    CoordinateControl,
    LimitOnLine,
    LineProblem,
    TabulatedControl,
)
from sbridge.errors import InvalidInputError, NonFiniteError, UnsupportedError
from sbridge.exact.riccati import ChainRiccati, Riccati
from sbridge.laws import Samples
from sbridge.measures import PathMeasure
from sbridge.problems import Quadratic
from sbridge.processes import BrownianMotion, DriftProcess, EulerMaruyama, ExactTransition, OrnsteinUhlenbeck
from sbridge.storage.registry import decode, encode
from sbridge.time import TimeGrid

RUNNING = Quadratic(torch.tensor([[0.6]], dtype=torch.float64), torch.tensor([0.4]), 0.1)
TERMINAL = Quadratic(torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([-1.0]))
OU = OrnsteinUhlenbeck(1.2, 0.8, mean=0.3)


def well(kappa):
    return DriftProcess(lambda t, x: -4.0 * kappa * x * (x.square() - 1.0), 1.0, dimension=1)


def one(t, x):
    return torch.ones_like(x[:, 0])


def line(**changes):
    return LineProblem(**{"process": OU, "start": 0.2, "low": -5.0, "high": 5.0} | changes)


QUADRATIC = line(running=RUNNING.running, terminal=TERMINAL)


@pytest.mark.parametrize("rule", [EulerMaruyama(), ExactTransition()])
def test_quadratic_chain_is_that_of_the_riccati_recursion(rule):
    grid = TimeGrid((0.0, 0.05, 0.2, 0.5, 0.6, 1.0))
    found = ChainOnLine(QUADRATIC, grid, rule).solve()
    chain = ChainRiccati(OU, RUNNING, TERMINAL, grid, rule)
    x = torch.tensor([[0.2]], dtype=torch.float64)
    assert found.tilted == pytest.approx(float(chain.tilted_value_function(x)), abs=1e-7)
    assert found.optimum == pytest.approx(float(chain.value_function(x)), abs=1e-7)
    assert found.energy == pytest.approx(float(chain.energy_function(x)), abs=1e-6)
    states = torch.linspace(-2.0, 2.0, 31, dtype=torch.float64).unsqueeze(1)
    for t in (0.0, 0.4, 0.97):
        assert torch.allclose(found.control(t, states), chain.control(t, states), atol=1e-6)


def test_quadratic_limit_is_that_of_the_riccati_equation():
    limit, riccati = LimitOnLine(QUADRATIC, 120), Riccati(OU, RUNNING, TERMINAL)
    x = torch.tensor([[0.2]], dtype=torch.float64)
    assert limit.value == pytest.approx(float(riccati.value_function(x)), abs=1e-9)
    assert limit.energy == pytest.approx(float(riccati.energy_function(x)), abs=1e-8)
    states = torch.linspace(-1.5, 1.5, 31, dtype=torch.float64).unsqueeze(1)
    times = torch.linspace(0.0, 1.0, 31, dtype=torch.float64)
    assert torch.allclose(limit(times, states), riccati.control(times, states), atol=1e-7)


@pytest.fixture(scope="module")
def wells():
    found = []
    for kappa, nu, half in ((5.0, 3.0, 1.9), (1.0, 1.0, 2.5)):

        def cost(x, nu=nu):
            return nu * (x[:, 0].square() - 1.0).square()

        problem = LineProblem(well(kappa), 0.0, -half, half, terminal=cost)
        found.append((ChainOnLine(problem, TimeGrid.uniform(200)).solve(), LimitOnLine(problem, 250)))
    return found


def test_double_wells_have_their_known_values(wells):
    (narrow, narrow_limit), (wide, wide_limit) = wells
    assert 3 * narrow_limit.value + 7 * wide_limit.value == pytest.approx(2.08743, abs=5e-6)
    assert 3 * narrow.tilted + 7 * wide.tilted == pytest.approx(2.14960, abs=5e-6)
    assert 3 * narrow.optimum + 7 * wide.optimum == pytest.approx(2.17820, abs=5e-6)


def test_laws_of_double_wells_are_symmetric_and_whole(wells):
    for chain, limit in wells:
        assert float((chain.masses[1:].sum(1) - 1.0).abs().max()) < 1e-8
        right = chain.masses[-1][chain.nodes > 0].sum()
        assert float(right) == pytest.approx(0.5, abs=1e-8)
        width = float(limit.points[1] - limit.points[0])
        for t in (0.05, 0.5, 1.0):
            assert float(limit.density(t).sum()) * width == pytest.approx(1.0, abs=1e-9)
        assert chain.energy == pytest.approx(limit.energy, rel=0.15)


def test_chain_tends_to_the_limit_at_first_order():
    problem = LineProblem(well(1.0), 0.3, -2.3, 2.3, terminal=lambda x: x[:, 0].square())
    limit = LimitOnLine(problem, 200)
    chains = [ChainOnLine(problem, TimeGrid.uniform(steps)).solve() for steps in (50, 100)]
    for name in ("tilted", "optimum"):
        coarse, fine = (getattr(chain, name) - limit.value for chain in chains)
        assert 0.9 < math.log2(coarse / fine) < 1.1, name
    assert chains[1].energy == pytest.approx(limit.energy, abs=1e-4)


def killed(barrier, high=0.01):
    return LineProblem(well(1.0), -1.0, -2.8, high, running=one, barrier=barrier)


def test_killed_well_has_its_known_values():
    # (c) and (a) agree with an independent program to its 5 decimals, (b) to 2e-5.
    assert LimitOnLine(killed(Barrier(0.0))).value == pytest.approx(0.91107, abs=5e-6)
    chain = ChainOnLine(killed(Barrier(0.0)), TimeGrid.uniform(150)).solve()
    assert chain.tilted == pytest.approx(0.922448, abs=1e-6)
    assert chain.optimum == pytest.approx(0.923253, abs=1e-6)
    corrected = ChainOnLine(killed(Barrier(0.0, between_knots=True)), TimeGrid.uniform(150)).solve()
    assert corrected.tilted == pytest.approx(0.911059, abs=1e-6)


def test_crossings_between_knots_remove_most_of_a_bias_of_order_one_half():
    limit = LimitOnLine(killed(Barrier(0.0))).value
    plain, corrected = (
        [ChainOnLine(killed(Barrier(0.0, between)), TimeGrid.uniform(n)).solve().tilted - limit for n in (50, 100)]
        for between in (False, True)
    )
    assert 0.35 < math.log2(plain[0] / plain[1]) < 0.6
    assert abs(corrected[0]) < 0.1 * plain[0]
    assert abs(corrected[1]) < 0.03 * plain[1]


def test_killed_chain_is_that_of_simulated_paths():
    grid = TimeGrid.uniform(20)
    chain = ChainOnLine(killed(Barrier(0.0)), grid).solve()
    start = Samples(torch.full((2, 1), -1.0, dtype=torch.float64))
    n = 100_000
    paths = PathMeasure(well(1.0), chain.control, start, grid=grid).sample(n, seed=3)
    alive = (paths.x[..., 0] >= 0).cumsum(0) == 0
    energy = (alive[:-1] * paths.v[..., 0].square()).sum(0) / 20
    time = alive[:-1].sum(0) / 20
    for values, expected in (
        (time + 0.5 * energy, chain.optimum),
        (energy, chain.energy),
        (alive[-1].double(), float(chain.masses[-1].sum())),
    ):
        assert abs(float(values.mean()) - expected) < 4.0 * float(values.std()) / math.sqrt(n)
    free = PathMeasure(well(1.0), None, start, grid=grid).sample(n, seed=4)
    alive = (free.x[..., 0] >= 0).cumsum(0) == 0
    weights = (-alive[:-1].sum(0) / 20).exp()
    assert abs(float(weights.mean()) - math.exp(-chain.tilted)) < 4.0 * float(weights.std()) / math.sqrt(n)


def test_cost_at_the_barrier_is_paid_there():
    # Brownian motion with f = 0 and g constant costs that constant, wherever it ends.
    problem = LineProblem(
        BrownianMotion(1.0), -0.5, -8.0, 0.5, terminal=lambda x: 0.7 + 0.0 * x[:, 0], barrier=Barrier(0.0)
    )
    assert LimitOnLine(problem).value == pytest.approx(0.7, abs=1e-6)
    chain = ChainOnLine(problem, TimeGrid.uniform(10)).solve()
    assert (chain.tilted, chain.optimum) == pytest.approx((0.7, 0.7), abs=1e-9)


def test_controls_of_coordinates_are_put_together(dtype):
    table = TabulatedControl(
        torch.tensor([0.0, 0.5], dtype=torch.float64),
        -1.0,
        0.5,
        torch.tensor([[-1.0, -0.125, 0.0, 0.125, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]], dtype=torch.float64),
    )
    x = torch.tensor([[0.3, 2.0, -0.7], [-0.25, 0.0, -5.0]], dtype=dtype)
    control = CoordinateControl((table, lambda t, x: 2.0 * x), (0, 1, 0))
    expected = torch.stack([x[:, 0] ** 3, 2.0 * x[:, 1], x[:, 2].clamp(-1.0) ** 3], 1)
    found = control(0.2, x)  # a cubic is interpolated exactly
    assert found.dtype == dtype
    assert torch.allclose(found, expected, atol=1e-6)
    later = control(torch.tensor([0.2, 0.5], dtype=dtype), x)
    assert torch.allclose(later[0], expected[0], atol=1e-6)
    assert torch.equal(later[1, [0, 2]], torch.ones(2, dtype=dtype))
    assert torch.equal(decode(*encode(table))(0.2, x[:, :1]), table(0.2, x[:, :1]))


def test_bad_problems_are_refused():
    with pytest.raises(InvalidInputError, match="dimension 1"):
        line(process=BrownianMotion(torch.ones(2)))
    with pytest.raises(InvalidInputError, match="between"):
        line(start=9.0)
    with pytest.raises(InvalidInputError, match="barrier"):
        line(barrier=Barrier(0.1))
    with pytest.raises(InvalidInputError, match="wider"):
        ChainOnLine(line(low=-0.5, high=0.5), TimeGrid.uniform(5)).solve()
    with pytest.raises(NonFiniteError, match="terminal cost"):
        ChainOnLine(line(terminal=lambda x: x[:, 0].log()), TimeGrid.uniform(5)).solve()
    with pytest.raises(UnsupportedError, match="constant in time"):
        LimitOnLine(line(running=lambda t, x: t * x[:, 0].square()))
    with pytest.raises(InvalidInputError, match="narrower"):
        LimitOnLine(line(process=OrnsteinUhlenbeck(-9.0, 0.8)))
