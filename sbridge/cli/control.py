"""``sbridge control``: solves and evaluates a control problem from a Python file."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

from sbridge import distributed
from sbridge.cli.commands import Control
from sbridge.cli.console import Console, Progress
from sbridge.cli.python_files import names_in
from sbridge.devices import as_device
from sbridge.errors import InvalidInputError
from sbridge.evaluation.control import evaluate_control
from sbridge.fitting import solve
from sbridge.parts import moved
from sbridge.problems import ControlProblem
from sbridge.runs.folder import dumps
from sbridge.solvers import AdjointMatching, ControlSolver, LogVariance
from sbridge.storage import documents
from sbridge.storage.claims import check_vacant, claimed
from sbridge.storage.documents import Json
from sbridge.training import Numbers, State


def run_control(command: Control, console: Console) -> int:
    """Runs the command; returns the exit code."""
    if command.out is None:
        _solve(command, console)
        return 0
    with claimed(command.out):
        check_vacant(command.out)
        _solve(command, console, command.out)
    return 0


def _solve(command: Control, console: Console, out: Path | None = None) -> None:
    """Solves and evaluates the problem, and writes the results to ``out``, a claimed folder."""
    problem, solver, why, names = _chosen(command)
    if why is not None:
        console.tell(f"Solver: {type(solver).__name__}, {why}. To choose another, define `solver` in {command.file}.")
    history: list[dict[str, float]] = []
    bar = Progress(
        console, type(solver).__name__, solver.updates, open_ended=False, advice="Fewer --updates take less time."
    )

    def follow(state: State, info: Numbers) -> None:
        history.append(dict(info))
        bar(state, info)

    solution = solve(problem, solver, seed=command.seed, callbacks=[follow])
    bar.close()
    distributed.leave()
    known = moved(names.get("known"), as_device(command.device))
    report = evaluate_control(solution, n=command.paths, seed=command.seed, known=known)
    console.say(str(report))
    if out is None:
        return
    solution.save(out / "control")
    documents.write_text(out / "problem.py", command.file.read_text(encoding="utf-8"))
    documents.write_text(out / "report.json", dumps(_document(report)))
    documents.write_text(out / "history.json", dumps(history))
    console.tell(f"Written: {out}. Load it with sbridge.load_control({str(out / 'control')!r}, problem).")


def follow(command: Control) -> int:
    """Takes part in the solution by process 0, which writes it; returns the exit code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # process 0 gives them
        problem, solver = _chosen(command)[:2]
        solve(problem, solver, seed=command.seed, callbacks=[lambda state, info: None])
    distributed.leave()
    return 0


def _chosen(command: Control) -> tuple[ControlProblem, ControlSolver, str | None, dict[str, Any]]:
    """The problem and the solver of the file, the reason if the solver was chosen here, and all names of the file."""
    names = read_file(command.file)
    problem, solver, why = names["problem"].to(as_device(command.device)), names.get("solver"), None
    if solver is None:
        solver, why = choose(problem)
    if command.updates is not None:
        solver = dataclasses.replace(solver, updates=command.updates)
    return problem, solver, why, names


def read_file(path: Path) -> dict[str, Any]:
    """Executes the file and checks what it defines.

    Raises:
        InvalidInputError: if there is no such file, it is not Python, or its names do not have the right types.
    """
    names = names_in(path)
    if not isinstance(names.get("problem"), ControlProblem):
        raise InvalidInputError(
            f"{path} must define `problem`, a ControlProblem: problem = sbridge.ControlProblem(process, start, "
            f"running_cost, terminal_cost). Got: {type(names.get('problem')).__name__}."
        )
    solver = names.get("solver")
    if solver is not None and not isinstance(solver, ControlSolver):
        raise InvalidInputError(
            f"`solver` in {path} must be a control solver such as AdjointMatching(), got {type(solver).__name__}."
        )
    return names


def choose(problem: ControlProblem) -> tuple[ControlSolver, str]:
    """Returns a solver that supports the problem, and the reason for the choice."""
    solver = AdjointMatching()
    if solver.refusal(problem) is None:
        return solver, "because the costs are differentiable"
    return LogVariance(), "because it needs no gradient of the costs and allows paths to stop"


def _document(report: object) -> Json:
    return dataclasses.asdict(report)  # type: ignore[call-overload]
