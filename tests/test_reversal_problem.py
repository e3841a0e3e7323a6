"""Reverse diffusion as a control problem, and its solution by control learning without a score."""

import math

import pytest
import torch

import sbridge as sb
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.measures import Estimate
from sbridge.objectives.control import control_objective
from sbridge.processes import CosineSchedule, ReversedDrift
from sbridge.solvers.control.adjoint import Replay

DENSE = sb.OrnsteinUhlenbeck(
    torch.tensor([[1.0, 0.4], [-0.3, 0.7]]), torch.tensor([[1.0, 0.0], [0.3, 0.8]]), torch.tensor([0.2, -0.1]), 0.9
)
NOISING = {"OU": sb.OrnsteinUhlenbeck(1.0, math.sqrt(2.0), 0.3, 1.5), "VP": sb.VariancePreserving(CosineSchedule())}
MEANS, WEIGHTS, VARIANCE = torch.tensor([[-2.0, 0.0], [1.5, 1.5], [1.0, -2.0]]), torch.tensor([0.5, 0.3, 0.2]), 0.15
DATA = sb.GaussianMixture(WEIGHTS, MEANS, VARIANCE * torch.eye(2).expand(3, 2, 2))


def test_the_reversed_drift_of_an_ou_process_is_the_ou_process_of_the_opposite_rate():
    one, other = ReversedDrift(sb.OrnsteinUhlenbeck(0.8, 1.3, 0.4, 1.2)), sb.OrnsteinUhlenbeck(-0.8, 1.3, 0.4, 1.2)
    for s, t in ((0.0, 1.2), (0.3, 0.7)):
        found, wanted = one.transition(s, t), other.transition(s, t)
        for a, b in (
            (found.map.values, wanted.map.values),
            (found.offset, wanted.offset),
            (found.covariance.values, wanted.covariance.values),
        ):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("process", [DENSE, *NOISING.values()], ids=["dense", *NOISING])
def test_the_reversed_drift_keeps_the_rules_of_a_process(process):
    sb.processes.check_process(ReversedDrift(process), dim=2)


@pytest.mark.parametrize("name", NOISING)
def test_the_score_is_the_optimal_control_and_minus_log_density_the_value(name):
    """``log α = −V(x_0)`` on every path of the exact control, up to the time step."""
    noising = NOISING[name]
    problem, exact = sb.reversal_problem(noising, DATA), sb.ExactScore(noising, DATA)
    horizon = noising.horizon

    def control(t, x):
        mirrored = horizon - torch.as_tensor(t, dtype=torch.float64)
        return noising.scale(mirrored).T.to(x)(exact(mirrored, x))

    measure = sb.PathMeasure(problem.process, control, problem.start, grid=sb.TimeGrid.cosine(800))
    paths = measure.sample(2000, seed=1)
    value = -exact.log_density(horizon, paths.x[0])
    found = Estimate.of(control_objective(paths, problem.costs) - value.double())
    assert abs(found.value) < 4 * found.standard_error + 0.02  # the time step leaves .004 and .013
    # The constant is needed: without it the value is off by log |det Φ|.
    shift = abs(float(noising.transition(0.0, horizon).map.log_abs_det(2)))
    assert shift > 1.0


def test_the_score_is_learned_without_being_given():
    noising = NOISING["OU"]
    problem, exact = sb.reversal_problem(noising, DATA), sb.ExactScore(noising, DATA)
    solver = sb.ReciprocalAdjointMatching(
        updates=400, replay=Replay(paths=512, updates=40, kept=3), grid=sb.TimeGrid.uniform(50)
    )
    solution, missed, size = sb.solve(problem, solver, seed=0), 0.0, 0.0
    generator = torch.Generator().manual_seed(3)
    for fraction in (0.1, 0.3, 0.5, 0.7, 0.9):
        t = fraction * noising.horizon
        x = exact.marginal(t).sample(1000, generator)
        best = math.sqrt(2.0) * exact(t, x)
        missed += float((solution.control(torch.tensor(noising.horizon - t), x).detach() - best).square().mean())
        size += float(best.square().mean())
    assert missed < 0.1 * size  # .034 at seeds 0 and 1; 1 without control
    ends = solution.sample(2000, seed=5).x[-1]
    shares = torch.cdist(ends, MEANS).argmin(1).bincount(minlength=3) / 2000
    assert (shares - WEIGHTS).abs().max() < 0.06  # s.e. .011


def test_the_trust_region_bounds_the_divergence():
    logs = 30.0 * torch.randn(500, generator=torch.Generator().manual_seed(0))
    for bound in (0.01, 0.1, 1.0):
        weights, power = sb.solvers.TrustRegion(bound).weights(logs)
        divergence = float((weights * (500 * weights).clamp_min(1e-300).log()).sum())
        assert divergence == pytest.approx(bound, rel=1e-6)
        torch.testing.assert_close(weights, (power * logs.double()).softmax(0))
    weights, power = sb.solvers.TrustRegion().weights(1e-3 * logs)
    assert power == 1.0
    torch.testing.assert_close(weights, (1e-3 * logs).double().softmax(0))
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(sb.SbridgeError, match="max_kl must be positive"):
            sb.solvers.TrustRegion(bad)


def test_what_has_no_density_is_refused():
    with pytest.raises(UnsupportedError, match="GaussianMixture around the samples"):
        sb.reversal_problem(NOISING["OU"], sb.Samples(torch.randn(20, 2)))
    density = sb.Density(lambda x: -x.square().sum(1), 2)
    with pytest.raises(UnsupportedError, match="pass prior="):
        sb.reversal_problem(NOISING["OU"], density)
    with pytest.raises(UnsupportedError, match="LinearProcess"):
        sb.reversal_problem(sb.DriftProcess(lambda t, x: -x, 1.0), DATA)
    prior = sb.Gaussian(torch.zeros(2), torch.eye(2))
    assert sb.reversal_problem(NOISING["OU"], density, prior=prior).start is prior


def test_dimensions_must_agree():
    density = sb.Density(lambda x: -x.square().sum(1), 2)
    with pytest.raises(InvalidInputError, match="prior has dimension 3 and the density has dimension 2"):
        sb.reversal_problem(NOISING["OU"], density, prior=sb.Gaussian(torch.zeros(3), torch.eye(3)))
    three = sb.OrnsteinUhlenbeck(1.0, torch.ones(3))
    with pytest.raises(InvalidInputError, match="process has dimension 3 and the density has dimension 2"):
        sb.reversal_problem(three, density, prior=sb.Gaussian(torch.zeros(2), torch.eye(2)))
