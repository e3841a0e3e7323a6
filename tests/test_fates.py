"""Fates: against closed forms, plans of POT and simulations; growth on the way; intervals; refusals."""

import numpy as np
import pytest
import torch
from torch import Tensor

import sbridge as sb
from sbridge.benchmarks.pairs import MixturePair
from sbridge.cells import as_groups
from sbridge.cells.fates import wilson
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.transport import EntropicProblem, Sinkhorn, entropic_plan, sinkhorn

EXACT = sb.SinkhornBridge(sinkhorn=Sinkhorn(tolerance=1e-9))
TIMES = (0.0, 1.0, 3.0)


def cloud(n: int, seed: int, *shift: float) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)).double() + torch.tensor(shift)


SNAPSHOTS = [cloud(60, 0, 0.0, 0.0), cloud(70, 1, 0.5, 0.0), cloud(80, 2, 1.0, 0.5)]
LABELS = ["c" if x < 0.5 else "b" if y < 0.5 else "a" for x, y in SNAPSHOTS[2].tolist()]
ORIGINS = ["right" if x > 0 else "left" for x, _ in SNAPSHOTS[0].tolist()]


@pytest.fixture(scope="module")
def course() -> sb.Course:
    return sb.fit_course(SNAPSHOTS, TIMES, sigma=1.0, solver=EXACT)


def plan(x: Tensor, y: Tensor, duration: float, weights: Tensor | None = None) -> Tensor:
    """The plan of two snapshots, whose sum is 1."""
    problem = EntropicProblem(x, y, duration, weights)
    found = sinkhorn(problem, Sinkhorn(tolerance=1e-9))
    potentials = (found.f[:, None] + found.g - 0.5 * torch.cdist(x, y).square()) / problem.epsilon
    return problem.source_weights[:, None] * problem.target_weights * potentials.exp()


def indicators(labels: list[str]) -> Tensor:
    names = sorted(set(labels))
    return torch.eye(len(names), dtype=torch.float64)[[names.index(label) for label in labels]]


def inside(found: sb.cells.Fates, truth: Tensor) -> float:
    return float(((found.lower <= truth) & (truth <= found.upper)).double().mean())


def rows_of(joint: Tensor) -> Tensor:
    return joint / joint.sum(1, keepdim=True)


# --- known answers


def test_closed_form_and_pot():
    """The component of a mixture potential that a path ends in has a known probability for each start."""
    pair, draw = MixturePair(2, 1.0, seed=0), torch.Generator().manual_seed(3)
    (x0, _), other = pair.sample(700, seed=0), pair.source.sample(700, draw)
    potential = pair.potential
    x1 = potential.conditional(other).sample(draw)
    shapes = torch.einsum("nd,kde,ne->nk", x1, potential.precisions, x1)
    labels = torch.multinomial(
        (potential.logits + x1 @ potential.shifts.mT - 0.5 * shapes).softmax(1), 1, generator=draw
    )
    known = potential.conditional(x0[:300].double()).weights
    bridge = sb.fit(x0, x1.float(), reference=pair.reference, solver=sb.MixtureBridge(), seed=0)
    found = sb.fates(bridge, labels[:, 0], x0[:300], draws=400, seed=1)
    of_pot = rows_of(entropic_plan(x0, x1.float(), pair.epsilon).double()) @ indicators(
        [str(k) for k in labels[:, 0].tolist()]
    )
    error, pot = float((found.probabilities - known).abs().mean()), float((of_pot[:300] - known).abs().mean())
    assert error <= 0.03
    assert error <= pot + 0.015  # of which .4/√400 are draws
    assert found.probabilities.sum(1).sub(1).abs().max() <= 1e-6


def test_a_chain_of_plans(course):
    """Between samples, fates are sums over the product of the row-normalised plans, as in Waddington-OT."""
    ahead = rows_of(plan(*SNAPSHOTS[:2], 1.0)) @ rows_of(plan(*SNAPSHOTS[1:], 2.0)) @ indicators(LABELS)
    found = sb.fates(course, LABELS, draws=300, seed=0)
    assert found.groups == ("a", "b", "c")
    assert 0.93 <= inside(found, ahead) <= 0.985  # 95 %, of 180 numbers
    later = sb.fates(course, LABELS, times=(1.0, 3.0), draws=300, seed=0)
    assert 0.93 <= inside(later, rows_of(plan(*SNAPSHOTS[1:], 2.0)) @ indicators(LABELS)) <= 0.985


def test_ancestors(course):
    back = rows_of(plan(*SNAPSHOTS[1:], 2.0).mT) @ rows_of(plan(*SNAPSHOTS[:2], 1.0).mT) @ indicators(ORIGINS)
    found = sb.ancestors(course, ORIGINS, draws=300, seed=0)
    assert found.times == (3.0, 0.0)
    assert 0.93 <= inside(found, back) <= 0.985


def test_growth_on_the_way_weights_paths():
    """Cells that divide at the inner time have more descendants: the plans are multiplied with growth in between."""
    growth = sb.ends.Growth(lambda x: 0.8 * x[:, 1])
    course = sb.fit_course(SNAPSHOTS, TIMES, sigma=1.0, balance=growth, solver=EXACT)
    grown = [(duration * 0.8 * x[:, 1]).softmax(0) for x, duration in zip(SNAPSHOTS, (1.0, 2.0), strict=False)]
    first, second = plan(*SNAPSHOTS[:2], 1.0, grown[0]), plan(*SNAPSHOTS[1:], 2.0, grown[1])
    ahead = rows_of(rows_of(first) @ second @ indicators(LABELS))  # the row sums of `second` are the growth
    found = sb.fates(course, LABELS, draws=400, seed=0)
    assert inside(found, ahead) >= 0.92
    unweighted = rows_of(first) @ rows_of(second) @ indicators(LABELS)
    assert inside(found, unweighted) < 0.8
    torch.testing.assert_close(found.weights, 60 * grown[0])
    table = found.transitions(ORIGINS).probabilities
    weighted = indicators(ORIGINS) * grown[0][:, None]
    torch.testing.assert_close(table, weighted.mT @ found.probabilities / weighted.sum(0)[:, None])


def test_soft_targets_weight_paths_backward():
    course = sb.fit_course(SNAPSHOTS, TIMES, sigma=1.0, balance=sb.ends.SoftEnds(float("inf"), 1.0), solver=EXACT)
    explained = course.bridges[0].balance.explained(SNAPSHOTS[1])
    weights = [bridge.backward.start.weights for bridge in course.bridges]
    first, second = plan(SNAPSHOTS[1], SNAPSHOTS[0], 1.0, weights[0]), plan(SNAPSHOTS[2], SNAPSHOTS[1], 2.0, weights[1])
    back = rows_of(rows_of(second) @ (explained[:, None] * rows_of(first)) @ indicators(ORIGINS))
    found = sb.ancestors(course, ORIGINS, draws=400, seed=0)
    assert inside(found, back) >= 0.92
    torch.testing.assert_close(found.weights, 80 * weights[1])


def test_transitions_forward_and_backward_are_one_table(course):
    """``P(origin) P(group | origin) = P(group) P(origin | group)``."""
    ahead = sb.fates(course, LABELS, draws=300, seed=0).transitions(ORIGINS)
    back = sb.ancestors(course, ORIGINS, draws=300, seed=1).transitions(LABELS)
    first, last = indicators(ORIGINS).mean(0), indicators(LABELS).mean(0)
    joint, other = first[:, None] * ahead.probabilities, last * back.probabilities.mT
    assert (joint - other).abs().max() <= 0.015
    assert (ahead.origins, ahead.groups) == (("left", "right"), ("a", "b", "c"))
    found = sb.fates(course, LABELS, draws=300, seed=0)
    assert "group  labelled at 3  mean of 60 rows at 0" in found.text()
    assert ahead.text().splitlines()[1].startswith("left   0.")
    members = found.probabilities[indicators(ORIGINS)[:, 0] == 1]
    torch.testing.assert_close(ahead.standard_errors[0], members.std(0) / len(members) ** 0.5)


def test_a_bridge_and_new_rows(course):
    """A bridge is a course of one leg; float32 rows give float32; equal seeds give equal numbers."""
    state = torch.get_rng_state()
    rows = SNAPSHOTS[1][:5].float().numpy()
    one = sb.fates(course.bridges[1], LABELS, rows, labelled=SNAPSHOTS[2], draws=50, seed=3)
    two = sb.fates(course, LABELS, rows, times=(1, 3), draws=50, seed=3)
    assert one.probabilities.dtype == torch.float32
    assert torch.equal(one.probabilities, two.probabilities)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(
        one.probabilities, sb.fates(course, LABELS, rows, times=(1, 3), draws=50, seed=4).probabilities
    )


def test_times_and_levels_of_other_types(course):
    """Arrays, tensors and numpy's numbers are as good as tuples and Python's."""
    rows, other = SNAPSHOTS[1][:3], {"labelled": SNAPSHOTS[2], "draws": 5, "seed": 0}
    known = sb.fates(course, LABELS, rows, times=(1.0, 3.0), level=0.75, **other)
    for times in (np.array([1, 3]), torch.tensor([1.0, 3.0])):
        found = sb.fates(course, LABELS, rows, times=times, level=np.float32(0.75), **other)
        assert found.times == (1.0, 3.0)
        assert type(found.level) is float
        assert torch.equal(found.upper, known.upper)
    assert sb.ancestors(course, ORIGINS, rows, times=np.array([1, 0]), draws=5, seed=0).times == (1.0, 0.0)


def test_neighbours_share_the_vote():
    groups = as_groups(["a", "a", "b", "b"], 4, "groups")
    rows = torch.tensor([[0.0], [1.0], [5.0], [6.0]]) + 1000.0
    points = torch.tensor([[0.4], [2.9], [3.1]]) + 1000.0
    assert sb.cells.groups.votes(points, rows, groups, 1).tolist() == [[1, 0], [1, 0], [0, 1]]
    assert sb.cells.groups.votes(points, rows, groups, 2).tolist() == [[1, 0], [0.5, 0.5], [0.5, 0.5]]


def test_wilson_intervals_are_those_of_the_score_test():
    """At the limits the share is ``z`` standard deviations away; at 0 and 1 the interval is one-sided."""
    share, count = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64), torch.tensor(40.0)
    low, high = wilson(share, count, 0.95)
    for limit in (low[1], high[1], high[0], low[2]):
        side = share[0] if limit == high[0] else share[2] if limit == low[2] else share[1]
        assert abs(side - limit) / (limit * (1 - limit) / 40).sqrt() == pytest.approx(1.959964, abs=1e-5)
    assert (low[0], high[2]) == (0.0, 1.0)


def test_categories_keep_their_order():
    pandas = pytest.importorskip("pandas")
    stages = pandas.Series(["old", "young", "old", "young"], dtype=pandas.CategoricalDtype(["young", "none", "old"]))
    groups = as_groups(stages, 4, "groups")
    assert groups.names == ("young", "old")
    assert groups.codes.tolist() == [1, 0, 1, 0]


# --- refusals


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b"], r"at 3\) has 2 labels for 80 rows"),
        (["a"] * 80, "only one group, 'a'"),
        (["a"] * 79 + ["rare"], "only one row has the label rare"),
        (["a", "b"] * 39 + ["a", np.nan], r"missing for 1 of 80 rows \(first: row 79\)"),
        (np.zeros((80, 2)), "one-dimensional"),
    ],
)
def test_labels_are_checked(course, labels, message):
    with pytest.raises(InvalidInputError, match=message):
        sb.fates(course, np.array(labels, dtype=object), seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"times": (3.0, 0.0)}, "must increase .* sbridge.ancestors"),
        ({"times": (0.0, 2.0)}, "two of the snapshot times 0, 1, 3, got 0, 2"),
        ({"rows": torch.zeros(3, 4)}, "rows has 4 columns, but the bridge has dimension 2"),
        ({"labelled": torch.zeros(80, 1)}, "labelled has 1 columns"),
        ({"draws": 0}, "draws must be a positive integer"),
        ({"neighbours": 81}, "only 80 labelled rows"),
        ({"level": 1.5}, "level must lie between 0 and 1"),
    ],
)
def test_options_are_checked(course, options, message):
    with pytest.raises(InvalidInputError, match=message):
        sb.fates(course, LABELS, seed=0, **options)


def test_ends_without_rows_and_wrong_directions(course):
    with pytest.raises(InvalidInputError, match=r"must decrease .* sbridge\.fates"):
        sb.ancestors(course, LABELS, times=(0.0, 3.0), seed=0)
    normal = sb.Gaussian(torch.zeros(2), torch.eye(2))
    bridge = sb.fit(normal, normal, reference=sb.BrownianMotion(1.0))
    with pytest.raises(UnsupportedError, match="the end at 0 is a Gaussian, which has no rows: give rows"):
        sb.fates(bridge, LABELS, labelled=SNAPSHOTS[2], seed=0)
