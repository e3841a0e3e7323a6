"""Processes between rows that belong together."""

import math

import pytest
import torch

import sbridge as sb
from sbridge.couplings import GivenPairs
from sbridge.errors import InvalidInputError, UnsupportedError

SOLVER = sb.MatchedBridge(updates=300, network=sb.networks.MLP(32, 2), grid=sb.TimeGrid.cosine(25))


@pytest.mark.slow
def test_independent_pairs_give_the_markov_process_of_their_pinned_bridges():
    """The covariance of its ends is e^{−π/√27}: neither 0, that of the pairs, nor (√5 − 1)/2, that of the bridge."""
    x0, x1 = torch.randn(2, 6000, 1, generator=torch.Generator().manual_seed(0))
    process = sb.fit_pairs(x0, x1, reference=sb.BrownianMotion(1.0), solver=SOLVER)
    end = process.transport(x0, seed=1)
    assert float(torch.cat([x0, end], 1).mT.cov()[0, 1]) == pytest.approx(math.exp(-math.pi / 27**0.5), abs=0.03)
    assert float(end.var()) == pytest.approx(1.0, abs=0.08)
    middle = process.interpolate(x0, 0.5, seed=2)
    assert float(middle.var()) == pytest.approx(0.75, abs=0.06)  # ¼ + ¼ + ¼, and .809 for the bridge


def test_pairs_are_drawn_together_and_by_weight():
    rows = torch.arange(6.0)[:, None]
    weights = torch.tensor([0.0, 0.0, 0.5, 0.5, 0.0, 0.0])
    problem = sb.BridgeProblem(sb.Samples(rows, weights), sb.Samples(10.0 * rows, weights), sb.BrownianMotion(1.0))
    x0, x1 = GivenPairs()(problem, torch.Generator())(100, torch.Generator().manual_seed(0))
    assert torch.equal(x1, 10.0 * x0)
    assert set(x0[:, 0].tolist()) == {2.0, 3.0}


def test_rows_that_cannot_be_pairs_are_refused():
    rows = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InvalidInputError, match=r"as many source rows as target rows.*30 and 29"):
        sb.fit_pairs(rows, rows[:29] + 1.0, solver=SOLVER)
    with pytest.raises(InvalidInputError, match="the same weights"):
        sb.fit_pairs(sb.Samples(rows, torch.ones(30) / 30), rows + 1.0, solver=SOLVER)
    with pytest.raises(UnsupportedError, match="Samples and Gaussian"):
        sb.fit_pairs(rows, sb.Gaussian(torch.zeros(2), torch.eye(2)), reference=sb.BrownianMotion(1.0), solver=SOLVER)
