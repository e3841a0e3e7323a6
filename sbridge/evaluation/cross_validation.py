"""Leave-one-time-out cross-validation of a time course, beside answers that need no fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from sbridge.data.annotated import AnnotatedCells
from sbridge.data.snapshots import Times
from sbridge.display import short_repr, time_text, value_and_error
from sbridge.errors import InvalidInputError, listed, shown
from sbridge.evaluation.rows import shuffled
from sbridge.fitting.courses import Reference, checked_snapshots, fit_course
from sbridge.fitting.selection import Cells, End, Selection, check_selection, selected
from sbridge.laws import Samples, as_law, check_same_kind, check_same_space
from sbridge.laws.frames import Frame
from sbridge.measures.measure import check_count
from sbridge.metrics import HalfEnergyDistance, sampling_floor
from sbridge.random import Seed, as_seed, derive, generator
from sbridge.solvers.base import Solver

_SPLITS, _LEAST = 20, 4
UNFITTED = (
    "copy of the one before",
    "copy of the one after",
    "pooled ends",
    "pooled ends, true mean",
    "floor (half against half)",
)
"""Answers without a fit. ``pooled ends, true mean`` is moved to the mean of the snapshot that was left out."""


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """Scores of predictions of snapshots that were left out; lower is better.

    Attributes:
        times: that were left out, one after the other.
        scores: by method, shape ``(seeds, times)``; answers without a fit have one row.
    """

    times: tuple[float, ...]
    scores: dict[str, Tensor]

    __repr__ = short_repr

    def text(self) -> str:
        """Returns the table: means over seeds with standard errors, for each time and for their mean."""
        heads = ["", *(f"t = {time_text(t)}" for t in self.times), "mean"]
        lines = [heads, *([name, *_cells(found)] for name, found in self.scores.items())]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        told = "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )
        return f"half the energy distance to the snapshot that was left out\n{told}"

    __str__ = text


def cross_validate(
    arrays: Sequence[End] | Tensor | np.ndarray | Frame | AnnotatedCells,
    times: Times = (),
    *,
    solvers: Mapping[str, Solver | None] | None = None,
    sigma: float | None = None,
    reference: Reference | None = None,
    seeds: Sequence[Seed] = (0, 1, 2),
    max_rows: int = 4000,
    **selection: Unpack[Cells],
) -> CrossValidation:
    """Leaves out every inner snapshot in turn, and predicts it by a bridge from the one before to the one after.

    The rows of the snapshot before are carried to the time that was left out. The score is half the energy distance
    ``E|x−y| − ½E|x−x'| − ½E|y−y'|`` to its rows. The same scores are given of copies of the two neighbours; of
    ``pooled ends``, the mixture of the neighbours in the proportions of the elapsed time, also moved to the true mean;
    and of the floor, one half of the snapshot against the other.

    Standard errors are over seeds of fit and draws. They do not contain the sampling of the cells.

    Args:
        arrays, times, sigma, reference, selection: as in :func:`~sbridge.fit_course`, at least three snapshots of four
            rows; no distributions but :class:`~sbridge.Samples` without weights.
        solvers: by name in the table, other than those without a fit; ``None`` as a solver is the choice of
            :func:`~sbridge.fit`. By default that one.
        seeds: different ones, one fit for each.
        max_rows: largest number of rows of a snapshot that are scored; fits use all.

    Raises:
        InvalidInputError: for fewer than three snapshots, no seed or equal ones, and what
            :func:`~sbridge.fit_course` refuses.

    Example:
        >>> import torch
        >>> import sbridge as sb
        >>> noise = torch.randn(3, 100, 2, generator=torch.Generator().manual_seed(0))
        >>> found = sb.cross_validate([noise[0], noise[1] + 1, noise[2] + 2], [0, 1, 2], seeds=[0])
        >>> scores = {name: float(score.mean()) for name, score in found.scores.items()}
        >>> scores["fit"] < scores["pooled ends"] < scores["copy of the one before"]
        True
    """
    solvers = {"fit": None} if solvers is None else solvers
    seeds = _checked_options(solvers, seeds, max_rows)
    if isinstance(arrays, AnnotatedCells):
        found, stamps = selected(arrays, Selection(**selection, times=times), "cross_validate")
    else:
        check_selection(selection, "cross_validate")
        found, stamps = checked_snapshots(arrays, times)
    data = _checked_rows(found)
    parts = [shuffled(rows, max_rows, derive(0, "scored", place)) for place, rows in enumerate(data)]
    scores = {name: torch.tensor([values], device="cpu") for name, values in unfitted(parts, stamps).items()}
    for name, solver in solvers.items():
        options = {"solver": solver, "sigma": sigma, "reference": reference}
        runs = [
            [_score(data, parts, stamps, inner, {**options, "seed": seed}) for inner in range(1, len(data) - 1)]
            for seed in seeds
        ]
        scores[name] = torch.tensor(runs, device="cpu")
    return CrossValidation(tuple(stamps[1:-1]), scores)


def _checked_options(solvers: object, seeds: Any, max_rows: Any) -> list[int]:  # noqa: ANN401  (whatever a user gives)
    """Returns the seeds; raises InvalidInputError for options that cannot be used."""
    if not (isinstance(solvers, Mapping) and solvers and all(isinstance(name, str) for name in solvers)):
        raise InvalidInputError(
            'solvers must be a dictionary of solvers by name, such as {"mixture": MixtureBridge()}; got '
            f"{shown(solvers)}."
        )
    taken = [name for name in UNFITTED if name in solvers]
    if taken:
        raise InvalidInputError(f"solvers has the name {listed(taken)}, a row without a fit. Choose another name.")
    if np.ndim(seeds) != 1:
        raise InvalidInputError(f"seeds must be a list of integers, such as (0, 1, 2); got {shown(seeds)}.")
    if not len(seeds):
        raise InvalidInputError("seeds is empty; give at least one.")
    numbers = [as_seed(seed) for seed in seeds]
    if len(set(numbers)) < len(numbers):
        raise InvalidInputError(
            f"seeds must differ, got {listed(numbers)}: equal seeds give equal fits, and too small standard errors."
        )
    check_count(max_rows, "max_rows")
    if max_rows < _LEAST:
        raise InvalidInputError(f"max_rows must be at least {_LEAST}, got {max_rows}.")
    return numbers


def _checked_rows(snapshots: Sequence[object]) -> list[Tensor]:
    """Returns the rows of the snapshots, which must be samples with equal weights in one space."""
    names = [f"snapshot {place}" for place in range(len(snapshots))]
    if len(names) < 3:
        raise InvalidInputError(f"{len(names)} snapshots given; to leave one out, at least three are needed.")
    laws = [as_law(one, name) for one, name in zip(snapshots, names, strict=True)]
    data = []
    for law, name in zip(laws, names, strict=True):
        if not isinstance(law, Samples) or law.weights is not None:
            kind = "Samples with weights" if isinstance(law, Samples) else f"a {type(law).__name__}"
            raise InvalidInputError(f"{name} is {kind}; only rows with equal weights can be scored: give an array.")
        if len(law.rows) < _LEAST:
            raise InvalidInputError(
                f"{name} has {len(law.rows)} rows; at least {_LEAST} are needed to score one half against the other."
            )
        check_same_space(laws[0], law, (names[0], name))
        data.append(law.rows)
        check_same_kind(data[0], law.rows, (names[0], name))
    return data


def unfitted(data: list[Tensor], times: Sequence[float]) -> dict[str, list[float]]:
    """Scores every inner snapshot for predictions without a fit, and the sampling floor.

    The mixture ``P = (1 − s)A + sB`` of two neighbours is scored exactly, on all cells. Half the energy distance ``D``
    is a quadratic form in the difference of two measures, so
    ``D(P, Y) = (1 − s) D(A, Y) + s D(B, Y) − s(1 − s) D(A, B)``.
    """
    metric, scores = HalfEnergyDistance(), dict[str, list[float]]()
    for i in range(1, len(data) - 1):
        before, held_out, after = data[i - 1 : i + 2]
        share = (times[i] - times[i - 1]) / (times[i + 1] - times[i - 1])
        shift = held_out.mean(0) - (1.0 - share) * before.mean(0) - share * after.mean(0)
        apart = share * (1.0 - share) * metric(before, after, generator(0))
        ends = [[metric(x, y, generator(0)) for x in (before, after)] for y in (held_out, held_out - shift)]
        pools = [(1.0 - share) * first + share * last - apart for first, last in ends]
        half = len(held_out) // 2
        floor = sampling_floor(metric, held_out, (half, half), generator(0), _SPLITS).mean
        for name, score in zip(UNFITTED, (*ends[0], *pools, floor), strict=True):
            scores.setdefault(name, []).append(score)
    return scores


def _score(data: list[Tensor], parts: list[Tensor], times: Sequence[float], inner: int, options: dict) -> float:
    """Fits without one snapshot and scores its prediction."""
    start, here, stop = times[inner - 1 : inner + 2]
    course = fit_course([data[inner - 1], data[inner + 1]], [start, stop], **options)
    predicted = course.interpolate(parts[inner - 1], start, here, seed=derive(options["seed"], "predicted", inner))
    return HalfEnergyDistance()(predicted, parts[inner], generator(0))


def _cells(found: Tensor) -> list[str]:
    """Writes the mean over seeds for each time and for their mean, with standard errors where there are several."""
    columns = torch.cat([found, found.mean(1, keepdim=True)], 1).double()
    if len(columns) == 1:
        return [f"{value:.4g}" for value in columns[0].tolist()]
    errors = columns.std(0) / len(columns) ** 0.5
    return [value_and_error(v, e) for v, e in zip(columns.mean(0).tolist(), errors.tolist(), strict=True)]
