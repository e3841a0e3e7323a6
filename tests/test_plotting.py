"""Figures: the right data on the axes, and nothing of matplotlib's global state touched."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

from sbridge.cli.figures import draw
from sbridge.errors import InvalidInputError
from sbridge.fitting import solve
from sbridge.fitting.courses import Course
from sbridge.laws import Density, Gaussian, Samples
from sbridge.measures import Direction, PathMeasure
from sbridge.plotting import (
    Clock,
    Projection,
    coupling,
    course_marginals,
    course_trajectories,
    drift_field,
    history,
    marginals,
    standard_figures,
    trajectories,
    velocity_field,
)
from sbridge.plotting.style import SOURCE, TARGET, TIME
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion, OrnsteinUhlenbeck
from sbridge.solutions import Bridge
from sbridge.solvers.gaussian import GaussianBridge
from sbridge.solvers.sinkhorn import SinkhornBridge
from sbridge.time import TimeGrid

ROOT = Path(__file__).parents[1]
HORIZON = 2.0


@dataclasses.dataclass(frozen=True)
class Constant:
    """The control that is the same everywhere."""

    value: tuple[float, ...]

    def __call__(self, t, x):
        return x.new_tensor(self.value).expand_as(x)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bridge_of(dim, solver=None):
    source = Gaussian(torch.zeros(dim), torch.eye(dim))
    target = Gaussian(torch.arange(dim) - 1.0, 0.5 * torch.eye(dim))
    if isinstance(solver, SinkhornBridge):
        source, target = (
            Samples(law.sample(200, torch.Generator().manual_seed(k))) for k, law in ((1, source), (2, target))
        )
    problem = BridgeProblem(source, target, BrownianMotion(1.0, horizon=HORIZON))
    return solve(problem, solver or GaussianBridge(grid=TimeGrid.uniform(20)), seed=0)


def drifting(forward, backward):
    """Both directions with constant controls, σ = 2."""
    process, dim = BrownianMotion(2.0, horizon=HORIZON), len(forward)
    start, grid = Gaussian(torch.zeros(dim), torch.eye(dim)), TimeGrid.uniform(10)
    return Bridge(
        PathMeasure(process, Constant(forward), start, Direction.FORWARD, grid),
        PathMeasure(process, Constant(backward), start, Direction.BACKWARD, grid),
    )


def collections(ax, kind):
    return [item for item in ax.collections if isinstance(item, kind)]


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=tolerance, rtol=tolerance)


class TestTrajectories:
    def test_every_step_is_a_segment_coloured_by_its_time(self):
        paths = bridge_of(2).forward.sample(30, seed=1)
        ax = trajectories(paths)
        (lines,) = collections(ax, LineCollection)
        segments = np.array(lines.get_segments()).reshape(20, 30, 2, 2)
        close(segments[:, :, 0], paths.x[:-1])
        close(segments[:, :, 1], paths.x[1:])
        close(lines.get_array().reshape(20, 30)[:, 0], (np.arange(20) + 0.5) * HORIZON / 20)
        assert (lines.norm.vmin, lines.norm.vmax) == (0.0, HORIZON)
        source, target = collections(ax, PathCollection)
        close(source.get_offsets(), paths.x[0])
        close(target.get_offsets(), paths.x[-1])
        assert ax.get_aspect() == 1.0

    def test_backward_paths_still_have_the_source_at_time_zero(self):
        paths = bridge_of(2).backward.sample(12, seed=1)
        ax = trajectories(paths)
        source, target = collections(ax, PathCollection)
        close(source.get_offsets(), paths.x[-1])
        close(target.get_offsets(), paths.x[0])
        close(source.get_facecolor()[0][:3], to_rgba(SOURCE)[:3])
        close(target.get_facecolor()[0][:3], to_rgba(TARGET)[:3])
        (lines,) = collections(ax, LineCollection)
        assert lines.get_array()[0] > lines.get_array()[-1]

    def test_many_paths_and_steps_are_thinned_with_both_ends_kept(self):
        measure = dataclasses.replace(bridge_of(2).forward, grid=TimeGrid.uniform(500))
        paths = measure.sample(40, seed=1)
        ax = trajectories(paths, most=10)
        (lines,) = collections(ax, LineCollection)
        assert len(lines.get_segments()) == 199 * 10
        source, target = collections(ax, PathCollection)
        close(source.get_offsets()[[0, -1]], paths.x[0, [0, -1]])
        close(target.get_offsets()[[0, -1]], paths.x[-1, [0, -1]])

    def test_one_dimension_runs_against_time(self):
        paths = bridge_of(1).forward.sample(8, seed=1)
        ax = trajectories(paths)
        (lines,) = collections(ax, LineCollection)
        segments = np.array(lines.get_segments()).reshape(20, 8, 2, 2)
        close(segments[:, 0, 0, 0], paths.t[:-1])
        close(segments[:, :, 0, 1], paths.x[:-1, :, 0])
        assert "time" in ax.get_xlabel()

    def test_no_paths_are_asked_for(self):
        with pytest.raises(InvalidInputError, match="most must be"):
            trajectories(bridge_of(2).forward.sample(8, seed=1), most=0)


class TestProjection:
    def test_it_finds_the_plane_of_the_data(self):
        scores = noise(400, 2) * torch.tensor([5.0, 2.0])
        frame = torch.linalg.qr(noise(30, 2, seed=1)).Q
        rows = scores @ frame.mT + 0.1 * noise(400, 30, seed=2) + 7.0
        plane = Projection.fit(rows[:200], rows[200:])
        overlap = np.linalg.svd(frame.numpy().T @ plane.directions)[1]
        assert overlap.min() > 0.99
        close(plane.directions.T @ plane.directions, np.eye(2), 1e-10)
        variances = (rows.double() - rows.double().mean(0)).square().mean(0).sum()
        close(plane(rows).var(0) / float(variances), plane.explained, 1e-6)
        assert plane.labels[0] == f"PC 1 ({100 * plane.explained[0]:.0f} % of variance)"
        close(plane(rows).mean(0), [0, 0], 1e-4)

    def test_more_columns_than_rows_give_the_same_plane(self):
        rows = noise(40, 8) * torch.tensor([4.0, 3.0] + [0.3] * 6)
        wide = torch.cat([rows, torch.zeros(40, 200)], 1)
        narrow, broad = Projection.fit(rows[:20], rows[20:]), Projection.fit(wide[:20], wide[20:])
        close(narrow(rows), broad(wide), 1e-6)

    def test_both_ends_weigh_the_same(self):
        x0, x1 = (
            noise(1000, 4) * torch.tensor([1.0, 1.0, 0.1, 0.1]),
            noise(20, 4, seed=1) * torch.tensor([0.1, 0.1, 4.0, 2.0]),
        )
        plane = Projection.fit(x0, x1)
        assert np.abs(plane.directions[2, 0]) > 0.9

    @pytest.mark.parametrize("dim", [1, 2])
    def test_few_dimensions_stay_as_they_are(self, dim):
        rows = noise(10, dim)
        plane = Projection.fit(rows[:5], rows[5:])
        assert plane.columns == dim
        close(plane(rows), rows, 1e-12)
        close(plane.vectors(rows), rows, 1e-12)

    def test_constant_data_have_a_plane_too(self):
        plane = Projection.fit(torch.ones(5, 4), torch.ones(5, 4))
        close(plane(torch.ones(5, 4)), np.zeros((5, 2)))

    def test_bad_input(self):
        with pytest.raises(InvalidInputError, match="equal columns"):
            Projection.fit(noise(5, 3), noise(5, 4))
        with pytest.raises(InvalidInputError, match="has 3 columns, the states have 4"):
            Projection.fit(noise(5, 3), noise(5, 3))(noise(5, 4))


class TestMarginals:
    def test_one_panel_per_time_with_the_state_s_law(self):
        host = marginals(bridge_of(5), [0.0, 0.5, HORIZON], seed=1, n=4000)
        assert len(host.child_axes) == 3
        ends = bridge_of(5).forward.start, bridge_of(5).backward.start
        plane = Projection.fit(*(law.sample(20_000, torch.Generator().manual_seed(3)) for law in ends))
        mean = plane(torch.stack([law.mean for law in ends]))
        distance = np.linalg.norm(mean[1] - mean[0])
        centres = []
        for panel, count in zip(host.child_axes, (2, 1, 2), strict=True):
            clouds = collections(panel, PathCollection)
            assert len(clouds) == count  # rows of the data behind the ends
            points = np.asarray(clouds[-1].get_offsets())
            assert points.shape == (4000, 2)
            centres.append(points.mean(0))
            assert panel.get_aspect() == 1.0
            assert (panel.get_xlim(), panel.get_ylim()) == (
                host.child_axes[0].get_xlim(),
                host.child_axes[0].get_ylim(),
            )
        travelled = np.linalg.norm(np.array(centres) - centres[0], axis=1) / distance
        close(travelled, [0.0, 0.25, 1.0], 0.05)
        assert [panel.get_title() for panel in host.child_axes] == ["$t$ = 0", "$t$ = 0.5", "$t$ = 2"]

    @pytest.mark.parametrize("solver", [None, SinkhornBridge()], ids=["Gaussian", "Sinkhorn"])
    def test_states_drawn_without_steps_have_the_simulated_law(self, solver):
        bridge = bridge_of(2, solver)
        stepped = Bridge(
            dataclasses.replace(bridge.forward, end_kernel=None, grid=TimeGrid.uniform(60)), bridge.backward
        )
        found = []
        for model in (bridge, stepped):
            ax = marginals(model, [0.7], seed=1, n=4000)
            found.append(np.asarray(collections(ax, PathCollection)[-1].get_offsets()))
        error = np.sqrt(sum(points.var(0) for points in found) / 4000)
        assert np.all(np.abs(found[0].mean(0) - found[1].mean(0)) < 4 * error)
        close(np.cov(found[0].T), np.cov(found[1].T), 0.1)

    def test_a_single_time_uses_the_axes_itself(self):
        ax = Figure().add_subplot()
        assert marginals(bridge_of(2), [1.0], seed=0, ax=ax, n=50) is ax
        assert not ax.child_axes

    def test_one_dimension_is_a_density_over_time(self):
        ax = marginals(bridge_of(1), [0.5, 1.0], seed=1)
        (mesh,) = collections(ax, QuadMesh)
        edges = mesh.get_coordinates()
        density = mesh.get_array().reshape(edges.shape[0] - 1, edges.shape[1] - 1)
        mass = (density * np.diff(edges[:, 0, 1])[:, None]).sum(0)
        assert np.all((mass > 0.98) & (mass <= 1 + 1e-9))
        low, median, high = (line.get_ydata() for line in ax.lines[:3])
        close(median[[0, -1]], [0.0, -1.0], 0.06)
        close((high - low)[[0, -1]], [2 * 1.645, 2 * 1.645 * 0.5**0.5], 0.2)
        assert [line.get_xdata()[0] for line in ax.lines[3:]] == [0.5, 1.0]

    def test_an_end_known_by_density_only_is_drawn_from_the_bridge(self):
        bridge = bridge_of(2)
        law = bridge.backward.start
        unknown = dataclasses.replace(
            bridge, backward=dataclasses.replace(bridge.backward, start=Density(law.log_density, 2))
        )
        panel = marginals(unknown, [HORIZON], seed=0, n=2000)
        behind = np.asarray(collections(panel, PathCollection)[0].get_offsets())
        close(behind.mean(0), law.mean, 0.08)

    def test_bad_times(self):
        with pytest.raises(InvalidInputError, match="at least one"):
            marginals(bridge_of(2), [], seed=0)
        with pytest.raises(InvalidInputError, match="time must lie in"):
            marginals(bridge_of(2), [3.0], seed=0)


class TestFields:
    def test_a_constant_drift_is_drawn_as_it_is(self):
        """Arrows are σu times the span that the title names."""
        host = drift_field(drifting((1.5, -0.5), (0.0, 0.0)), [0.5, 1.0], seed=1)
        for panel in host.child_axes:
            (arrows,) = collections(panel, Quiver)
            span = float(panel.get_title().split("× ")[1].rstrip(")"))
            close(np.stack([arrows.U, arrows.V], 1), np.broadcast_to([3.0 * span, -1.0 * span], (arrows.N, 2)))
            assert arrows.N > 20
            assert arrows.scale == 1.0
            points = np.asarray(collections(panel, PathCollection)[0].get_offsets())
            places = arrows.get_offsets()
            nearest = np.linalg.norm(places[:, None] - points[None], axis=-1).min(1)
            assert nearest.max() < 0.5  # arrows only where there is mass

    def test_the_velocity_is_half_the_difference_of_the_drifts(self):
        panel = velocity_field(drifting((1.5, -0.5), (0.5, 0.5)), 1.0, seed=1)
        (arrows,) = collections(panel, Quiver)
        close(arrows.V / arrows.U, np.full(arrows.N, -1.0))
        assert np.all(arrows.U > 0)

    def test_an_affine_drift_is_averaged_over_cells(self):
        process = OrnsteinUhlenbeck(1.0, 0.5, horizon=1.0)
        start = Gaussian(torch.zeros(2), torch.eye(2))
        forward = PathMeasure(process, None, start)
        bridge = Bridge(forward, PathMeasure(process, None, start, Direction.BACKWARD))
        panel = drift_field(bridge, 0.0, seed=1)
        (arrows,) = collections(panel, Quiver)
        span = float(panel.get_title().split("× ")[1].rstrip(")"))
        close(np.stack([arrows.U, arrows.V], 1), -span * arrows.get_offsets(), 1e-4)

    def test_cells_with_one_or_two_states_have_no_arrow(self):
        panel = drift_field(drifting((1.0, 1.0), (0.0, 0.0)), 0.5, seed=1, n=2)
        assert [arrows.N for arrows in collections(panel, Quiver)] == [0]

    def test_one_dimension_has_a_column_of_arrows_per_time(self):
        ax = drift_field(drifting((-1.0,), (0.0,)), [0.0, 0.5, 1.0], seed=1)
        columns = collections(ax, Quiver)
        for t, arrows in zip((0.0, 0.5, 1.0), columns, strict=True):
            close(arrows.get_offsets()[:, 0], np.full(arrows.N, t))
            close(arrows.V / arrows.U, np.full(arrows.N, -2.0))

    def test_beyond_the_plane_arrows_are_projected(self):
        control = (1.0, 0.0, 0.0, 2.0)
        bridge = drifting(control, (0.0,) * 4)
        plane = Projection.fit(noise(50, 4), noise(50, 4, seed=1))
        panel = drift_field(bridge, 0.5, seed=1, projection=plane)
        (arrows,) = collections(panel, Quiver)
        span = float(panel.get_title().split("× ")[1].rstrip(")"))
        expected = plane.vectors(2.0 * span * torch.tensor(control))
        close(np.stack([arrows.U, arrows.V], 1), np.broadcast_to(expected, (arrows.N, 2)), 1e-4)

    @pytest.mark.parametrize("times", [[], HORIZON, [0.5, -0.1]])
    def test_times_outside_are_refused(self, times):
        with pytest.raises(InvalidInputError, match=r"bridge times in \[0, 2\)"):
            drift_field(bridge_of(2), times, seed=0)


class TestCoupling:
    def test_lines_join_partners(self):
        x0, x1 = noise(50, 2), noise(50, 2, seed=1)
        ax = coupling(x0, x1)
        (lines,) = collections(ax, LineCollection)
        close(lines.get_segments(), np.stack([x0, x1], 1))
        source, target = collections(ax, PathCollection)
        close(source.get_offsets(), x0)
        close(target.get_offsets(), x1)
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["source, $t$ = 0", "partner, $t$ = T"]

    def test_one_dimension_and_many_rows(self):
        x0, x1 = noise(500, 1), noise(500, 1, seed=1)
        ax = coupling(x0.numpy(), x1.numpy(), most=11)
        (lines,) = collections(ax, LineCollection)
        segments = np.array(lines.get_segments())
        assert segments.shape == (11, 2, 2)
        close(segments[:, :, 0], np.broadcast_to([0.0, 1.0], (11, 2)))
        close(segments[-1, :, 1], [x0[-1, 0], x1[-1, 0]])

    def test_bad_input(self):
        with pytest.raises(InvalidInputError, match="the same shape"):
            coupling(noise(5, 2), noise(6, 2))
        with pytest.raises(InvalidInputError, match="NaN"):
            coupling(noise(5, 2), torch.full((5, 2), torch.nan))


class TestHistory:
    def test_a_short_one_is_one_line(self):
        ax = history([{"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.0, "other": 1.0}])
        (line,) = ax.lines
        close(line.get_xydata(), [[10, 3], [20, 2]])
        assert ax.get_yscale() == "linear"
        assert ax.get_ylabel() == "loss"
        close(
            history([{"loss": 3.0, "other": 5.0}, {"other": 4.0}], quantity="other").lines[0].get_xydata(),
            [[1, 5], [2, 4]],
        )

    def test_a_long_one_has_its_running_median_and_its_stages(self):
        values = np.exp(-np.arange(1000) / 200.0)
        values[500] = 1e6
        rows = [{"step": k + 1, "loss": float(v), "stage": float(k >= 300)} for k, v in enumerate(values)]
        ax = history(rows)
        every, median, change = ax.lines
        assert len(every.get_xdata()) == len(median.get_xdata()) == 1000
        assert max(median.get_ydata()) <= 1.0  # the outlier is not in the median
        close(median.get_ydata()[100:400], values[100:400], 0.05)
        close(change.get_xdata(), [300.5, 300.5])
        assert ax.get_yscale() == "log"
        assert [text.get_text() for text in ax.get_legend().get_texts()][1:] == ["median of 10 steps", "new stage"]

    def test_a_fit_that_begins_anew_begins_a_new_curve(self):
        """Three numbers of components: three curves, none of which joins two of them, each with its label."""
        rows = [
            {"step": k + 1, "log likelihood": value, "components": count}
            for k, (value, count) in enumerate([(0.1, 1.0), (0.2, 1.0), (-4.0, 2.0), (0.5, 2.0), (0.4, 1.0)])
        ]
        ax = history(rows, quantity="log likelihood")
        curves = [line.get_xydata().tolist() for line in ax.lines if line.get_linewidth() > 1]
        assert curves == [[[1, 0.1], [2, 0.2]], [[3, -4.0], [4, 0.5]], [[5, 0.4]]]
        assert [text.get_text() for text in ax.texts] == ["1 comp.", "2 comp.", "1 comp."]

    def test_negative_values_stay_linear(self):
        assert history([{"loss": float(k)} for k in range(-50, 50)]).get_yscale() == "linear"

    def test_an_unknown_quantity_names_the_known(self):
        with pytest.raises(InvalidInputError, match="no row of the history has 'los'; it has error, loss"):
            history([{"step": 1, "loss": 1.0, "error": 2.0}], quantity="los")
        with pytest.raises(InvalidInputError, match="nothing"):
            history([])


class TestStandardFigures:
    @pytest.mark.parametrize("dim", [1, 2, 6])
    def test_a_folder_of_png_files_the_same_for_a_seed(self, dim, tmp_path):
        bridge = bridge_of(dim)
        x0, x1 = (
            measure.start.sample(60, torch.Generator().manual_seed(5)) for measure in (bridge.forward, bridge.backward)
        )
        steps = [{"step": k, "loss": 1.0 / k} for k in range(1, 30)]
        made = standard_figures(bridge, x0, x1, steps, tmp_path / "a", seed=1)
        assert [path.name for path in made] == [
            "trajectories.png",
            "marginals.png",
            "drift.png",
            "coupling.png",
            "history.png",
        ]
        assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(path.name for path in made)
        for path in made:
            assert path.read_bytes().startswith(b"\x89PNG")
        if dim == 2:
            again = standard_figures(bridge, x0, x1, steps, tmp_path / "b", seed=1)
            assert [path.read_bytes() for path in again] == [path.read_bytes() for path in made]

    def test_without_a_history_there_is_no_figure_of_it(self, tmp_path):
        bridge = bridge_of(2)
        made = standard_figures(bridge, noise(9, 2), noise(9, 2), [{"step": 1}], tmp_path, seed=1)
        assert "history.png" not in [path.name for path in made]
        made = standard_figures(
            bridge, noise(9, 2), noise(9, 2), [{"step": 1, "marginal error": 0.1}], tmp_path, seed=1
        )
        assert "history.png" in [path.name for path in made]

    def test_rows_of_another_dimension(self, tmp_path):
        with pytest.raises(InvalidInputError):
            standard_figures(bridge_of(2), noise(9, 3), noise(9, 3), [], tmp_path, seed=1)


SNAPSHOT_TIMES = 4.0, 6.0, 8.0


@pytest.fixture(scope="module")
def course():
    return Course(SNAPSHOT_TIMES, (bridge_of(3), bridge_of(3)))


class TestTimeCourses:
    def test_one_figure_shows_all_times_of_the_course(self, course):
        snapshots = [noise(50, 3, seed=k) for k in range(3)]
        host = course_marginals(course, snapshots, seed=0, n=30)
        assert [panel.get_title() for panel in host.child_axes] == [f"$t$ = {t}" for t in (4, 5, 6, 7, 8)]
        assert [len(collections(panel, PathCollection)) for panel in host.child_axes] == [2, 1, 2, 1, 2]
        plane = Projection.fit(*snapshots)
        starts = collections(host.child_axes[0], PathCollection)
        close(starts[0].get_offsets(), plane(snapshots[0]))  # in grey
        assert len(starts[1].get_offsets()) == 30
        colours = [collections(panel, PathCollection)[-1].get_facecolor()[0][:3] for panel in host.child_axes]
        close(colours, [TIME(share)[:3] for share in (0.0, 0.25, 0.5, 0.75, 1.0)])

    def test_paths_go_on_where_the_bridge_before_ends(self, course):
        ax = course_trajectories(course, noise(7, 3), seed=0)
        (lines,) = collections(ax, LineCollection)
        segments = np.array(lines.get_segments()).reshape(40, 7, 2, 2)
        close(segments[1:, :, 0], segments[:-1, :, 1])
        assert (lines.norm.vmin, lines.norm.vmax) == (4.0, 8.0)
        assert np.all(np.diff(lines.get_array().reshape(40, 7)[:, 0]) > 0)

    def test_a_leg_is_shown_on_the_axis_of_the_course(self, course):
        clock = Clock(6.0, 4.0, 8.0)
        host = drift_field(course.bridges[1], [0.0, 1.0], seed=0, clock=clock, n=50)
        assert [panel.get_title().split("   ")[0] for panel in host.child_axes] == ["$t$ = 6", "$t$ = 7"]
        flat = bridge_of(1)
        for ax in (
            marginals(flat, seed=0, clock=clock, n=50),
            drift_field(flat, [0.0, 1.0], seed=0, clock=clock, n=50),
            trajectories(flat.forward.sample(3, seed=0), clock=clock),
        ):
            assert 5.8 < ax.get_xlim()[0] <= 6.0
            assert 8.0 <= ax.get_xlim()[1] < 8.3

    def test_large_times_keep_their_digits(self):
        clock = Clock(1.7e9, 1.7e9, 1.7e9 + 50)
        assert [clock.label(t) for t in (0.0, 12.5)] == ["1700000000", "1700000012.5"]
        assert Clock.of(2.0).label(0.66666) == "0.667"

    def test_every_leg_has_a_folder_and_no_two_share_one(self, course, tmp_path):
        crowded = Course((1.7e9, 1.7e9 + 2.0, 1.7e9 + 4.0), course.bridges)
        snapshots = [noise(20, 3, seed=k) for k in range(3)]
        made = draw(crowded, snapshots, [[{"step": 1, "loss": 1.0}], []], tmp_path, seed=0)
        assert [path.relative_to(tmp_path).as_posix() for path in made] == [
            "trajectories.png", "marginals.png", "leg-1/drift.png", "leg-1/coupling.png", "leg-1/history.png",
            "leg-2/drift.png", "leg-2/coupling.png",
        ]  # fmt: skip
        with pytest.raises(InvalidInputError, match="2 snapshots given for 3 times"):
            course_marginals(crowded, snapshots[:2], seed=0)


def figures_of(bridge):
    """Every function once, each on axes of its own and on given ones."""
    rows = noise(20, bridge.dim)
    calls = [
        lambda ax: trajectories(bridge.forward.sample(5, seed=0), ax=ax),
        lambda ax: marginals(bridge, seed=0, ax=ax, n=50),
        lambda ax: drift_field(bridge, [0.5, 1.0], seed=0, ax=ax, n=50),
        lambda ax: velocity_field(bridge, 0.5, seed=0, ax=ax, n=50),
        lambda ax: coupling(rows, rows + 1, ax=ax),
        lambda ax: history([{"loss": 1.0}], ax=ax),
    ]
    for call in calls:
        given = Figure().add_subplot()
        yield call(None), call(given), given


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_every_function_draws_on_given_axes_or_makes_a_figure(dim):
    before = matplotlib.rcParams.copy()
    for made, returned, given in figures_of(bridge_of(dim)):
        assert isinstance(made, Axes)
        assert type(made.figure) is Figure
        assert returned is given
    assert matplotlib.rcParams == before


def test_pyplot_backend_and_settings_are_left_alone():
    code = """
import matplotlib, sys, torch
def settings():
    # Asking for "backend" would choose one, through pyplot.
    return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}
before, backend = settings(), matplotlib.get_backend(auto_select=False)
from sbridge.plotting import coupling, history
coupling(torch.randn(9, 3), torch.randn(9, 3)).figure.savefig("/dev/null", format="png")
history([{"loss": 1.0}]).figure.savefig("/dev/null", format="png")
assert settings() == before
assert matplotlib.get_backend(auto_select=False) == backend
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_time_runs_from_the_source_s_colour_to_the_target_s():
    close(TIME(0.0)[:3], to_rgba(SOURCE)[:3], 1e-6)
    close(TIME(1.0)[:3], to_rgba(TARGET)[:3], 1e-6)
