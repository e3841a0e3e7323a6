"""Texts of a report on its columns and on the rows it used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sbridge.errors import InvalidInputError
from sbridge.evaluation.report import Column
from sbridge.evaluation.rows import End
from sbridge.evaluation.scorer import EvaluationBudget
from sbridge.metrics import Metric

COST = "cost"
COST_COLUMN = Column(COST, "½ mean of |image − row|², in squared units of the data: the transport cost; not a score")

# By the class of a metric; others are described by the first line of their docstring.
_MEANINGS = {
    "ExactW2": "root mean square distance by which samples must move to match the held-out ones, in units of the data; "
    "with few samples for the dimension it favours distributions that are too narrow",
    "SlicedW2": "the same for projections on random directions, averaged, in units of the data",
    "EnergyDistance": "2E|x−y| − E|x−x'| − E|y−y'|, in units of the data: 0 only if the two distributions agree",
    "HalfEnergyDistance": "E|x−y| − ½E|x−x'| − ½E|y−y'|, in units of the data: 0 only if the two distributions agree",
    "MMD": (
        "squared distance of the distributions after blurring at the median distance of held-out rows; no unit, below 2"
    ),
    "BuresUVP": "difference of means and covariances only, in % of the variance of the held-out rows",
}


def columns_of(metrics: Sequence[Metric]) -> list[Column]:
    """Returns one column per metric. Its head is the name without brackets (except ``(%)``), if that is unambiguous.

    Raises:
        InvalidInputError: if two metrics have the same name, or there are none.
    """
    full = [metric.name for metric in metrics]
    if not full or len(set(full)) < len(full):
        raise InvalidInputError(f"metrics in an evaluation need different names, got {', '.join(full) or 'none'}.")
    short = [name if name.endswith("(%)") else name.split(" (")[0] for name in full]
    names = [brief if short.count(brief) == 1 else name for brief, name in zip(short, full, strict=True)]
    return [Column(name, _meaning(metric)) for name, metric in zip(names, metrics, strict=True)]


GENERAL_NOTES = 2
"""Number of notes in every report."""


def limit_notes(limits: EvaluationBudget, ends: Mapping[str, End]) -> list[str]:
    """Returns sentences on subsampling, errors, and held-out rows that the fit has seen."""
    notes = [
        f"At most {limits.rows} held-out rows of an end are used, drawn without replacement; baselines are fitted on "
        f"at most {limits.fit_rows} rows of an end.",
        f"Standard errors (±): the spread over {limits.blocks} disjoint blocks of rows, scaled to all rows; near the "
        "floor they tend to be too large, and they do not include the randomness of the fit.",
    ]
    for name, end in ends.items():
        if len(end.held_out) < end.given:
            notes.append(f"{name}: {len(end.held_out)} of {end.given} held-out rows are used.")
        if end.seen:
            notes.append(
                f"{name}: {end.seen} of {end.given} held-out rows are also rows of the fit. Scores on rows that the "
                "fit has seen say little about new ones."
            )
    return notes


def _meaning(metric: Metric) -> str:
    known = _MEANINGS.get(type(metric).__name__)
    if known is None:
        return next(iter((type(metric).__doc__ or metric.name).strip().splitlines()))
    detail = metric.name.partition(" (")[2].rstrip(")")
    return known if not detail or detail == "%" else f"{known} ({detail})"
