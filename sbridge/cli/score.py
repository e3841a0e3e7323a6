"""``sbridge evaluate``: a fitted bridge against rows from files."""

from __future__ import annotations

import json
from itertools import pairwise

from sbridge import files
from sbridge.cli.commands import Evaluate
from sbridge.cli.console import Console
from sbridge.cli.plan import read_options
from sbridge.errors import InvalidInputError
from sbridge.evaluation import Limits, Report, evaluate, score_at
from sbridge.fitting import Course
from sbridge.inputs import Table, read_inputs
from sbridge.metrics import STANDARD_METRICS, HalfEnergyDistance
from sbridge.random import derive
from sbridge.runs import RunFolder


def run_evaluate(command: Evaluate, console: Console) -> int:
    """The whole command."""
    if command.out is not None and command.out.exists():
        raise InvalidInputError(f"{command.out} exists. Choose another --out.")
    course = RunFolder(command.folder).course()
    options = read_options(command.reading, derive(command.seed, "evaluate"))
    source, target = read_inputs(command.inputs, (), options).tables
    start = course.times[0] if command.start is None else command.start
    stop = course.times[-1] if command.time is None else command.time
    report = _score(course, source, target, (start, stop), command)
    if command.out is not None:
        files.write_text(command.out, json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n")
    console.say(f"{source.name} at t = {start:g}, {target.name} at t = {stop:g}; bridge times count from {start:g}.\n")
    console.say(report.text())
    return 0


def _score(course: Course, source: Table, target: Table, span: tuple[float, float], command: Evaluate) -> Report:
    leg = _leg(course, *span)
    bridge, limits = course.bridges[leg], Limits(rows=command.max_rows)
    if span[1] == course.times[leg + 1]:
        return evaluate(bridge, source.rows, target.rows, seed=command.seed, limits=limits)
    metrics = (HalfEnergyDistance(), *STANDARD_METRICS)
    t = span[1] - course.times[leg]
    return score_at(bridge, source.rows, target.rows, t, seed=command.seed, metrics=metrics, limits=limits)


def _leg(course: Course, start: float, stop: float) -> int:
    """The leg that begins at ``start`` and holds ``stop``."""
    times = course.times
    for leg, (first, last) in enumerate(pairwise(times)):
        if first == start and first < stop <= last:
            return leg
    listed = ", ".join(f"{first:g} → {last:g}" for first, last in pairwise(times))
    raise InvalidInputError(
        f"from {start:g} to {stop:g} is not within one bridge of this run ({listed}): --start must be the beginning of "
        "one, and --time lie after it, up to its end."
    )
