"""Sampling from densities: exact controls give exact normalisers, any control an unbiased one."""

import math

import pytest
import torch
from doob import DoobControl, GaussianTilt

from sbridge.benchmarks.densities import nine_modes
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.evaluation import log_normaliser
from sbridge.fitting import solve
from sbridge.laws import Density, Gaussian, GaussianMixture, Point, Samples
from sbridge.measures import PathMeasure
from sbridge.problems import ControlProblem
from sbridge.problems.sampling import sampling_problem
from sbridge.processes import (
    BrownianMotion,
    DriftProcess,
    EulerMaruyama,
    OrnsteinUhlenbeck,
    VariancePreserving,
)
from sbridge.solutions import ControlSolution
from sbridge.solvers import AdjointMatching, Annealing, LogVariance
from sbridge.time import TimeGrid

F64 = torch.float64
LOG_Z = 1.7
MIXTURE = GaussianMixture(
    torch.tensor([0.7, 0.3], dtype=F64),
    torch.tensor([[1.0, 0.5], [-1.0, 0.0]], dtype=F64),
    torch.stack([0.3 * torch.eye(2, dtype=F64), torch.tensor([[0.4, 0.1], [0.1, 0.2]], dtype=F64)]),
)
TARGET = Density(lambda x: MIXTURE.log_density(x) + LOG_Z, 2)
STARTS = {
    "point": (BrownianMotion(1.3), Point(torch.tensor([0.2, -0.1], dtype=F64))),
    "point, OU": (
        OrnsteinUhlenbeck(rate=torch.tensor([[1.0, 0.3], [-0.2, 0.7]]), sigma=1.1, mean=0.3),
        Point(torch.tensor([0.2, -0.1], dtype=F64)),
    ),
    "stationary": (VariancePreserving(), Gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))),
}


def end_distribution(process, start):
    law = process.transition(0.0, process.horizon)
    covariance = law.covariance.expanded(2)
    if isinstance(start, Point):
        return Gaussian(law.mean(start.position[None])[0], covariance)
    phi = law.map.expanded(2)
    return Gaussian(law.mean(start.mean[None])[0], phi @ start.covariance @ phi.mT + covariance)


def solution(process, start, control, steps=30, rule=None):
    problem = sampling_problem(TARGET, process, start)
    return ControlSolution(problem, PathMeasure(process, control, start, grid=TimeGrid.uniform(steps), rule=rule))


@pytest.mark.parametrize("name", STARTS)
def test_terminal_cost_is_energy_plus_log_of_the_end_law(name):
    process, start = STARTS[name]
    cost, law = sampling_problem(TARGET, process, start).terminal_cost, end_distribution(process, start)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert torch.allclose(cost(x), law.log_density(x) - TARGET.log_density(x), rtol=1e-10)


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("steps", [3, 30])
def test_normaliser_is_unbiased_for_any_control_and_number_of_steps(name, steps):
    process, start = STARTS[name]
    exact = DoobControl(process, GaussianTilt.of(MIXTURE).over(end_distribution(process, start)))

    def wrong(t, x):
        return 0.6 * exact(t, x) + 0.1

    found = log_normaliser(solution(process, start, wrong, steps), 20_000, seed=1)
    assert abs(found.log_normaliser.value - LOG_Z) < 4.0 * found.log_normaliser.standard_error
    assert found.lower_bound.value < LOG_Z
    # weights make the end states samples of the target
    mean = found.weights.values @ found.x
    assert torch.allclose(mean, MIXTURE.weights @ MIXTURE.means, atol=0.1)


@pytest.mark.parametrize("name", STARTS)
def test_weights_of_the_exact_control_become_constant(name):
    process, start = STARTS[name]
    exact = DoobControl(process, GaussianTilt.of(MIXTURE).over(end_distribution(process, start)))
    coarse, fine = (log_normaliser(solution(process, start, exact, steps), 4000, seed=2) for steps in (30, 120))
    assert fine.weights.effective_sample_size > 0.8 * 4000
    gaps = [LOG_Z - found.lower_bound.value for found in (coarse, fine)]
    assert 0 < gaps[1] < 0.6 * gaps[0]


def test_trained_control_finds_a_gaussian(dtype):
    target = Gaussian(torch.tensor([1.0, -0.5], dtype=dtype), 0.5 * torch.eye(2, dtype=dtype))
    problem = sampling_problem(target, BrownianMotion(1.0), Point(torch.zeros(2, dtype=dtype)))
    solver = AdjointMatching(updates=150, grid=TimeGrid.uniform(20))
    found = log_normaliser(solve(problem, solver, seed=0), 4096, seed=1)
    assert found.x.dtype == dtype
    assert found.weights.effective_sample_size > 0.7 * 4096
    assert abs(found.log_normaliser.value) < 0.05


@pytest.mark.slow
def test_nine_modes_are_all_found_and_weighed():
    target = nine_modes(log_normaliser=2.0)
    problem = sampling_problem(target.law, BrownianMotion(5.0), Point(torch.zeros(2)))
    solver = LogVariance(updates=2500, annealing=Annealing(0.01, 0.7), grid=TimeGrid.refined(50))
    found = log_normaliser(solve(problem, solver, seed=0), 30_000, seed=1)
    assert found.log_normaliser.value == pytest.approx(2.0, abs=0.05)
    shares = target.mean_observables(found.x, found.weights.values)
    assert torch.allclose(shares, target.expectations, atol=0.03)


def test_bad_input():
    point, brownian = Point(torch.zeros(2)), BrownianMotion(1.0)
    with pytest.raises(UnsupportedError, match="end distribution"):
        sampling_problem(TARGET, DriftProcess(lambda t, x: -x, 1.0), point)
    with pytest.raises(UnsupportedError, match="Point or a Gaussian"):
        sampling_problem(TARGET, brownian, Samples(torch.zeros(3, 2)))
    with pytest.raises(InvalidInputError, match="dimension"):
        sampling_problem(TARGET, brownian, Point(torch.zeros(3)))
    with pytest.raises((UnsupportedError, TypeError), match=r"density|HasDensity"):
        sampling_problem(Samples(torch.zeros(3, 2)), brownian, point)
    euler = solution(*STARTS["point, OU"], None, 5, EulerMaruyama())
    with pytest.raises(UnsupportedError, match="ExactTransition"):
        log_normaliser(euler, 10, seed=0)
    plain = ControlProblem(brownian, point, terminal_cost=lambda x: x.sum(1))
    with pytest.raises(InvalidInputError, match="sampling_problem"):
        log_normaliser(ControlSolution(plain, PathMeasure(brownian, None, point)), 10, seed=0)
    assert math.isfinite(log_normaliser(solution(*STARTS["point"], None), 100, seed=0).lower_bound.value)
