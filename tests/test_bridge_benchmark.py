"""The table of bridges: what its scores measure, its rows, and the command."""

import json
from dataclasses import replace

import pytest
import torch

from docs.benchmarks import many_rows
from sbridge.benchmarks import bridge
from sbridge.benchmarks.bridge_scores import Effort, IndependentKernel, Judge, MapKernel, Scores, shown
from sbridge.benchmarks.bures import conditional_uvp
from sbridge.benchmarks.pairs import GaussianPair
from sbridge.cli import run
from sbridge.cli.benchmark import _bridge_settings
from sbridge.cli.benchmark_commands import BridgeTable
from sbridge.couplings import EntropicCoupling
from sbridge.errors import UnknownNameError
from sbridge.laws import Samples
from sbridge.measures import Estimate, PathMeasure
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion
from sbridge.solvers.imf import IMF
from sbridge.solvers.mixture import MixtureBridge
from sbridge.time import TimeGrid

EFFORT = Effort(40, 400, 400)


@pytest.fixture(scope="module")
def pair():
    return GaussianPair(BrownianMotion(1.0), 2)


@pytest.fixture(scope="module")
def judge(pair):
    return Judge(pair, EFFORT)


def test_perfect_draws_are_the_floor(pair, judge):
    scores = judge.scores(pair.truth)
    assert scores.excess == Estimate(0.0, 0.0, EFFORT.conditions)
    assert 0.0 < scores.conditional < 1.0
    assert scores.from_truth.value == scores.to_truth.value == 0.0
    stepped = replace(pair.truth, end_kernel=None, grid=TimeGrid.uniform(40))
    assert abs(judge.scores(stepped, path=False).excess.value) < 0.3


def test_a_shifted_control_costs_what_girsanov_says(pair, judge):
    """``u* + h`` for ``T = 1`` costs ``½|h|²`` either way and moves every conditional mean by the same vector."""
    shift = torch.tensor([0.3, -0.4])
    moved = replace(pair.truth, end_kernel=None, control=lambda t, x: pair.truth.control(t, x) + shift)
    scores = judge.scores(moved)
    assert scores.from_truth.value == pytest.approx(0.125, rel=1e-4)
    assert scores.to_truth.value == pytest.approx(0.125, rel=1e-4)
    assert scores.excess.value > 5 * scores.excess.standard_error


def test_trivial_rows_have_known_scores(pair, judge):
    """Independent ends: ``BW²`` between the marginal and the conditional Gaussian, by hand; no control: ``V*``."""
    mean, covariance = pair.end_moments
    rows = pair.sample(50_000, seed=3)[1]
    independent = PathMeasure(pair.reference, None, pair.source, end_kernel=IndependentKernel(rows))
    found = judge.scores(independent, path=False)
    x = judge._x
    means, covariances = pair.moments(x)
    root = torch.linalg.cholesky(covariance)
    inner = root.mT @ covariances[0] @ root
    spread = covariance.trace() + covariances[0].trace() - 2.0 * torch.linalg.eigvalsh(inner).sqrt().sum()
    exact = 100.0 * ((means - mean).square().sum(1).mean() + spread) / covariance.trace()
    assert found.conditional == pytest.approx(float(exact), rel=0.05)
    assert found.marginal < 0.1
    still = judge.scores(replace(pair.truth, end_kernel=None, control=None, grid=TimeGrid.uniform(40)))
    estimate = still.from_truth
    assert abs(estimate.value - pair.value.value) < 4.0 * estimate.standard_error + 0.02


def test_a_map_is_judged_as_a_plan_without_spread(pair, judge):
    """Exact conditional means without spread: what is missing is ``½ tr`` of the conditional covariance."""
    kernel = MapKernel(lambda x: pair.moments(x)[0].to(x))
    found = judge.scores(PathMeasure(pair.reference, None, pair.source, end_kernel=kernel), path=False)
    covariance, whole = pair.moments(torch.zeros(1, 2))[1][0], pair.end_moments[1]
    assert found.conditional == pytest.approx(100.0 * float(covariance.trace() / whole.trace()), rel=1e-5)


def test_scores_use_one_noise(pair, judge):
    """The excess pairs conditions and draws: its error is far below that of two scores with their own noise."""
    moved = replace(pair.truth, end_kernel=MapKernel(pair.truth.end_kernel.mean))
    excess = judge.scores(moved, path=False).excess
    x, moments, variance = judge._x, pair.moments(judge._x), float(pair.end_moments[1].trace())
    floors = [conditional_uvp(pair.truth, x, moments, variance, seed=seed, draws=400).mean() for seed in (1, 2)]
    assert excess.samples == EFFORT.conditions
    assert abs(floors[0] - floors[1]) < 0.2


def test_rows_of_every_kind_survive_the_way_through_a_process_of_their_own():
    cell, quick = bridge.Cell("turning", 2, 1.0, 0), bridge.Settings(quick=True)
    here, there = (one(cell, "gaussian", quick) for one in (bridge.run, bridge.run_alone))
    assert there.scores == here.scores
    assert there.memory > 50
    refused = bridge.run(cell, "light", quick)
    assert "Brownian references only" in str(refused)
    assert refused.scores is None
    assert Scores.from_json(json.loads(json.dumps(here.to_json()))["scores"]) == here.scores


def test_cells_know_their_names():
    settings = bridge.Settings(pairs=("mixture", "gaussian", "ring"), dims=(2, 16), seeds=(3,))
    found = [str(cell) for cell in bridge.cells(settings)]
    assert len(found) == 2 * 3 + 2 + 2
    assert "ring d=2 ε=0.2 seed 3" in found
    assert "gaussian d=16 ε=1 seed 3" in found
    with pytest.raises(UnknownNameError, match="mixture"):
        bridge.cells(bridge.Settings(pairs=("mixtur",)))
    with pytest.raises(UnknownNameError, match="sinkhorn"):
        bridge.cells(bridge.Settings(solvers=("sinkhor",)))


@pytest.mark.parametrize(
    ("pairs", "solvers"),
    [
        (("mixture",), ("mixture", "gaussian", "exact OT map")),
        pytest.param(("mixture", "ring"), bridge.METHODS, marks=pytest.mark.slow),
    ],
    ids=["some", "all"],
)
def test_quick_command_prints_the_table_and_writes_it(tmp_path, capsys, pairs, solvers):
    target = tmp_path / "rows.json"
    chosen = ["--pairs", *pairs, "--solvers", *solvers]
    assert run(["benchmark", "bridge", "--quick", *chosen, "--json", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "cBW-UVP" in printed
    assert "mixture d=2 ε=1 seed 0" in printed
    document = json.loads(target.read_text())
    assert document["quick"] is True
    rows = {(row["cell"]["pair"], row["method"]): row for row in document["rows"]}
    assert len(rows) == len(pairs) * (4 + len(solvers))
    assert all(row["failure"] is None for row in rows.values())
    for name in pairs:
        score = {method: row["scores"]["conditional"] for (of, method), row in rows.items() if of == name}
        assert score["perfect draws"] < score["mixture"] < score["no control"] < score["independent coupling"]
        assert score["mixture"] < score["exact OT map"]
        divergence = rows[name, "mixture"]["scores"]["from_truth"]["value"]
        assert 0.0 < divergence < rows[name, "no control"]["scores"]["from_truth"]["value"]


def test_a_table_goes_on_where_it_was_stopped(tmp_path, capsys, monkeypatch):
    target = tmp_path / "rows.json"
    command = ["benchmark", "bridge", "--quick", "--pairs", "mixture", "--json", str(target), "--solvers"]
    assert run([*command, "gaussian"]) == 0
    first = json.loads(target.read_text())["rows"]
    assert run([*command, "gaussian"]) == 2
    assert "--resume" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr(bridge, "_unfitted", lambda *_: pytest.fail("measured again"))
    assert run([*command, "gaussian", "Gaussian map", "--resume"]) == 0
    rows = json.loads(target.read_text())["rows"]
    assert rows[: len(first)] == first
    assert [row["method"] for row in rows[len(first) :]] == ["Gaussian map"]
    monkeypatch.undo()
    target.write_text(json.dumps({"quick": True, "rows": rows[1:]}))  # stopped before all floors were there
    assert run([*command, "gaussian", "--resume"]) == 0
    assert json.loads(target.read_text())["rows"][: len(first)] == first
    target.write_text(json.dumps({"quick": True, "rows": [{"problem": "easy"}]}))
    assert run([*command, "gaussian", "--resume"]) == 2
    assert "no rows of sbridge benchmark bridge" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("value", "text"), [(1.23456, "1.235 ± 0.100"), (4321.0, "4321 ± 0"), (0.00012, "0.0001")])
def test_divergences_are_shown_to_four_places(value, text):
    assert shown(Estimate(value, 0.1 if value < 1000 else 0.2, 9)).startswith(text)
    assert shown(None) == ""


@pytest.mark.parametrize("name", ["mixture", "imf"])
def test_many_rows_are_measured(name, monkeypatch):
    quick = {
        "mixture": MixtureBridge(components=(1,), rounds=1, max_rows=200),
        "imf": IMF(coupling=EntropicCoupling(rows=64), pretraining=2, stages=0, refresh=2, pairs=64),
    }
    monkeypatch.setattr(many_rows, "SOLVERS", quick)
    found = many_rows.run(name, 500, 3)
    assert found["data"] == pytest.approx(2 * 500 * 3 * 4 / 2**20)
    assert found["peak"] >= found["before"] > 50
    assert found["per_step"] > 0


def test_a_mixture_bridge_looks_at_a_bounded_number_of_rows():
    x, y = (torch.randn(900, 2, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    problem = BridgeProblem(Samples(x), Samples(y), BrownianMotion(1.0))
    state = MixtureBridge(components=(1,), rows=100, max_rows=300).init(problem, 0)
    assert len(state.view.everything.source.rows) == len(state.view.everything.target.rows) == 300


@pytest.mark.parametrize(
    "given",
    [["--dims", "0"], ["--epsilons", "-1"], ["--seeds", "-1"], ["--pairs", "nothing"]],
    ids=lambda given: given[0],
)
def test_a_quick_table_takes_what_is_asked_for(given, capsys):
    assert run(["benchmark", "bridge", "--quick", *given]) == 2
    assert given[1] in capsys.readouterr().err
    command = BridgeTable(quick=True, dims=(3,), seeds=(7,))
    settings = _bridge_settings(command)
    assert (settings.dims, settings.seeds, settings.epsilons, settings.quick) == ((3,), (7,), (1.0,), True)
