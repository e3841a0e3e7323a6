"""Reports: perfect bridges score at their floor, damaged ones do not, and every number says how sure it is."""

import dataclasses
import json
import math

import pytest
import torch

from sbridge import transport
from sbridge.errors import FileFormatError, InvalidInputError, UnknownNameError
from sbridge.evaluation import (
    EntropicTransport,
    EvaluationBudget,
    ExactTransport,
    GaussianTransport,
    Quantity,
    Report,
    evaluate,
    score_at,
)
from sbridge.evaluation.baselines import Shared
from sbridge.evaluation.rows import pooled
from sbridge.evaluation.scorer import Scorer
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.fitting import solve
from sbridge.laws import Density, Gaussian, Samples
from sbridge.measures import Direction, PathMeasure
from sbridge.metrics import BuresUVP, EnergyDistance, ExactW2, SlicedW2
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion, DriftProcess, OrnsteinUhlenbeck
from sbridge.solutions import Bridge
from sbridge.solvers.gaussian import GaussianBridge
from sbridge.solvers.sinkhorn import SinkhornBridge
from sbridge.time import TimeGrid
from sbridge.transport import Sinkhorn

DIM = 3
LIMITS = EvaluationBudget(rows=400, fit_rows=300, paths=64)
METRICS = ["W2", "sliced W2", "energy distance", "MMD²", "BW²-UVP (%)"]
LAW_0 = Gaussian(torch.zeros(DIM), torch.eye(DIM))
LAW_1 = Gaussian(torch.tensor([2.0, 0.0, -1.0]), torch.diag(torch.tensor([0.5, 2.0, 1.0])))


def rows(law, n, seed):
    return law.sample(n, torch.Generator().manual_seed(seed))


def gaussian_bridge(source=LAW_0, target=LAW_1, reference=None, steps=50):
    problem = BridgeProblem(source, target, reference or BrownianMotion(1.0))
    return solve(problem, GaussianBridge(grid=TimeGrid.uniform(steps)), seed=0)


@dataclasses.dataclass(frozen=True)
class Weakened:
    """Half of a control."""

    control: object

    def __call__(self, t, x):
        return 0.5 * self.control(t, x)


def damaged(bridge):
    measures = (
        dataclasses.replace(measure, control=Weakened(measure.control), end_kernel=None)
        for measure in (bridge.forward, bridge.backward)
    )
    return Bridge(*measures)


@pytest.fixture(scope="module")
def bridge():
    return gaussian_bridge()


@pytest.fixture(scope="module")
def report(bridge):
    return evaluate(bridge, rows(LAW_0, 400, 1), rows(LAW_1, 400, 2), seed=3, limits=LIMITS)


@pytest.fixture(scope="module")
def damaged_report(bridge):
    return evaluate(damaged(bridge), rows(LAW_0, 400, 1), rows(LAW_1, 400, 2), seed=3, baselines=(), limits=LIMITS)


def excess(report, task, metric, candidate="bridge"):
    """Value above the floor, in standard errors of the difference."""
    found, floor = (report.score(task, name, metric) for name in (candidate, "perfect samples"))
    return (found.value - floor.value) / math.hypot(found.standard_error, floor.standard_error)


@pytest.mark.parametrize("task", ["forward", "backward"])
@pytest.mark.parametrize("metric", METRICS)
class TestScores:
    def test_a_perfect_bridge_scores_at_its_floor(self, report, task, metric):
        assert abs(excess(report, task, metric)) < 3

    def test_a_damaged_bridge_does_not(self, damaged_report, task, metric):
        assert excess(damaged_report, task, metric) > 4

    def test_unmoved_rows_do_not_and_the_bridge_closes_the_gap(self, report, damaged_report, task, metric):
        assert excess(report, task, metric, "unmoved rows") > 4
        assert 85 < report.gap_closed(task, metric) < 115
        assert 0 < damaged_report.gap_closed(task, metric) < 90

    def test_between_gaussians_the_gaussian_map_closes_the_gap(self, report, task, metric):
        unmoved, found, floor = (
            report.score(task, name, metric).value for name in ("unmoved rows", "Gaussian map", "perfect samples")
        )
        assert 0.85 < (unmoved - found) / (unmoved - floor) < 1.15


def test_candidates_stand_on_the_same_rows(report):
    for task in report.tasks:
        assert task.candidates[0] == "bridge"
        assert set(task.candidates) == {
            "bridge", "perfect samples", "unmoved rows", "exact OT map", "entropic map", "Gaussian map",
        }  # fmt: skip
        assert {score.rows for score in task.scores if score.value is not None} == {(400, 400)}


def test_transport_costs(report):
    """The Gaussian map's cost is half the squared W2 of the two Gaussians; the bridge pays for its noise, too."""
    a, b = LAW_0.covariance, LAW_1.covariance
    bures = 0.5 * float(LAW_1.mean.square().sum() + (a.diagonal().sqrt() - b.diagonal().sqrt()).square().sum())
    found = report.score("forward", "Gaussian map", "cost")
    assert found.value == pytest.approx(bures, abs=5 * found.standard_error)
    coupling = GaussianCoupling(LAW_0.mean, a, LAW_1.mean, b, BrownianMotion(1.0))
    exact = bures + float((a @ b).diagonal().sqrt().sum() - coupling.coupling.trace())
    found = report.score("forward", "bridge", "cost")
    assert found.value == pytest.approx(exact, abs=4 * found.standard_error)
    assert found.standard_error < 0.1 * exact
    assert report.score("forward", "unmoved rows", "cost").value == 0.0
    missing = report.score("forward", "perfect samples", "cost")
    assert missing.value is None
    assert "paired" in missing.reason


@pytest.mark.parametrize(
    "reference", [BrownianMotion(0.8, horizon=2.0), OrnsteinUhlenbeck(0.7, 1.1, mean=0.3)], ids=["BM", "OU"]
)
def test_energy_and_divergence_of_a_gaussian_bridge(reference):
    bridge = gaussian_bridge(reference=reference, steps=50)
    limits = EvaluationBudget(rows=4000, paths=1000)
    metrics = (BuresUVP(),)
    x0, x1 = rows(LAW_0, 4000, 4), rows(LAW_1, 4000, 5)
    report = evaluate(bridge, x0, x1, seed=6, metrics=metrics, baselines=(), limits=limits)
    coupling = GaussianCoupling(LAW_0.mean, LAW_0.covariance, LAW_1.mean, LAW_1.covariance, reference)
    energy = report.quantity("energy, forward")
    assert energy.value == pytest.approx(coupling.value, abs=4 * energy.standard_error)
    assert energy.standard_error < 0.05 * coupling.value
    energy = report.quantity("energy, backward")
    assert energy.value == pytest.approx(_backward_energy(coupling), abs=4 * energy.standard_error)
    divergence = report.quantity("Jeffreys divergence")
    # The two directions on the grid are reversals of one diffusion up to O(Δ): allow as much, beside 4 s.e.
    assert abs(divergence.value) < 4 * divergence.standard_error + 0.05
    assert report.quantity("energy, forward").samples == 1000


def _backward_energy(coupling, knots=2001):
    """``½ ∫ E|û|² dt`` by the trapezoidal rule over the exact marginals and gains."""
    times = torch.linspace(0, coupling.process.horizon, knots, dtype=torch.float64)
    total = []
    for t in times:
        mean, covariance = coupling.marginal(t)
        gain, offset = coupling.backward_gain(t)
        total.append(0.5 * ((gain @ mean + offset).square().sum() + (gain @ covariance @ gain.mT).trace()))
    return float(torch.trapezoid(torch.stack(total), times))


def test_directions_that_disagree_have_a_divergence(bridge):
    torn = Bridge(bridge.forward, damaged(bridge).backward)
    limits = EvaluationBudget(rows=1000, paths=1000)
    x0, x1 = rows(LAW_0, 1000, 1), rows(LAW_1, 1000, 2)
    report = evaluate(torn, x0, x1, seed=0, metrics=(BuresUVP(),), baselines=(), limits=limits)
    found = report.quantity("Jeffreys divergence")
    assert found.value > 4 * found.standard_error


def test_reversed_bridges_swap_directions(bridge, report):
    swapped = evaluate(
        bridge.reversed(), rows(LAW_1, 400, 2), rows(LAW_0, 400, 1), seed=3, metrics=(EnergyDistance(),),
        baselines=(EntropicTransport(),), limits=LIMITS,
    )  # fmt: skip
    for name, other in (("forward", "backward"), ("backward", "forward")):
        for candidate in ("bridge", "entropic map"):
            new = swapped.score(name, candidate, "energy distance")
            old = report.score(other, candidate, "energy distance")
            assert abs(new.value - old.value) < 3 * math.hypot(new.standard_error, old.standard_error)
        energies = swapped.quantity(f"energy, {name}"), report.quantity(f"energy, {other}")
        difference = energies[0].value - energies[1].value
        assert abs(difference) < 4 * math.hypot(*(energy.standard_error for energy in energies))
    assert swapped.quantity("Jeffreys divergence").value is not None


class TestStandardErrors:
    @staticmethod
    def spread_and_mean_error(shift, metric, trials=60, n=320):
        values, errors = [], []
        for trial in range(trials):
            g = torch.Generator().manual_seed(trial)
            x, y = torch.randn(n, 2, generator=g) + shift, torch.randn(n, 2, generator=g)
            (score,) = Scorer(y, {"metric": metric}, blocks=8, seed=0).scores("x", x)
            values.append(score.value)
            errors.append(score.standard_error)
        return float(torch.tensor(values).std()), float(torch.tensor(errors).square().mean().sqrt())

    @pytest.mark.parametrize("metric", [EnergyDistance(), SlicedW2(32), BuresUVP(), ExactW2()])
    def test_they_are_the_spread_over_fresh_data(self, metric):
        spread, error = self.spread_and_mean_error(1.5, metric)
        # A standard deviation over 60 trials is known to 9 %, one over 8 blocks to 27 %: the mean of 60 to a few %.
        assert 0.7 < error / spread < 1.5

    def test_thinning_is_taken_into_account(self):
        spread, error = self.spread_and_mean_error(1.5, ExactW2(max_rows=80))
        assert 0.7 < error / spread < 1.5

    def test_at_a_floor_they_are_too_large(self):
        spread, error = self.spread_and_mean_error(0.0, EnergyDistance())
        assert 1.0 < error / spread < 5.0

    def test_too_few_rows_give_a_reason(self):
        (score,) = Scorer(torch.randn(20, 2), {"metric": EnergyDistance()}, blocks=8, seed=0).scores(
            "x", torch.ones(40, 2)
        )
        assert score.value is not None
        assert score.standard_error is None
        assert "32 rows" in score.reason


def test_equal_seeds_give_equal_reports(bridge):
    limits, x0, x1 = EvaluationBudget(rows=64, fit_rows=64, paths=16), rows(LAW_0, 100, 1), rows(LAW_1, 100, 2)
    metrics = (ExactW2(), SlicedW2(8))
    first, second, other = (evaluate(bridge, x0, x1, seed=seed, metrics=metrics, limits=limits) for seed in (3, 3, 4))
    assert first == second
    for metric in METRICS[:2]:
        assert first.score("forward", "bridge", metric).value != other.score("forward", "bridge", metric).value


def test_larger_sets_are_thinned_and_the_report_says_so(bridge):
    limits = EvaluationBudget(rows=100, paths=8)
    x0, x1 = rows(LAW_0, 500, 1), rows(LAW_1, 90, 2)
    metrics = (ExactW2(max_rows=50), EnergyDistance())
    report = evaluate(bridge, x0, x1, seed=0, metrics=metrics, baselines=(), limits=limits)
    assert report.score("forward", "bridge", "W2").rows == (50, 50)
    assert report.score("forward", "bridge", "energy distance").rows == (100, 90)
    assert report.score("backward", "bridge", "energy distance").rows == (90, 100)
    assert any("100 of 500 held-out rows" in note for note in report.notes)
    assert not any("x1: " in note for note in report.notes)


class TestFloors:
    """Where perfect samples come from."""

    @staticmethod
    def sinkhorn(x0, x1):
        return solve(BridgeProblem(Samples(x0), Samples(x1), BrownianMotion(1.5)), SinkhornBridge(), seed=0)

    @staticmethod
    def run(bridge, x0, x1, **more):
        metrics = (EnergyDistance(),)
        return evaluate(bridge, x0, x1, seed=0, metrics=metrics, baselines=(), limits=EvaluationBudget(paths=4), **more)

    def test_rows_of_the_fit_stand_for_them(self):
        bridge = self.sinkhorn(rows(LAW_0, 300, 1), rows(LAW_1, 300, 2))
        report = self.run(bridge, rows(LAW_0, 200, 3), rows(LAW_1, 200, 4))
        assert report.score("forward", "perfect samples", "energy distance").rows == (200, 200)
        assert abs(excess(report, "forward", "energy distance")) < 3
        assert len(report.notes) == 3
        assert "Forward and backward paths end in the data points" in report.notes[2]

    def test_a_small_fit_lowers_all_sizes_alike(self):
        bridge = self.sinkhorn(rows(LAW_0, 300, 1), rows(LAW_1, 150, 2))
        report = self.run(bridge, rows(LAW_0, 200, 3), rows(LAW_1, 200, 4))
        assert {score.rows for score in report.tasks[0].scores if score.column != "cost"} == {(150, 200)}
        assert any("only 150 rows are available as perfect samples" in note for note in report.notes)

    def test_rows_that_the_fit_has_seen_are_named_and_never_count_as_perfect(self):
        x0, x1 = rows(LAW_0, 200, 1), rows(LAW_1, 200, 2)
        report = self.run(self.sinkhorn(x0, x1), x0.double(), torch.cat([x1[:150], rows(LAW_1, 50, 3)]))
        notes = " ".join(report.notes)
        assert "x0: 200 of 200 held-out rows are also rows of the fit" in notes
        assert "x1: 150 of 200" in notes
        assert "one half of them serves as perfect samples" in notes
        floor = report.score("forward", "perfect samples", "energy distance")
        assert floor.rows == (100, 100)
        assert floor.value > 0

    def test_rows_may_be_handed_over(self):
        x0, x1 = rows(LAW_0, 200, 1), rows(LAW_1, 200, 2)
        more = {"x0_fit": rows(LAW_0, 200, 5), "x1_fit": rows(LAW_1, 220, 6)}
        report = self.run(self.sinkhorn(x0, x1), x0, x1, **more)
        assert report.score("forward", "perfect samples", "energy distance").rows == (200, 200)
        assert len(report.notes) == 3

    def test_an_end_known_by_density_only(self, bridge):
        target = Density(LAW_1.log_density, DIM)
        unknown = dataclasses.replace(bridge, backward=dataclasses.replace(bridge.backward, start=target))
        x0, x1 = rows(LAW_0, 200, 3), rows(LAW_1, 200, 4)
        report = evaluate(unknown, x0, x1, seed=0, metrics=(EnergyDistance(),), limits=EvaluationBudget(paths=4))
        assert report.score("forward", "bridge", "energy distance").rows == (100, 100)
        assert "no rows to fit on" in report.score("forward", "exact OT map", "energy distance").reason
        assert report.score("backward", "perfect samples", "energy distance").rows == (200, 200)


@pytest.mark.parametrize(
    "reference",
    [BrownianMotion(1.0, horizon=2.0), OrnsteinUhlenbeck(torch.tensor([0.3, 1.0, 0.6]), 1.2, mean=0.5)],
    ids=["BM", "OU"],
)
def test_the_entropic_baseline_is_the_conditional_mean_of_the_plug_in_bridge(reference):
    x0, x1 = rows(LAW_0, 80, 1).double(), rows(LAW_1, 90, 2).double()
    options = Sinkhorn(tolerance=1e-9)
    problem = BridgeProblem(Samples(x0), Samples(x1), reference)
    bridge = solve(problem, SinkhornBridge(sinkhorn=options), seed=0)
    baseline = EntropicTransport(options)
    for model, near, far, direction in (
        (bridge, x0, x1, Direction.FORWARD),
        (bridge.reversed(), x1, x0, Direction.BACKWARD),
    ):
        new = rows(LAW_0, 20, 3).double()
        expected = model.conditional_mean(new, seed=0)
        torch.testing.assert_close(baseline(near, far, reference, direction)(new), expected, rtol=1e-6, atol=1e-6)


def test_a_plan_that_serves_both_directions_is_computed_once(monkeypatch):
    made = []
    plan = transport.maps.exact_plan
    monkeypatch.setattr(transport.maps, "exact_plan", lambda x, y: made.append(len(x)) or plan(x, y))
    x0, x1 = rows(LAW_0, 30, 1), rows(LAW_1, 30, 2)
    shared = Shared(ExactTransport())
    for near, far, direction in ((x0, x1, Direction.FORWARD), (x1, x0, Direction.BACKWARD)):
        found = shared(near, far, BrownianMotion(1.0), direction)(near)
        torch.testing.assert_close(found, transport.exact_map(near, far)(near))
    assert len(made) == 1 + 2


class Spy:
    """A baseline that remembers what it was fitted on, and leaves rows where they are."""

    name = "spy"

    def __init__(self):
        self.calls = []

    def __call__(self, near, far, reference, direction):
        self.calls.append((near.mean(), far.mean(), reference, direction))
        return lambda x: x


def test_baselines_are_fitted_on_either_direction():
    bridge, spy = gaussian_bridge(reference=OrnsteinUhlenbeck(0.5, 1.0)), Spy()
    x0, x1 = rows(LAW_0, 50, 1), rows(LAW_1, 50, 2)
    few = {"metrics": (EnergyDistance(),), "limits": EvaluationBudget(rows=50, fit_rows=30, paths=4)}
    fitted = {"x0_fit": torch.full((80, DIM), 5.0), "x1_fit": torch.full((80, DIM), 7.0)}
    evaluate(bridge, x0, x1, seed=0, baselines=(spy,), **fitted, **few)
    assert spy.calls == [(5, 7, bridge.reference, Direction.FORWARD), (7, 5, bridge.reference, Direction.BACKWARD)]


def test_what_cannot_be_had_is_missing_with_a_reason():
    """No linear reference: no entropic map. Two grids: no divergence. Equal rows: no covariance, no BW²-UVP."""
    process = DriftProcess(lambda t, x: -x, 1.0)
    flat = torch.ones(60, 2)
    cloud = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    forward = PathMeasure(process, None, Samples(cloud), grid=TimeGrid.uniform(5))
    backward = PathMeasure(process, None, Samples(flat), Direction.BACKWARD, grid=TimeGrid.uniform(6))
    metrics = (BuresUVP(), EnergyDistance())
    report = evaluate(Bridge(forward, backward), cloud, flat, seed=0, metrics=metrics, limits=EvaluationBudget(paths=4))
    assert "linear reference" in report.score("forward", "entropic map", "energy distance").reason
    assert "grid" in report.quantity("Jeffreys divergence").reason
    uvp = report.score("forward", "bridge", "BW²-UVP (%)")
    assert uvp.value is None
    assert "all equal" in uvp.reason
    assert report.score("forward", "bridge", "energy distance").value > 0
    assert "singular" in report.score("backward", "Gaussian map", "energy distance").reason
    assert report.gap_closed("forward", "BW²-UVP (%)") is None
    assert "all equal" in report.text()


class NaNMetric:
    """Fails in the one way that no exception tells of."""

    name = "nan metric"

    def __call__(self, x, y, generator):
        return math.nan


def test_numbers_that_are_not_finite_never_reach_the_report(bridge):
    x0, x1 = rows(LAW_0, 60, 1), rows(LAW_1, 60, 2)
    report = evaluate(bridge, x0, x1, seed=0, metrics=(NaNMetric(), EnergyDistance()), baselines=(), limits=LIMITS)
    assert report.score("forward", "bridge", "nan metric").value is None
    assert "returned nan" in report.score("forward", "bridge", "nan metric").reason
    assert report.score("forward", "bridge", "energy distance").value is not None
    assert Quantity.of("x", math.inf, 1.0, 4).value is None
    json.dumps(report.to_json(), allow_nan=False)


class TestDocuments:
    def test_json_and_back(self, report):
        text = json.dumps(report.to_json(), allow_nan=False)
        assert json.loads(text)["schema"] == "sbridge.runs.report/1"
        assert Report.from_json(json.loads(text)) == report

    def test_every_missing_number_has_a_reason(self, report):
        found = []

        def walk(tree):
            if isinstance(tree, dict):
                if None in (tree.get("value", 0), tree.get("standard_error", 0)):
                    found.append(tree)
                    assert tree["reason"]
                for item in tree.values():
                    walk(item)
            elif isinstance(tree, list):
                for item in tree:
                    walk(item)

        walk(report.to_json())
        assert len(found) == 2  # the cost of perfect samples, in either direction

    def test_foreign_documents_are_refused(self, report):
        document = report.to_json()
        with pytest.raises(FileFormatError, match="not a report"):
            Report.from_json({**document, "schema": "sbridge.runs.report/2"})
        with pytest.raises(FileFormatError, match="damaged"):
            Report.from_json({key: value for key, value in document.items() if key != "tasks"})

    def test_text_is_aligned_narrow_and_explained(self, report):
        lines = report.text().splitlines()
        assert max(len(line) for line in lines) <= 100
        text = report.text()
        for column in report.columns:
            assert column.meaning[:40] in text
        for task in report.tasks:
            start = next(k for k, line in enumerate(lines) if line.startswith(task.name))
            table = [line for line in lines[start : start + 12] if "±" in line]
            assert len(table) == 6
            assert len({line.index("±") for line in table}) == 1
        assert f"{report.gap_closed('forward', 'W2'):.0f} %" in text

    def test_names_are_looked_up_with_help(self, report):
        with pytest.raises(UnknownNameError, match="'forward'"):
            report.score("foward", "bridge", "W2")
        with pytest.raises(UnknownNameError, match="'Gaussian map'"):
            report.score("forward", "gaussian map", "W2")
        with pytest.raises(UnknownNameError, match="'sliced W2'"):
            report.score("forward", "bridge", "slicedW2")
        with pytest.raises(UnknownNameError, match="'energy, forward'"):
            report.quantity("energy forward")
        assert report.gap_closed("forward", "W3") is None


TIME = 0.25


@pytest.fixture(scope="module")
def seen():
    """Rows of the exact law at that time."""
    coupling = GaussianCoupling(LAW_0.mean, LAW_0.covariance, LAW_1.mean, LAW_1.covariance, BrownianMotion(1.0))
    mean, covariance = coupling.marginal(TIME)
    return rows(Gaussian(mean.float(), covariance.float()), 400, 9)


class TestBetween:
    """Predictions at a time in between."""

    def test_the_right_bridge_is_near_the_floor_and_standing_still_is_not(self, bridge, seen):
        report = score_at(bridge, rows(LAW_0, 400, 1), seen, TIME, seed=2, limits=LIMITS)
        name = "t = 0.25"
        assert report.tasks[0].name == name
        for metric in METRICS:
            found, floor = (report.score(name, who, metric) for who in ("bridge", "perfect, half size"))
            # Twice as many rows: not above the floor of half of them, up to error.
            assert found.value < floor.value + 3 * math.hypot(found.standard_error, floor.standard_error)
            for still in () if metric == "BW²-UVP (%)" else ("unmoved rows", "target rows"):
                moved = report.score(name, still, metric)
                assert moved.value - found.value > 3 * math.hypot(found.standard_error, moved.standard_error)
        assert floor.rows == (200, 200)
        assert found.rows == (400, 400)
        assert report.path == ()
        assert max(len(line) for line in report.text().splitlines()) <= 100
        assert Report.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False))) == report

    def test_at_the_ends_maps_and_rows_coincide(self, bridge, seen):
        for t, twin in ((0.0, "unmoved rows"), (1.0, None)):
            metrics = (EnergyDistance(),)
            baselines = (GaussianTransport(),)
            report = score_at(
                bridge, rows(LAW_0, 100, 1), seen, t, seed=2, metrics=metrics, baselines=baselines, limits=LIMITS
            )
            name = f"t = {t:g}"
            if twin is not None:
                values = {report.score(name, who, "energy distance").value for who in ("bridge", "Gaussian map", twin)}
                assert len(values) == 1
            else:
                moved = report.score(name, "Gaussian map", "energy distance")
                assert moved.value != report.score(name, "unmoved rows", "energy distance").value

    def test_the_pool_of_both_ends_is_a_mixture_of_their_rows(self, bridge, seen):
        """Scored by the mean: the pool has 1 − t of the source's rows, t of the target's, for a reversed bridge too."""

        class Share:
            """The share of rows that are the target's, of whose first column all are above 50."""

            name = "share"

            def __call__(self, x, y, generator):
                return float((x[:, 0] > 50).double().mean())

        low, high = Samples(rows(LAW_0, 400, 1)), Samples(rows(LAW_1, 400, 2) + 100.0)
        measures = zip((bridge.forward, bridge.backward), (low, high), strict=True)
        far = Bridge(*(dataclasses.replace(measure, start=law) for measure, law in measures))
        few = {"metrics": (Share(),), "baselines": (), "limits": LIMITS, "seed": 2}
        for ready, start, t, share in (
            (far, low, 0.25, 0.25),
            (far.reversed(), high, 0.25, 0.25),
            (far, low, 0.0, 0.0),
            (far, low, 1.0, 1.0),
        ):
            report = score_at(ready, start.rows, seen, t, **few)
            assert report.score(f"t = {t:g}", "pooled ends", "share").value == share

    def test_a_short_end_shortens_the_pool_and_keeps_its_proportions(self):
        first, last = torch.zeros(100, 2), torch.ones(30, 2)
        mixed = pooled(first, last, 0.6, seed=0)
        assert (len(mixed), float(mixed[:, 0].sum())) == (50, 30.0)
        assert not torch.equal(mixed, mixed.sort(0).values)

    def test_the_gap_is_measured_from_the_strongest_null(self, bridge, seen):
        report = score_at(bridge, rows(LAW_0, 400, 1), seen, TIME, seed=2, baselines=(), limits=LIMITS)
        name = "t = 0.25"
        for metric in METRICS:
            candidates = ("unmoved rows", "target rows", "pooled ends")
            null = min(report.score(name, candidate, metric).value for candidate in candidates)
            found, floor = (report.score(name, who, metric).value for who in ("bridge", "perfect, half size"))
            assert report.gap_closed(name, metric) == pytest.approx(100 * (null - found) / (null - floor))
        with pytest.raises(UnknownNameError, match=r"t = 0.25"):
            report.gap_closed("t = 0.3", metric)
        assert "gap closed" in report.text()

    def test_a_reversed_bridge_starts_at_the_horizon(self, bridge, seen):
        few = {"metrics": (EnergyDistance(),), "baselines": (GaussianTransport(),), "limits": LIMITS}
        report = score_at(bridge.reversed(), rows(LAW_1, 100, 1), seen, 1.0, seed=2, **few)
        names = ("bridge", "Gaussian map", "unmoved rows")
        assert len({report.score("t = 1", who, "energy distance").value for who in names}) == 1

    def test_bad_input(self, bridge, seen):
        x0 = rows(LAW_0, 50, 1)
        with pytest.raises(InvalidInputError, match="at least 4"):
            score_at(bridge, x0, seen[:3], 0.5, seed=0)
        with pytest.raises(InvalidInputError, match="time must lie in"):
            score_at(bridge, x0, seen, 1.5, seed=0)
        with pytest.raises(InvalidInputError, match="2 columns"):
            score_at(bridge, x0, seen[:, :2], 0.5, seed=0)


def test_two_rows_an_end_are_scored_without_standard_errors():
    x0, x1 = rows(LAW_0, 40, 1), rows(LAW_1, 40, 2)
    bridge = TestFloors.sinkhorn(x0, x1)
    report = evaluate(bridge, x0[:2], x1[:2], seed=0, limits=LIMITS, x0_fit=x0[:2], x1_fit=x1[:2])
    for column in ("energy distance", "cost"):
        score = report.score("forward", "bridge", column)
        assert score.rows == (1, 1)
        assert score.value is not None
        assert score.standard_error is None
        assert "no standard error" in score.reason
    assert max(len(line) for line in report.text().splitlines()) <= 100


class TestBadInput:
    def test_rows(self, bridge):
        x0, x1 = rows(LAW_0, 50, 1), rows(LAW_1, 50, 2)
        with pytest.raises(InvalidInputError, match="x1 has 2 columns, but the bridge has dimension 3"):
            evaluate(bridge, x0, x1[:, :2], seed=0)
        with pytest.raises(InvalidInputError, match="NaN"):
            evaluate(bridge, torch.where(x0 > 1, torch.nan, x0), x1, seed=0)
        with pytest.raises(InvalidInputError, match="at least 2"):
            evaluate(bridge, x0[:1], x1, seed=0)
        with pytest.raises(InvalidInputError, match="x0_fit has 2 columns"):
            evaluate(bridge, x0, x1, seed=0, x0_fit=x0[:, :2])

    def test_metrics_and_limits(self, bridge):
        x0, x1 = rows(LAW_0, 50, 1), rows(LAW_1, 50, 2)
        with pytest.raises(InvalidInputError, match="different names"):
            evaluate(bridge, x0, x1, seed=0, metrics=(EnergyDistance(), EnergyDistance()))
        with pytest.raises(InvalidInputError, match="different names"):
            evaluate(bridge, x0, x1, seed=0, metrics=())
        with pytest.raises(InvalidInputError, match="blocks must be at least 2"):
            EvaluationBudget(blocks=1)

    def test_metrics_of_one_kind_keep_their_full_names(self, bridge):
        x0, x1 = rows(LAW_0, 50, 1), rows(LAW_1, 50, 2)
        metrics = (ExactW2(20), ExactW2(40))
        report = evaluate(bridge, x0, x1, seed=0, metrics=metrics, baselines=(), limits=LIMITS)
        assert [column.name for column in report.columns[:2]] == ["W2 (exact, ≤ 20 rows)", "W2 (exact, ≤ 40 rows)"]
        assert max(len(line) for line in report.text().splitlines()) <= 100


def test_arrays_and_float64_go_in(bridge):
    x0, x1 = rows(LAW_0, 60, 1), rows(LAW_1, 60, 2)
    few = {"metrics": (EnergyDistance(),), "baselines": (ExactTransport(),)}
    report = evaluate(bridge, x0.numpy(), x1.numpy(), seed=0, limits=LIMITS, **few)
    assert report == evaluate(bridge, x0, x1, seed=0, limits=LIMITS, **few)
    wide = evaluate(bridge, x0, x1.double(), seed=0, limits=LIMITS, **few)
    found = [r.score("backward", "exact OT map", "energy distance").value for r in (report, wide)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
