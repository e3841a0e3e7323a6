"""Reciprocal adjoint matching: its targets, its known start, its trust region, and what it refuses."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from sbridge.controls import MLP
from sbridge.diffusion import ExactScore, reversal_problem
from sbridge.errors import ConvergenceWarning, InvalidInputError, NonFiniteError, UnsupportedError
from sbridge.evaluation import control_error
from sbridge.fitting import solve
from sbridge.laws import Gaussian, GaussianMixture, Point, Samples, moments
from sbridge.linear import LinearMap
from sbridge.measures import PathMeasure
from sbridge.objectives.control_rows import ReciprocalRows
from sbridge.problems import ControlProblem, Quadratic, sampling_problem
from sbridge.processes import BrownianMotion, DriftProcess, EulerMaruyama, ExactTransition, OrnsteinUhlenbeck
from sbridge.random import generator
from sbridge.solvers import Annealing, ReciprocalAdjointMatching, Replay, TrustRegion
from sbridge.solvers.control.starts import GaussianStart
from sbridge.solvers.control.trust_region import without_start
from sbridge.time import TimeGrid
from sbridge.training import Optimisation

GRID = TimeGrid.uniform(20)
DENSE = OrnsteinUhlenbeck(torch.tensor([[1.0, 0.4], [-0.3, 0.7]]), torch.tensor([[1.0, 0.0], [0.3, 0.8]]), 0.2, 0.9)
DATA = Gaussian(torch.tensor([0.4, -0.2]), torch.tensor([[0.3, 0.1], [0.1, 0.2]]))
SMALL = {"grid": GRID, "network": MLP(16, 2), "replay": Replay(paths=512, updates=20, kept=2)}
PATHS = Optimisation(learning_rate=1e-2, batch=512, ema_decay=0.99, warm_up=20)


def known(q: float, c: float):
    """The optimal control of Brownian motion with ``g = ½q|x − c|²``, ``−q (x − c)/(1 + q(1 − t))``."""

    def control(t: float | Tensor, x: Tensor) -> Tensor:
        left = 1.0 - torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1)
        return -q * (x - c) / (1.0 + q * left)

    return control


# --- targets


@pytest.mark.parametrize("process", [DENSE, OrnsteinUhlenbeck(0.8, [1.0, 0.5], 0.1, 1.3)], ids=["dense", "diagonal"])
def test_targets_of_a_gaussian_cost_are_its_optimal_control(process: OrnsteinUhlenbeck) -> None:
    """With the cost's own variance there is no noise; with another the mean given the state is the same."""
    n, v, c = 40_000, 0.4, torch.tensor([0.5, -1.0], dtype=torch.float64)
    draws, start = generator(0), torch.randn(n, 2, generator=generator(1), dtype=torch.float64)
    law = process.transition(0.0, process.horizon)
    q = law.covariance.expanded(2)
    kept = torch.linalg.inv(torch.eye(2, dtype=torch.float64) + q / v)  # of X_T given X_0 under e^{−g}
    spread = torch.linalg.cholesky(0.5 * (kept @ q + (kept @ q).mT)).mT
    end = (law.mean(start) + c @ q / v) @ kept.mT + torch.randn(n, 2, generator=draws, dtype=torch.float64) @ spread
    t = torch.tensor([0.2, 0.8], dtype=torch.float64) * process.horizon
    rows = ReciprocalRows.of(process, t, start)
    for number in range(2):
        k = torch.full((n,), number)
        x = rows.states(k, start, end, torch.randn(n, 2, generator=draws, dtype=torch.float64))
        ahead = process.transition(float(t[number]), process.horizon)
        whole = torch.linalg.inv(v * torch.eye(2, dtype=torch.float64) + ahead.covariance.expanded(2))
        pull = process.scale(float(t[number])).T @ ahead.map.T @ LinearMap(whole, dense=True)
        best = pull((c - ahead.mean(x)).double())
        for factor in (1.0, 0.2, 5.0):
            variance = torch.tensor(factor * v, dtype=torch.float64)
            gap = rows.targets(k, x, end, (end - c) / v, rows.target_maps(variance), variance) - best
            if factor == 1.0:
                assert float(gap.abs().max()) < 1e-12
                continue
            error = gap.std(0) / n**0.5
            assert bool((gap.mean(0).abs() < 4 * error).all())
            slope = (gap.unsqueeze(2) * (x - x.mean(0)).unsqueeze(1)).mean(0)
            assert bool((slope.abs() < 4.5 * error.unsqueeze(1) * x.std(0)).all())
            assert float(error.min()) * n**0.5 > 0.05  # there is noise


def test_the_control_of_a_quadratic_cost_is_found_from_a_point_and_from_a_wide_start() -> None:
    q, c = 3.0, 1.0
    for start in (Point(torch.tensor([0.0, -0.5])), Gaussian(torch.zeros(2), torch.eye(2))):
        problem = ControlProblem(BrownianMotion(1.0), start, None, lambda x: 0.5 * q * (x - c).square().sum(1))
        solution = solve(problem, ReciprocalAdjointMatching(updates=200, optimisation=PATHS, **SMALL), seed=0)
        found = control_error(solution, known(q, c), 4000, seed=1)
        assert found.value < 0.005, found


def test_a_linear_cost_has_no_noise() -> None:
    """``u* = −σᵀΦᵀγ``, which the lean adjoint is on every row: the mixture with the bridge score is switched off."""
    gamma = torch.tensor([1.0, -2.0])
    problem = ControlProblem(BrownianMotion(1.0), Point(torch.zeros(2)), None, lambda x: x @ gamma)
    solution = solve(problem, ReciprocalAdjointMatching(updates=100, optimisation=PATHS, **SMALL), seed=0)
    assert control_error(solution, lambda t, x: -gamma.to(x).expand_as(x), 500, seed=1).value < 1e-3


# --- the known start


def test_the_gaussian_start_reverses_a_gaussian() -> None:
    grid = TimeGrid.uniform(40)
    for horizon in (0.5, 3.0):
        noising = dataclasses.replace(OrnsteinUhlenbeck(1.0, math.sqrt(2.0), 0.3, 1.0), horizon=horizon)
        problem, exact = reversal_problem(noising, DATA), ExactScore(noising, DATA)
        found = GaussianStart().control(problem, grid, ExactTransition())
        x = torch.randn(6, 2, generator=generator(0), dtype=torch.float64)
        for t in (0.0, 0.3 * horizon, horizon):
            wanted = math.sqrt(2.0) * exact(horizon - t, x)
            torch.testing.assert_close(found(t, x), wanted, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(found(torch.full((6,), t), x), wanted, rtol=1e-5, atol=1e-5)
        assert found(0.3, x.float()).dtype is torch.float32


def test_the_gaussian_start_ends_in_its_gaussian() -> None:
    """From a point the optimal control to ``N(m, C)`` is that of the potential ``N(m, C)/R_T``."""
    problem = sampling_problem(DATA, DENSE, Point(torch.tensor([1.0, -0.5])))
    control = GaussianStart().control(problem, TimeGrid.uniform(200), ExactTransition())
    ends = PathMeasure(DENSE, control, problem.start, grid=TimeGrid.uniform(200)).sample(20_000, seed=0).x[-1]
    error = (DATA.covariance.diagonal() / len(ends)).sqrt()
    assert bool(((ends.mean(0) - DATA.mean).abs() < 4 * error + 0.005).all())
    torch.testing.assert_close(ends.mT.cov(), DATA.covariance, rtol=0.0, atol=0.012)  # s.e. .003, time step .003


def test_the_gaussian_start_takes_the_moments_of_a_mixture_or_yours_or_none() -> None:
    means, rule = torch.tensor([[-2.0, 0.0], [1.5, 1.5]]), ExactTransition()
    mixture = GaussianMixture(torch.tensor([0.4, 0.6]), means, 0.15 * torch.eye(2).expand(2, 2, 2))
    noising = OrnsteinUhlenbeck(1.0, math.sqrt(2.0), 0.0, 1.5)
    x = torch.randn(4, 2, generator=generator(0))
    problem, given = reversal_problem(noising, mixture), Gaussian(*moments(mixture))
    one, other = (start.control(problem, GRID, rule)(0.3, x) for start in (GaussianStart(), GaussianStart(given)))
    torch.testing.assert_close(one, other)
    unnamed = dataclasses.replace(problem, terminal_cost=lambda x: x.square().sum(1))
    assert GaussianStart().control(unnamed, GRID, rule) is None
    assert GaussianStart(given).control(unnamed, GRID, rule) is not None
    rows = dataclasses.replace(problem, start=Samples(torch.randn(50, 2, generator=generator(1))))
    assert bool(GaussianStart().control(rows, GRID, rule)(0.3, x).isfinite().all())


def test_the_gaussian_start_says_what_it_needs() -> None:
    problem = ControlProblem(BrownianMotion(1.0), Point(torch.zeros(3)))
    with pytest.raises(InvalidInputError, match="end of GaussianStart has dimension 2, the problem 3"):
        GaussianStart(DATA).control(problem, GRID, ExactTransition())
    bent = ControlProblem(DriftProcess(lambda t, x: -(x**3), 1.0, 1.0, 2), Point(torch.zeros(2)))
    with pytest.raises(UnsupportedError, match=r"for linear processes, got a DriftProcess.* EarlierStart"):
        GaussianStart(DATA).control(bent, GRID, EulerMaruyama())
    assert GaussianStart().control(bent, GRID, EulerMaruyama()) is None


# --- the trust region


def test_what_the_start_alone_decides_is_taken_out_of_the_weights() -> None:
    """For reverse diffusion ``log α = log ρ_T(X_0)`` on paths of the optimal control: nothing is left."""
    mixture = GaussianMixture(torch.tensor([0.4, 0.6]), torch.tensor([[-2.0], [2.0]]), torch.ones(2, 1, 1) * 0.3)
    start = mixture.sample(500, generator(0))
    logs = mixture.log_density(start).double() - 3.0
    assert float(without_start(logs, start, mixture).abs().max()) < 1e-8
    assert float(logs.std()) > 0.3
    noise = torch.randn(500, generator=generator(1), dtype=torch.float64)
    left = without_start(logs + noise, start, mixture)
    assert float((left - noise).std()) < 0.15  # four coefficients from 500 rows: .09
    assert without_start(logs, start, Point(torch.zeros(1))) is logs


def test_a_trust_region_too_small_for_the_updates_is_named() -> None:
    problem = ControlProblem(BrownianMotion(1.0), Point(torch.zeros(2)), None, Quadratic.isotropic(40.0, 2))
    solver = ReciprocalAdjointMatching(updates=4, trust_region=TrustRegion(1e-4), **SMALL)
    with pytest.warns(ConvergenceWarning, match=r"a share of 100% is missing after 4 updates.*larger TrustRegion"):
        solve(problem, solver, seed=0)


# --- what it refuses


def test_reciprocal_matching_says_what_it_needs() -> None:
    solver = ReciprocalAdjointMatching()
    problem = ControlProblem(DENSE, Gaussian(torch.zeros(2), torch.eye(2)), None, lambda x: x.square().sum(1))
    assert solver.refusal(problem) is None
    running = dataclasses.replace(problem, running_cost=lambda t, x: x.square().sum(1))
    assert "running cost changes: use AdjointMatching" in str(solver.refusal(running))
    assert "exact steps" in str(dataclasses.replace(solver, rule=EulerMaruyama()).refusal(problem))
    bent = dataclasses.replace(problem, process=DriftProcess(lambda t, x: -(x**3), 1.0, 1.0, 2))
    assert "closed form" in str(solver.refusal(bent))
    with pytest.raises(InvalidInputError, match=r"annealing must be None; a smaller TrustRegion"):
        ReciprocalAdjointMatching(annealing=Annealing())


def test_a_gradient_that_is_not_finite_is_named_with_its_place() -> None:
    def cost(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0.0, x[:, 0].sqrt(), 0.0 * x[:, 0])  # NaN times zero where x < 0

    problem = ControlProblem(BrownianMotion(1.0), Point(torch.full((2,), 0.1)), None, cost)
    with pytest.raises(NonFiniteError, match=r"gradient of the terminal cost .* such as x = \(-.*LogVariance"):
        solve(problem, ReciprocalAdjointMatching(updates=4, **SMALL), seed=0)
