"""Fates and ancestors: the group in which the path of a cell ends, or began."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from sbridge.cells.groups import Labels, as_groups, votes
from sbridge.cells.transitions import Transitions, table
from sbridge.data.snapshots import Times, as_times
from sbridge.display import short_repr, time_text
from sbridge.errors import InvalidInputError, UnsupportedError, listed, number, shown
from sbridge.fitting.courses import Course
from sbridge.laws import Samples
from sbridge.laws.frames import Frame, common_columns
from sbridge.measures import Direction
from sbridge.measures.measure import check_count
from sbridge.modes import standard_modes
from sbridge.random import Seed, as_seed, derive
from sbridge.solutions import Bridge
from sbridge.time import snapped

Rows = Tensor | np.ndarray | Frame
_PATHS = 2**14  # simulated together


@dataclass(frozen=True, eq=False)
class Fates:
    """Probabilities of groups for each row; of :func:`fates`, groups at a later time, of :func:`ancestors`, earlier.

    Attributes:
        groups: their names.
        probabilities: of each group, shape ``(n, groups)``; each row sums to 1.
        lower, upper: interval of each probability, ``(n, groups)``: see :func:`fates`.
        shares: of the groups among the labelled rows, ``(groups,)``. The mean of ``probabilities`` over a whole
            snapshot is equal to it up to the error of the fit and of the assignment to groups.
        weights: growth of each row, relative to the mean (of ancestors: how far the row is explained); 1 for hard ends.
        times: of the rows, and of the groups.
        draws: paths per row.
        level: of the intervals.
    """

    groups: tuple[str, ...]
    probabilities: Tensor
    lower: Tensor
    upper: Tensor
    shares: Tensor
    weights: Tensor
    times: tuple[float, float]
    draws: int
    level: float

    __repr__ = short_repr

    def transitions(self, labels: Labels) -> Transitions:
        """Averages over groups of the rows: ``P(group at the other time | group of the row)``.

        With soft ends, rows count by their growth.

        Args:
            labels: one for each row.

        Raises:
            InvalidInputError: for labels that :func:`~sbridge.cells.as_groups` refuses.
        """
        origins = as_groups(labels, len(self.probabilities), "labels")
        return Transitions.of(self.probabilities, self.weights, origins, self.groups)

    def text(self) -> str:
        """Returns a summary: for each group, its share of the labelled rows and the mean probability of the rows."""
        start, stop = map(time_text, self.times)
        weights = self.weights / self.weights.sum()
        means = (weights[:, None] * self.probabilities).sum(0)
        numbers = zip(self.groups, self.shares.tolist(), means.tolist(), strict=True)
        lines = [("group", f"labelled at {stop}", f"mean of {len(self.probabilities)} rows at {start}")]
        return table([*lines, *((name, f"{share:.3f}", f"{mean:.3f}") for name, share, mean in numbers)])

    __str__ = text


@standard_modes(gradients=False)
def fates(
    course: Course | Bridge,
    groups: Labels,
    rows: Rows | None = None,
    *,
    labelled: Rows | None = None,
    times: Times | None = None,
    draws: int = 100,
    neighbours: int = 1,
    level: float | np.floating = 0.95,
    seed: Seed,
) -> Fates:
    """Estimates fate probabilities ``P(X_T in group | X_0 = x)`` for each row ``x``.

    ``draws`` paths of the bridge start in each row. The end of a path votes for the groups of its nearest labelled
    rows. In a course, a path passes through all bridges in between. Where their ends are soft, paths count by their
    growth on the way, so these are probabilities of a descendant, as in Waddington-OT (Schiebinger et al. 2019).

    The interval of a probability is Wilson's. In a share ``level`` of cells it covers the value that infinitely many
    paths would give, with these labels: it is about ``draws`` alone. It does not cover the error of the fit, the
    choice of σ, nor the sampling of the cells.

    Args:
        course: a :class:`~sbridge.fitting.Course`, or a bridge, whose times are 0 and T.
        groups: one label for each labelled row, such as a column of ``adata.obs``.
        rows: at the first time, ``(n, dim)``; ``None``: the rows of the fit.
        labelled: the rows that have labels, ``(m, dim)``; ``None``: the rows of the fit at the last time.
        times: of the rows and of the groups, two times of snapshots; ``None``: the first and the last.
        draws: paths per row. The interval is at most ``±1/√draws`` wide at level 95 %.
        neighbours: number of labelled rows that vote. 1 is right where groups are separate; more average over
            neighbours and blur groups that are smaller than that.
        level: of the intervals.
        seed: of the paths.

    Returns:
        The probabilities with their intervals, in the dtype of the rows.

    Raises:
        InvalidInputError: for labels of another number, fewer than two groups, a group of one row, missing labels,
            data frames with other columns than those of the fit, or times that are not those of snapshots in this
            order.
        UnsupportedError: if rows are not given and the end of the bridge is no set of samples.

    Example:
        >>> import torch
        >>> import sbridge as sb
        >>> x0, x1 = torch.randn(2, 300, 1, generator=torch.Generator().manual_seed(0))
        >>> bridge = sb.fit(x0, x1, reference=sb.BrownianMotion(0.5), solver=sb.SinkhornBridge())
        >>> groups = ["right" if x > 0 else "left" for x in x1]
        >>> found = sb.fates(bridge, groups, torch.tensor([[-2.0], [2.0]]), seed=0)
        >>> found.groups, found.probabilities.round(decimals=1)
        (('left', 'right'), tensor([[1., 0.],
                [0., 1.]]))
    """
    whole = as_course(course)
    start, stop = _checked_times(whole, (whole.times[0], whole.times[-1]) if times is None else times)
    if start >= stop:
        raise InvalidInputError(
            f"times must increase from the rows to the groups, got {listed([start, stop])}. For earlier groups use "
            "sbridge.ancestors."
        )
    return _estimated(whole, (start, stop), groups, (rows, labelled), (draws, neighbours, level), as_seed(seed))


@standard_modes(gradients=False)
def ancestors(
    course: Course | Bridge,
    groups: Labels,
    rows: Rows | None = None,
    *,
    labelled: Rows | None = None,
    times: Times | None = None,
    draws: int = 100,
    neighbours: int = 1,
    level: float | np.floating = 0.95,
    seed: Seed,
) -> Fates:
    """Estimates ancestor probabilities ``P(X_0 in group | X_T = y)`` for each row ``y``: :func:`fates` back in time.

    Args:
        course, draws, neighbours, level, seed: as in :func:`fates`; paths run backward.
        groups: one label for each labelled row.
        rows: at the last time; ``None``: the rows of the fit.
        labelled: the rows that have labels; ``None``: the rows of the fit at the first time.
        times: of the rows and of the groups, the later one first; ``None``: the last and the first.

    Returns, Raises: as :func:`fates`.
    """
    whole = as_course(course)
    start, stop = _checked_times(whole, (whole.times[-1], whole.times[0]) if times is None else times)
    if start <= stop:
        raise InvalidInputError(
            f"times must decrease from the rows to the groups, got {listed([start, stop])}. For later groups use "
            "sbridge.fates."
        )
    return _estimated(whole, (start, stop), groups, (rows, labelled), (draws, neighbours, level), as_seed(seed))


def _estimated(
    course: Course,
    times: tuple[float, float],
    labels: Labels,
    given: tuple[Rows | None, Rows | None],
    options: tuple[int, int, float | np.floating],
    seed: int,
) -> Fates:
    draws, neighbours, level = options
    check_count(draws, "draws")
    check_count(neighbours, "neighbours")
    if not (isinstance(level, Real) and 0.0 < float(level) < 1.0):
        raise InvalidInputError(f"level must lie between 0 and 1, such as 0.95; got {shown(level)}.")
    level = float(level)
    common_columns(given, ("rows", "labelled"))
    legs = _legs(course, times)
    x, growth = _rows(given[0], legs[0], "rows", times[0])
    ends, explained = _rows(given[1], legs[-1].reversed(), "labelled", times[1])
    told = "groups" if given[1] is not None else f"groups (of the rows of the fit at {number(times[1])})"
    groups = as_groups(labels, len(ends), told)
    if neighbours > len(ends):
        raise InvalidInputError(f"neighbours is {neighbours}, but there are only {len(ends)} labelled rows.")
    probabilities, effective = [], []
    for block, part in enumerate(x.split(max(1, _PATHS // draws))):
        points, weights = _carried(legs, part.repeat_interleave(draws, 0), derive(seed, "fates", block))
        seen = votes(points, ends.to(points.device), groups, neighbours).unflatten(0, (len(part), draws))
        weights = weights.double().unflatten(0, (len(part), draws))
        weights = weights / weights.sum(1, keepdim=True)
        probabilities.append((weights[:, :, None] * seen).sum(1))
        effective.append(1.0 / weights.square().sum(1, keepdim=True))
    values = torch.cat(probabilities)
    lower, upper = wilson(values, torch.cat(effective), level)
    explained = explained.to(values)
    shares = explained @ groups.indicators.to(values.device) / explained.sum()
    values, lower, upper, shares, growth = (one.to(x) for one in (values, lower, upper, shares, growth))
    return Fates(groups.names, values, lower, upper, shares, growth, times, draws, level)


def wilson(share: Tensor, count: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Computes Wilson's score interval of a share of ``count`` draws (Wilson 1927).

    It is the set of probabilities from which the share is at most ``z`` standard deviations away. For the mean of
    numbers in ``[0, 1]``, whose variance is smaller, it is too wide rather than too narrow.
    """
    z = float(torch.special.ndtri(torch.tensor(0.5 + 0.5 * level, dtype=torch.float64, device="cpu")))
    excess = z * z / count
    centre = (share + 0.5 * excess) / (1.0 + excess)
    half = (excess * share * (1.0 - share) + 0.25 * excess.square()).sqrt() / (1.0 + excess)
    return (centre - half).clamp(min=0.0), (centre + half).clamp(max=1.0)


def _carried(legs: list[Bridge], rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Draws one path from each row through all legs; returns its end, and its weight for growth on the way."""
    weights = torch.ones_like(rows[:, 0])
    for place, leg in enumerate(legs):
        if place > 0:
            weights = weights * _ratio(leg, rows)
        rows = leg.transport(rows, seed=derive(seed, place))
    return rows, weights


def _ratio(leg: Bridge, rows: Tensor) -> Tensor:
    """Computes what soft ends changed at the near end of a leg: growth, or backward in time the explained part."""
    if leg.balance is None:
        return torch.ones_like(rows[:, 0])
    forward = leg.forward.direction is Direction.FORWARD
    return leg.balance.growth(rows) if forward else leg.balance.explained(rows)


def _legs(course: Course, times: tuple[float, float]) -> list[Bridge]:
    """Returns the bridges from one snapshot to another in the order of travel, each in its direction."""
    first, last = (course.times.index(t) for t in sorted(times))
    legs = list(course.bridges[first:last])
    return legs if times[0] < times[1] else [leg.reversed() for leg in legs[::-1]]


def _rows(given: Rows | None, leg: Bridge, name: str, time: float) -> tuple[Tensor, Tensor]:
    """Returns rows at the near end of ``leg``, and their weights relative to the mean."""
    if given is not None:
        rows = leg.rows(given, name)
        return rows, _ratio(leg, rows)
    law = leg.forward.start
    if not isinstance(law, Samples):
        raise UnsupportedError(f"the end at {number(time)} is a {type(law).__name__}, which has no rows: give {name}.")
    return law.rows, torch.ones_like(law.rows[:, 0]) if law.weights is None else law.weights * len(law.rows)


def as_course(course: Course | Bridge) -> Course:
    """Returns a course; a bridge is one of a single leg, from 0 to T."""
    if isinstance(course, Bridge):
        return Course((0.0, course.horizon), (course,))
    if isinstance(course, Course):
        return course
    raise InvalidInputError(f"a course or a bridge is needed, got {shown(course)}: see sbridge.fit_course.")


def _checked_times(course: Course, times: Times) -> tuple[float, float]:
    found = tuple(snapped(t, course.times) for t in as_times(times, "times").tolist())
    if len(found) != 2 or not set(found) <= set(course.times):
        raise InvalidInputError(f"times must be two of the snapshot times {listed(course.times)}, got {listed(found)}.")
    return found[0], found[1]
