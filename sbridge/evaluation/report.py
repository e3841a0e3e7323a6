"""The result of an evaluation: plain numbers, to JSON and to text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sbridge.errors import FileFormatError, unknown_name
from sbridge.measures import Estimate

SCHEMA = "sbridge.report/1"
MODEL = "bridge"
PERFECT = "perfect samples"
PERFECT_HALVES = "perfect, half size"
COPY = "unmoved rows"
TARGET = "target rows"
POOLED = "pooled ends"
NULLS = (COPY, TARGET, POOLED)
"""Candidates that take rows of the ends as they are: whoever does not beat all of them predicts nothing."""


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
    """One number about one set of rows.

    Args:
        candidate: whose rows: the bridge, perfect samples, a baseline.
        column: the name of the metric.
        value: ``None`` if it cannot be had.
        standard_error: of the value; ``None`` if it cannot be had.
        rows: rows scored and rows of the reference that the metric used; ``None`` if there are none.
        reason: why something is ``None``.
    """

    candidate: str
    column: str
    value: float | None
    standard_error: float | None
    rows: tuple[int, int] | None
    reason: str | None


@dataclass(frozen=True)
class Task:
    """One question: the scores of every candidate by every metric.

    Args:
        name: ``forward``, ``backward``, or ``t = …``.
        description: which rows were scored against which.
        scores: in the order in which candidates and columns are shown.
    """

    name: str
    description: str
    scores: tuple[Score, ...]

    @property
    def candidates(self) -> tuple[str, ...]:
        """The bridge first, then the others in order."""
        names = dict.fromkeys(score.candidate for score in self.scores)
        return tuple(sorted(names, key=lambda name: name != MODEL))


@dataclass(frozen=True)
class Quantity:
    """A mean over paths, in nats.

    Args:
        name: what it is.
        value: ``None`` if it cannot be had.
        standard_error: of the value.
        samples: number of independent paths.
        reason: why it is ``None``.
    """

    name: str
    value: float | None
    standard_error: float | None
    samples: int | None
    reason: str | None

    @classmethod
    def of(cls, name: str, estimate: Estimate) -> Quantity:
        """An estimate under a name; one that is not finite is left out with that reason."""
        if not (math.isfinite(estimate.value) and math.isfinite(estimate.standard_error)):
            return cls(name, None, None, estimate.samples, f"the estimate is {estimate.value}.")
        return cls(name, estimate.value, estimate.standard_error, estimate.samples, None)


@dataclass(frozen=True)
class Report:
    """What :func:`sbridge.evaluate` found.

    Args:
        dim: dimension of the states.
        horizon: ``T``.
        seed: of the evaluation.
        columns: metrics in order.
        tasks: one per direction, or one per time.
        path: energies and divergence; empty for a time in between.
        notes: how rows were chosen, and what to be wary of.
        seen: how many of the rows scored are among the rows of the fit, and how many were given.
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
        """What kind of rows was scored: held out, of the fit, or some of either."""
        seen, given = self.seen
        if not seen:
            return "held-out rows"
        return "rows of the fit" if seen == given else f"{given} rows, {seen} of them rows of the fit"

    def score(self, task: str, candidate: str, column: str) -> Score:
        """One score by its three names.

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
        """One quantity on path space by its name; UnknownNameError if there is none."""
        for quantity in self.path:
            if quantity.name == name:
                return quantity
        raise unknown_name("quantity", name, [known.name for known in self.path])

    def gap_closed(self, task: str, column: str) -> float | None:
        """``100 (null − bridge) / (null − perfect)``: 0 no better than ``null``, 100 as good as perfect samples.

        ``null`` is the best score among the candidates of the task that need no model (:data:`NULLS`); a bridge that
        is worse gets a negative number. Where no other floor is there, ``perfect`` is that of half as many rows.
        ``None`` where a value is missing, or the null is as good as perfect samples.

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
        """Dicts, lists, strings and finite numbers only; what cannot be had is ``None`` beside its ``reason``."""
        return {"schema": SCHEMA, **_plain(asdict(self))}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Report:
        """The report that :meth:`to_json` wrote.

        Raises:
            FileFormatError: if it is none, or of another version.
        """
        if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
            raise FileFormatError(f"this is no report: a mapping with schema {SCHEMA!r} is needed.")
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
            raise FileFormatError(f"the report is damaged: {error!r}.") from error

    def text(self) -> str:
        """Aligned tables for people, at most 100 columns wide, each column explained in a line."""
        from sbridge.evaluation.table import report_text  # which needs the types above

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
