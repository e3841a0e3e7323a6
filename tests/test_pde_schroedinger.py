"""The Schrödinger system on a grid against closed forms, Sinkhorn on the same points, and itself."""

import math

import numpy as np
import pytest
import torch
from families import ON_A_LINE

from sbridge.errors import InvalidInputError, NotConvergedError, UnsupportedError
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.laws import Gaussian, GaussianMixture, Samples
from sbridge.linear import LinearMap
from sbridge.measures import PathMeasure
from sbridge.pde import (
    FortetSinkhorn,
    Grid,
    GridAction,
    Histogram,
    KernelDensity,
    SpaceTime,
    density_on,
    fokker_planck,
    half_steps,
    solve_schroedinger,
)
from sbridge.pde.kernels import gaussian_kernel, resolved_in_end, resolved_in_start
from sbridge.processes import BrownianMotion, DriftProcess, OrnsteinUhlenbeck, Transition
from sbridge.time import TimeGrid
from sbridge.transport import EntropicProblem, Sinkhorn, entropic_plan, sinkhorn


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


START, END = Gaussian(tensor([-0.5]), tensor([[0.4]])), Gaussian(tensor([1.0]), tensor([[0.8]]))
MIXTURE = GaussianMixture(tensor([0.4, 0.6]), tensor([[-1.0], [1.2]]), tensor([[[0.2]], [[0.3]]]))
PLANE0 = Gaussian(tensor([0.0, -0.5]), tensor([[0.5, 0.1], [0.1, 0.4]]))
PLANE1 = Gaussian(tensor([0.5, 0.5]), tensor([[0.6, -0.2], [-0.2, 0.5]]))
LINE, PLANE = Grid.of(-8.0, 8.0, 160), Grid.of((-5.0, -5.0), (5.0, 5.0), 40)
STATES = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[:, None]


def coupling(process, start, end):
    return GaussianCoupling(start.mean, start.covariance, end.mean, end.covariance, process)


def controls_agree(bridge, exact, x, tolerance):
    for fraction in (0.0, 1e-4, 0.02, 0.4, 0.9, 0.9999, 1.0):
        t = fraction * bridge.process.horizon
        for found, (gain, offset) in (
            (bridge.control(t, x), exact.forward_gain(t)),
            (bridge.backward_control(t, x), exact.backward_gain(t)),
        ):
            torch.testing.assert_close(found, x @ gain.mT + offset, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ON_A_LINE)
def test_gaussian_ends_give_the_gaussian_bridge(name):
    process = ON_A_LINE[name]
    bridge, exact = solve_schroedinger(process, START, END, LINE), coupling(process, START, END)
    assert bridge.error <= 1e-10
    assert bridge.value == pytest.approx(exact.value, abs=1e-9)
    assert bridge.energy == pytest.approx(exact.value, abs=1e-4 if name == "VE" else 1e-6)
    controls_agree(bridge, exact, STATES, 1e-6)
    mean, covariance = exact.end_given_start(STATES)
    torch.testing.assert_close(bridge.conditional_mean(STATES), mean, rtol=0, atol=1e-8)
    middle = slice(60, 100)
    np.testing.assert_allclose(bridge.end_moments[1][0, 0, middle], float(covariance), atol=1e-8)
    mean, covariance = exact.start_given_end(LINE.points)
    np.testing.assert_allclose(bridge.start_moments[0][0, middle], mean[middle, 0].numpy(), atol=1e-8)
    np.testing.assert_allclose(bridge.start_moments[1][0, 0, middle], float(covariance), atol=1e-8)
    for fraction in (0.0, 1e-4, 0.3, 0.999, 1.0):
        t = fraction * process.horizon
        mean, covariance = exact.marginal(t)
        wanted = Gaussian(mean, covariance).log_density(LINE.points).exp().numpy()
        np.testing.assert_allclose(bridge.density(t), wanted, atol=1e-8)


@pytest.mark.parametrize(
    "process",
    [
        BrownianMotion(1.0),
        OrnsteinUhlenbeck(rate=tensor([0.5, 1.0]), sigma=tensor([0.8, 1.1])),
        OrnsteinUhlenbeck(rate=tensor([[1.0, 0.3], [-0.2, 0.7]]), sigma=tensor([[1.0, 0.4], [0.0, 0.9]])),
    ],
    ids=["scalar", "diagonal", "dense"],
)
def test_gaussian_ends_in_the_plane(process):
    bridge = solve_schroedinger(process, PLANE0, PLANE1, PLANE)
    exact = coupling(process, PLANE0, PLANE1)
    x = 0.7 * torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert bridge.value == pytest.approx(exact.value, abs=1e-7)
    times = torch.tensor([0.0, 0.0, 0.4, 0.4, 1.0, 1.0], dtype=torch.float64)
    gain, offset = exact.forward_gain(times)
    wanted = (gain @ x.unsqueeze(-1)).squeeze(-1) + offset
    torch.testing.assert_close(bridge.control(times, x), wanted, rtol=0, atol=2e-6)
    mean, covariance = exact.end_given_start(x)
    torch.testing.assert_close(bridge.conditional_mean(x), mean, rtol=0, atol=1e-7)
    np.testing.assert_allclose(bridge.end_moments[1][:, :, 20, 19], covariance.numpy(), atol=1e-7)
    mean, covariance = exact.marginal(0.02)
    np.testing.assert_allclose(
        bridge.density(0.02), density_on(Gaussian(mean, covariance), PLANE), atol=2e-6
    )  # narrower than a cell


def test_mixture_potential_in_closed_form():
    """``e^g = Σ w_k N(μ_k, Σ_k)``: the bridge to the law of ``y`` under ``p_0(x) R(y | x) e^{g(y)}/c(x)``."""
    epsilon, weights, means, variances = 0.64, [0.3, 0.7], [-1.5, 1.0], [0.3, 0.5]
    x = LINE.centres[0]

    def log_phi(t, x):
        spread = [v + epsilon * (1 - t) for v in variances]
        parts = [
            math.log(w) - 0.5 * (x - m) ** 2 / s - 0.5 * math.log(2 * math.pi * s)
            for w, m, s in zip(weights, means, spread, strict=True)
        ]
        return np.logaddexp(*parts)

    start = density_on(START, LINE)
    kernel = np.exp(-0.5 * (x[:, None] - x) ** 2 / epsilon) / math.sqrt(2 * math.pi * epsilon)
    plan = (start / np.exp(log_phi(0, x)))[:, None] * kernel * np.exp(log_phi(1, x))
    end = plan.sum(0) * LINE.volume
    bridge = solve_schroedinger(BrownianMotion(0.8), START, end, LINE, options=FortetSinkhorn(1e-12))
    np.testing.assert_allclose(bridge.plan(), plan, atol=1e-10)
    value = LINE.integrate(end * log_phi(1, x)) - LINE.integrate(start * log_phi(0, x))
    assert bridge.value == pytest.approx(value, abs=1e-10)
    rows = STATES[:, 0].numpy()
    for t in (0.0, 0.5, 0.99, 1.0):
        slope = (log_phi(t, rows + 1e-5) - log_phi(t, rows - 1e-5)) / 2e-5
        np.testing.assert_allclose(bridge.control(t, STATES)[:, 0].numpy(), 0.8 * slope, atol=2e-5)


def test_plan_is_sinkhorns_on_the_same_points():
    grid = Grid.of(-4.5, 5.0, 60)
    bridge = solve_schroedinger(BrownianMotion(0.8), START, MIXTURE, grid, options=FortetSinkhorn(1e-12))
    a, b = (torch.from_numpy(density_on(law, grid) * grid.volume) for law in (START, MIXTURE))
    problem = EntropicProblem(grid.points, grid.points, 0.64, a / a.sum(), b / b.sum())
    plan = sinkhorn(problem, Sinkhorn(tolerance=1e-11, batch=5)).plan()
    np.testing.assert_allclose(bridge.plan() * grid.volume**2, plan.numpy(), atol=1e-11)
    flat = np.full(30, 1 / 3)
    uniform = Grid.of(-1.5, 1.5, 30)
    bridge = solve_schroedinger(BrownianMotion(0.5), flat, flat, uniform, options=FortetSinkhorn(1e-12))
    pot = entropic_plan(uniform.points, uniform.points, 0.25, tolerance=1e-11)
    np.testing.assert_allclose(bridge.plan() * uniform.volume**2, pot.numpy(), atol=1e-11)


def test_half_steps_are_sinkhorns_iterates():
    grid = Grid.of(-4.5, 5.0, 80)
    bridge = solve_schroedinger(BrownianMotion(0.8), START, MIXTURE, grid)
    steps = half_steps(bridge.reference.whole, bridge.log_start, bridge.log_end)
    g = np.exp(-0.5 * (grid.centres[0][:, None] - grid.centres[0]) ** 2 / 0.64) / math.sqrt(2 * math.pi * 0.64)
    p0, p1, v = np.exp(bridge.log_start), np.exp(bridge.log_end), grid.volume
    left = p0
    for _ in range(4):
        right = p1 / (v * g.T @ left)
        step = next(steps)
        np.testing.assert_allclose(np.exp(step.log_phi_end), right, rtol=1e-10)
        left = p0 / (v * g @ right)
        step = next(steps)
        np.testing.assert_allclose(np.exp(step.log_phi_hat_start), left, rtol=1e-10)
        np.testing.assert_allclose(np.exp(step.log_phi_start), p0 / left, rtol=1e-10)


WELL = DriftProcess(lambda t, x: 2.0 * (1.5 * x).sin() - 0.5 * x + torch.as_tensor(t), 0.9)


def cost(t, x):
    return x[:, 0].square() - 1.0


def test_nonlinear_reference_with_state_cost():
    """The controlled Fokker–Planck equation takes ``p_0`` to ``p_T`` through ``p_t``; static is dynamic value."""
    gaps, values, energies = [], [], []
    for cells in (60, 120, 240):
        grid = Grid.of(-4.5, 4.5, cells)
        bridge = solve_schroedinger(WELL, START, MIXTURE, grid, state_cost=cost, times=TimeGrid.uniform(cells // 2))
        mass = [grid.integrate(bridge.density(t)) for t in bridge.times]
        assert np.abs(np.array(mass) - 1.0).max() < 1e-10
        moved = fokker_planck(WELL, grid, START, TimeGrid.uniform(cells // 2), control=bridge.control)
        gaps.append(
            max(np.abs(moved.density[k] - bridge.density(moved.times[k])).max() for k in (cells // 4, cells // 2))
        )
        values.append(bridge.value)
        energies.append(bridge.energy)
    assert abs(math.log2(gaps[1] / gaps[2]) - 2.0) < 0.2
    assert abs(math.log2((values[0] - values[1]) / (values[1] - values[2])) - 2.0) < 0.2
    errors = np.abs(np.array(values) - energies)
    assert abs(math.log2(errors[1] / errors[2]) - 2.0) < 0.2
    extrapolated = [(4 * v[2] - v[1]) / 3 for v in (values, energies)]
    assert abs(extrapolated[0] - extrapolated[1]) < 2e-4


def test_propagated_is_exact_reference_to_second_order():
    process, exact, gaps = ON_A_LINE["OU"], coupling(ON_A_LINE["OU"], START, END), []
    drift = DriftProcess(process.drift, 0.9)
    for cells in (80, 160, 320):
        grid = Grid.of(-7.0, 8.0, cells)
        bridge = solve_schroedinger(drift, START, END, grid, times=TimeGrid.uniform(cells // 2))
        gain, offset = exact.forward_gain(0.5)
        x = STATES[3:6]
        gaps.append([bridge.value - exact.value, float((bridge.control(0.5, x) - x @ gain.mT - offset).abs().max())])
    orders = np.log2(np.abs(np.array(gaps[:-1]) / np.array(gaps[1:])))
    assert np.abs(orders - 2.0).max() < 0.2


def test_propagated_in_the_plane():
    exact, gaps = coupling(BrownianMotion(1.0), PLANE0, PLANE1), []
    free = DriftProcess(lambda t, x: torch.zeros_like(x), 1.0)
    for cells in (20, 40):
        grid = Grid.of((-5.0, -5.0), (5.0, 5.0), cells)
        bridge = solve_schroedinger(free, PLANE0, PLANE1, grid, times=TimeGrid.uniform(cells // 2))
        assert bridge.error <= 1e-10
        assert abs(grid.integrate(bridge.density(0.5)) - 1.0) < 1e-10
        gaps.append(bridge.value - exact.value)
    assert abs(math.log2(gaps[0] / gaps[1]) - 2.0) < 0.2


def test_the_control_drives_simulated_paths_to_the_target():
    bridge = solve_schroedinger(BrownianMotion(0.8), START, MIXTURE, LINE)
    measure = PathMeasure(bridge.process, bridge.control, START, grid=TimeGrid.uniform(200))
    ends = measure.marginals([0.5, 1.0], 20_000, seed=0)[..., 0]
    x = LINE.centres[0]
    for density, rows in zip((bridge.density(0.5), np.exp(bridge.log_end)), ends, strict=True):
        for power in (1, 2, 4):
            values = rows.numpy() ** power
            error = values.std() / math.sqrt(len(values))
            assert abs(values.mean() - LINE.integrate(density * x**power)) < 4 * error + 0.01 * abs(values).mean()


@pytest.mark.parametrize("process", [ON_A_LINE["OU"], WELL], ids=["exact", "propagated"])
def test_doobs_transition_is_markov_and_moves_the_marginals(process):
    grid = Grid.of(-7.0, 7.0, 140)
    bridge = solve_schroedinger(process, START, MIXTURE, grid, times=TimeGrid.uniform(20))
    first, second, whole = (bridge.transition(*pair) for pair in ((0.25, 0.5), (0.5, 1.0), (0.25, 1.0)))
    v = grid.volume
    held = bridge.density(0.25) > 1e-10
    np.testing.assert_allclose(v * first[held].sum(1), 1.0, atol=1e-10)
    np.testing.assert_allclose(v * bridge.density(0.25) @ first, bridge.density(0.5), atol=1e-10)
    np.testing.assert_allclose((v * first @ second)[held], whole[held], atol=1e-8)
    table = bridge.plan()
    np.testing.assert_allclose(v * table.sum(1), np.exp(bridge.log_start), atol=1e-12)
    np.testing.assert_allclose(v * table.sum(0), np.exp(bridge.log_end), atol=1e-10)


@pytest.mark.parametrize("rate", [tensor([0.5, 1.0]), tensor([[0.5, 0.3], [-0.2, 1.0]])], ids=["diagonal", "dense"])
def test_the_table_of_a_kernel_is_the_transition_density_of_all_pairs_of_cells(rate):
    process, grid = (
        OrnsteinUhlenbeck(rate, tensor([0.8, 1.1]), tensor([0.3, -0.1])),
        Grid.of((-2.0, -3.0), (2.0, 3.0), (10, 12)),
    )
    law, x = process.transition(0.0, 0.7), grid.points
    exact = torch.distributions.MultivariateNormal(law.mean(x)[:, None], law.covariance.expanded(2)).log_prob(x[None])
    np.testing.assert_allclose(gaussian_kernel(law, grid).table(), exact.numpy(), atol=1e-10)


def test_a_shear_is_resolved_in_its_start_as_in_the_end_of_its_inverse():
    """``Φ⁻¹QΦ⁻ᵀ`` of a transition is ``Q`` of the one that leads back."""
    shear, spread = LinearMap.of(tensor([[1.0, 3.0], [0.0, 1.0]])), LinearMap.of(tensor([[0.9, 0.2], [0.2, 0.5]]))
    there = Transition(shear, tensor([0.0, 0.0]), spread)
    back = Transition(shear.inverse(), tensor([0.0, 0.0]), shear.inverse() @ spread @ shear.inverse().T)
    least = float(torch.linalg.eigvalsh(back.covariance.expanded(2))[0]) ** 0.5 / 1.2
    assert least < 0.5 * float(torch.linalg.eigvalsh(spread.expanded(2))[0]) ** 0.5 / 1.2
    for factor, held in ((0.98, True), (1.02, False)):
        grid = Grid.of(0.0, 20.0 * factor * least, 20)
        assert resolved_in_end(back, grid) is resolved_in_start(there, grid) is held
        assert resolved_in_end(there, grid)


def test_samples_by_kernel_density_and_histogram():
    g = torch.Generator().manual_seed(3)
    x0, x1 = Samples(START.sample(200, g)), Samples(MIXTURE.sample(300, g))
    smooth = solve_schroedinger(BrownianMotion(0.8), x0, x1, LINE, estimate=KernelDensity(0.2))
    assert abs(smooth.energy - smooth.value) < 1e-3
    rough = solve_schroedinger(BrownianMotion(0.8), x0, x1, LINE, estimate=Histogram())
    assert np.isfinite(rough.value)
    assert abs(LINE.integrate(rough.density(0.5)) - 1.0) < 1e-9
    with pytest.raises(UnsupportedError, match="KernelDensity"):
        rough.control(1.0, STATES)


def test_float32_states_get_float32_controls():
    bridge = solve_schroedinger(BrownianMotion(0.8), START, END, LINE)
    single = bridge.control(0.3, STATES.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), bridge.control(0.3, STATES), rtol=1e-5, atol=1e-5)


def test_bad_input_is_told():
    brown = BrownianMotion(0.8)
    with pytest.raises(InvalidInputError, match="misses mass"):
        solve_schroedinger(brown, START, END, Grid.of(-2.0, 2.0, 50))
    with pytest.raises(InvalidInputError, match="use more cells"):
        solve_schroedinger(BrownianMotion(0.05), START, END, LINE)
    with pytest.raises(NotConvergedError, match=r"end marginal is .* after 3 iterations"):
        solve_schroedinger(brown, START, END, LINE, options=FortetSinkhorn(max_iterations=3))
    with pytest.raises(InvalidInputError, match="positive tolerance"):
        FortetSinkhorn(tolerance=0.0)
    with pytest.raises(InvalidInputError, match="mass 1"):
        solve_schroedinger(brown, np.ones(160), END, LINE)
    with pytest.raises(InvalidInputError, match="dimension 2, the grid has 1"):
        solve_schroedinger(BrownianMotion(tensor([1.0, 1.0])), START, END, LINE)
    bridge = solve_schroedinger(brown, START, END, LINE)
    with pytest.raises(InvalidInputError, match="time must lie"):
        bridge.density(2.0)
    with pytest.raises(InvalidInputError, match="rows, 1"):
        bridge.control(0.5, torch.zeros(3, 2, dtype=torch.float64))
    with pytest.raises(InvalidInputError, match="use more cells"):
        bridge.transition(0.5, 0.5001)
    large = Grid.of((-5.0, -5.0), (5.0, 5.0), 70)
    with pytest.raises(UnsupportedError, match="at most 4096"):
        solve_schroedinger(BrownianMotion(tensor([[1.0, 0.5], [0.0, 1.0]])), PLANE0, PLANE1, large)
    well = solve_schroedinger(WELL, START, MIXTURE, Grid.of(-5.0, 5.0, 60), times=TimeGrid.uniform(10))
    with pytest.raises(InvalidInputError, match="knots"):
        well.transition(0.0, 0.55)


# The action


def fields(bridge, nodes=32):
    """``p``, ``u``, ``J`` of the solution on Chebyshev points."""
    action = GridAction(bridge.process, SpaceTime(bridge.grid, bridge.process.horizon, nodes), bridge.state_cost)
    times = [float(t) for t in action.space.times]
    phi = np.stack([bridge.potentials.log_phi(t) for t in times])
    phi_hat = np.stack([bridge.potentials.log_phi_hat(t) for t in times])
    return action, np.exp(phi + phi_hat), action.control_of(-phi), -phi


@pytest.mark.parametrize("process", [ON_A_LINE["OU"], ON_A_LINE["Brownian, growing"]], ids=["ou", "growing"])
def test_both_forms_of_the_action_are_the_value(process):
    bridge = solve_schroedinger(process, START, MIXTURE, Grid.of(-7.0, 7.0, 200))
    action, p, u, j = fields(bridge, 40)
    assert action.constraint_form(p, u, j) == pytest.approx(bridge.value, abs=1e-6)
    assert action.adjoint_form(p, u, j) == pytest.approx(bridge.value, abs=1e-6)
    assert action.adjoint_form(p, u, np.sin(j)) == pytest.approx(action.constraint_form(p, u, np.sin(j)), abs=1e-7)


def test_residuals_vanish_in_the_plane_under_a_matrix_scale():
    process = OrnsteinUhlenbeck(rate=tensor([[1.0, 0.3], [-0.2, 0.7]]), sigma=tensor([[1.0, 0.4], [0.0, 0.9]]))
    bridge = solve_schroedinger(process, PLANE0, PLANE1, PLANE)
    action, p, u, j = fields(bridge, 16)
    inside = (slice(None), slice(5, -5), slice(5, -5))
    assert np.abs(action.fokker_planck_residual(p, u))[inside].max() < 2e-3
    assert np.abs(p * action.hjb_residual(j))[inside].max() < 1e-5
    assert action.adjoint_form(p, u, j) == pytest.approx(bridge.value, abs=1e-5)


def test_clenshaw_curtis_and_differentiation_are_exact_for_polynomials():
    space = SpaceTime(LINE, 1.5, 9)
    t = space.times[:, None] * np.ones(LINE.shape)
    np.testing.assert_allclose(space.time_derivative(t**5), 5 * t**4, atol=1e-11)
    assert space.integrate(t**6) == pytest.approx(1.5**7 / 7 * 16.0, rel=1e-13)
    with pytest.raises(InvalidInputError, match="at least 3 nodes"):
        SpaceTime(LINE, 1.0, 2)
    with pytest.raises(InvalidInputError, match="field has shape"):
        space.integrate(t[1:])
