"""The check after a fit: what of the other end does not arrive."""

import math
import warnings

import pytest
import torch

import sbridge as sb
from sbridge.errors import MarginalWarning
from sbridge.fitting import prepare, solve
from sbridge.fitting.arrivals import misses

pytestmark = pytest.mark.filterwarnings("error::sbridge.errors.MarginalWarning")


def normal(n, dim, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_binary(n, share, seed):
    generator = torch.Generator().manual_seed(seed)
    ones = torch.rand(n, 1, generator=generator, dtype=torch.float64) < share
    return torch.cat([normal(n, 1, seed + 1) + ones, ones.double()], 1)


def test_a_mean_is_missed_beyond_both_thresholds():
    wanted = normal(10_000, 2)
    shift = torch.tensor([0.0, 0.15])
    (miss,) = misses(wanted + shift, wanted, 1.0)
    assert miss.what == "mean of column 1"
    assert miss.arrived - miss.wanted == pytest.approx(0.15)
    assert miss.error == pytest.approx(math.sqrt(2.0 / 10_000), rel=0.03)
    assert str(miss).startswith("mean of column 1: 0.1")
    assert not misses(wanted + 0.6 * shift, wanted, 1.0)  # .09 standard deviations are not material
    assert not misses(wanted[:500] + shift, wanted[:500], 1.0)  # and .15 of them are 2.4 standard errors here


def test_covariances_are_missed_in_units_of_the_columns():
    wanted = normal(10_000, 3) * torch.tensor([1.0, 100.0, 1e-3])
    assert not misses(1.1 * wanted, wanted, 1.0)
    assert {one.what for one in misses(1.3 * wanted, wanted, 1.0)} == {f"variance of column {j}" for j in (0, 1, 2)}
    turned = wanted.clone()
    turned[:, 1] += 30.0 * wanted[:, 0]
    (miss,) = misses(turned, wanted, 1.0)
    assert miss.what == "covariance of columns 0 and 1"
    assert miss.arrived - miss.wanted == pytest.approx(30.0, rel=0.05)


def test_shares_are_those_of_the_nearest_value():
    wanted = torch.arange(10_000, dtype=torch.float64)[:, None] % 4
    moved = torch.where((wanted == 3) & (torch.arange(10_000)[:, None] % 8 == 3), 2.0, wanted)
    found = {one.what: one for one in misses(moved + 0.3, wanted + 0.0, 1.0)}
    assert found["share of 3 in column 0"].arrived == pytest.approx(0.125)
    assert found["share of 3 in column 0"].wanted == pytest.approx(0.25)
    assert "share of 1 in column 0" not in found


def test_a_constant_column_is_measured_in_the_noise():
    wanted = torch.cat([normal(1000, 1), torch.full((1000, 1), 7.0)], 1)
    assert not misses(wanted + torch.tensor([0.0, 0.05]), wanted, 1.0)
    (miss,) = misses(wanted + torch.tensor([0.0, 0.05]), wanted, 0.1)
    assert miss.what == "mean of column 1"


def test_what_is_not_finite_is_missed():
    wanted = normal(100, 2)
    arrived = torch.where(torch.arange(100)[:, None] < 25, math.nan, wanted)
    (miss,) = misses(arrived, wanted, 1.0)
    assert (miss.what, miss.arrived) == ("share of finite samples", 0.75)


def test_a_fit_that_misses_an_end_warns_in_either_direction():
    """A Gaussian has the mean of a binary column, but not its share of ones."""
    x0, x1 = with_binary(10_000, 0.5, 0), with_binary(10_000, 0.8, 2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", MarginalWarning)
        sb.fit(x0, x1, solver=sb.GaussianBridge(), seed=3)
    said = [str(one.message) for one in told if one.category is MarginalWarning]
    assert any("samples of x0 to x1: share of 0 in column 1: 0." in one for one in said)
    assert all("standard errors" in one and "samples transported" in one for one in said)


@pytest.mark.parametrize("solver", [sb.MixtureBridge(components=(1, 2)), sb.SinkhornBridge()], ids=type)
def test_good_fits_pass(solver):
    sb.fit(with_binary(1000, 0.5, 0), with_binary(1000, 0.7, 2), solver=solver, seed=3)


@pytest.mark.parametrize(
    "end",
    [
        sb.Gaussian(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)),
        sb.Point(torch.zeros(2, dtype=torch.float64)),
        sb.Samples(normal(3, 2), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)),
    ],
    ids=type,
)
def test_ends_of_all_kinds_are_checked(end):
    solver = sb.MatchedBridge(updates=2) if isinstance(end, sb.Point) else None
    if solver is None:
        solver = sb.SinkhornBridge() if isinstance(end, sb.Samples) else sb.GaussianBridge()
        sb.fit(end, normal(400, 2), reference=sb.BrownianMotion(sigma=1.0), solver=solver)
        return
    with pytest.warns(MarginalWarning, match="transport the samples of x"):
        sb.fit(end, normal(4000, 2) + 5.0, reference=sb.BrownianMotion(sigma=1.0), solver=solver)


def test_the_check_changes_neither_the_fit_nor_global_randomness():
    x0, x1 = normal(500, 2), normal(500, 2, 1) + 1.0
    before = torch.get_rng_state()
    prepared = prepare(x0, x1, solver=sb.MixtureBridge(components=(1, 2)), seed=4)
    bridge, plain = prepared.run(), solve(prepared.model, prepared.solver, seed=prepared.seed)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(bridge.transport(x0, seed=0), plain.transport(x0, seed=0))


def test_a_grid_that_is_too_coarse_to_simulate_is_a_warning_and_the_fit_is_returned():
    x0 = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    solver = sb.ScoreMatching(updates=2, network=sb.networks.MLP(8, 1), grid=sb.TimeGrid.uniform(2))
    process = sb.OrnsteinUhlenbeck(rate=20.0, sigma=1.0)
    with pytest.warns(MarginalWarning, match="Use a finer grid"):
        bridge = sb.diffuse(x0, process=process, solver=solver, seed=0)
    assert bridge.current_velocity(0.5, x0).shape == x0.shape
