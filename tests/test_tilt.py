"""Diffusions and bridges tilted by a reward, against closed forms."""

import math
import warnings
from dataclasses import replace

import pytest
import torch

import sbridge as sb
from sbridge.diffusion import LinearObservation, conditioned, reverse_grid
from sbridge.errors import ConvergenceWarning, InvalidInputError, MarginalWarning, NonFiniteError, UnsupportedError
from sbridge.exact import tilted_law
from sbridge.fitting import MixtureStart, TiltedBridge, tilting_solver
from sbridge.laws.scaling import AffineScaling
from sbridge.measures.generating import MeasureProcess, MeasureSteps, knots_since_start
from sbridge.problems import Quadratic
from sbridge.solvers import LogVariance, TrustRegion

MIXTURE = sb.GaussianMixture(
    torch.tensor([0.6, 0.4]),
    torch.tensor([[-1.0, 0.0], [1.0, 0.5]]),
    torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]]),
)
REWARD = Quadratic(-0.5 * torch.tensor([[0.5, 0.2], [0.2, 1.0]]), torch.tensor([1.0, 0.5]), 0.3)


def diffusion(data, steps=16, spread=1.0, mean=0.0):
    """The exact reverse diffusion of a mixture."""
    process = sb.VariancePreserving(stationary_std=spread, mean=mean)
    return sb.diffusion.reverse_diffusion(process, data, sb.ExactScore(process, data), grid=reverse_grid(steps))


def few(model, updates=1, **options):
    """The default solver with few updates."""
    return replace(tilting_solver(model.backward), updates=updates, **options)


def test_the_tilted_mixture_is_density_times_reward():
    exact = tilted_law(MIXTURE, REWARD)
    x = 2.0 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = sb.GaussianMixture(*(part.double() for part in (MIXTURE.weights, MIXTURE.means, MIXTURE.covariances)))
    wanted = data.log_density(x) + REWARD(x) - exact.log_normaliser
    torch.testing.assert_close(exact.law.log_density(x), wanted, rtol=1e-6, atol=1e-6)
    one = sb.Gaussian(MIXTURE.means[0], MIXTURE.covariances[0])
    found = tilted_law(one, REWARD)
    wanted = one.log_density(x.float()).double() + REWARD(x) - found.log_normaliser
    torch.testing.assert_close(found.law.log_density(x), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidInputError, match="infinite"):
        tilted_law(MIXTURE, Quadratic.isotropic(5.0, 2))
    with pytest.raises(InvalidInputError, match="dimension 2, the reward 3"):
        tilted_law(MIXTURE, Quadratic.isotropic(-1.0, 3))


def test_the_log_likelihood_of_an_observation_gives_its_posterior():
    seen, y = LinearObservation(torch.tensor([[1.0, -0.5]]), 0.4), torch.tensor([0.7])
    posterior, tilted = conditioned(MIXTURE, seen, y), tilted_law(MIXTURE, seen.log_likelihood(y))
    for name in ("weights", "means", "covariances"):
        torch.testing.assert_close(getattr(tilted.law, name), getattr(posterior, name).double(), rtol=1e-5, atol=1e-6)
    x = MIXTURE.sample(400_000, torch.Generator().manual_seed(1)).double()  # the evidence by plain Monte Carlo
    terms = (-0.5 * ((y - x @ seen.matrix.double().T) / 0.4).square().squeeze(1)).exp() / (0.4 * math.sqrt(2 * math.pi))
    assert abs(float(terms.mean()) - math.exp(tilted.log_normaliser)) < 4 * float(terms.std()) / math.sqrt(len(terms))
    with pytest.raises(InvalidInputError, match="and noise"):
        LinearObservation(torch.eye(2)).log_likelihood(torch.zeros(2))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_process_of_a_measure_is_its_chain_in_other_units(direction):
    measure = getattr(diffusion(MIXTURE), direction)
    measure = replace(measure, control=measure.control or (lambda t, x: 0.5 * x))
    scaling = AffineScaling(torch.tensor([1.0, -2.0]).double(), torch.tensor([3.0]).double())
    process = MeasureProcess(measure, scaling)
    grid, start = sb.TimeGrid(knots_since_start(measure)), measure.start.rescaled(scaling)
    other = sb.PathMeasure(process, None, start, grid=grid, rule=MeasureSteps())
    x = measure.starts(64, seed=1).double()
    wanted = measure.simulate(x, seed=2)
    found = other.simulate(scaling.to_model(x), seed=2)
    torch.testing.assert_close(scaling.to_data(found.x), wanted.x, rtol=1e-9, atol=1e-9)
    t = 0.3 * process.horizon
    step = 1e-6  # a short Euler step is drift and noise
    fine = MeasureSteps().steps(
        process, torch.tensor([t, t + step], dtype=torch.float64), sb.measures.Direction.FORWARD, x
    )
    torch.testing.assert_close(fine.move(0, x) / step, process.drift(t, x), rtol=1e-3, atol=1e-3)
    root, sigma = fine.roots.unbind()[0].expanded(2) / math.sqrt(step), process.scale(t).expanded(2)
    torch.testing.assert_close(root, sigma, rtol=1e-3, atol=1e-6)


def test_a_tilted_diffusion_has_the_law_and_the_value_of_the_closed_form(tmp_path):
    model, exact = diffusion(MIXTURE, steps=50), tilted_law(MIXTURE, REWARD)
    tilted = sb.tilt(model, REWARD, solver=few(model, 20, grid=sb.TimeGrid.uniform(20)), seed=0)
    value, law, ends = tilted.value, exact.law, tilted.forward.start
    assert isinstance(law, sb.GaussianMixture)
    assert isinstance(ends, sb.Samples)
    assert ends.weights is not None
    assert value.effective_sample_size is not None
    assert tilted.memory < 0.03
    assert abs(value.value + exact.log_normaliser) < 4 * value.standard_error + 0.01
    assert value.effective_sample_size > 0.9 * value.samples
    rows = sb.generate(tilted, 4000, seed=1).double()
    mean = law.weights @ law.means
    gaps = law.means - mean
    spread = (law.weights[:, None, None] * (law.covariances + gaps[:, :, None] * gaps[:, None])).sum(0)
    torch.testing.assert_close(rows.mean(0), mean, rtol=0, atol=0.06)  # s.e. .013, and the learning
    torch.testing.assert_close(torch.cov(rows.T), spread, rtol=0, atol=0.06)
    assert (rows.mean(0) - MIXTURE.weights.double() @ MIXTURE.means.double()).abs().max() > 0.3
    # draws of the same law, by weights
    torch.testing.assert_close(ends.weights.double() @ ends.rows.double(), mean, rtol=0, atol=0.06)
    tilted.save(tmp_path / "tilted")
    again = sb.load(tmp_path / "tilted")
    assert isinstance(again, TiltedBridge)
    assert again.value == tilted.value
    torch.testing.assert_close(sb.generate(again, 50, seed=1), sb.generate(tilted, 50, seed=1))


def test_units_of_the_data_change_nothing():
    data = sb.GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), 0.2 * torch.ones(2, 1, 1))
    scaled = sb.GaussianMixture(data.weights, 64.0 * data.means + 512.0, 64.0**2 * data.covariances)
    plain = diffusion(data, spread=1.1)
    large = diffusion(scaled, spread=1.1 * 64.0, mean=512.0)
    one = sb.tilt(plain, lambda x: 1.5 * x[:, 0], solver=few(plain, 5), seed=3)
    other = sb.tilt(large, lambda x: 1.5 * (x[:, 0] - 512.0) / 64.0, solver=few(large, 5), seed=3)
    rows, far = (sb.generate(bridge, 500, seed=1) for bridge in (one, other))
    torch.testing.assert_close((far - 512.0) / 64.0, rows, rtol=0, atol=5e-3)
    assert one.value.value == pytest.approx(other.value.value, abs=1e-3)


def test_a_start_with_memory_shifts_by_one_minus_the_square_of_the_correlation():
    """Stationary ends of correlation ½ and r = a x: the control moves the ends by a(1 − ρ²), and a warning says so."""
    process = sb.OrnsteinUhlenbeck(1.0, math.sqrt(2.0), 0.0, math.log(2.0))
    data = sb.Gaussian(torch.zeros(1), torch.ones(1, 1))
    model = sb.diffusion.reverse_diffusion(process, data, sb.ExactScore(process, data), grid=sb.TimeGrid.uniform(20))
    with pytest.warns(MarginalWarning, match=r"explains [23]\d\.\d% of the variance"):
        tilted = sb.tilt(model, lambda x: 0.8 * x[:, 0], solver=few(model, 60), seed=0)
    assert tilted.memory == pytest.approx(0.25, abs=0.1)  # 256 starts: s.e. .03
    ends = tilted.backward.transport(tilted.backward.starts(10_000, seed=4), seed=5).double()
    assert abs(float(ends.mean()) - 0.8 * 0.75) < 0.05  # s.e. .01, and the learning; a memoryless start gives .8
    assert float(ends.var()) == pytest.approx(1.0, abs=0.06)


def test_a_bridge_from_a_point_is_tilted_by_any_loss():
    process, point = sb.BrownianMotion(1.3), sb.Point(torch.tensor([0.5]))
    target = sb.Gaussian(torch.tensor([0.5]), torch.tensor([[1.69]]))
    back = sb.measures.Direction.BACKWARD
    bridge = sb.Bridge(sb.PathMeasure(process, None, point), sb.PathMeasure(process, None, target, back))
    grid = sb.TimeGrid.uniform(10)
    optimisation = sb.Optimisation(learning_rate=5e-3, batch=256, ema_decay=0.9)
    for solver, updates in ((sb.AdjointMatching, 300), (LogVariance, 80)):
        tilted = sb.tilt(
            bridge, lambda x: x[:, 0], solver=solver(updates=updates, grid=grid, optimisation=optimisation), seed=1
        )
        assert tilted.memory == 0.0
        ends = tilted.transport(point.position.expand(4000, 1), seed=2).double()
        assert abs(float(ends.mean()) - 0.5 - 1.69) < 0.1  # s.e. .02: a shift of aσ²T
        assert abs(tilted.value.value + 0.5 + 0.5 * 1.69) < 4 * tilted.value.standard_error + 0.02


def test_values_of_a_known_control_are_kept_with_its_paths():
    process, point = sb.BrownianMotion(1.0), sb.Point(torch.zeros(2))
    problem = sb.ControlProblem(process, point, terminal_cost=Quadratic.isotropic(1.0, 2))
    solver = LogVariance(
        updates=2, start=sb.starts.RiccatiStart(), trust_region=TrustRegion(), grid=sb.TimeGrid.uniform(5)
    )
    state = solver.init(problem, 0)
    solver.loss(problem, problem.costs, state)
    torch.testing.assert_close(state.memory["base"], state.memory["v"])  # the network is zero at first


def test_rewards_that_cannot_be_used_are_refused():
    model = diffusion(MIXTURE)
    with pytest.raises(InvalidInputError, match="reward must return one number per row"):
        sb.tilt(model, lambda x: x)
    with pytest.raises(NonFiniteError, match="reward is NaN or infinite"):
        sb.tilt(model, lambda x: torch.log(x[:, 0]))
    with pytest.raises(UnsupportedError, match="LogVariance"):
        sb.tilt(model, lambda x: (x[:, 0] > 0).float(), solver=sb.AdjointMatching(updates=1))
    with pytest.raises(InvalidInputError, match="components must be positive"):
        MixtureStart(0)


def test_a_step_function_is_a_reward_of_the_default_loss():
    model = diffusion(MIXTURE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tilted = sb.tilt(model, lambda x: 2.0 * (x[:, 0] > 0.0), solver=few(model), seed=0)
    share = float((MIXTURE.sample(200_000, torch.Generator().manual_seed(0))[:, 0] > 0).double().mean())
    wanted = -math.log(1.0 + share * (math.exp(2.0) - 1.0))
    assert abs(tilted.value.value - wanted) < 4 * tilted.value.standard_error + 0.03


def test_a_control_that_is_far_off_is_reported():
    model = diffusion(MIXTURE)
    solver = LogVariance(updates=1, grid=sb.TimeGrid.uniform(10), trust_region=TrustRegion(100.0))
    with pytest.warns(ConvergenceWarning, match="effective sample size"):
        sb.tilt(model, Quadratic.linear(torch.tensor([0.0, 12.0])), solver=solver, seed=0)


def test_a_tilted_bridge_keeps_columns_and_shape_and_says_that_it_was_stopped():
    def stop(state, info):
        raise sb.StopTraining("enough")

    model = replace(diffusion(MIXTURE), columns=("a", "b"), shape=(1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sb.tilt(model, REWARD, solver=few(model, updates=3), seed=0, callbacks=[stop])
    assert (found.columns, found.shape) == (("a", "b"), (1, 2))
    assert found.stopped is not None
    assert found.stopped.startswith("enough")
