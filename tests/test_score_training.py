"""Learned scores: losses with known minimisers, times with known densities, and the solver's laws."""

import math
from dataclasses import replace

import pytest
import torch

from sbridge.controls import MLP
from sbridge.diffusion.accessors import score_of
from sbridge.diffusion.conversions import ControlScore, ScoreControl
from sbridge.diffusion.exact import ExactScore
from sbridge.diffusion.networks import NetworkScore
from sbridge.diffusion.objectives import Action, Denoising, Implicit, Likelihood, Simple
from sbridge.diffusion.reverse import end_distribution, reverse_diffusion, reverse_grid
from sbridge.diffusion.samplers import generate
from sbridge.diffusion.times import NoiseTimes, UniformTimes
from sbridge.diffusion.training import ScoreMatching
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.fitting import choose_noise_schedule, diffuse, fit
from sbridge.laws import Density, Gaussian, GaussianMixture, Samples
from sbridge.measures import kernel_log_ratio
from sbridge.objectives.reversal import reversal_action
from sbridge.problems import BridgeProblem
from sbridge.processes import (
    BrownianMotion,
    DriftProcess,
    OrnsteinUhlenbeck,
    VarianceExploding,
    VariancePreserving,
)
from sbridge.solutions import load
from sbridge.solvers import check_solver
from sbridge.time import TimeGrid
from sbridge.training import Optimisation

DENSE = OrnsteinUhlenbeck(
    rate=torch.tensor([[1.0, 0.3], [-0.2, 0.7]]), sigma=torch.tensor([[1.0, 0.4], [0.0, 0.6]]), mean=0.3
)
PROCESSES = {
    "ou": OrnsteinUhlenbeck(rate=1.3, sigma=0.9),
    "vp": VariancePreserving(),
    "ve": VarianceExploding(0.1, 4.0),
    "diagonal": BrownianMotion(torch.tensor([0.5, 1.5])),
    "dense": DENSE,
}
TINY = ScoreMatching(updates=6, network=MLP(8, 1), optimisation=Optimisation(batch=16), grid=TimeGrid.uniform(5))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture():
    eye = torch.eye(2, dtype=torch.float64)
    means = torch.tensor([[1.5, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.6, 0.4], dtype=torch.float64), means, torch.stack([0.1 * eye, 0.3 * eye]))


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]


@pytest.mark.parametrize("times", [NoiseTimes(), UniformTimes()])
def test_drawn_times_have_the_density_they_say(process, times):
    t, density = times.draw(process, 0.01, 20_000, generator())
    assert float(t.min()) >= 0.01
    assert float(t.max()) <= 1.0
    for f, integral in ((torch.ones_like(t), 0.99), (t, 0.5 * (1 - 1e-4)), (1 / t, math.log(100.0))):
        assert abs(float((f / density).mean()) - integral) < 2e-3 * integral  # stratified: far below 1/√n


def test_noise_times_follow_the_rate_of_the_denoising_target(process):
    t, density = NoiseTimes().draw(process, 0.01, 4000, generator())
    law = process.transition(0.0, t)
    rate = (law.root.inverse() @ process.scale(t)).mean_square(2)
    ratio = density / rate
    assert float(ratio.std() / ratio.mean()) < 0.02  # cells of one percent


@pytest.mark.parametrize(
    "objective",
    [Denoising(), Denoising(Simple()), Denoising(Likelihood(UniformTimes())), Implicit(), Action(100, paths=600)],
)
def test_the_true_score_is_the_minimum_of_every_objective(process, objective):
    law = mixture()
    exact, start = ExactScore(process, law), law.sample(40_000, generator(1))
    weight = torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=torch.float64)

    def loss(size):
        def score(t, x):
            return exact(t, x) + size * (0.2 + torch.sin(x @ weight))

        return float(objective(process, score, start, 0.05, generator(2)).detach())

    values = [loss(size) for size in (-0.5, -0.25, 0.0, 0.25, 0.5)]
    curvature = values[0] - 2 * values[2] + values[4]
    assert curvature > 0
    # The vertex of the parabola through the ends lies at zero to within noise.
    assert abs(0.5 * 0.5 * (values[0] - values[4]) / curvature) < 0.12


def test_likelihood_weighting_is_the_path_kl_up_to_a_constant():
    process, law = PROCESSES["vp"], mixture()
    exact, start = ExactScore(process, law), law.sample(60_000, generator(1))
    plain, shifted = (
        float(Denoising()(process, score, start, 0.01, generator(2)))
        for score in (exact, lambda t, x: exact(t, x) + 0.4)
    )
    # ½∫ β |0.4·1|² ds with two coordinates; the noise of the difference is its cross term.
    expected = 0.5 * 2 * 0.16 * float(process.schedule.integral(torch.tensor(0.01), torch.tensor(0.99), 1.0))
    assert abs(shifted - plain - expected) < 0.03 * expected


def test_a_fresh_network_is_the_score_of_an_isotropic_gaussian(process):
    mean = torch.tensor([0.5, -1.0], dtype=torch.float64)
    network = NetworkScore(MLP(8, 1), process, 2, mean, 0.7).double()
    exact = ExactScore(process, Gaussian(mean, 0.49 * torch.eye(2, dtype=torch.float64)))
    x, t = torch.randn(6, 2, generator=generator(), dtype=torch.float64), torch.linspace(0.01, 1.0, 6).double()
    assert torch.allclose(network(0.3, x), exact(0.3, x), rtol=1e-9, atol=1e-9)
    assert torch.allclose(network(t, x), exact(t, x), rtol=1e-9, atol=1e-9)


def test_the_residual_has_the_covariance_of_the_target(process):
    """For isotropic Gaussian data, Cov(∇log p(x|x_0) | x) = C Cᵀ: the network's target has variance one."""
    scale, t, g = 0.7, 0.2, generator(3)
    start = scale * torch.randn(100_000, 2, generator=g, dtype=torch.float64)
    law = process.transition(0.0, t)
    x = law.mean(start) + law.root.to(start)(torch.randn(start.shape, generator=g, dtype=torch.float64))
    network = NetworkScore(MLP(8, 1), process, 2, None, scale).double()
    _, inner = network._maps(law)
    target = inner.inverse()(process.conditional_score(t, x, start) - network(t, x))
    assert torch.allclose(target.T.cov(), torch.eye(2, dtype=torch.float64), atol=0.03)


def test_networks_refuse_time_zero_and_odd_moments():
    network = NetworkScore(MLP(8, 1), VariancePreserving(), 2)
    x = torch.zeros(3, 2)
    with pytest.raises(InvalidInputError, match="t > 0"):
        network(0.0, x)
    with pytest.raises(InvalidInputError, match="t > 0"):
        network(torch.tensor([0.1, 0.0, 0.2]), x)
    with pytest.raises(InvalidInputError, match="mean of the data"):
        NetworkScore(MLP(8, 1), VariancePreserving(), 2, torch.zeros(3))
    with pytest.raises(InvalidInputError, match="scale be positive"):
        NetworkScore(MLP(8, 1), VariancePreserving(), 2, None, 0.0)


@pytest.mark.parametrize("objective", [Denoising(), Implicit(), Action(4, paths=3)])
def test_the_solver_keeps_every_law_of_solvers(objective):
    rows = mixture().sample(30, generator())
    process = VariancePreserving()
    solver = ScoreMatching(objective, 6, MLP(8, 1), Optimisation(batch=16), grid=TimeGrid.uniform(5))
    check_solver(solver, BridgeProblem(Samples(rows), end_distribution(process, Samples(rows)), process), seed=0)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_diffusion_of_a_data_set_learns_its_score(dtype):
    law = mixture()
    rows = law.sample(4000, generator(4)).to(dtype)
    bridge = diffuse(rows, solver=ScoreMatching(updates=800, network=MLP(96, 2)), seed=1)
    process = bridge.reference
    score, exact = ControlScore(process, bridge.backward.control), ExactScore(process, law)
    t = 0.1
    step = process.transition(0.0, t)
    x = step.mean(law.sample(2000, generator(5)))
    x = (x + step.root.to(x)(torch.randn(x.shape, generator=generator(6), dtype=x.dtype))).to(dtype)
    error = (score(t, x) - exact(t, x)).square().sum(1).mean() / exact(t, x).square().sum(1).mean()
    assert error < 0.05
    made = bridge.backward.transport(bridge.backward.start.sample(2000, generator(7)), seed=2)
    assert made.dtype == dtype
    assert torch.allclose(made.mean(0).double(), law.weights @ law.means, atol=0.1)
    assert torch.allclose(made.T.cov().double(), rows.T.cov().double(), atol=0.15)


def test_the_action_is_the_log_ratio_of_step_kernels(process):
    """With the exact score: what `kernel_log_ratio` sums, less its determinants, which do not depend on the control."""
    law = mixture()
    control = ScoreControl(process, ExactScore(process, law))
    grid = reverse_grid(20, 0.05)
    bridge = reverse_diffusion(process, law, control.score, grid=grid)
    paths = bridge.forward.sample(50, seed=1)
    gaps = kernel_log_ratio(paths, bridge.forward, bridge.backward) - reversal_action(paths, control)
    assert torch.allclose(gaps, gaps[:1].expand(50), rtol=1e-9, atol=1e-9)
    without_first = reversal_action(paths, control, first=1)
    assert not torch.allclose(without_first, reversal_action(paths, control))


def test_learning_by_the_action_learns_the_score():
    rows = mixture().sample(4000, generator(4)).float()
    solver = ScoreMatching(Action(steps=40), updates=150, network=MLP(64, 2), start_time=0.02)
    bridge = diffuse(rows, solver=solver, seed=1)
    exact, process, t = ExactScore(bridge.reference, mixture()), bridge.reference, 0.3
    step = process.transition(0.0, t)
    x = step.mean(mixture().sample(1000, generator(5)))
    x = (x + step.root.to(x)(torch.randn(x.shape, generator=generator(6), dtype=x.dtype))).float()
    start = NetworkScore(MLP(8, 1), process, 2, rows.mean(0).double(), float(rows.var(0).mean().sqrt()))
    error, at_first = ((s(t, x) - exact(t, x)).square().sum(1).mean() for s in (score_of(bridge), start))
    assert error < 0.25 * at_first


def test_generated_rows_carry_no_noise_of_the_last_step():
    """Data at two points: the exact score ends on them to rounding, an ordinary last step leaves noise."""
    points = torch.tensor([[1.0, 0.0], [-1.0, 2.0]], dtype=torch.float64)
    process = VariancePreserving()
    bridge = reverse_diffusion(process, Samples(points), ExactScore(process, Samples(points)))
    made = generate(bridge, 300, seed=1)
    assert float(torch.cdist(made, points, compute_mode="donot_use_mm_for_euclid_dist").min(1).values.max()) < 1e-9
    left = bridge.backward.transport(bridge.backward.start.sample(300, generator(7)), seed=2)
    assert float(torch.cdist(left, points).min(1).values.median()) > 1e-3
    assert torch.allclose(made.mean(0), points.mean(0), atol=4 * 1.5 / math.sqrt(300))
    assert torch.equal(made, generate(bridge, 300, seed=1))
    assert torch.equal(made, generate(bridge.reversed(), 300, seed=1))
    controlled = replace(bridge, forward=replace(bridge.forward, control=lambda t, x: x))
    with pytest.raises(UnsupportedError, match="only a reverse diffusion has"):
        generate(controlled, 3, seed=1)


def test_a_diffusion_survives_saving(tmp_path):
    rows = mixture().sample(50, generator()).float()
    bridge = diffuse(rows, solver=TINY)
    bridge.save(tmp_path / "model")
    again = load(tmp_path / "model")
    x = torch.randn(5, 2, generator=generator())
    assert torch.equal(again.backward.transport(x, seed=1), bridge.backward.transport(x, seed=1))


def test_shifted_and_stretched_data_give_shifted_and_stretched_diffusions():
    rows = mixture().sample(200, generator())
    moved = 3.0 * rows + torch.tensor([10.0, -5.0])
    a, b = diffuse(rows, solver=TINY, seed=1), diffuse(moved, solver=TINY, seed=1)
    start = torch.randn(20, 2, generator=generator(), dtype=torch.float64)
    left = 3.0 * a.backward.transport(start, seed=2) + torch.tensor([10.0, -5.0])
    right = b.backward.transport(3.0 * start + torch.tensor([10.0, -5.0]), seed=2)
    assert torch.allclose(left, right, atol=1e-6)


def test_the_chosen_noise_fits_the_data():
    rows = 5.0 * mixture().sample(2000, generator()) + 7.0
    process = choose_noise_schedule(rows)
    end = end_distribution(process, Samples(rows))
    assert torch.allclose(end.mean, rows.mean(0), atol=1e-6)
    assert torch.allclose(end.covariance.diagonal().mean(), rows.var(0, correction=0).mean(), rtol=1e-6)


def test_there_is_one_drawn_time_in_each_interval_of_equal_probability():
    process = VariancePreserving()
    for times, knots in (
        (UniformTimes(), torch.linspace(0.01, 1.0, 65).double()),
        (NoiseTimes(), NoiseTimes().quantiles(process, 0.01, 64)),
    ):
        t, _ = times.draw(process, 0.01, 64, generator())
        assert bool(((knots[:-1] <= t) & (t <= knots[1:])).all())


def test_bad_input_is_told():
    rows = mixture().sample(50, generator())
    with pytest.raises(InvalidInputError, match="updates must be positive"):
        ScoreMatching(updates=0)
    with pytest.raises(InvalidInputError, match="strictly between 0 and 1"):
        ScoreMatching(start_time=0.0)
    with pytest.raises(InvalidInputError, match="equal"):
        diffuse(torch.ones(10, 2), solver=TINY)
    with pytest.raises(InvalidInputError, match="NaN"):
        diffuse(torch.full((10, 2), math.nan), solver=TINY)
    with pytest.raises(InvalidInputError, match="dimension"):
        diffuse(rows, process=DENSE.__class__(rate=torch.eye(3), sigma=1.0), solver=TINY)
    drift = DriftProcess(lambda t, x: -x, 1.0)
    with pytest.raises(UnsupportedError, match="closed form"):
        fit(rows, rows, reference=drift, solver=TINY)
    density = Density(lambda x: -x.square().sum(1), 2)
    assert "unnormalised density" in TINY.refusal(BridgeProblem(Samples(rows), density, VariancePreserving()))
    with pytest.raises(InvalidInputError, match="steps must be at least 2"):
        Action(steps=1)
    with pytest.raises(InvalidInputError, match="reverse grid"):
        reverse_grid(100, 1.0)
    with pytest.raises(InvalidInputError, match="s_min must be strictly between"):
        NoiseTimes().draw(VariancePreserving(), 0.0, 4, generator())
