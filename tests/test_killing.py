"""Bridges of killed diffusions: marginals with the cemetery, a closed form, balances of mass."""

import math

import numpy as np
import pytest
import torch
from families import tensor
from scipy.integrate import trapezoid
from torch import Tensor

import sbridge as sb
from sbridge.errors import InvalidInputError, NotConvergedError
from sbridge.exact import KilledSinkhorn, killed_plan
from sbridge.pde import FortetSinkhorn, Grid, solve_killed
from sbridge.pde.kernels import propagated

START = sb.Gaussian(tensor([0.0]), tensor([[1.0]]))
LEFT = sb.Gaussian(tensor([-0.8]), tensor([[0.3]]))
BROWNIAN = sb.BrownianMotion(1.0)
GRID = Grid((-6.0,), (6.0,), (240,))
TIMES = sb.TimeGrid.uniform(40)


def well(t: float, x: Tensor) -> Tensor:
    return 2.0 * x.square().sum(1)


def solved(grid: Grid = GRID, times: sb.TimeGrid = TIMES, survival: float = 0.4, target: object = LEFT, **options):
    return solve_killed(BROWNIAN, START, target, grid, rate=well, survival=survival, times=times, **options)


@pytest.fixture(scope="module")
def killed():
    return solved()


def test_survivors_and_mass_are_those_that_are_known(killed):
    points = torch.from_numpy(GRID.points.numpy())
    wanted = 0.4 * LEFT.log_density(points).exp().numpy() / GRID.integrate(LEFT.log_density(points).exp().numpy())
    np.testing.assert_allclose(killed.density(1.0), wanted, rtol=0.0, atol=1e-8)
    assert killed.mass(1.0) == pytest.approx(0.4, abs=1e-8)
    start = START.log_density(points).exp().numpy()
    np.testing.assert_allclose(killed.density(0.0), start / GRID.integrate(start), rtol=0.0, atol=1e-12)
    died = GRID.integrate(killed.density(0.0) * killed.death_probability)
    assert died == pytest.approx(0.6, abs=1e-8)


def test_the_reference_survives_as_the_closed_form_says():
    """``E e^{−∫2X²}`` from N(0, 1), σ = T = 1: ``(cosh 2 (1 + 2 tanh 2))^{−½}`` (Cameron & Martin 1945)."""
    exact = (math.cosh(2.0) * (1.0 + 2.0 * math.tanh(2.0))) ** -0.5
    assert exact == pytest.approx(0.301293, abs=1e-6)
    coarse, fine = (
        solved(Grid((-6.0,), (6.0,), (cells,)), sb.TimeGrid.uniform(cells // 6)).reference_survival
        for cells in (120, 240)
    )
    assert fine == pytest.approx(exact, abs=2e-4)
    assert (4.0 * fine - coarse) / 3.0 == pytest.approx(exact, abs=2e-6)


def test_the_survivors_of_the_reference_leave_it_as_it_is(killed):
    """Then φ = 1: no control, and everyone dies at the rate V."""
    matrix = killed.reference.propagator.matrix(0, 40)
    living = matrix @ killed.density(0.0)
    mass = GRID.integrate(living)
    found = solved(survival=mass, target=living / mass)
    held = killed.density(0.0) > 1e-8
    for t in (0.0, 0.5, 1.0):
        np.testing.assert_allclose(found.log_phi(t)[held], 0.0, atol=1e-6)
    np.testing.assert_allclose(found.death_rate(0.5)[held], well(0.5, GRID.points).numpy()[held], rtol=1e-6)
    assert float(found.control(0.5, tensor([[-1.0], [0.7]])).abs().max()) < 1e-5


def test_the_plan_is_that_of_one_more_column(killed):
    """Plain proportional fitting of the killed kernel with a cemetery, in numbers."""
    kernel = np.exp(propagated(killed.reference.propagator, 0, 40).table()) * GRID.volume
    table = np.concatenate([kernel, 1.0 - kernel.sum(1, keepdims=True)], 1)
    a, b = killed.density(0.0) * GRID.volume, np.append(killed.density(1.0) * GRID.volume, 0.6)
    u = np.ones_like(a)
    for _ in range(500):
        v = b / (table.T @ (u * a))
        u = 1.0 / (table @ v)
    held = a > 1e-10
    wanted = (u * table[:, -1] * v[-1])[held]
    np.testing.assert_allclose(killed.death_probability[held], wanted, rtol=0.0, atol=1e-8)
    found = (killed.log_phi_end - killed.log_phi_end[120])[held]
    np.testing.assert_allclose(found, np.log(v[:-1] / v[120])[held], atol=1e-7)


def test_the_living_die_at_the_posterior_rate(killed):
    """``d mass/dt = −∫ (V/φ) p_t``, by the trapezoidal rule over the knots."""
    times = TIMES.times(1.0).numpy()
    lost = [GRID.integrate(killed.death_rate(t) * killed.density(t)) for t in times]
    masses = [killed.mass(t) for t in times]
    assert masses == sorted(masses, reverse=True)
    assert trapezoid(lost, times) == pytest.approx(0.6, abs=2e-3)


def test_simulated_paths_die_as_the_grid_says(killed):
    """Paths under the control, killed at V/φ: survivors in number and in place."""
    generator, steps, n = torch.Generator().manual_seed(0), 200, 4000
    x = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    alive = torch.ones(n, dtype=torch.bool)
    for k in range(steps):
        t = k / steps
        rate = torch.from_numpy(GRID.spline(killed.death_rate(t))(x.numpy()))
        alive &= torch.rand(n, generator=generator, dtype=torch.float64) > -torch.expm1(-rate / steps)
        noise = torch.randn(n, 1, generator=generator, dtype=torch.float64)
        x = x + killed.control(t, x) / steps + noise / math.sqrt(steps)
    share, living = float(alive.double().mean()), x[alive]
    assert share == pytest.approx(0.4, abs=5.0 * math.sqrt(0.24 / n) + 0.01)
    assert float(living.mean()) == pytest.approx(-0.8, abs=5.0 * math.sqrt(0.3 / len(living)) + 0.01)


def test_it_is_not_the_bridge_with_the_state_cost(killed):
    plain = sb.pde.solve_schroedinger(BROWNIAN, START, LEFT, GRID, state_cost=well, times=TIMES)
    living = killed.density(0.5) / killed.mass(0.5)
    assert 0.5 * GRID.integrate(np.abs(plain.density(0.5) - living)) > 0.02


def test_it_ends_in_exactly_the_iterations_that_it_may_take(killed):
    assert solved(options=FortetSinkhorn(max_iterations=killed.iterations)).iterations == killed.iterations
    with pytest.raises(NotConvergedError, match=f"after {killed.iterations - 1} iterations"):
        solved(options=FortetSinkhorn(max_iterations=killed.iterations - 1))


def test_bad_input_is_refused():
    for share in (0.0, 1.0, -0.5, math.nan):
        with pytest.raises(InvalidInputError, match="survival must lie strictly between 0 and 1"):
            solved(survival=share)
    with pytest.raises(InvalidInputError, match=r"killing rate must be 0 or more; the smallest at t = 0 is -"):
        solve_killed(BROWNIAN, START, LEFT, GRID, rate=lambda t, x: x[:, 0], survival=0.5)
    with pytest.raises(InvalidInputError, match="the rate kills nothing that starts in the source"):
        solve_killed(BROWNIAN, START, LEFT, GRID, rate=lambda t, x: 0.0 * x[:, 0], survival=0.5)
    with pytest.raises(NotConvergedError, match=r"survivors and dead are .* from their shares after 2 iterations"):
        solved(options=FortetSinkhorn(max_iterations=2))


# --- samples


def test_rows_die_as_the_grid_says(killed):
    """Quantiles of either end: every row within .02, and about as far off as its standard error says."""
    normal = torch.distributions.Normal(tensor(0.0), tensor(1.0))
    quantiles = normal.icdf((torch.arange(100, dtype=torch.float64) + 0.5) / 100)[:, None]
    found = killed_plan(quantiles, 0.3**0.5 * quantiles - 0.8, BROWNIAN, rate=well, survival=0.4, seed=0)
    wanted = torch.from_numpy(GRID.spline(killed.death_probability)(quantiles.numpy()))
    assert float((found.death_probability - wanted).abs().max()) < 0.02
    assert float(found.plan.sum()) == pytest.approx(0.4, abs=1e-8)
    assert float(found.death_probability.mean()) == pytest.approx(0.6, abs=1e-8)
    torch.testing.assert_close(found.plan.sum(0), torch.full((100,), 0.004, dtype=torch.float64), rtol=1e-6, atol=0.0)
    assert found.reference_survival == pytest.approx(killed.reference_survival, abs=0.008)
    assert 0.1 < float(((found.death_probability - wanted) / found.standard_error).square().mean().sqrt()) < 3.0


def test_rows_in_the_plane_die_as_on_the_line():
    """A second column that neither the rate nor the target depends on changes nothing; nor does float32."""
    line = torch.linspace(-1.5, 1.5, 12, dtype=torch.float64)[:, None]
    plane = torch.cartesian_prod(line[:, 0], torch.tensor([-0.5, 0.5], dtype=torch.float64))
    options = KilledSinkhorn(paths=512)
    one = killed_plan(line, line, BROWNIAN, rate=well, survival=0.4, seed=1, options=options)
    two = killed_plan(
        plane, plane, BROWNIAN, rate=lambda t, x: 2.0 * x[:, 0].square(), survival=0.4, seed=2, options=options
    )
    errors = (one.standard_error.square() + two.standard_error[::2].square()).sqrt()
    assert bool(((one.death_probability - two.death_probability[::2]).abs() < 5.0 * errors + 1e-3).all())
    single = killed_plan(line.float(), line.float(), BROWNIAN, rate=well, survival=0.4, seed=1, options=options)
    torch.testing.assert_close(single.death_probability, one.death_probability, rtol=0.0, atol=1e-5)


def test_plans_refuse_what_they_cannot_use():
    rows = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64)[:, None]
    for share in (0.0, 1.0):
        with pytest.raises(InvalidInputError, match="survival must lie strictly between 0 and 1"):
            killed_plan(rows, rows, BROWNIAN, rate=well, survival=share, seed=0)
    with pytest.raises(InvalidInputError, match="a killing rate must be 0 or more; got -1 at t = 0"):
        killed_plan(rows, rows, BROWNIAN, rate=lambda t, x: x[:, 0], survival=0.5, seed=0)
    with pytest.raises(InvalidInputError, match="paths must be a multiple of 16"):
        KilledSinkhorn(paths=10)
    with pytest.raises(NotConvergedError, match="from their shares after 1 iterations"):
        killed_plan(rows, rows, BROWNIAN, rate=well, survival=0.4, seed=0, options=KilledSinkhorn(max_iterations=1))
