"""A report as text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from sbridge.evaluation.report import (
    COPY,
    MODEL,
    PERFECT,
    PERFECT_HALVES,
    POOLED,
    TARGET,
    Quantity,
    Report,
    Score,
    Task,
)
from sbridge.numbers import decimals_of, value_and_error

_WIDTH = 100
_LABEL = 22
_CELL = 13
_PER_TABLE = (_WIDTH - _LABEL) // _CELL
_MOST_DIGITS = 4

_ROW_MEANINGS = {
    MODEL: "the rows that the bridge makes",
    PERFECT: "other rows of the very distribution aimed at: the sampling floor, which no method should beat",
    PERFECT_HALVES: "one half of the held-out rows against the other: a floor for half as many rows",
    COPY: "the rows that transport starts from, left where they are: what doing nothing scores",
    TARGET: "rows of the distribution at the end of the bridge, left where they are",
    POOLED: "rows of both ends left where they are, in the proportions 1 − t/T and t/T: no path, and no model, but "
    "often the best prediction of the distribution in between; a bridge should beat it",
    "exact OT map": "rows of the fit assigned at least cost; a new row follows the nearest of them",
    "entropic map": "the mean end of each row under the entropic plan at the reference's noise: too narrow",
    "Gaussian map": "the affine map that matches means and covariances at least cost",
}
_GAP = "gap closed"
_GAP_MEANING = (
    "100 %: as good as perfect samples; 0 %: no better than the best of the rows that need no model (unmoved rows, "
    "target rows, pooled ends); below 0: worse than that"
)
_PATH_MEANINGS = {
    "energy, forward": "½E∫|u|²dt from the rows scored: how far the forward process departs from the reference",
    "energy, backward": "the same for the process that runs back",
    "Jeffreys divergence": "of the two directions, from their own starts: 0 if they are one process; below 0 if their "
    "ends differ",
}


def report_text(report: Report) -> str:
    """Tables, explanations and notes, at most 100 columns wide."""
    reasons: dict[str, int] = {}
    title = f"Evaluation on {report.rows}: dimension {report.dim}, horizon {report.horizon:g}, seed {report.seed}"
    lines = [title, *tables(report, reasons), "", *legend([report], reasons)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def tables(report: Report, reasons: dict[str, int]) -> list[str]:
    """Lines of the tables alone; why something is missing goes to ``reasons``."""
    lines, names = list[str](), [column.name for column in report.columns]
    for task in report.tasks:
        lines += ["", *_wrapped(f"{task.name}: {task.description}")]
        for first in range(0, len(names), _PER_TABLE):
            lines += _table(report, task, names[first : first + _PER_TABLE], reasons)
    if report.path:
        lines += ["", "path measures, in nats"]
        lines += [f"  {path.name:<{_LABEL - 2}}{quantity_text(path, reasons)}" for path in report.path]
    return lines


def legend(reports: Sequence[Report], reasons: Mapping[str, int]) -> list[str]:
    """Lines that explain columns and rows of all ``reports``, their notes and ``reasons``, each once."""
    lines = ["columns: smaller is better; value ± standard error"]
    columns = dict.fromkeys(column for report in reports for column in report.columns)
    lines += [line for column in columns for line in _explained(column.name, column.meaning)]
    lines += ["", "rows"]
    lines += [line for name, meaning in meanings(reports).items() for line in _explained(name, meaning)]
    lines += ["", "notes"]
    for note in dict.fromkeys(note for report in reports for note in report.notes):
        lines += _wrapped(note, "  * ")
    for reason, number in reasons.items():
        lines += _wrapped(reason, f"  [{number}] ")
    return lines


def meanings(reports: Sequence[Report]) -> dict[str, str]:
    """What the rows and path measures of ``reports`` say, by name."""
    present = {name for report in reports for task in report.tasks for name in task.candidates}
    present |= {quantity.name for report in reports for quantity in report.path}
    if present & {PERFECT, PERFECT_HALVES}:
        present.add(_GAP)
    return {name: meaning for name, meaning in _MEANINGS.items() if name in present}


_MEANINGS = {**_ROW_MEANINGS, _GAP: _GAP_MEANING, **_PATH_MEANINGS}


def cells(
    report: Report, task: Task, names: Sequence[str], reasons: dict[str, int]
) -> tuple[list[str], list[list[str]]]:
    """Heads of the columns, and a row for each candidate and for the gap closed, its name first.

    Args:
        report, task: what is shown.
        names: of the columns.
        reasons: why something is missing, with the numbers that refer to it; new ones are added.
    """
    columns = [_column(task, name, reasons) for name in names]
    heads = [f"{name}, {unit}" if unit else name for name, (unit, _) in zip(names, columns, strict=True)]
    rows = [[name, *(shown[place] for _, shown in columns)] for place, name in enumerate(task.candidates)]
    closed = [report.gap_closed(task.name, name) for name in names]
    if any(share is not None for share in closed):
        rows.append([_GAP, *("" if share is None else f"{share:.0f} %" for share in closed)])
    return heads, rows


def _table(report: Report, task: Task, names: Sequence[str], reasons: dict[str, int]) -> list[str]:
    heads = [textwrap.wrap(name, _CELL - 1)[:2] for name in names]
    height = max(len(head) for head in heads)
    lines = [_line("", [([""] * (height - len(head)) + head)[row] for head in heads]) for row in range(height)]
    units = [_column(task, name, reasons)[0] for name in names]
    if any(units):
        lines.append(_line("", units))
    return lines + [_line(row[0], row[1:]) for row in cells(report, task, names, reasons)[1]]


def _line(label: str, cells: Sequence[str]) -> str:
    return f"  {label:<{_LABEL - 2}.{_LABEL - 2}}" + "".join(f"{cell:>{_CELL}}" for cell in cells)


def _column(task: Task, name: str, reasons: dict[str, int]) -> tuple[str, list[str]]:
    """The unit of a column, a power of ten or nothing, and its cells, with decimals in common."""
    by_candidate = {score.candidate: score for score in task.scores if score.column == name}
    scores = [by_candidate.get(candidate) for candidate in task.candidates]
    largest = max((abs(s.value) for s in scores if s is not None and s.value is not None), default=0.0)
    # Thousandths, millionths, …: whatever brings small numbers to 1 … 1000.
    power = 3 * math.ceil(-math.log10(largest) / 3) if 0.0 < largest < 1.0 else 0
    errors = [s.standard_error * 10.0**power for s in scores if s is not None and s.standard_error]
    digits = min(decimals_of(min(errors, default=0.01)), _MOST_DIGITS)
    return f"in 1e-{power}" if power else "", [_cell(score, power, digits, reasons) for score in scores]


def _cell(score: Score | None, power: int, digits: int, reasons: dict[str, int]) -> str:
    if score is None:
        return ""
    mark = "" if score.reason is None else f" [{reasons.setdefault(score.reason, len(reasons) + 1)}]"
    if score.value is None:
        return f"–{mark}"
    error = None if score.standard_error is None else score.standard_error * 10.0**power
    return _number(score.value * 10.0**power, error, digits) + mark


def _number(value: float, error: float | None, digits: int) -> str:
    for decimals in range(digits, -1, -1):
        shown = f"{value:.{decimals}f}" if error is None else value_and_error(value, error, decimals)
        if len(shown) < _CELL:
            return shown
    return f"{value:.2e}" if error is None else f"{value:.1e} ± {error:.0e}".replace("e+0", "e")


def quantity_text(quantity: Quantity, reasons: dict[str, int]) -> str:
    """The value with its error, or a dash with the number of the reason."""
    if quantity.value is None or quantity.standard_error is None:
        reason = quantity.reason or "not computed"
        return f"– [{reasons.setdefault(reason, len(reasons) + 1)}]"
    return value_and_error(quantity.value, quantity.standard_error)


def _explained(name: str, meaning: str) -> list[str]:
    return _wrapped(meaning, f"  {name:<{_LABEL - 2}} ")


def _wrapped(text: str, start: str = "") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start)) or [start]
