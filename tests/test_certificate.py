"""The certificate: bounds against closed forms, the gap by two routes, and that what is wrong shows."""

import json
import math
from dataclasses import replace

import pytest
import torch

from docs.benchmarks.certificates import Settings, measure
from sbridge.benchmarks.pairs import GaussianPair, MixturePair
from sbridge.controls import ZeroControl
from sbridge.errors import FileFormatError, InvalidInputError, UnsupportedError
from sbridge.evaluation import Certificate, EvaluationBudget, Quantity, certify, dual_bound, evaluate
from sbridge.exact import MixtureControl, MixturePotential
from sbridge.fitting import fit, solve
from sbridge.laws import Samples
from sbridge.measures import Estimate, PathMeasure, path_kl
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion, DriftProcess, OrnsteinUhlenbeck
from sbridge.solutions import Bridge
from sbridge.solvers.gaussian import GaussianBridge
from sbridge.solvers.imf import IMF
from sbridge.solvers.mixture import MixtureBridge
from sbridge.solvers.sinkhorn import SinkhornBridge
from sbridge.storage.registry import register
from sbridge.time import TimeGrid

QUICK = MixtureBridge(components=(2, 5), rounds=1, grid=TimeGrid.cosine(40))
LIMITS = EvaluationBudget(rows=1000, paths=64)
DENSE = OrnsteinUhlenbeck(
    rate=torch.tensor([[1.0, 0.6], [-0.4, 0.3]]), sigma=torch.tensor([[0.8, 0.0], [0.5, 1.1]]), mean=0.2
)


@register
class Shifted(torch.nn.Module):
    """A control with a constant added."""

    def __init__(self, control, shift):
        super().__init__()
        self.control, self.shift = control, shift

    def forward(self, t, x):
        return self.control(t, x) + self.shift


@pytest.fixture(scope="module")
def pair():
    return MixturePair(2, 1.0)


@pytest.fixture(scope="module")
def bridge(pair):
    x, y = pair.sample(1500, seed=1)
    return fit(x, y, reference=pair.reference, solver=QUICK, seed=0)


@pytest.fixture(scope="module")
def rows(pair):
    return pair.sample(3000, seed=2)


@pytest.fixture(scope="module")
def good(bridge, rows):
    return certify(bridge, *rows, seed=3, solver=QUICK, limits=LIMITS)


def with_control(bridge, control):
    return Bridge(replace(bridge.forward, control=control, end_kernel=None), bridge.backward)


def test_gap_is_half_the_mean_square_of_the_difference_of_controls(pair, bridge, rows):
    """``gap(u, g*) = ½ E∫|u − u*|² dt``, by end values and by Girsanov."""
    control, grid = Shifted(bridge.forward.control, 0.3), TimeGrid.uniform(100)
    shifted = with_control(bridge, control)
    shifted = Bridge(*(replace(m, grid=grid) for m in (shifted.forward, shifted.backward)))
    found = certify(shifted, *rows, seed=3, potential=pair.potential, limits=LIMITS).gap
    start = Samples(rows[0])
    own = PathMeasure(pair.reference, control, start, grid=grid)
    best = replace(own, control=MixtureControl(pair.potential))
    expected = path_kl(own, best, 1000, seed=9)
    error = math.hypot(found.standard_error, expected.standard_error)
    assert abs(found.value - expected.value) < 3 * error
    assert found.value > 5 * found.standard_error


MANY = pytest.param(40, marks=pytest.mark.slow)


@pytest.mark.parametrize("fits", [3, MANY])
@pytest.mark.parametrize("reference", [BrownianMotion(1.0), DENSE], ids=["brownian", "dense"])
def test_lower_bound_against_the_closed_form(reference, fits):
    """``V* − .05 nat < D(g) ≤ V* + 2 s.e.``; of forty seeded fits two may miss by chance."""
    pair = GaussianPair(reference, 2)
    exact, misses = pair.coupling.value, 0
    solver, small = replace(QUICK, components=(1, 2)), EvaluationBudget(rows=32, paths=32)
    for seed in range(fits):
        x, y = pair.sample(1000, seed=10 + seed)
        bridge = fit(x, y, reference=reference, solver=GaussianBridge(TimeGrid.uniform(10)), seed=seed)
        bound = certify(bridge, *pair.sample(3000, seed=500 + seed), seed=seed, solver=solver, limits=small).lower_bound
        misses += bound.value > exact + 2 * bound.standard_error
        assert bound.value > exact - 0.05 - 2 * bound.standard_error
        assert bound.value < exact + 4 * bound.standard_error
    assert misses <= 2


def test_a_good_bridge_is_close_to_its_bounds(pair, good):
    assert abs(good.gap.value) < 0.05 + 3 * good.gap.standard_error
    end = good.end_error("forward")
    assert end.value < 3 * end.floor + 3 * end.standard_error
    assert good.lower_bound.value < good.energy.value + 3 * good.energy.standard_error
    assert good.jeffreys is None  # backward paths end in rows of the source
    assert good.verdict.word == "pass"


@pytest.mark.parametrize(
    ("fault", "n"), [("zero", 800), ("half", 800), pytest.param("shifted", 6000, marks=pytest.mark.slow)]
)
def test_a_wrong_control_shows(pair, bridge, fault, n):
    right, rows, many = bridge.forward.control, pair.sample(n, seed=4), replace(LIMITS, rows=n)
    good = certify(bridge, *rows, seed=3, potential=pair.potential, limits=many)
    wrong = {"zero": ZeroControl(), "shifted": Shifted(right, 0.1), "half": lambda t, x: 0.5 * right(t, x)}[fault]
    judged = certify(with_control(bridge, wrong), *rows, seed=3, potential=pair.potential, limits=many)
    gap = judged.gap.value - good.gap.value
    gap_error = math.hypot(judged.gap.standard_error, good.gap.standard_error)
    ends = [found.end_error("forward") for found in (judged, good)]
    end_shift = ends[0].value - ends[1].value
    end_error = math.hypot(*(end.standard_error for end in ends))
    assert gap > 3 * gap_error or end_shift > 3 * end_error
    if fault == "zero":
        assert judged.energy == Estimate(0.0, 0.0, judged.energy.samples)
        assert judged.verdict.word == "fail"
        assert "does not end in the data distribution" in judged.verdict.reason


def test_a_wrong_judge_widens_the_gap_and_lowers_the_bound(bridge, rows, good):
    judge = good.judge
    worse = MixturePotential(judge.process, judge.logits, judge.shifts + 0.5, judge.precisions)
    judged = certify(bridge, *rows, seed=3, potential=worse, limits=LIMITS)
    error = math.hypot(judged.gap.standard_error, good.gap.standard_error)
    assert judged.gap.value > good.gap.value + 3 * error
    error = math.hypot(judged.lower_bound.standard_error, good.lower_bound.standard_error)
    assert judged.lower_bound.value < good.lower_bound.value - 3 * error


def test_verdicts_follow_from_the_numbers(good):
    """Each number in turn is changed; a report that was read again says the same."""

    def moved(**changes):
        return replace(good, **{name: Estimate(value, 0.01, 100) for name, value in changes.items()}).verdict

    assert moved(lower_bound=3.0, energy=3.0, gap=0.25).word == "pass"  # 10 % of 3 nats are allowed
    beyond = moved(lower_bound=3.0, energy=3.3, gap=0.35)
    assert beyond.word == "inconclusive"
    assert "0.350 ± 0.010 nats" in beyond.reason
    below = moved(lower_bound=3.0, energy=2.9, gap=0.1)
    assert below.word == "fail"
    assert "2.900 ± 0.010" in below.reason
    torn = replace(good.report, path=(Quantity("Jeffreys divergence", 0.5, 0.01, 9, None),))
    assert replace(good, report=torn).verdict.reason == (
        "the two directions are different processes: they differ by 0.500 ± 0.010 nats."
    )
    again = Certificate.from_json(json.loads(json.dumps(good.to_json(), allow_nan=False)))
    assert again.verdict == good.verdict
    assert again.table() == good.table()
    for damaged in ({}, {**good.to_json(), "gap": None}):
        with pytest.raises(FileFormatError):
            Certificate.from_json(damaged)


def test_a_process_that_ends_in_rows_of_the_data_has_no_certificate(pair, rows):
    bridge = fit(*pair.sample(200, seed=1), reference=pair.reference, solver=SinkhornBridge(), seed=0)
    with pytest.raises(UnsupportedError, match="ends in the data points"):
        certify(bridge, *rows, seed=0)
    report = evaluate(
        bridge, *(side[:100] for side in rows), seed=0, baselines=(), limits=EvaluationBudget(rows=100, paths=4)
    )
    assert report.path == ()
    assert any(note.startswith("Forward and backward paths end in the data points") for note in report.notes)


def test_a_bridge_does_not_judge_itself(bridge, rows):
    own = bridge.forward.control.potential
    for judge in (own, MixturePotential(own.process, own.logits + 1.0, own.shifts, own.precisions)):
        with pytest.raises(InvalidInputError, match="part of the bridge's own control"):
            certify(bridge, *rows, seed=0, potential=judge)


def test_a_scaled_bridge_is_judged_in_units_of_the_data(pair, rows):
    from sbridge.laws.scaling import CommonScale

    x, y = pair.sample(1000, seed=1)
    scaled = fit(x, y, reference=pair.reference, solver=QUICK, scaling=CommonScale(), seed=0)
    judged = certify(scaled, *rows, seed=3, solver=QUICK, limits=LIMITS)
    assert abs(judged.gap.value) < 0.15 + 3 * judged.gap.standard_error


def test_equal_seeds_give_equal_certificates_and_all_of_it_is_told(bridge, rows, good):
    again = certify(bridge, *rows, seed=3, solver=QUICK, limits=LIMITS)
    assert again.to_json() == good.to_json()
    assert json.loads(json.dumps(good.to_json()))["gap"]["value"] == good.gap.value
    told = good.text()
    for words in (
        "lower bound",
        "suboptimality gap",
        "energy",
        "Pass: ",
        "end distribution, forward",
        "end distribution, backward",
    ):
        assert words in told


def test_a_reversed_bridge_is_judged_by_rows_of_the_ends_at_which_it_begins(bridge, rows, good):
    """As in evaluate."""
    back = bridge.reversed()
    found = certify(back, rows[1], rows[0], seed=3, solver=QUICK, limits=LIMITS)
    assert found.to_json() == good.to_json()


def test_a_judge_that_equals_the_bridge_by_its_rows_is_no_mistake(rows):
    """Under much noise all controls are next to nothing, whoever fitted them."""
    x, y = rows
    problem = BridgeProblem(Samples(x), Samples(y), BrownianMotion(1e5))
    bridge = solve(problem, MixtureBridge(components=(1,)), seed=0)
    small = EvaluationBudget(rows=32, paths=32)
    assert abs(certify(bridge, x, y, seed=0, solver=QUICK, limits=small).lower_bound.value) < 100


def test_bad_input_is_told(bridge, rows):
    x, y = rows
    flat = torch.cat([x[:, :1], torch.zeros_like(x[:, 1:])], 1)
    with pytest.raises(
        InvalidInputError, match=r"the judging potential of a certificate .* variance in every direction"
    ):
        certify(bridge, flat, y, seed=0)
    with pytest.raises(InvalidInputError, match="x1 has 1 columns"):
        certify(bridge, x, y[:, :1], seed=0)
    with pytest.raises(InvalidInputError, match="at least 64 held-out rows"):
        certify(bridge, x[:50], y, seed=0)
    curved = DriftProcess(lambda t, x: -x.sin(), 1.0)
    other = Bridge(*(replace(m, process=curved) for m in (bridge.forward, bridge.backward)))
    with pytest.raises(UnsupportedError, match="transitions in closed form"):
        certify(other, x, y, seed=0)


@pytest.mark.slow
def test_a_quarter_of_the_training_shows(pair):
    """A network bridge stopped early is further from the judge than one trained on: gap or end law by 3 s.e."""
    x, y = pair.sample(4000, seed=1)
    rows, limits = pair.sample(3000, seed=4), replace(LIMITS, rows=3000)
    judged = []
    for updates in (80, 320):
        solver = IMF(pretraining=updates, stages=0, pairs=1024, grid=TimeGrid.cosine(30))
        early = fit(x, y, reference=pair.reference, solver=solver, seed=0)
        judged.append(certify(early, *rows, seed=3, potential=pair.potential, limits=limits))
    early, late = judged
    gap_error = math.hypot(early.gap.standard_error, late.gap.standard_error)
    ends = [found.end_error("forward") for found in judged]
    end_error = math.hypot(*(end.standard_error for end in ends))
    assert early.gap.value - late.gap.value > 3 * gap_error or ends[0].value - ends[1].value > 3 * end_error


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "most"), [(2, 0.05), (16, 0.3)])
def test_bounds_hold_and_are_tight_where_the_target_is_no_gaussian(dim, most):
    """``D(g) ≤ V* + 2 s.e.`` in at least 38 of 40 fits, ``V* − D(g)`` within the limit (+ 2 s.e.) in all."""
    found = measure(MixturePair(dim, 1.0), Settings(fits=40))
    assert found.held >= 38
    errors = torch.tensor([bound.standard_error for bound in found.bounds])
    assert bool((found.deficits < most + 2.0 * errors).all())


def test_the_dual_bound_of_the_optimum_is_the_value(pair):
    """``D(g*) = V*`` on any rows, and ``D(g) = V* − KL(P* ‖ P^g)`` for another judge."""
    x, y = pair.sample(20_000, seed=8)
    best = dual_bound(pair.potential, x, y)
    error = math.hypot(best.standard_error, pair.value.standard_error)
    assert abs(best.value - pair.value.value) < 3 * error
    g = pair.potential
    other = MixturePotential(g.process, g.logits, g.shifts + 0.3, g.precisions)
    lower = dual_bound(other, x, y)
    truth = replace(pair.truth, end_kernel=None, grid=TimeGrid.uniform(100))
    divergence = path_kl(truth, replace(truth, control=MixtureControl(other)), 4000, seed=2)
    error = math.hypot(pair.value.standard_error, lower.standard_error, divergence.standard_error)
    assert abs(pair.value.value - lower.value - divergence.value) < 3 * error
    assert divergence.value > 5 * divergence.standard_error


def test_a_judge_under_another_reference_is_refused():
    """Its ``c`` is not the mean under the bridge's reference, so its bound could lie above the value."""
    x0, x1 = (
        torch.randn(200, 2, generator=torch.Generator().manual_seed(1)),
        torch.randn(200, 2, generator=torch.Generator().manual_seed(2)) + 1.0,
    )
    bridge = fit(x0, x1, reference=BrownianMotion(1.0), solver=GaussianBridge(), seed=0)
    means = torch.ones(1, 2, dtype=torch.float64)
    own = MixturePotential(BrownianMotion(1.0), torch.zeros(1, dtype=torch.float64), means, means)
    for other in (BrownianMotion(0.8), BrownianMotion(1.0, horizon=2.0), OrnsteinUhlenbeck(0.5, 1.0)):
        with pytest.raises(InvalidInputError, match=r"make the potential with process=bridge\.reference"):
            certify(bridge, x0, x1, seed=0, potential=replace(own, process=other))
    assert certify(bridge, x0, x1, seed=0, potential=own).gap.value > 0
    three = MixturePotential(BrownianMotion(1.0), own.logits, torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(InvalidInputError, match="has 3 columns, the bridge has 2"):
        certify(bridge, x0, x1, seed=0, potential=three)
