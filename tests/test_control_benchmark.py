"""Benchmark problems: their truths against simulation, rows and commands."""

import itertools
import json
import math

import pytest
import torch
from scipy.stats import ks_2samp

from docs.benchmarks import control_memory
from sbridge.benchmarks import control, control_problems
from sbridge.benchmarks.control_rows import Row, merged
from sbridge.cli import run
from sbridge.controls import MLP
from sbridge.errors import InvalidInputError, UnknownNameError, UnsupportedError
from sbridge.evaluation import control_error, objective_and_value
from sbridge.laws import Point
from sbridge.measures import Estimate, PathMeasure
from sbridge.problems import BridgeCorrection, ControlProblem
from sbridge.processes import BrownianMotion, EulerMaruyama
from sbridge.solutions import ControlSolution
from sbridge.solvers import LogVariance, ReciprocalAdjointMatching, RiccatiStart
from sbridge.time import TimeGrid

MAKERS = {
    "quadratic_ou_easy": control_problems.quadratic_ou_easy,
    "quadratic_ou_hard": control_problems.quadratic_ou_hard,
    "linear_ou": control_problems.linear_ou,
    "double_well": control_problems.double_well,
    "killed_well": control_problems.killed_well,
    "corrected": lambda: control_problems.killed_well(correction=BridgeCorrection()),
}


_SLOW = pytest.param("double_well", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [name if name != "double_well" else _SLOW for name in MAKERS])
def test_optimal_control_reaches_the_optimum_and_its_weights_the_tilted_value(name):
    benchmark, n = MAKERS[name](), 8192
    truth = benchmark.truth
    measure = PathMeasure(
        benchmark.problem.process,
        truth.control,
        benchmark.problem.start,
        grid=benchmark.grid,
        rule=benchmark.rule,
    )
    solution = ControlSolution(benchmark.problem, measure)
    objective, value = objective_and_value(solution, n, seed=1)
    assert abs(objective.value - truth.optimum) < 4.0 * objective.standard_error + 1e-6
    assert abs(value.value - truth.tilted) < 4.0 * value.standard_error + 1e-6
    assert control_error(solution, truth.limit_control, n // 8, seed=2).value < 0.15
    assert truth.tilted <= truth.optimum + 1e-12


def test_a_row_has_scores_beside_exact_answers():
    row = control.run(control.Case("linear_ou", "AdjointMatching"), divisor=200)
    assert row.targets["objective"] == pytest.approx(-2.17593, abs=1e-5)
    assert row.updates == 5
    assert row.seconds > 0
    assert row.memory > 10
    assert "[-2.1759; limit -2.1617]" in str(row)
    assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row


def test_zero_control_is_the_trivial_row():
    row = control.run(control.Case("linear_ou", control.ZERO), divisor=8)
    assert float(row.numbers["control error"].value) == pytest.approx(1.0)
    assert abs(row.numbers["objective"].value) < 4.0 * row.numbers["objective"].standard_error
    assert row.updates == 0


@pytest.mark.parametrize(("name", "null"), [("nine modes", control.ZERO), ("double wells", control.LAPLACE)])
def test_weights_of_the_nulls_give_the_normaliser(name, null):
    row = control.run(control.Case(name, null), divisor=4)
    found = row.numbers["log Z"]
    assert found.standard_error < 0.05
    assert abs(found.value - row.targets["log Z"]) < 4.0 * found.standard_error
    assert row.numbers["ELBO"].value < found.value
    assert row.updates == 0


def test_a_budget_is_spent_on_updates(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(control.time, "process_time", lambda: float(next(ticks)))
    problem = ControlProblem(BrownianMotion(1.0), Point(torch.zeros(1)), terminal_cost=lambda x: x.sum(1))
    solver = LogVariance(grid=TimeGrid.uniform(2), network=MLP(4, 1))
    # one second to set up and one for thirty updates, by this clock
    assert control.updates_within(problem, solver, 5.0, seed=0) == 120
    assert control.updates_within(problem, solver, 0.5, seed=0) == 1


def test_several_seeds_make_one_row_with_the_error_of_their_mean():
    rows = [
        Row("p", "s", (seed,), 10, 2.0, 100.0 + seed, {"a": Estimate(value, 0.1, 5, 40.0), "b": value}, {"a": 2.0})
        for seed, value in enumerate((1.0, 2.0, 6.0))
    ]
    row = merged(rows)
    error = row.numbers["b"].standard_error
    assert error == pytest.approx(math.sqrt(7.0 / 3.0))
    assert row.seeds == (0, 1, 2)
    assert row.memory == 102.0
    assert row.numbers["a"] == Estimate(3.0, error, 3, 40.0)
    assert row.numbers["b"] == Estimate(3.0, error, 3)
    broken = merged([rows[0], Row("p", "s", (1,), failure="it broke")])
    assert broken.failure == "seed 1 of 2: it broke"
    assert "it broke" in str(broken)


def test_the_distance_of_end_laws_is_that_of_scipy():
    x, y = (torch.randn(n, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (50, 80))
    expected = max(float(ks_2samp(x[:, i].numpy(), 1.2 * y[:, i].numpy()).statistic) for i in range(3))
    assert control.kolmogorov_smirnov(x, 1.2 * y) == pytest.approx(expected, abs=1e-12)


def test_time_reversal_starts_from_the_stationary_law_and_ends_in_fine_steps():
    target = control.TARGETS["nine modes"][0]()
    problem = control.steered(target, 5.0, reversal=True)
    first, last = (float(problem.process.scale(t).values.max()) for t in (0.0, 1.0))
    assert first > 10 * last
    assert ReciprocalAdjointMatching().refusal(problem) is None
    covariance = problem.start.covariance
    law = problem.process.transition(0.0, 1.0)
    kept = law.map.expanded(2) @ covariance.double() @ law.map.expanded(2).mT + law.covariance.expanded(2)
    assert torch.allclose(kept, covariance.double())


def test_the_plan_names_known_problems_alone():
    cases = control.plan(control.Settings(only=("killed_well", "nine modes")))
    found = [case.solver for case in cases if case.problem == "killed_well"]
    assert found == [control.ZERO, "LogVariance", "Moment", "CrossEntropy"]
    compared = [case.label for case in control.plan(control.Settings(budget=7.0)) if case.budget]
    assert len(compared) == 2 * len(control.SOLVERS)
    assert "Moment, 7 s" in compared
    assert not any(case.budget for case in control.plan(control.Settings(budget=0.0)))
    found = [case.solver for case in cases if case.problem == "nine modes"]
    assert found[:3] == [control.ZERO, control.LAPLACE, "LogVariance"]
    nulls = control.plan(control.Settings(nulls=True))
    assert len(nulls) == len(control.PROBLEMS) + 2 * len(control.TARGETS)
    assert not {case.solver for case in nulls} & {*control.SOLVERS, *control.SAMPLERS}
    with pytest.raises(UnknownNameError, match="killed_well"):
        control.plan(control.Settings(only=("killed_wel",)))
    with pytest.raises(InvalidInputError, match="at least one seed"):
        control.Settings(seeds=())


@pytest.mark.slow
def test_benchmark_command_prints_rows_and_writes_them(tmp_path, capsys):
    target = tmp_path / "rows.json"
    command = ["benchmark", "control", "--quick", "--only", "linear_ou", "--json", str(target)]
    assert run(command) == 0
    assert "AdjointMatching" in capsys.readouterr().out
    rows = json.loads(target.read_text())["rows"]
    assert {row["solver"] for row in rows} == {control.ZERO, *control.SOLVERS}
    assert all(row["failure"] is None for row in rows)


@pytest.mark.slow
def test_ten_double_wells_from_their_saddle():
    row = control.run(control.Case("double_well", "AdjointMatching"), divisor=2)
    assert row.numbers["excess %"] < 3.0
    value = row.numbers["−log Eα"]
    assert abs(value.value - row.targets["−log Eα"]) < 4.0 * value.standard_error
    assert row.numbers["worst well"] < 0.05


@pytest.mark.slow
def test_only_backpropagation_keeps_a_graph_of_all_steps():
    assert set(control_memory.LOSSES) >= {"AdjointMatching", "RelativeEntropy, adjoint", "RelativeEntropy, backprop"}
    per_step = {}
    for loss in control_memory.LOSSES:
        (few, _), (many, _) = control_memory.growth(loss, 100), control_memory.growth(loss, 400)
        per_step[loss] = (many - few) / (300 * 4 * control_memory.PATHS * control_memory.DIM / 2**20)
    assert per_step["RelativeEntropy, adjoint"] < 4.0
    assert per_step["AdjointMatching"] < 12.0
    assert per_step["RelativeEntropy, backprop"] > 2.0 * per_step["AdjointMatching"]


def test_an_interrupted_table_goes_on(tmp_path, capsys, monkeypatch):
    asked, broken, target = [], [], tmp_path / "rows.json"

    def measured(case, seed, divisor):
        asked.append((case.solver, seed))
        if case.solver == "LogVariance" and not broken:
            broken.append(case)
            raise KeyboardInterrupt
        return Row(case.problem, case.label, (seed,), 5, 1.0, 1.0, {"objective": float(seed)})

    monkeypatch.setattr(control, "_apart", measured)
    command = ["benchmark", "control", "--only", "double_well", "--seeds", "3", "4", "--json", str(target)]
    run(command)
    assert len(json.loads(target.read_text())["rows"]) == 3
    assert run(command) == 2
    assert "--resume" in " ".join(capsys.readouterr().err.split())
    asked.clear()
    assert run([*command, "--resume"]) == 0
    assert asked == [("LogVariance", 3), ("LogVariance", 4)]
    rows = json.loads(target.read_text())["rows"]
    assert [row["solver"] for row in rows] == [control.ZERO, "AdjointMatching", "RelativeEntropy", "LogVariance"]
    assert rows[0]["numbers"]["objective"]["value"] == 3.5
    assert run([*command, "--resume", "--quick"]) == 2
    assert "without --quick" in " ".join(capsys.readouterr().err.split())
    assert run(["benchmark", "control", "--resume"]) == 2
    document = json.loads(target.read_text())
    document["rows"][1]["failure"] = "it broke"
    target.write_text(json.dumps(document))
    asked.clear()
    assert run([*command, "--resume"]) == 0
    assert asked == [("AdjointMatching", 3), ("AdjointMatching", 4)]


PROBLEM = """
import torch
from sbridge.laws import Point
from sbridge.problems import ControlProblem
from sbridge.processes import BrownianMotion
from sbridge.solvers import LogVariance
from sbridge.time import TimeGrid

problem = ControlProblem(BrownianMotion(1.0), Point(torch.zeros(2)), terminal_cost=lambda x: x.sum(1))
solver = LogVariance(updates=5, grid=TimeGrid.uniform(4))

def known(t, x):
    return -torch.ones_like(x)
"""


def test_a_problem_in_a_file_is_solved_and_kept(tmp_path, capsys):
    from sbridge.cli.control import read_file
    from sbridge.solutions import load_control

    file, out = tmp_path / "problem.py", tmp_path / "run"
    file.write_text(PROBLEM)
    assert run(["control", str(file), "--out", str(out), "--updates", "3", "--paths", "256"]) == 0
    printed = capsys.readouterr().out
    assert "objective" in printed
    assert "control error" in printed
    assert len(json.loads((out / "history.json").read_text())) == 3
    assert math.isfinite(json.loads((out / "report.json").read_text())["objective"]["value"])
    assert (out / "problem.py").read_text() == PROBLEM
    solution = load_control(out / "control", read_file(file)["problem"])
    assert solution.sample(3, seed=0).x.shape == (5, 3, 2)
    assert run(["control", str(file), "--out", str(out)]) == 2
    assert "is not empty. Choose another --out" in " ".join(capsys.readouterr().err.split())


def test_a_file_without_a_solver_gets_one_that_suits():
    from sbridge.cli.control import choose

    found = [choose(make(steps=20).problem)[0] for make in (control_problems.linear_ou, control_problems.killed_well)]
    assert [type(solver).__name__ for solver in found] == ["AdjointMatching", "LogVariance"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "does not exist"),
        ("problem = (", "is not valid Python"),
        ("x = 1", "must define `problem`"),
        (PROBLEM + "\nsolver = 3", "must be a control solver"),
    ],
)
def test_bad_files_are_told(tmp_path, capsys, text, told):
    file = tmp_path / "problem.py"
    if text is not None:
        file.write_text(text)
    assert run(["control", str(file)]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_riccati_start_is_the_optimum_of_a_quadratic_problem():
    benchmark = control_problems.quadratic_ou_hard(steps=20)
    found = RiccatiStart().control(benchmark.problem, benchmark.grid, benchmark.rule)
    x = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    for t in (0.0, 0.6):
        assert torch.allclose(found(t, x), benchmark.truth.control(t, x), rtol=1e-4)


def test_riccati_start_expands_other_costs_and_refuses_other_processes():
    # about the start 0 the cost log(1 + x²) is x², and −x² is flat
    def problem(cost):
        return ControlProblem(BrownianMotion(1.0), Point(torch.zeros(1)), terminal_cost=cost)

    grid, x = TimeGrid.uniform(5), torch.ones(1, 1)
    bent = RiccatiStart().control(problem(lambda x: (1.0 + x.square()).log().sum(1)), grid, EulerMaruyama())
    exact = RiccatiStart().control(problem(lambda x: x.square().sum(1)), grid, EulerMaruyama())
    assert torch.allclose(bent(0.0, x), exact(0.0, x))
    assert float(exact(0.0, x)) == pytest.approx(-2.0 / 3.0)
    hollow = RiccatiStart().control(problem(lambda x: -x.square().sum(1)), grid, EulerMaruyama())
    assert float(hollow(0.0, x)) == 0.0
    well = control_problems.killed_well(steps=10)
    with pytest.raises(UnsupportedError, match="EarlierStart"):
        RiccatiStart().control(well.problem, well.grid, well.rule)
