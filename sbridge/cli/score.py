"""``sbridge evaluate``: scores a fitted bridge on samples from files."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from itertools import pairwise

from sbridge.cli.commands import CrossValidate, Evaluate
from sbridge.cli.console import Console, ScoringBar
from sbridge.cli.names import SOLVERS
from sbridge.cli.options import load_class
from sbridge.cli.plan import check_columns, dtype_of, read_options, time_given
from sbridge.data.tables import TableRows, read_inputs
from sbridge.devices import as_device
from sbridge.diffusion import is_reverse_diffusion
from sbridge.errors import InvalidInputError, listed, number
from sbridge.evaluation.certificate import Certificate, certificate_json, certificate_or_reason, certificate_text
from sbridge.evaluation.cross_validation import cross_validate
from sbridge.evaluation.progress import watched
from sbridge.evaluation.report import Report
from sbridge.evaluation.scorer import EvaluationBudget
from sbridge.evaluation.scores import evaluate, score_at
from sbridge.fitting.courses import Course
from sbridge.metrics import STANDARD_METRICS, HalfEnergyDistance
from sbridge.plotting import save_certificate
from sbridge.random import derive
from sbridge.runs.folder import RunFolder
from sbridge.storage import documents
from sbridge.time import snapped


def run_evaluate(command: Evaluate, console: Console) -> int:
    """Runs the command; returns the exit code."""
    folder = RunFolder(command.folder)
    course = folder.course(command.device)
    options = read_options(command.reading, derive(command.seed, "evaluate"), folder)
    source, target = read_inputs(command.inputs, (), replace(options, inexact=dtype_of(course))).tables
    rows = source.rows.to(command.device), target.rows.to(command.device)
    for table in (source, target):
        check_columns(table.name, table.columns, folder)
    start = time_given("--start", command.start, source.time, course.times)
    stop = time_given("--time", command.time, target.time, course.times)
    start = course.times[0] if start is None else snapped(start, course.times)
    stop = course.times[-1] if stop is None else snapped(stop, course.times)
    bar = ScoringBar(console)
    with watched(bar), closing(bar):
        report, certificate = _score(course, rows, (start, stop), command)
    if command.out is not None:
        document = {**report.to_json(), "certificate": certificate_json(certificate)}
        documents.write_text(command.out, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    if command.figure is not None and not isinstance(certificate, str):
        save_certificate(certificate, command.figure)
    console.say(
        f"{source.name} at t = {start:g}, {target.name} at t = {stop:g}; times of the bridge are measured from "
        f"{start:g}.\n"
    )
    console.say(report.text())
    console.say(certificate_text(certificate))
    if command.figure is not None and isinstance(certificate, str):
        raise InvalidInputError(f"{command.figure} was not written, because there is no certificate to draw.")
    return 0


def run_cross_validate(command: CrossValidate, console: Console) -> int:
    """Runs the command; returns the exit code."""
    device = as_device(command.device)
    inputs = read_inputs(command.inputs, command.times, read_options(command.reading, 0))
    console.remark("fitting …")
    solvers = {name: None if name == "auto" else load_class(SOLVERS[name])() for name in command.solvers}
    rows = [table.rows.to(device) for table in inputs.tables]
    options = {"sigma": command.sigma, "seeds": command.seeds, "max_rows": command.max_rows}
    console.say(cross_validate(rows, inputs.times or (0.0, 1.0), solvers=solvers, **options).text())
    return 0


def _score(
    course: Course, rows: tuple[TableRows, TableRows], span: tuple[float, float], command: Evaluate
) -> tuple[Report, Certificate | str]:
    leg = _leg(course, *span)
    bridge, limits = course.bridges[leg], EvaluationBudget(rows=command.max_rows)
    if span[1] == course.times[leg + 1]:
        report = evaluate(bridge, *rows, seed=command.seed, limits=limits)
        if is_reverse_diffusion(bridge):
            return report, (
                "the forward process of a reverse diffusion is its reference, so there is no bound to compute."
            )
        return report, certificate_or_reason(bridge, *rows, seed=command.seed, limits=limits)
    metrics = (HalfEnergyDistance(), *STANDARD_METRICS)
    t = span[1] - course.times[leg]
    report = score_at(bridge, *rows, t, seed=command.seed, metrics=metrics, limits=limits)
    return report, "bounds apply to a whole bridge, not to a time in between."


def _leg(course: Course, start: float, stop: float) -> int:
    """Returns the index of the leg that begins at ``start`` and contains ``stop``."""
    times = course.times
    for leg, (first, last) in enumerate(pairwise(times)):
        if first == start and first < stop <= last:
            return leg
    legs = listed([f"{first:g} → {last:g}" for first, last in pairwise(times)])
    raise InvalidInputError(
        f"from {number(start)} to {number(stop)} is not within one bridge of this run ({legs}): --start must be the "
        "beginning of one, and --time must be later, up to its end."
    )
