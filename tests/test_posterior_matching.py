"""Samplers learned as posterior means and variances of the end."""

import dataclasses

import pytest
import torch
from torch import nn

from sbridge.benchmarks.exact_controls import stationary_noise
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.evaluation import evidence_upper_bound, log_normaliser
from sbridge.exact.mixture import MixtureControl, MixturePotential
from sbridge.fitting import solve
from sbridge.laws import Density, Gaussian, GaussianMixture, Point
from sbridge.measures import MatchedKernel
from sbridge.problems import ControlProblem
from sbridge.problems.sampling import sampling_problem
from sbridge.processes import BrownianMotion, OrnsteinUhlenbeck, log_snr_grid
from sbridge.solutions import ControlSolution
from sbridge.solvers import GaussianStart, PosteriorMatching, PosteriorNetwork, Replay
from sbridge.solvers.control.posterior import PosteriorControl
from sbridge.training import Optimisation

F64 = torch.float64
EXACT = MatchedKernel(1e-6, 1e6)
SCALE = torch.tensor([2.0, 3.0], dtype=F64)


def gaussian_target(mean, variances):
    law = Gaussian(torch.tensor(mean, dtype=F64), torch.tensor(variances, dtype=F64).diag())
    return Density(lambda x: law.log_density(x) + 0.8, 2)


PROBLEMS = {
    "stationary": sampling_problem(
        gaussian_target([1.0, -0.5], [0.3, 2.0]),
        stationary_noise(SCALE, 6.0),
        Gaussian(torch.zeros(2, dtype=F64), SCALE.square().diag()),
    ),
    "point": sampling_problem(
        gaussian_target([1.0, -0.5], [0.3, 0.9]),
        BrownianMotion(torch.tensor([1.2, 1.5], dtype=F64)),
        Point(torch.tensor([0.3, 0.2], dtype=F64)),
    ),
    "growing": sampling_problem(
        gaussian_target([0.5, 0.5], [0.2, 0.4]),
        OrnsteinUhlenbeck(torch.tensor([0.4, -0.6]), 1.1, mean=0.3),
        Point(torch.zeros(2, dtype=F64)),
    ),
}


def gaussian_control(problem, grid):
    """The network with ``a = e = 1`` and ``b = c = d = 0`` everywhere."""
    control = PosteriorControl(problem, grid, PosteriorNetwork(8, 1, 1)).to(problem.probe)
    with torch.no_grad():
        control.core.last.bias.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]))
    return control


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_parametrisation_contains_gaussian_densities(name):
    """All weights are equal with 12 steps, up to how far the start is forgotten."""
    problem = PROBLEMS[name]
    grid = log_snr_grid(problem.process, 12, 0.1)
    measure = dataclasses.replace(PosteriorMatching(grid=grid).measure(problem, None), control=None)
    control = gaussian_control(problem, grid)
    solution = ControlSolution(problem, dataclasses.replace(measure, control=control))
    found = log_normaliser(solution, 400, seed=0, kernel=EXACT)
    assert found.weights.effective_sample_size == pytest.approx(400.0, rel=1e-4 if name == "stationary" else 1e-9)
    assert found.log_normaliser.value == pytest.approx(0.8, abs=0.02 if name == "stationary" else 1e-9)


def test_posterior_variances_and_derivatives_give_the_same_kernel():
    problem = PROBLEMS["growing"]
    grid = log_snr_grid(problem.process, 12, 0.1)
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    chain = PosteriorMatching(grid=grid).measure(problem, None).chain(x)
    cost = problem.terminal_cost
    precision = torch.tensor([[1.0 / 0.2, 1.0 / 0.4]], dtype=F64)
    away = cost.whitening.values.square()
    mean = torch.tensor([[0.5, 0.5]], dtype=F64)
    potential = MixturePotential(
        problem.process, torch.zeros(1), mean * precision - away * cost.mean, (precision - away).expand(1, 2)
    )
    by_derivative = EXACT.on(chain, MixtureControl(potential))
    by_posterior = EXACT.on(chain, gaussian_control(problem, grid))
    for j in range(chain.length):
        for one, other in zip(by_derivative(j, x), by_posterior(j, x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


MEANS, SHARES = torch.tensor([[3.0, 0.0], [-2.0, 2.5], [-1.0, -3.0]]), torch.tensor([0.5, 0.3, 0.2])


def three_modes(dtype):
    """Unequal modes in two dimensions, about nine widths apart."""
    covariances = 0.25 * torch.eye(2, dtype=dtype).expand(3, 2, 2)
    return GaussianMixture(SHARES.to(dtype), MEANS.to(dtype), covariances)


def learned(dtype, updates):
    process = stationary_noise(3.0, 3.0)
    start = Gaussian(torch.zeros(2, dtype=dtype), 9.0 * torch.eye(2, dtype=dtype))
    problem = sampling_problem(Density(three_modes(dtype).log_density, 2), process, start)
    solver = PosteriorMatching(
        updates=updates,
        grid=log_snr_grid(process, 25, 0.15),
        network=PosteriorNetwork(48, 2, 3),
        optimisation=Optimisation(learning_rate=1e-2, batch=512, ema_decay=0.98, warm_up=10),
        replay=Replay(paths=384, updates=20, kept=3),
    )
    return solve(problem, solver, seed=0)


def test_double_precision_stays():
    found = log_normaliser(learned(F64, 2), 20, seed=1, kernel=MatchedKernel())
    assert found.x.dtype == F64


def test_three_modes_are_learned():
    solution, means, shares = learned(torch.float32, 140), MEANS, SHARES
    found = log_normaliser(solution, 2000, seed=1, kernel=MatchedKernel())
    assert found.weights.effective_sample_size > 1250.0  # of 2000; 1393 and more than 1400 on two processors
    assert abs(found.log_normaliser.value) < 4.0 * found.log_normaliser.standard_error
    nearest = torch.cdist(found.x, means).argmin(1)
    found_shares = torch.stack([found.weights.values[nearest == k].sum() for k in range(3)])
    assert torch.allclose(found_shares, shares.double(), atol=4.0 * 0.5 / 1250**0.5)
    draws = three_modes(torch.float32).sample(2000, torch.Generator().manual_seed(2))
    upper = evidence_upper_bound(solution, draws, seed=3, kernel=MatchedKernel())
    assert -4.0 * upper.standard_error < upper.value < 0.5


def test_a_resumed_run_goes_on_bit_for_bit_and_the_control_is_not_saved(tmp_path):
    problem, solver = PROBLEMS["point"], PosteriorMatching(updates=6, replay=Replay(paths=32, updates=2, kept=2))
    state = solver.init(problem, 3)
    for _ in range(3):
        state, _ = solver.step(problem, state)
    other = solver.resume(problem, state.state_dict())
    for _ in range(3):
        (state, one), (other, two) = solver.step(problem, state), solver.step(problem, other)
        assert one == two
    with pytest.raises(UnsupportedError, match="PosteriorControl"):
        solver.finish(problem, state).save(tmp_path / "control")


class Energy(nn.Module):
    """A cost with parameters of its own."""

    def __init__(self):
        super().__init__()
        self.steepness = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.steepness * x.square().sum(1)


def test_parameters_of_the_cost_are_left_alone():
    energy = Energy()
    problem = ControlProblem(BrownianMotion(1.0), Point(torch.zeros(2)), terminal_cost=energy)
    solver = PosteriorMatching(updates=3, replay=Replay(paths=32, updates=2, kept=1))
    solution = solve(problem, solver, seed=0)
    assert float(energy.steepness.detach()) == 2.0
    assert energy.steepness.grad is None
    assert all(p is not energy.steepness for p in solution.control.parameters())


def test_a_linear_cost_has_a_constant_control():
    """``u* = −σ`` for ``g = Σ x_i``: the posterior mean moves by ``−σ²(T − t)``, its variance is Q."""
    problem = ControlProblem(BrownianMotion(1.0), Point(torch.zeros(2)), terminal_cost=lambda x: x.sum(1))
    solution = solve(
        problem,
        PosteriorMatching(updates=150, grid=log_snr_grid(problem.process, 8, 0.1)),
        seed=0,
    )
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    u, variance = solution.control.with_variance(0.4, 0.5 * x)
    assert float((u + 1.0).abs().max()) < 0.1
    assert float((variance - 1.0).abs().max()) < 0.15  # its standard error, from 3072 ends, is 0.026


def test_bad_input_is_explained():
    with pytest.raises(InvalidInputError, match="leave start=ZeroStart"):
        PosteriorMatching(start=GaussianStart())
    dense = BrownianMotion(torch.tensor([[1.0, 0.0], [0.5, 1.0]]))
    problem = ControlProblem(dense, Point(torch.zeros(2)), terminal_cost=lambda x: x.square().sum(1))
    with pytest.raises(UnsupportedError, match="whiten the coordinates"):
        solve(problem, PosteriorMatching(updates=1), seed=0)
    running = ControlProblem(BrownianMotion(1.0), Point(torch.zeros(2)), running_cost=lambda t, x: x.square().sum(1))
    with pytest.raises(UnsupportedError, match=r"^PosteriorMatching draws states"):
        solve(running, PosteriorMatching(updates=1), seed=0)
