"""The recorder of the action gap: both routes against closed forms, and against each other."""

import math

import pytest
import torch

from sbridge.diffusion import ExactScore, GapRecorder
from sbridge.errors import InvalidInputError
from sbridge.laws import Gaussian, GaussianMixture, Samples
from sbridge.processes import OrnsteinUhlenbeck, VarianceExploding, VariancePreserving
from sbridge.training import State

PROCESSES = {
    "vp": VariancePreserving(),
    "ve": VarianceExploding(0.1, 4.0),
    "ou": OrnsteinUhlenbeck(rate=torch.tensor([[1.0, 0.3], [-0.2, 0.7]]), sigma=torch.tensor([[1.0, 0.4], [0.0, 0.6]])),
}


def mixture():
    eye = torch.eye(2, dtype=torch.float64)
    means = torch.tensor([[1.5, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.6, 0.4], dtype=torch.float64), means, torch.stack([0.1 * eye, 0.3 * eye]))


@pytest.mark.parametrize(("name", "points"), [("vp", False), ("vp", True), ("ve", False), ("ou", False)])
def test_both_routes_find_the_gap_of_a_shifted_score(name, points):
    """``s + c`` has the gap ``½ ∫ |σᵀc|² ds`` whatever the data; here by a fine quadrature of it."""
    process = PROCESSES[name]
    data = Samples(mixture().sample(40, torch.Generator().manual_seed(1))) if points else mixture()
    exact, shift = ExactScore(process, data), torch.tensor([0.4, -0.2], dtype=torch.float64)
    recorder = GapRecorder(exact, 0.02, draws=8000, seed=3)
    found = recorder.measure(lambda t, x: exact(t, x) + shift)
    knots = torch.linspace(0.02, 1.0, 2001, dtype=torch.float64)
    moved = process.scale(knots).T(shift.expand(len(knots), 2)).square().sum(1)
    expected = 0.5 * float(torch.trapezoid(moved, knots))
    # the gap is known at each time, so only the drawn times make noise
    assert abs(found["gap"] - expected) < 4 * found["gap_error"] + 1e-3 * expected
    assert abs(found["excess"] - expected) < 4 * found["excess_error"]
    assert found["excess_error"] < 0.2 * expected


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_routes_agree_for_a_score_that_is_wrong_all_over(process):
    exact = ExactScore(process, mixture())
    found = GapRecorder(exact, 0.02, draws=8000, seed=4).measure(lambda t, x: exact(t, x) + torch.sin(2.0 * x))
    error = math.hypot(found["gap_error"], found["excess_error"])
    assert abs(found["gap"] - found["excess"]) < 4 * error
    assert found["gap"] > 20 * error


def test_the_true_score_has_no_gap_by_either_route():
    exact = ExactScore(PROCESSES["vp"], mixture())
    found = GapRecorder(exact, draws=100).measure(exact)
    assert found["gap"] == found["excess"] == 0.0


def test_the_constant_is_that_of_gaussian_data():
    """``C = ½∫ β (d/v − d/(α² + v)) ds`` for ``N(0, I)``: the target's square less the score's."""
    process = PROCESSES["vp"]
    exact = ExactScore(process, Gaussian(torch.zeros(2).double(), torch.eye(2).double()))
    recorder = GapRecorder(exact, 0.01, draws=20_000, seed=5)
    knots = torch.logspace(-2, 0, 4001, dtype=torch.float64)
    rate, v = process.scale(knots).values[:, 0].square(), process.transition(0.0, knots).covariance.values[:, 0]
    expected = float(torch.trapezoid(0.5 * rate * (2.0 / v - 2.0), knots))
    assert abs(recorder.constant / expected - 1.0) < 0.03


def test_bad_input_is_told():
    exact = ExactScore(PROCESSES["vp"], mixture())
    with pytest.raises(InvalidInputError, match="every must be positive"):
        GapRecorder(exact, every=0)
    with pytest.raises(InvalidInputError, match="needs ScoreMatching"):
        GapRecorder(exact)(State(0), {})
