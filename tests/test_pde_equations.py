"""Grid solutions of the evolution equations against closed forms, with their orders measured."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from sbridge.errors import InvalidInputError, NonFiniteError, UnsupportedError
from sbridge.laws import Density, Gaussian, GaussianMixture, Samples
from sbridge.pde import (
    CRANK_NICOLSON,
    IMPLICIT_EULER,
    L_STABLE,
    Grid,
    Histogram,
    KernelDensity,
    Propagator,
    amplification,
    backward_kolmogorov,
    density_on,
    fokker_planck,
    grid_around,
    hamilton_jacobi_bellman,
    heat_kernel,
    heat_spectral,
    log_density_on,
    wavenumbers,
)
from sbridge.processes import BrownianMotion, DriftProcess, OrnsteinUhlenbeck, VariancePreserving
from sbridge.time import TimeGrid


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


MIXTURE = GaussianMixture(tensor([0.4, 0.6]), tensor([[-1.0], [1.2]]), tensor([[[0.2]], [[0.3]]]))
PLANE = GaussianMixture(
    tensor([0.4, 0.6]), tensor([[-1.0, 0.3], [1.0, -0.5]]), tensor([[[0.3, 0.1], [0.1, 0.4]], [[0.4, 0.0], [0.0, 0.3]]])
)
OU = OrnsteinUhlenbeck(rate=0.8, sigma=0.9, mean=0.3)
WELL = DriftProcess(lambda t, x: 2.0 * (1.5 * x).sin() - 0.5 * x + torch.as_tensor(t), 0.8)


def noised(process, law, t):
    step = process.transition(0.0, t)
    dim = law.dim
    phi, q = step.map.expanded(dim), step.covariance.expanded(dim)
    return GaussianMixture(law.weights, step.mean(law.means), phi @ law.covariances @ phi.mT + q)


def order(errors):
    return np.log2(np.array(errors[:-1]) / np.array(errors[1:]))


# Grids and densities


def test_integrals_and_differences_of_smooth_functions():
    grid = Grid.of((-7.0, -8.0), (7.0, 8.0), (80, 90))
    density = density_on(PLANE, grid)
    x, y = np.meshgrid(*grid.centres, indexing="ij")
    assert abs(grid.integrate(density) - 1.0) < 1e-14
    assert abs(grid.integrate(density * x) - float(PLANE.weights @ PLANE.means[:, 0])) < 1e-8
    np.testing.assert_allclose(grid.gradient(np.sin(x) * y**2), [np.cos(x) * y**2, np.sin(x) * 2 * y], atol=1e-6)
    np.testing.assert_allclose(grid.difference(np.sin(x) * y**3, 1, 2), 6 * y * np.sin(x), atol=1e-8)


def test_splines_interpolate_to_sixth_order():
    points, errors, slopes = np.array([[0.317], [-0.771], [1.999]]), [], []
    for cells in (20, 40, 80):
        grid = Grid.of(-3.0, 3.0, cells)
        spline = grid.spline(np.sin(2 * grid.centres[0]))
        errors.append(np.abs(spline(points) - np.sin(2 * points[:, 0])).max())
        slopes.append(np.abs(spline.gradient(points) - 2 * np.cos(2 * points)).max())
    assert (order(errors) > 5).all()
    assert (order(slopes) > 4).all()


def test_density_of_samples():
    rows = MIXTURE.sample(500, torch.Generator().manual_seed(0))
    grid = grid_around(Samples(rows), cells=200)
    smooth, rough = (density_on(Samples(rows), grid, e) for e in (KernelDensity(0.2), Histogram()))
    exact = GaussianMixture(tensor([0.002] * 500), rows, tensor([[[0.04]]] * 500))
    np.testing.assert_allclose(smooth, exact.log_density(grid.points).exp().numpy(), atol=1e-12)
    counts = np.histogram(rows.numpy()[:, 0], bins=200, range=(grid.low[0], grid.high[0]))[0]
    np.testing.assert_allclose(rough * grid.volume * 500, counts, atol=1e-10)


def test_the_default_bandwidth_is_scotts():
    """``n^{−1/(dim+4)}`` standard deviations along each axis, with ``1/Σw²`` for ``n`` if the points are weighted."""
    g = torch.Generator().manual_seed(1)
    rows, weights = PLANE.sample(200, g) * tensor([1.0, 3.0]), torch.rand(200, generator=g, dtype=torch.float64)
    weights = weights / weights.sum()
    for law in (Samples(rows), Samples(rows, weights), Samples(rows[:, :1], weights)):
        share = torch.full_like(weights, 1.0 / 200.0) if law.weights is None else weights
        variances = share @ (law.rows - share @ law.rows).square()
        widths = variances * share.square().sum() ** (2.0 / (law.dim + 4))
        grid = grid_around(law, cells=60, deviations=30.0)
        exact = GaussianMixture(share, law.rows, widths.diag().expand(200, -1, -1))
        np.testing.assert_allclose(density_on(law, grid), density_on(exact, grid), rtol=1e-9, atol=1e-12)


def test_the_grid_around_samples_moves_with_them():
    rows = MIXTURE.sample(100, torch.Generator().manual_seed(0))
    here, there = (grid_around(Samples(one), cells=10) for one in (rows, rows + 50.0))
    np.testing.assert_allclose(np.subtract(there.low, here.low), 50.0, rtol=1e-9)
    np.testing.assert_allclose(np.subtract(there.high, here.high), 50.0, rtol=1e-9)


def test_unnormalised_density_is_the_normalised_one():
    grid = Grid.of(-6.0, 6.0, 150)
    free = Density(lambda x: MIXTURE.log_density(x) + 12.0, 1)
    np.testing.assert_allclose(log_density_on(free, grid), log_density_on(MIXTURE, grid), atol=1e-12)


@pytest.mark.parametrize("law", [MIXTURE, Density(MIXTURE.log_density, 1)])
def test_a_grid_that_misses_mass_is_refused_with_bounds_that_do(law):
    with pytest.raises(InvalidInputError, match=r"misses mass: 0\.18 of the distribution.*Sufficient bounds") as caught:
        density_on(law, Grid.of(-4.0, 1.5, 100))
    numbers = str(caught.value).split("low = (")[1].replace("), high = (", " ").rstrip(").").split()
    low, high = map(float, numbers)
    assert abs(Grid.of(low, high, 200).integrate(density_on(law, Grid.of(low - 0.01, high + 0.01, 200))) - 1) < 0.01
    assert -4.0 < low < -2.5
    assert 3.0 < high < 5.0


def test_sufficient_bounds_are_the_edges_of_the_cells_with_mass():
    block = Density(lambda x: torch.where((x[:, 0] > 1.0) & (x[:, 0] < 2.0), 0.0, -torch.inf).double(), 1)
    with pytest.raises(InvalidInputError, match=r"low = \(1\), high = \(2\)"):
        density_on(block, Grid.of(0.0, 1.5, 15))


def test_bad_grids_and_densities_are_told():
    with pytest.raises(InvalidInputError, match="one or two dimensions"):
        Grid.of((0.0, 0.0, 0.0), 1.0, 20)
    with pytest.raises(InvalidInputError, match="low < high"):
        Grid.of(1.0, 0.0, 20)
    with pytest.raises(InvalidInputError, match="at least 10"):
        Grid.of(0.0, 1.0, 5)
    with pytest.raises(InvalidInputError, match="twice as many cells"):
        density_on(Gaussian(tensor([0.5]), tensor([[1e-4]])), Grid.of(-5.0, 5.0, 50))
    with pytest.raises(InvalidInputError, match="dimension 2, the grid has 1"):
        density_on(PLANE, Grid.of(-5.0, 5.0, 50))
    rows = Samples(tensor([[0.0], [3.0]]))
    with pytest.raises(InvalidInputError, match=r"misses mass: 0\.5 .*high = \(3\)"):
        density_on(rows, Grid.of(-1.0, 2.0, 50), Histogram())
    with pytest.raises(InvalidInputError, match="a constant coordinate"):
        density_on(Samples(tensor([[1.0], [1.0]])), Grid.of(-1.0, 2.0, 50))
    with pytest.raises(InvalidInputError, match="shape"):
        Grid.of(0.0, 1.0, 20).integrate(np.ones(7))


# Heat


def test_heat_spectral_is_heat_kernel_is_closed_form():
    grid, sigma, t = Grid.of(-9.0, 9.0, 160), 0.7, 0.6
    start = density_on(MIXTURE, grid)
    exact = density_on(noised(BrownianMotion(sigma), MIXTURE, t), grid)
    np.testing.assert_allclose(heat_spectral(grid, start, sigma, t), exact, atol=1e-13)
    np.testing.assert_allclose(heat_kernel(grid, start, sigma, t), exact, atol=1e-13)


def test_backward_heat_amplifies_each_mode():
    grid, sigma, t = Grid.of(0.0, 2 * math.pi, 64), 0.5, 0.4
    x = grid.centres[0]
    for k in (1, 5, 20):
        clean = np.sin(x)
        noisy = heat_spectral(grid, clean + 1e-6 * np.cos(k * x), sigma, -t)
        grown = noisy - heat_spectral(grid, clean, sigma, -t)
        factor = np.abs(np.fft.rfft(grown)[k]) / 32 / 1e-6
        assert abs(factor / math.exp(0.5 * sigma**2 * k**2 * t) - 1.0) < 1e-4
    assert wavenumbers(grid)[3] == pytest.approx(3.0)
    start = density_on(MIXTURE, wide := Grid.of(-9.0, 9.0, 200))
    later = heat_spectral(wide, start, 0.7, 0.3)
    back = heat_spectral(wide, later, 0.7, -0.3)
    assert np.abs(back - start).max() > 1e3  # rounding alone
    assert np.abs(heat_spectral(wide, later, 0.7, -0.3, highest=9.0) - start).max() < 1e-3
    assert amplification(8.0, 0.7, -0.3) == pytest.approx(math.exp(0.5 * 0.49 * 64 * 0.3))
    with pytest.raises(NonFiniteError, match="amplifies the highest mode"):
        heat_spectral(wide, start, 0.7, -10.0)
    with pytest.raises(InvalidInputError, match=r"at least 1\.2 cells"):
        heat_kernel(wide, start, 0.1, 1e-4)


# Fokker–Planck


@pytest.mark.parametrize("process", [OU, WELL, VariancePreserving()], ids=["ou", "well", "vp"])
@pytest.mark.parametrize("scheme", [IMPLICIT_EULER, CRANK_NICOLSON, L_STABLE], ids=["euler", "cn", "l-stable"])
def test_fokker_planck_conserves_mass_and_sign(process, scheme):
    grid = Grid.of(-6.0, 6.0, 150)
    block = np.where(np.abs(grid.centres[0]) < 0.5, 1.0, 0.0)
    found = fokker_planck(process, grid, block / grid.integrate(block), TimeGrid.uniform(20), scheme=scheme)
    assert np.abs(found.mass - 1.0).max() <= 1e-12
    assert found.density.min() >= 0.0


def test_steps_are_as_few_as_keep_densities_positive():
    """The rate rises with time, so that the last step of an interval says how many there must be."""
    rising = DriftProcess(lambda t, x: -2.0 * t**4 * x, 0.9, horizon=2.0)
    grid, knots = Grid.of(-4.0, 4.0, 40), np.array([1.0, 1.7, 2.0])
    propagator = Propagator(rising, grid, knots)
    for k, (start, end) in enumerate(pairwise(knots)):
        steps = propagator._steps[k]

        def fits(count, start=start, end=end):
            span = (end - start) / count
            return L_STABLE.explicit * span * propagator.generator(end - 0.5 * span).rate <= 1.0  # 1 + explicit·ΔA ≥ 0

        assert sum(step.span for step in steps) == pytest.approx(end - start)
        assert len(steps) > 5
        assert fits(len(steps))
        assert not fits(len(steps) - 1)


def test_fokker_planck_in_the_plane_conserves_mass_and_sign():
    grid = Grid.of((-6.0, -5.0), (6.0, 5.0), (40, 30))
    turning = DriftProcess(lambda t, x: torch.stack([x[:, 1] - x[:, 0], -x[:, 0] - x[:, 1]], 1), tensor([0.7, 1.0]))
    found = fokker_planck(turning, grid, PLANE, TimeGrid.uniform(20))
    assert np.abs(found.mass - 1.0).max() <= 1e-12
    assert found.density.min() >= 0.0


def test_rows_of_the_plane_do_not_see_each_other():
    """Axes that do not mix move like two intervals, up to the very boundary."""
    plane, line = Grid.of((0.0, 0.0), (1.0, 1.0), (20, 20)), Grid.of(0.0, 1.0, 20)
    corner = np.where(line.centres[0] > 0.7, 1.0, 0.2)
    corner = corner / line.integrate(corner)
    drift = DriftProcess(lambda t, x: 1.0 + x, 0.3)
    alone = fokker_planck(drift, line, corner, TimeGrid.uniform(300)).density[-1]
    both = fokker_planck(drift, plane, np.outer(corner, corner), TimeGrid.uniform(300)).density[-1]
    np.testing.assert_allclose(both, np.outer(alone, alone), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("process", [OU, VariancePreserving()], ids=["ou", "vp"])
def test_fokker_planck_is_second_order_in_space_and_time(process):
    errors = []
    for cells in (60, 120, 240):
        grid = Grid.of(-6.0, 6.0, cells)
        exact = density_on(noised(process, MIXTURE, 1.0), grid)
        errors.append(np.abs(fokker_planck(process, grid, MIXTURE, TimeGrid.uniform(cells)).density[-1] - exact).max())
    assert np.abs(order(errors) - 2.0).max() < 0.2
    assert errors[-1] < 2e-3


@pytest.mark.parametrize(("scheme", "stated"), [(IMPLICIT_EULER, 1), (CRANK_NICOLSON, 2), (L_STABLE, 2)])
def test_orders_in_time(scheme, stated):
    grid = Grid.of(-5.0, 5.0, 40)
    waves = DriftProcess(lambda t, x: x.sin() * (1.0 + 3.0 * torch.as_tensor(t)).sin() - x, 0.8)

    def end(steps):
        return fokker_planck(waves, grid, MIXTURE, TimeGrid.uniform(steps), scheme=scheme).density[-1]

    ends = [end(steps) for steps in (40, 80, 160, 320)]
    changes = [np.abs(a - b).max() for a, b in pairwise(ends)]
    assert np.abs(order(changes) - stated).max() < 0.2


def test_fokker_planck_in_the_plane_is_second_order():
    process, errors = OrnsteinUhlenbeck(rate=tensor([[1.0, 0.6], [-0.6, 0.5]]), sigma=tensor([0.8, 1.0])), []
    for cells in (30, 60, 120):
        grid = Grid.of((-5.5, -5.5), (5.5, 5.5), cells)
        exact = density_on(noised(process, PLANE, 1.0), grid)
        errors.append(np.abs(fokker_planck(process, grid, PLANE, TimeGrid.uniform(cells)).density[-1] - exact).max())
    assert np.abs(order(errors) - 2.0).max() < 0.2


def test_a_control_is_a_drift():
    grid = Grid.of(-5.0, 5.0, 80)
    steered = fokker_planck(BrownianMotion(0.8), grid, MIXTURE, control=lambda t, x: -x.sin())
    drifting = fokker_planck(DriftProcess(lambda t, x: -0.8 * x.sin(), 0.8), grid, MIXTURE)
    np.testing.assert_allclose(steered.density, drifting.density, atol=1e-14)


def test_flux_is_that_of_the_density_and_its_divergence_moves_it():
    errors, balance = [], []
    for cells in (60, 120, 240):
        grid = Grid.of(-6.0, 6.0, cells)
        found = fokker_planck(OU, grid, MIXTURE, TimeGrid.uniform(200))
        (flux,) = found.flux(100)
        faces = grid.faces(0).requires_grad_()
        density = noised(OU, MIXTURE, 0.5).log_density(faces).exp()
        (slope,) = torch.autograd.grad(density.sum(), faces)
        exact = (OU.drift(0.5, faces)[:, 0] * density - 0.5 * 0.81 * slope[:, 0]).detach().numpy()
        errors.append(np.abs(flux[1:-1] - exact).max())
        rate = (found.density[101] - found.density[99]) / 0.01
        balance.append(np.abs(np.diff(flux) / grid.widths[0] + rate).max())
    assert flux[0] == flux[-1] == 0.0
    assert np.abs(order(errors) - 2.0).max() < 0.2
    assert max(balance) < 1e-3


def test_killing_takes_the_mass_that_feynman_kac_says():
    grid = Grid.of(-6.0, 6.0, 120)

    def cost(t, x):
        return x[:, 0].square() - 0.5

    found = fokker_planck(WELL, grid, MIXTURE, state_cost=cost)
    survival = backward_kolmogorov(WELL, grid, np.ones(grid.shape), state_cost=cost)
    assert found.mass[-1] == pytest.approx(grid.integrate(survival[0] * found.density[0]), abs=1e-13)
    assert abs(found.mass[-1] - 1.0) > 0.1


# Backward equations


def test_backward_is_the_adjoint_of_forward():
    grid = Grid.of(-6.0, 6.0, 90)
    payoff = np.tanh(grid.centres[0])
    p, phi = fokker_planck(WELL, grid, MIXTURE).density, backward_kolmogorov(WELL, grid, payoff)
    pairing = (p * phi).sum(1)
    assert np.abs(pairing / pairing[0] - 1.0).max() < 1e-12
    plane = Grid.of((-5.0, -5.0), (5.0, 5.0), (24, 30))
    payoff = np.tanh(plane.centres[0])[:, None] * np.cos(plane.centres[1])
    process = DriftProcess(lambda t, x: torch.stack([x[:, 1] - x[:, 0], -x[:, 0] - x[:, 1]], 1), 0.9)

    def cost(t, x):
        return x[:, 0].sin()

    p = fokker_planck(process, plane, PLANE, state_cost=cost).density
    phi = backward_kolmogorov(process, plane, payoff, state_cost=cost)
    pairing = (p * phi).reshape(101, -1).sum(1)
    assert np.abs(pairing / pairing[0] - 1.0).max() < 1e-12


def test_backward_kolmogorov_with_a_polynomial():
    errors = []
    for cells in (120, 240, 480):
        grid = Grid.of(-9.0, 9.0, cells)
        x = grid.centres[0]
        found = backward_kolmogorov(OU, grid, x**3 - x, TimeGrid.uniform(cells))[0]
        step = OU.transition(0.0, 1.0)
        mean, var = step.mean(grid.points)[:, 0].numpy(), float(step.covariance.values)
        gaps = found - (mean**3 + 3 * mean * var - mean)
        errors.append(np.sqrt(grid.integrate(density_on(MIXTURE, grid) * gaps**2)))
    assert np.abs(order(errors) - 2.0).max() < 0.2


def test_killed_brownian_motion_in_closed_form():
    k, sigma, errors = 1.3, 0.8, []
    for cells in (60, 120, 240):
        grid = Grid.of(-7.0, 7.0, cells)
        found = backward_kolmogorov(
            BrownianMotion(sigma),
            grid,
            np.ones(grid.shape),
            TimeGrid.uniform(cells // 2),
            state_cost=lambda t, x: 0.5 * k**2 * x[:, 0].square(),
        )[0]
        bell = np.exp(-0.5 * k / sigma * grid.centres[0] ** 2 * math.tanh(k * sigma))
        errors.append(np.abs(found - math.cosh(k * sigma) ** -0.5 * bell).max())
    assert np.abs(order(errors) - 2.0).max() < 0.2


def test_hjb_is_the_riccati_solution():
    """``V = f x²``, ``g = q x²``, ``b = a x``: ``J = F x² + c`` with ``−F' = 2aF − 2σ²F² + f``, ``−c' = σ²F``."""
    a, f, q, sigma, steps = -0.5, 0.3, 2.0, 0.7, 4000
    curvature, constant = q, 0.0
    for _ in range(steps):
        rate = [0.0, 0.0]
        middle = curvature + 0.5 / steps * (2 * a * curvature - 2 * sigma**2 * curvature**2 + f)
        rate = [2 * a * middle - 2 * sigma**2 * middle**2 + f, sigma**2 * middle]
        curvature, constant = curvature + rate[0] / steps, constant + rate[1] / steps
    errors = []
    for cells in (100, 200, 400):
        grid = Grid.of(-6.0, 6.0, cells)
        found = hamilton_jacobi_bellman(
            DriftProcess(lambda t, x: a * x, sigma),
            grid,
            lambda x: q * x[:, 0].square(),
            TimeGrid.uniform(cells),
            state_cost=lambda t, x: f * x[:, 0].square(),
        )[0]
        x = grid.centres[0]
        errors.append(np.abs(found - curvature * x**2 - constant)[np.abs(x) < 1.5].max())
    assert np.abs(order(errors) - 2.0).max() < 0.2


def test_bad_input_of_equations_is_told():
    grid = Grid.of(-6.0, 6.0, 50)
    plane = Grid.of((-6.0, -6.0), (6.0, 6.0), 20)
    full = OrnsteinUhlenbeck(rate=1.0, sigma=tensor([[1.0, 0.4], [0.0, 0.6]]))
    with pytest.raises(UnsupportedError, match="scalar or diagonal"):
        fokker_planck(full, plane, PLANE)
    with pytest.raises(InvalidInputError, match="process has dimension 2, the grid has 1"):
        Propagator(full, grid, np.array([0.0, 1.0]))
    with pytest.raises(InvalidInputError, match="increasing times"):
        Propagator(OU, grid, np.array([0.0, 0.0]))
    with pytest.raises(InvalidInputError, match="non-negative"):
        fokker_planck(OU, grid, -np.ones(50))
    with pytest.raises(NonFiniteError, match="drift"):
        fokker_planck(DriftProcess(lambda t, x: x / 0.0, 1.0), grid, MIXTURE)
    with pytest.raises(InvalidInputError, match="state cost maps"):
        backward_kolmogorov(OU, grid, np.ones(50), state_cost=lambda t, x: x)
    with pytest.raises(NonFiniteError, match="state cost is NaN"):
        backward_kolmogorov(OU, grid, np.ones(50), state_cost=lambda t, x: x[:, 0].log())
    with pytest.raises(InvalidInputError, match="more than 200000 steps"):
        fokker_planck(BrownianMotion(100.0), Grid.of(-6.0, 6.0, 2000), MIXTURE)
