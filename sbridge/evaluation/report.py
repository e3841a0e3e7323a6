"""The result of an evaluation: plain numbers, as JSON and as text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sbridge.display import decimals_of, value_and_error
from sbridge.errors import FileFormatError, shown, unknown_name

SCHEMA = "sbridge.runs.report/1"
MODEL = "bridge"
PERFECT = "perfect samples"
PERFECT_HALVES = "perfect, half size"
COPY = "unmoved rows"
TARGET = "target rows"
POOLED = "pooled ends"
NULLS = (COPY, TARGET, POOLED)
"""Trivial candidates, which use rows of the ends unchanged: a useful prediction beats all of them."""


_WIDTH = 100
_LABEL = 22
_CELL = 13
_PER_TABLE = (_WIDTH - _LABEL) // _CELL
_MOST_DIGITS = 4

_ROW_MEANINGS = {
    MODEL: "the samples of the bridge",
    PERFECT: "other samples of the same distribution: the sampling floor, which no method can beat on average",
    PERFECT_HALVES: "one half of the held-out rows against the other: the floor for half as many rows",
    COPY: "the start samples, unmoved: the score of doing nothing",
    TARGET: "samples of the distribution at the end of the bridge, unmoved",
    POOLED: "samples of both ends, unmoved, in the proportions 1 − t/T and t/T: neither path nor model, but often the "
    "best prediction of the distribution in between; a bridge should beat it",
    "exact OT map": "rows of the fit assigned at least cost; a new row moves like its nearest row of the fit",
    "entropic map": "the mean end of each row under the entropic plan at the noise of the reference: too narrow",
    "Gaussian map": "the affine map that matches means and covariances at least cost",
}
WITH_COST = "energy + state cost"
_GAP = "gap closed"
_GAP_MEANING = (
    "100 %: as good as perfect samples; 0 %: no better than the best score without a model (unmoved rows, target rows, "
    "pooled ends); below 0: worse"
)
_PATH_MEANINGS = {
    "energy, forward": "½E∫|u|²dt from the scored rows: how far the forward process departs from the reference",
    "energy, backward": "the same for the backward process",
    WITH_COST: "½E∫|u|²dt + E∫V dt of the forward process, u against the reference without the cost: what is minimised",
    "Jeffreys divergence": "between the two directions, from their own starts: 0 if they are one process; below 0 if "
    "their ends differ",
}


@dataclass(frozen=True)
class Column:
    """A metric as reports show it.

    Args:
        name: heads the column.
        meaning: one line for readers.
    """

    name: str
    meaning: str


@dataclass(frozen=True)
class Score:
    """One score of one set of samples.

    Args:
        candidate: the origin of the samples: the bridge, perfect samples, or a baseline.
        column: the name of the metric.
        value: the score; ``None`` if it cannot be computed.
        standard_error: standard error of the value; ``None`` if it cannot be computed.
        rows: numbers of scored samples and of reference samples that the metric used; ``None`` if there are none.
        reason: why a value is ``None``.
    """

    candidate: str
    column: str
    value: float | None
    standard_error: float | None
    rows: tuple[int, int] | None
    reason: str | None


@dataclass(frozen=True)
class Task:
    """One task: the scores of every candidate by every metric.

    Args:
        name: ``forward``, ``backward``, or ``t = …``.
        description: which samples were compared.
        scores: in the order in which candidates and columns are shown.
    """

    name: str
    description: str
    scores: tuple[Score, ...]

    @property
    def candidates(self) -> tuple[str, ...]:
        """The candidates: the bridge first, then the others in order."""
        names = dict.fromkeys(score.candidate for score in self.scores)
        return tuple(sorted(names, key=lambda name: name != MODEL))


@dataclass(frozen=True)
class Quantity:
    """A mean over paths, in nats.

    Args:
        name: what it is.
        value: the mean; ``None`` if it cannot be computed.
        standard_error: standard error of the value.
        samples: number of independent paths.
        reason: why it is ``None``.
    """

    name: str
    value: float | None
    standard_error: float | None
    samples: int | None
    reason: str | None

    @classmethod
    def of(cls, name: str, value: float, standard_error: float, samples: int) -> Quantity:
        """Names an estimate; a non-finite one is omitted with that reason."""
        if not (math.isfinite(value) and math.isfinite(standard_error)):
            return cls(name, None, None, samples, f"the estimate is {value}.")
        return cls(name, value, standard_error, samples, None)


@dataclass(frozen=True)
class Report:
    """The result of :func:`sbridge.evaluate`.

    Args:
        dim: dimension of the states.
        horizon: ``T``.
        seed: of the evaluation.
        columns: metrics in order.
        tasks: one per direction, or one per time.
        path: energies and divergence; empty for a time in between.
        notes: how samples were chosen, and limitations of the scores.
        seen: how many of the given samples were also used in the fit, and how many were given.
    """

    dim: int
    horizon: float
    seed: int
    columns: tuple[Column, ...]
    tasks: tuple[Task, ...]
    path: tuple[Quantity, ...]
    notes: tuple[str, ...]
    seen: tuple[int, int] = (0, 0)

    @property
    def rows(self) -> str:
        """The kind of rows scored: held out, from the fit, or both."""
        seen, given = self.seen
        if not seen:
            return "held-out rows"
        return "rows of the fit" if seen == given else f"{given} rows, {seen} of them rows of the fit"

    def score(self, task: str, candidate: str, column: str) -> Score:
        """Returns one score by its three names.

        Raises:
            UnknownNameError: if there is no such task, candidate or column: with the nearest name.
        """
        found = self._task(task)
        if candidate not in found.candidates:
            raise unknown_name("candidate", candidate, found.candidates)
        for score in found.scores:
            if (score.candidate, score.column) == (candidate, column):
                return score
        raise unknown_name("column", column, [known.name for known in self.columns])

    def quantity(self, name: str) -> Quantity:
        """Returns one quantity on path space by its name; raises UnknownNameError if there is none."""
        for quantity in self.path:
            if quantity.name == name:
                return quantity
        raise unknown_name("quantity", name, [known.name for known in self.path])

    def gap_closed(self, task: str, column: str) -> float | None:
        """Returns ``100 (null − bridge) / (null − perfect)``: 0 equals ``null``, 100 equals perfect samples.

        ``null`` is the best score among the candidates that need no model (:data:`NULLS`); a bridge that is worse has a
        negative number. If there is no other floor, ``perfect`` is the floor for half as many samples. The result is
        ``None`` if a value is missing, or if the null is as good as perfect samples.

        Raises:
            UnknownNameError: if there is no such task.
        """
        found = {score.candidate: score.value for score in self._task(task).scores if score.column == column}
        bridge, perfect = found.get(MODEL), found.get(PERFECT, found.get(PERFECT_HALVES))
        nulls = [value for name in NULLS if (value := found.get(name)) is not None]
        if bridge is None or perfect is None or min(nulls, default=perfect) <= perfect:
            return None
        return 100.0 * (min(nulls) - bridge) / (min(nulls) - perfect)

    def to_json(self) -> dict[str, Any]:
        """Returns dicts, lists, strings and finite numbers only; missing values are ``None`` with a ``reason``."""
        return {"schema": SCHEMA, **_plain(asdict(self))}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Report:
        """Reads the report that :meth:`to_json` wrote.

        Raises:
            FileFormatError: if it is not a report, or of another version.
        """
        if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
            raise FileFormatError(f"not a report: a mapping with schema {SCHEMA!r} is needed.")
        try:
            columns = tuple(Column(**column) for column in document["columns"])
            tasks = tuple(
                Task(task["name"], task["description"], tuple(_score(score) for score in task["scores"]))
                for task in document["tasks"]
            )
            path = tuple(Quantity(**quantity) for quantity in document["path"])
            head = (document["dim"], document["horizon"], document["seed"])
            seen, given = document.get("seen", (0, 0))
            return cls(*head, columns, tasks, path, tuple(document["notes"]), (seen, given))
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"the report is damaged: {shown(error)}.") from error

    def text(self) -> str:
        """Formats aligned tables, at most 100 columns wide, with one line for each column."""
        return report_text(self)

    def _task(self, name: str) -> Task:
        for task in self.tasks:
            if task.name == name:
                return task
        raise unknown_name("task", name, [task.name for task in self.tasks])


def _score(fields: Mapping[str, Any]) -> Score:
    rows = fields["rows"]
    return Score(**{**fields, "rows": None if rows is None else tuple(rows)})


def _plain(value: Any) -> Any:  # noqa: ANN401  (whatever dataclasses hold)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def report_text(report: Report) -> str:
    """Formats tables, explanations and notes, at most 100 columns wide."""
    reasons: dict[str, int] = {}
    title = f"Evaluation on {report.rows}: dimension {report.dim}, horizon {report.horizon:g}, seed {report.seed}"
    lines = [title, *tables(report, reasons), "", *legend([report], reasons)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def tables(report: Report, reasons: dict[str, int]) -> list[str]:
    """Formats the tables alone; reasons for missing values go to ``reasons``."""
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
    """Formats the meaning of columns and rows of all ``reports``, their notes and ``reasons``, each once."""
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
    """Returns the meaning of the rows and path measures of ``reports``, by name."""
    present = {name for report in reports for task in report.tasks for name in task.candidates}
    present |= {quantity.name for report in reports for quantity in report.path}
    if present & {PERFECT, PERFECT_HALVES}:
        present.add(_GAP)
    return {name: meaning for name, meaning in _MEANINGS.items() if name in present}


_MEANINGS = {**_ROW_MEANINGS, _GAP: _GAP_MEANING, **_PATH_MEANINGS}


def cells(
    report: Report, task: Task, names: Sequence[str], reasons: dict[str, int]
) -> tuple[list[str], list[list[str]]]:
    """Returns the column heads, and a row for each candidate and for the gap closed, its name first.

    Args:
        report, task: what is shown.
        names: of the columns.
        reasons: footnotes that say why values are missing, with their numbers; new ones are added.
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
    """Returns the unit of a column, a power of ten or nothing, and its cells, with common decimals."""
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
    """Formats the value with its error, or a dash with the number of the reason."""
    if quantity.value is None or quantity.standard_error is None:
        reason = quantity.reason or "not computed"
        return f"– [{reasons.setdefault(reason, len(reasons) + 1)}]"
    return value_and_error(quantity.value, quantity.standard_error)


def _explained(name: str, meaning: str) -> list[str]:
    return _wrapped(meaning, f"  {name:<{_LABEL - 2}} ")


def _wrapped(text: str, start: str = "") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start)) or [start]
