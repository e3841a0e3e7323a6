"""Pairs with a known bridge: the grid against itself and a closed form, draws against moments, values by two routes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sbridge.benchmarks.pairs import GaussianPair, MixturePair, StateCostPair, turning_reference
from sbridge.benchmarks.planar_pairs import TARGETS, GridControl, GridKernel, PlanarPair
from sbridge.errors import InvalidInputError, UnknownNameError
from sbridge.measures import energy
from sbridge.pde import Grid, solve_schroedinger
from sbridge.pde.potentials import ExactReference
from sbridge.processes import BrownianMotion
from sbridge.random import generator
from sbridge.time import TimeGrid

X = torch.tensor([[0.0, 0.0], [1.2, -0.4], [-0.3, 2.1]], dtype=torch.float64)


@pytest.fixture(scope="module")
def ring():
    return PlanarPair("ring", 1.0, cells=80)


def test_two_grids_agree(ring):
    """Sums over cells of smooth functions are integrals: another grid gives the same moments, value and control."""
    finer = PlanarPair("ring", 1.0, cells=96)
    for found, expected in zip(ring.moments(X), finer.moments(X), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert ring.value.value == pytest.approx(finer.value.value, abs=1e-8)
    torch.testing.assert_close(ring.truth.control(0.4, X), finer.truth.control(0.4, X), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_lies_in_the_box_and_is_met(name):
    pair = PlanarPair(name, 1.0, cells=72)
    assert pair.bridge.error < 1e-9
    mean, covariance = pair.end_moments
    _, y = pair.sample(20_000, seed=1)
    error = (covariance.diagonal() / len(y)).sqrt()
    assert bool(((y.double().mean(0) - mean).abs() < 4.0 * error).all())
    torch.testing.assert_close(y.double().mT.cov(), covariance, rtol=0.05, atol=0.05)


def test_a_mixture_pair_on_the_grid_gives_its_closed_form():
    """The target of a mixture potential on the grid: moments and control of the solution are the closed ones."""
    pair = MixturePair(2, 1.0)
    grid = Grid.of((-11.0, -11.0), (11.0, 11.0), 90)
    start = pair.source.log_density(grid.points) - pair.potential.log_normaliser(grid.points)
    reached = ExactReference(pair.reference, grid).whole.forward(grid.field(start))
    target = np.exp(grid.field(pair.potential(grid.points)) + reached)
    assert grid.integrate(target) == pytest.approx(1.0, abs=1e-6)
    bridge = solve_schroedinger(pair.reference, pair.source, target, grid)
    for found, expected in zip(GridKernel(bridge).moments(X), pair.moments(X), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for t in (0.0, 0.6):
        torch.testing.assert_close(GridControl(bridge)(t, X), pair.truth.control(t, X), rtol=0, atol=3e-3)
    assert abs(bridge.value - pair.value.value) < 4.0 * pair.value.standard_error
    mean, covariance = pair.end_moments
    weights = torch.from_numpy(target.reshape(-1) * grid.volume)
    torch.testing.assert_close(weights @ grid.points, mean, rtol=0, atol=0.05)
    assert float(covariance.trace()) == pytest.approx(float(weights @ (grid.points - mean).square().sum(1)), rel=0.01)


def test_draws_of_the_grid_have_its_moments(ring):
    mean, covariance = ring.moments(X)
    rows = X.repeat_interleave(20_000, 0)
    kernel = ring.truth.end_kernel
    ends = kernel.draw(rows, torch.Generator().manual_seed(0)).reshape(3, -1, 2)
    error = (covariance.diagonal(dim1=1, dim2=2) / ends.shape[1]).sqrt()
    assert bool(((ends.mean(1) - mean).abs() < 4.0 * error).all())
    for found, expected in zip(ends, covariance, strict=True):
        torch.testing.assert_close(found.mT.cov(), expected, rtol=0.05, atol=0.12)
    torch.testing.assert_close(kernel.mean(X.float()), mean.float())


@pytest.mark.parametrize(
    "pair",
    [
        PlanarPair("ring", 1.0, cells=64),
        MixturePair(3, 1.0),
        GaussianPair(BrownianMotion(1.0), 3),
        GaussianPair(turning_reference(3, 1.0), 3),
    ],
    ids=["ring", "mixture", "gaussian", "turning"],
)
def test_the_control_spends_the_value_and_reaches_the_target(pair):
    """``½E∫|u*|² dt = V*`` and the end law of simulated paths, for every kind of pair."""
    truth = replace(pair.truth, end_kernel=None, grid=TimeGrid.uniform(150))
    paths = truth.sample(3000, seed=5)
    spent = energy(paths)
    error = math.hypot(spent.standard_error, pair.value.standard_error)
    assert abs(spent.value - pair.value.value) < 3.0 * error + 0.01 * pair.value.value
    mean, covariance = pair.end_moments
    ends = paths.x[-1].double()
    assert bool(((ends.mean(0) - mean).abs() < 4.5 * (covariance.diagonal() / len(ends)).sqrt()).all())
    assert float(ends.mT.cov().trace()) == pytest.approx(float(covariance.trace()), rel=0.08)


def test_the_turning_reference_is_no_brownian_motion_in_disguise():
    rate, root = (getattr(turning_reference(4, 2.0), name) for name in ("rate", "sigma"))
    square = root @ root.mT
    assert float((rate - rate.mT).norm()) > 0.5
    assert float((rate @ square - square @ rate).norm()) > 0.1
    assert float(square.trace()) == pytest.approx(8.0)
    torch.testing.assert_close(rate + rate.mT, torch.eye(4, dtype=torch.float64))


def test_draws_follow_the_seed(ring):
    first, again, other = (ring.sample(50, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])
    assert first[0].dtype == first[1].dtype == torch.float32


def test_bad_pairs_are_told():
    with pytest.raises(UnknownNameError, match="ring"):
        PlanarPair("rings", 1.0)
    with pytest.raises(InvalidInputError, match="positive epsilon"):
        PlanarPair("ring", 0.0)


@pytest.mark.parametrize("dim", [2, 16])
def test_a_state_cost_keeps_the_ends_and_the_plan_of_another_noise(dim):
    pair = StateCostPair(dim, 0.8, seed=1, omega=1.5)
    plain, x = pair.plain, pair.source.sample(50, generator(0))
    assert plain.epsilon == pytest.approx(0.8 * math.sinh(1.5) / 1.5)
    for found, wanted in zip(
        (*pair.moments(x), *pair.end_moments), (*plain.moments(x), *plain.end_moments), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    # Half way the cost pulls paths to the origin.
    ends = plain.truth.transport(x, seed=1)
    middles = [one.reference.pinned(0.5).mean(x, ends) for one in (pair, plain)]
    torch.testing.assert_close(middles[0], middles[1] / math.cosh(0.75))
