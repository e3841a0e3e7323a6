"""Distances, plans and fits in any unit of length and at any offset."""

import pytest
import torch

import sbridge as sb
from sbridge import transport
from sbridge.couplings import EntropicCoupling, MinibatchCoupling
from sbridge.errors import InvalidInputError
from sbridge.laws import Samples
from sbridge.laws.scaling import common_units
from sbridge.metrics import STANDARD_METRICS, BuresUVP, EnergyDistance, ExactW2, SlicedW2
from sbridge.problems import BridgeProblem

SCALES = [2.0**k for k in (-1000, -500, -40, -27, 27, 40, 500)]  # powers of two: rows are rescaled exactly
SOLVERS = [None, sb.GaussianBridge(), sb.SinkhornBridge()]
LENGTHS = (ExactW2, SlicedW2, EnergyDistance)  # in units of length; the others have none


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def ends():
    x = torch.randn(60, 3, generator=seeded(1), dtype=torch.float64)
    return x, 0.7 * torch.randn(50, 3, generator=seeded(2), dtype=torch.float64) + 0.5


@pytest.mark.parametrize("metric", STANDARD_METRICS, ids=lambda metric: type(metric).__name__)
@pytest.mark.parametrize("scale", SCALES)
def test_distances_are_equivariant(metric, scale, ends):
    x, y = ends
    expected = metric(x, y, seeded()) * (scale if isinstance(metric, LENGTHS) else 1.0)
    assert metric(scale * x, scale * y, seeded()) == pytest.approx(expected, rel=1e-9, abs=0.0)


@pytest.mark.parametrize("scale", [1e-12, 1e-8, 1e-4, 1e4, 1e8, 1e12])
def test_w2_is_equivariant_in_either_precision(scale, ends, dtype):
    x, y = (rows.to(dtype) for rows in ends)
    found = ExactW2()(scale * x, scale * y, seeded())
    assert found == pytest.approx(scale * ExactW2()(x, y, seeded()), rel=10 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("metric", STANDARD_METRICS, ids=lambda metric: type(metric).__name__)
@pytest.mark.parametrize("offset", [1e3, 1e7, 1e10])
def test_distances_do_not_see_an_offset(metric, offset, ends):
    """The offset rounds the rows; nothing is lost beyond that."""
    moved = tuple(rows + offset for rows in ends)
    rounded = tuple(rows - offset for rows in moved)
    exact = metric(*rounded, seeded())
    assert metric(*moved, seeded()) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("scale", "offset"), [(2.0**-40, 0.0), (2.0**-27, 0.0), (1.0, 2.0**24), (2.0**40, 0.0)])
def test_the_exact_plan_is_the_same(scale, offset, ends):
    x, y = (rows.float().double() for rows in ends)  # few digits, so that the offset rounds none away
    assert torch.equal(transport.exact_plan(scale * x + offset, scale * y + offset), transport.exact_plan(x, y))


def test_equal_rows_are_at_distance_zero(ends):
    assert ExactW2()(1e7 + ends[0], 1e7 + ends[0].flip(0), seeded()) == 0.0


@pytest.mark.parametrize(("scale", "offset"), [(2.0**-40, 0.0), (2.0**40, 0.0), (1.0, 2.0**24)])
def test_maps_and_entropic_plans_change_with_the_unit(scale, offset, ends):
    x, y = (rows.float().double() for rows in ends)
    moved = scale * x + offset, scale * y + offset
    plan = transport.entropic_plan(*moved, 0.5 * scale**2)
    assert torch.allclose(plan, transport.entropic_plan(x, y, 0.5), rtol=1e-8)
    expected = scale * transport.gaussian_map(x, y)(x) + offset
    assert torch.allclose(transport.gaussian_map(*moved)(moved[0]), expected, rtol=1e-8)
    expected = scale * transport.exact_map(x, y)(x) + offset
    assert torch.allclose(transport.exact_map(*moved)(moved[0]), expected, rtol=1e-12)


def test_common_units_keep_ratios_of_distances(ends):
    x, y = ends
    rows, others, unit = common_units(1e150 * x, 1e150 * y)
    assert torch.allclose(torch.cdist(rows, others) * (unit / 1e150), torch.cdist(x, y), rtol=1e-12)
    assert 0.5 < float(torch.maximum(rows.abs().max(), others.abs().max())) <= 1.0
    same = torch.full((3, 2), 7.0)
    assert common_units(same, same)[2] > 0.0


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
@pytest.mark.parametrize("reference", [None, sb.BrownianMotion(1.0)], ids=["default", "given"])
def test_data_that_cannot_be_squared_are_refused(scale, reference, ends):
    x, y = (scale * rows for rows in ends)
    with pytest.raises(InvalidInputError, match=r"standard deviation of x0 and x1 together is .* another unit"):
        sb.fit(x, y, reference=reference)
    with pytest.raises(InvalidInputError, match="another unit"):
        sb.choose_sigma(x, y)


@pytest.mark.parametrize("scale", [2.0**-80, 2.0**80])
@pytest.mark.parametrize(
    "solver", [None, sb.GaussianBridge(), sb.SinkhornBridge()], ids=["default", "Gaussian", "plug-in"]
)
def test_the_default_fit_changes_with_the_unit(scale, solver, ends, dtype):
    x, y = (rows.to(dtype) for rows in ends)
    one, other = sb.fit(x, y, solver=solver), sb.fit(scale * x, scale * y, solver=solver)
    expected = scale * one.transport(x, seed=3)
    assert torch.allclose(other.transport(scale * x, seed=3), expected, rtol=1e-2 if dtype == torch.float32 else 1e-6)


def test_bures_uvp_of_distant_rows(ends):
    x, y = ends
    assert BuresUVP()(x + 1e9, y + 1e9, seeded()) == pytest.approx(BuresUVP()(x, y, seeded()), rel=1e-6)


def test_the_distance_between_the_ends_is_no_cost(ends):
    """The plan of shifted ends is the same; a small σ beside the shift alone is no reason to refuse."""
    x, y = ends
    plans = [transport.sinkhorn(transport.EntropicProblem(x, y + shift, 0.1)).plan() for shift in (0.0, 1000.0)]
    torch.testing.assert_close(*plans, rtol=0, atol=2e-3 / len(x))


def test_a_point_is_matched_at_any_noise(ends):
    """Every row belongs to the point: there is no plan to be solved, however small σ is."""
    x, point = ends[0], sb.Point(torch.ones(3, dtype=torch.float64))
    problem = BridgeProblem(Samples(x), point, sb.BrownianMotion(1e-9))
    for coupling in (EntropicCoupling(), MinibatchCoupling()):
        left, right = coupling(problem, seeded())(100, seeded())
        assert bool((right == 1.0).all())
        assert bool((left.unsqueeze(1) == x).all(2).any(1).all())
