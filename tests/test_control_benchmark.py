"""Benchmark problems: their truths against simulation, rows and commands."""

import json
import math

import pytest
import torch

from sbridge.benchmarks import control, control_problems
from sbridge.cli import run
from sbridge.errors import UnknownNameError, UnsupportedError
from sbridge.evaluation import control_error, objective_and_value
from sbridge.laws import Point
from sbridge.measures import PathMeasure
from sbridge.problems import BridgeCorrection, ControlProblem
from sbridge.processes import BrownianMotion, EulerMaruyama
from sbridge.solutions import ControlSolution
from sbridge.solvers import RiccatiStart
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
    row = control.run("linear_ou", "AdjointMatching", divisor=200)
    assert row.targets["objective"] == pytest.approx(-2.17593, abs=1e-5)
    assert row.steps_per_second > 0
    assert row.memory > 10
    assert "[-2.1759]" in str(row)
    assert json.loads(json.dumps(row.to_json()))["numbers"]["objective"]["samples"] > 2


def test_the_plan_names_known_problems_alone():
    pairs = control.plan(control.Settings(only=("killed_well", "nine modes")))
    assert [solver for name, solver in pairs if name == "killed_well"] == ["LogVariance", "Moment", "CrossEntropy"]
    assert len(control.plan(control.Settings())) > 20
    with pytest.raises(UnknownNameError, match="killed_well"):
        control.plan(control.Settings(only=("killed_wel",)))


@pytest.mark.slow
def test_benchmark_command_prints_rows_and_writes_them(tmp_path, capsys):
    target = tmp_path / "rows.json"
    assert run(["benchmark", "control", "--quick", "--only", "linear_ou", "--json", str(target)]) == 0
    assert "AdjointMatching" in capsys.readouterr().out
    rows = json.loads(target.read_text())["rows"]
    assert {row["solver"] for row in rows} == {"AdjointMatching", "RelativeEntropy", "LogVariance"}
    assert all(row["failure"] is None for row in rows)


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
    assert "exists" in capsys.readouterr().err


def test_a_file_without_a_solver_gets_one_that_suits():
    from sbridge.cli.control import choose

    found = [choose(make(steps=20).problem)[0] for make in (control_problems.linear_ou, control_problems.killed_well)]
    assert [type(solver).__name__ for solver in found] == ["AdjointMatching", "LogVariance"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "there is no file"),
        ("problem = (", "is not Python"),
        ("x = 1", "has to define `problem`"),
        (PROBLEM + "\nsolver = 3", "has to be a control solver"),
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
