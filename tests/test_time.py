"""Time grids."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from sbridge.errors import InvalidInputError
from sbridge.time import TimeGrid, nearest_index, same_times, snapped, times_of_labels


@given(st.integers(1, 300), st.floats(0.01, 100.0))
def test_uniform_grids_end_exactly(steps, horizon):
    times = TimeGrid.uniform(steps).times(horizon)
    assert times.dtype == torch.float64
    assert len(times) == steps + 1
    assert times[0] == 0.0
    assert times[-1] == horizon
    assert torch.allclose(times.diff(), torch.full((steps,), horizon / steps, dtype=torch.float64), rtol=1e-9)


@given(st.integers(2, 100), st.floats(0.3, 4.0))
def test_refined_grids_shrink_towards_the_end_that_is_asked_for(steps, exponent):
    grid = TimeGrid.refined(steps, exponent)
    assert grid.steps == steps
    spans = grid.times(1.0).diff()
    expected = torch.tensor([(1 - k / steps) ** exponent for k in range(steps + 1)], dtype=torch.float64)
    assert torch.allclose(1 - grid.times(1.0), expected, atol=1e-12)
    if exponent > 1.01:
        assert spans[-1] < spans[0]
    if exponent < 0.99:
        assert spans[-1] > spans[0]


@given(st.integers(1, 200))
def test_cosine_grids_shrink_towards_both_ends(steps):
    times = TimeGrid.cosine(steps).times(1.0)
    angles = torch.arange(steps + 1, dtype=torch.float64) * math.pi / steps
    assert torch.allclose(times, angles.div(2).sin().square(), atol=1e-14)
    spans = times.diff()
    assert torch.allclose(spans, spans.flip(0), atol=1e-14)
    assert (spans[: steps // 2].diff() > 0).all()


@given(st.lists(st.floats(0.0, 1.0), max_size=8))
def test_including_puts_knots_in_and_keeps_the_others(extra):
    grid = TimeGrid.uniform(7)
    larger = grid.including(extra)
    assert set(grid.fractions) <= set(larger.fractions)
    assert larger.steps <= 7 + len(extra)
    for value in extra:
        assert abs(larger.fractions[larger.index(value)] - value) <= 1e-9
    assert larger.including(extra) == larger


def test_including_what_is_there_changes_nothing():
    grid = TimeGrid.uniform(3)
    assert grid.including([1 / 3, 2 / 3 + 1e-12, 0.0, 1.0]) == grid
    assert grid.including([0.5]).steps == 4


@given(st.floats(-0.5, 1.5))
def test_index_is_the_nearest_knot(value):
    knots = TimeGrid.refined(9).fractions
    assert math.isclose(
        abs(knots[nearest_index(knots, value)] - value), min(abs(knot - value) for knot in knots), abs_tol=1e-15
    )


def test_grids_compare_and_print():
    assert TimeGrid.uniform(4) == TimeGrid((0.0, 0.25, 0.5, 0.75, 1.0))
    assert repr(TimeGrid.uniform(2)) == "TimeGrid(0, 0.5, 1, steps=2)"
    assert "…" in repr(TimeGrid.uniform(100))


@pytest.mark.parametrize(
    "knots", [(0.0,), (0.0, 0.5), (0.1, 1.0), (0.0, 0.6, 0.5, 1.0), (0.0, 0.5, 0.5, 1.0), (0.0, math.nan, 1.0)]
)
def test_knots_that_are_no_grid(knots):
    with pytest.raises(InvalidInputError, match="strictly increasing"):
        TimeGrid(knots)


@pytest.mark.parametrize("steps", [0, -1, True])
def test_steps_that_are_none(steps):
    with pytest.raises(InvalidInputError, match="positive integer"):
        TimeGrid.uniform(steps)


def test_bad_exponent_and_time():
    with pytest.raises(InvalidInputError, match="exponent"):
        TimeGrid.refined(4, 0.0)
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(InvalidInputError, match="outside"):
            TimeGrid.uniform(4).including([bad])


def test_cosine_grid_is_symmetric_and_fine_at_both_ends() -> None:
    grid = TimeGrid.cosine(40)
    knots = torch.tensor(grid.fractions, dtype=torch.float64)
    torch.testing.assert_close(knots + knots.flip(0), torch.ones(41, dtype=torch.float64), rtol=0, atol=1e-15)
    widths = knots.diff()
    assert float(widths[0]) == pytest.approx(math.pi**2 / (4 * 40**2), rel=1e-3)
    assert bool((widths[:20].diff() > 0).all())


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.floats(-1, 1))
def test_rounding_is_a_billionth_of_the_stretch(first, span, part):
    knots = (first, first + span / 3, first + span)
    unit = max(1e-9 * (knots[2] - knots[0]), 4 * np.finfo(float).eps * max(abs(knots[0]), abs(knots[2])))
    for knot in knots:
        assert snapped(knot + 0.9 * part * unit, knots) == knot
        far = knot + np.sign(part or 1) * 1.5 * unit
        assert snapped(far, knots) == far


def test_seconds_since_1970_have_coarser_rounding():
    now = 1.7e9
    assert snapped(now + 1e-6, (now, now + 1.0)) == now
    assert snapped(now + 1e-5, (now, now + 1.0)) == now + 1e-5


@given(st.lists(st.sampled_from([0.0, 0.3, 0.1 + 0.2, 1.0, 1.0 - 1e-12]), max_size=9))
def test_same_times(times):
    times = [0.0, 1.0, *times]
    values, which = same_times(np.array(times))
    assert len(values) == len({round(t, 6) for t in times})
    assert np.abs(values[which] - times).max() <= 1e-9
    assert (np.diff(values) > 1e-9).all()


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        (["day2", "Day10"], [2, 10]),
        (["E7.5", "E8.25"], [7.5, 8.25]),
        (["D-1", "D0"], [-1, 0]),
        (["day-2", "day-10"], [2, 10]),
        (["12h", "24h"], [12, 24]),
        (["1", "2e3", ".5"], [1, 2000, 0.5]),
        (["12h", "2d"], None),
        (["a1_day2", "a1_day3"], None),
        (["early", "late"], None),
        (["day2", "control"], None),
    ],
)
def test_numbers_in_labels(labels, numbers):
    found = times_of_labels(labels)
    assert (None if found is None else [found[label] for label in labels]) == numbers
