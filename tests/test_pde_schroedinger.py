"""The Schrödinger system on a grid against closed forms in one and two dimensions."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from sbridge.errors import InvalidInputError, NotConvergedError, UnsupportedError
from sbridge.fitting import solve
from sbridge.laws import Gaussian, GaussianMixture
from sbridge.pde import FortetSinkhorn, Grid, grid_around, half_steps, solve_schroedinger
from sbridge.pde.densities import log_density_on
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion, DriftProcess, OrnsteinUhlenbeck, VariancePreserving
from sbridge.solvers import GaussianBridge


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


LEFT, RIGHT = Gaussian(tensor([0.3]), tensor([[0.5]])), Gaussian(tensor([-0.4]), tensor([[1.2]]))
OU = OrnsteinUhlenbeck(rate=0.7, sigma=0.9, mean=0.2)
X = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("process", [OU, BrownianMotion(0.6, horizon=1.5), VariancePreserving()])
def test_gaussian_ends_have_the_closed_form(process):
    bridge = solve_schroedinger(process, LEFT, RIGHT, grid_around(LEFT, RIGHT, cells=200))
    exact = solve(BridgeProblem(LEFT, RIGHT, process), GaussianBridge(), seed=0)
    for share in (0.0, 0.3, 0.9, 1.0):
        t = share * process.horizon
        assert torch.allclose(bridge.control(t, X), exact.forward.control(t, X), atol=1e-7)
        if t > 0:
            assert torch.allclose(bridge.backward_control(t, X), exact.backward.control(t, X), atol=1e-7)
    assert torch.allclose(bridge.conditional_mean(X), exact.conditional_mean(X, seed=0), atol=1e-7)
    variance = exact.forward.end_kernel.coupling.end_covariance
    assert abs(bridge.end_moments[1][0, 0, 100] - float(variance)) < 1e-7


def test_static_value_is_dynamic_value_and_marginals_have_mass_one():
    bridge = solve_schroedinger(OU, LEFT, RIGHT, grid_around(LEFT, RIGHT, cells=200))
    assert bridge.value == pytest.approx(bridge.energy, rel=1e-8)
    for t in (0.0, 0.2, 0.7, 1.0):
        assert abs(bridge.grid.integrate(bridge.density(t)) - 1.0) < 1e-9
    np.testing.assert_allclose(bridge.density(1.0), np.exp(bridge.log_end), atol=1e-10)
    table = bridge.transition(0.2, 0.7)
    inside = np.abs(bridge.grid.centres[0]) < 4.0  # from farther out mass leaves the grid
    np.testing.assert_allclose(table.sum(1)[inside] * bridge.grid.volume, 1.0, atol=1e-8)
    moved = bridge.density(0.2) @ table * bridge.grid.volume
    np.testing.assert_allclose(moved, bridge.density(0.7), atol=1e-9)


def test_a_mixture_potential_gives_back_its_tilt():
    """``p_1`` made by ``φ(T) = Σ w N(y; μ, s²)`` has that function as its potential, up to a factor."""
    grid, start = Grid.of(-8.0, 8.0, 240), Gaussian(tensor([0.0]), tensor([[1.0]]))
    tilt = GaussianMixture(tensor([0.4, 0.6]), tensor([[-2.0], [1.5]]), tensor([[[0.3]], [[0.6]]]))
    process = BrownianMotion(0.8)
    log_tilt = log_density_on(tilt, grid)
    x = grid.centres[0]
    kernel = np.exp(-0.5 * ((x - x[:, None]) / 0.8) ** 2) / (0.8 * np.sqrt(2 * np.pi)) * grid.volume
    p0 = np.exp(log_density_on(start, grid))
    p1 = np.exp(log_tilt) * (kernel.T @ (p0 / (kernel @ np.exp(log_tilt))))
    bridge = solve_schroedinger(process, start, p1 / grid.integrate(p1), grid)
    gap = (bridge.log_phi_end - log_tilt)[np.abs(x) < 4.0]
    assert np.ptp(gap) < 1e-6


def test_two_dimensions_agree_with_the_closed_form():
    a, b = (
        Gaussian(tensor([0.3, -0.2]), tensor([[0.6, 0.2], [0.2, 0.5]])),
        Gaussian(tensor([0.0, 0.4]), torch.eye(2).double()),
    )
    process = OrnsteinUhlenbeck(rate=tensor([0.5, 1.0]), sigma=tensor([1.0, 0.8]))
    bridge = solve_schroedinger(process, a, b, grid_around(a, b, cells=72, deviations=6.5))
    exact = solve(BridgeProblem(a, b, process), GaussianBridge(), seed=0)
    x = tensor([[0.1, 0.2], [-0.5, 0.4], [1.0, -0.7]])
    for t in (0.0, 0.5):
        assert torch.allclose(bridge.control(t, x), exact.forward.control(t, x), atol=1e-4)


def test_a_propagated_reference_converges_to_the_exact_one_at_second_order():
    drifting, errors = DriftProcess(OU.drift, 0.9), []
    exact = solve_schroedinger(OU, LEFT, RIGHT, grid_around(LEFT, RIGHT, cells=200))
    for cells in (60, 120):
        bridge = solve_schroedinger(drifting, LEFT, RIGHT, grid_around(LEFT, RIGHT, cells=cells))
        errors.append(abs(bridge.value - exact.value))
    assert 1.7 < np.log2(errors[0] / errors[1]) < 2.3


def test_half_steps_fit_one_marginal_each():
    grid = grid_around(LEFT, RIGHT, cells=150)
    start, end = (log_density_on(law, grid) for law in (LEFT, RIGHT))
    bridge = solve_schroedinger(OU, LEFT, RIGHT, grid)
    steps, errors = half_steps(bridge.reference.whole, start, end), []
    for _, step in zip(range(12), steps, strict=False):
        if step.log_phi_start is not None:
            np.testing.assert_allclose(step.log_phi_start + step.log_phi_hat_start, start, atol=1e-12)
        elif step.error is not None:
            errors.append(step.error)
    assert all(later < earlier for earlier, later in pairwise(errors))


def test_bad_input_is_told():
    grid = grid_around(LEFT, RIGHT, cells=100)
    with pytest.raises(NotConvergedError, match="Raise max_iterations"):
        solve_schroedinger(OU, LEFT, RIGHT, grid, options=FortetSinkhorn(1e-12, 2))
    with pytest.raises(InvalidInputError, match="misses mass"):
        solve_schroedinger(OU, LEFT, RIGHT, Grid.of(-1.0, 1.0, 50))
    with pytest.raises(InvalidInputError, match="use more cells"):
        solve_schroedinger(BrownianMotion(0.01), LEFT, RIGHT, grid)
    with pytest.raises(InvalidInputError, match="dimension 2, the grid 1"):
        solve_schroedinger(BrownianMotion(tensor([1.0, 2.0])), LEFT, RIGHT, grid)
    with pytest.raises(InvalidInputError, match="mass"):
        solve_schroedinger(OU, LEFT, -np.ones(100), grid)
    dense = BrownianMotion(tensor([[1.0, 0.3], [0.0, 1.0]]))
    plane = Gaussian(tensor([0.0, 0.0]), torch.eye(2).double())
    with pytest.raises(UnsupportedError, match="too large"):
        solve_schroedinger(dense, plane, plane, grid_around(plane, cells=70))
