"""Evaluation of a bridge on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, SbridgeError
from sbridge.evaluation.baselines import STANDARD_BASELINES, Baseline, Map, Shared, TwoWayBaseline
from sbridge.evaluation.progress import expect
from sbridge.evaluation.report import (
    COPY,
    MODEL,
    PERFECT,
    PERFECT_HALVES,
    POOLED,
    TARGET,
    WITH_COST,
    Column,
    Quantity,
    Report,
    Score,
    Task,
)
from sbridge.evaluation.rows import End, end_of, pooled, reweighted, shuffled
from sbridge.evaluation.scorer import EvaluationBudget, Scorer, transport_cost
from sbridge.evaluation.wording import COST, COST_COLUMN, columns_of, limit_notes
from sbridge.exact.plug_in import PlugInControl
from sbridge.laws import Law, Samples, StoredRows, as_rows
from sbridge.laws.stored import UnkeptRows
from sbridge.measures import Direction, Estimate, PathMeasure, energies, jeffreys, path_kl
from sbridge.metrics import STANDARD_METRICS, Metric
from sbridge.parts import parts_of
from sbridge.problems import AbsorbedCost
from sbridge.problems.costs import Costs, RunningCost
from sbridge.processes.base import check_time
from sbridge.random import Seed, as_seed, derive
from sbridge.solutions import Bridge

Rows = Tensor | np.ndarray | StoredRows
_UNCOMPARED = (
    "The rows of the fit are on disk or were not saved, so at most a part of them was compared with the scored rows: "
    "whether those were held out is up to you."
)
_SOFT_ENDS = (
    "The ends of this bridge are soft: held-out rows are drawn with the weights of its own ends, growth at the "
    "source and the explained part at the target, so scores are about the bridge between these."
)
_OWN_CANDIDATES = 3  # the bridge, perfect samples and copies, beside the baselines
_S = TypeVar("_S")
_T = TypeVar("_T")


def evaluate(
    bridge: Bridge,
    x0: Rows,
    x1: Rows,
    *,
    seed: Seed,
    x0_fit: Rows | None = None,
    x1_fit: Rows | None = None,
    metrics: Sequence[Metric] = STANDARD_METRICS,
    baselines: Sequence[Baseline] = STANDARD_BASELINES,
    limits: EvaluationBudget | None = None,
) -> Report:
    """Scores both directions of ``bridge`` on held-out samples.

    Samples ``x0`` are transported forward and compared with ``x1``; samples ``x1`` are transported backward and
    compared with ``x0``. The report has the same scores, for equal numbers of samples, of

    * perfect samples: target samples that the bridge was fitted to and that are not held out, or new draws of a
      distribution in closed form;
    * the source samples, not transported;
    * optimal-transport maps that are fitted on the fit samples.

    For standard errors see :class:`~sbridge.evaluation.scorer.Scorer`. The report also has the path energy
    ``½E∫|u|² dt`` of each direction on paths from the held-out samples, and the Jeffreys divergence of the two
    directions on paths from the ends of the bridge. They are not defined for a direction whose paths end on samples of
    the data; a note says so.

    Args:
        bridge: the solution.
        x0: held-out source samples, ``(n, dim)``; of :class:`~sbridge.StoredRows` only as many are read as are scored.
        x1: held-out target samples, ``(m, dim)``.
        seed: of every draw; equal seeds give equal reports.
        x0_fit: source samples for baselines and floors; ``None``: those of the source distribution of the bridge.
        x1_fit: the same for the target.
        metrics: see :mod:`sbridge.metrics`.
        baselines: transport maps to compare with.
        limits: how much to compute.

    Returns:
        The report. Numbers that cannot be computed are ``None`` with a reason.

    Raises:
        InvalidInputError: for samples of another dimension, fewer than two, or with NaN.
    """
    seed, limits = as_seed(seed), limits or EvaluationBudget()
    rows0, rows1 = reweighted_rows(
        bridge, checked_rows(bridge, {"x0": x0, "x1": x1}, limits.rows, seed), derive(seed, "ends")
    )
    for name, fitted in (("x0_fit", x0_fit), ("x1_fit", x1_fit)):
        bridge.check_shape(fitted, name)
    if bridge.balance is not None:  # the rows of the fit too have other weights, those of the bridge
        x0_fit = x1_fit = None
    baselines = [Shared(one) if isinstance(one, TwoWayBaseline) else one for one in baselines]
    source = end_of(rows0, x0_fit, bridge.forward.start, name="x0", most=limits.rows, seed=seed)
    target = end_of(rows1, x1_fit, bridge.backward.start, name="x1", most=limits.rows, seed=seed)
    setting = _Setting(dict(zip(columns_of(metrics), metrics, strict=True)), tuple(baselines), limits, seed)
    tasks, notes = [], [*limit_notes(limits, {"x0": source, "x1": target}), *_plug_in_notes(bridge)]
    notes += [] if bridge.balance is None else [_SOFT_ENDS]
    starts = ((x0_fit, bridge.forward.start), (x1_fit, bridge.backward.start))
    notes += [_UNCOMPARED] if any(fit is None and _elsewhere(law, limits.rows) for fit, law in starts) else []
    ways = (("forward", bridge, source, target), ("backward", bridge.reversed(), target, source))
    expect(len(ways) * len(setting.metrics) * (_OWN_CANDIDATES + len(setting.baselines)))
    for way in ways:
        task, more = _end_task(*way, setting)
        tasks.append(task)
        notes += more
    path = _path_quantities(bridge, source, target, setting)
    seen = (source.seen + target.seen, source.given + target.given)
    return Report(bridge.dim, bridge.horizon, seed, setting.columns, tuple(tasks), path, tuple(notes), seen)


def score_at(
    bridge: Bridge,
    x0: Rows,
    held_out: Rows,
    t: float,
    *,
    seed: Seed,
    metrics: Sequence[Metric] = STANDARD_METRICS,
    baselines: Sequence[Baseline] = STANDARD_BASELINES,
    limits: EvaluationBudget | None = None,
) -> Report:
    """Scores the prediction at time ``t`` from source samples ``x0`` against ``held_out`` samples of that time.

    The report compares the bridge with

    * the source samples and samples of the target distribution of the bridge, not transported;
    * both pooled in the proportions ``1 − t/T`` and ``t/T``; if the bridge is not better than the pool, these scores
      do not show what it adds;
    * points ``x + (t/T)(M(x) − x)`` for the transport maps ``M`` between samples of the two ends.

    The floor is the score between two halves of ``held_out``. It is for half the samples, so it is higher than the
    floor for all of them.

    Args:
        bridge: the solution.
        x0: source samples, ``(n, dim)``.
        held_out: samples observed at ``t``, ``(m, dim)``, at least four.
        t: bridge time in ``[0, T]``.
        seed: of every draw.
        metrics, baselines, limits: as in :func:`evaluate`.

    Raises:
        InvalidInputError: for samples of another dimension, or a time outside ``[0, T]``.
    """
    seed, limits = as_seed(seed), limits or EvaluationBudget()
    rows, seen = checked_rows(bridge, {"x0": x0, "held_out": held_out}, limits.rows, seed)
    rows = reweighted(bridge, rows, bridge.forward, derive(seed, "ends"))
    t = float(check_time(t, bridge.horizon))
    if len(seen) < 4:
        raise InvalidInputError(f"held_out has {len(seen)} rows; a floor between its halves needs at least 4.")
    start = shuffled(rows, limits.rows, derive(seed, "x0"))
    reference = shuffled(seen, limits.rows, derive(seed, "held out"))
    fit0, fit1 = (
        end_of(reference, None, law, name=name, most=limits.rows, seed=seed).fit
        for law, name in ((bridge.forward.start, "x0"), (bridge.backward.start, "x1"))
    )
    setting = _Setting(dict(zip(columns_of(metrics), metrics, strict=True)), tuple(baselines), limits, seed)
    name = f"t = {t:g}"
    judge = setting.judge(name, reference)
    halves = reference.tensor_split(2)
    predicted = _attempt(lambda: bridge.interpolate(start, t, seed=derive(seed, name)))
    scores = _entry(judge, MODEL, predicted)
    scores += replace(judge, reference=halves[1]).scores(PERFECT_HALVES, halves[0])
    scores += judge.scores(COPY, start)
    done = t / bridge.horizon if bridge.forward.direction is Direction.FORWARD else 1.0 - t / bridge.horizon
    at_end = "the target distribution has no rows to copy." if fit1 is None else fit1[: len(start)]
    scores += _entry(judge, TARGET, at_end)
    scores += _entry(judge, POOLED, _then(at_end, lambda last: pooled(start, last, done, derive(seed, "pool"))))
    for baseline, made in setting.maps(fit0, fit1, bridge):
        moved = _then(made, lambda move: start + done * (move(start) - start))
        scores += _entry(judge, baseline, moved)
    words = f"{len(start)} source rows predicted at t = {t:g}, scored against {len(reference)} observed at that time"
    columns = tuple(column for column in setting.columns if column != COST_COLUMN)
    tasks, notes = (Task(name, words, tuple(scores)),), tuple(limit_notes(limits, {}))
    return Report(bridge.dim, bridge.horizon, seed, columns, tasks, (), notes)


@dataclass(frozen=True)
class _Setting:
    """Settings shared by all tasks of an evaluation."""

    metrics: dict[Column, Metric]
    baselines: tuple[Baseline, ...]
    limits: EvaluationBudget
    seed: int

    @property
    def columns(self) -> tuple[Column, ...]:
        return (*self.metrics, COST_COLUMN)

    def judge(self, task: str, reference: Tensor) -> Scorer:
        metrics = {column.name: metric for column, metric in self.metrics.items()}
        return Scorer(reference, metrics, self.limits.blocks, derive(self.seed, task, "metrics"))

    def maps(self, near: Tensor | None, far: Tensor | None, bridge: Bridge) -> list[tuple[str, Map | str]]:
        """Fits every baseline, or gives the reason why it is missing."""
        if near is None or far is None:
            return [(baseline.name, "an end of the bridge has no rows to fit on.") for baseline in self.baselines]
        most, direction = self.limits.fit_rows, bridge.forward.direction
        ends = near[:most], far[:most]
        return [(b.name, _attempt(lambda b=b: b(*ends, bridge.reference, direction))) for b in self.baselines]


def _end_task(name: str, bridge: Bridge, near: End, far: End, setting: _Setting) -> tuple[Task, list[str]]:
    perfect, reference, notes = _perfect_and_reference(name, near, far)
    start = near.held_out[: len(perfect)]
    judge = setting.judge(name, reference)
    images: list[tuple[str, Tensor | str]] = [
        (MODEL, _attempt(lambda: bridge.transport(start, seed=derive(setting.seed, name)))),
        (COPY, start),
    ]
    for baseline, made in setting.maps(near.fit, far.fit, bridge):
        images.append((baseline, _then(made, lambda move: move(start))))
    scores = judge.scores(PERFECT, perfect)
    scores.append(Score(PERFECT, COST, None, None, None, "perfect samples are not paired with source rows."))
    for candidate, rows in images:
        scores += _entry(judge, candidate, rows)
        if isinstance(rows, str):
            scores.append(Score(candidate, COST, None, None, None, rows))
        else:
            scores.append(transport_cost(candidate, COST, start, rows))
    ends = ("source", "target") if name == "forward" else ("target", "source")
    words = f"{len(start)} {ends[0]} rows, scored against {len(reference)} {ends[1]} rows"
    return Task(name, words, tuple(scores)), notes


def _perfect_and_reference(name: str, near: End, far: End) -> tuple[Tensor, Tensor, list[str]]:
    """Returns rows used as perfect samples, the reference rows, and notes on them."""
    count, fresh = len(near.held_out), far.fresh
    if fresh is not None and 2 * len(fresh) >= count:
        few = (
            f"{name}: only {len(fresh)} rows are available as perfect samples, so equally many of each kind are scored."
        )
        return fresh[:count], far.held_out, [few] if len(fresh) < count else []
    perfect, reference = far.held_out.tensor_split(2)
    note = (
        f"{name}: that end has no rows except the held-out ones, so one half of them serves as perfect samples and the "
        "other half as the reference."
    )
    return perfect[:count], reference, [note]


def _entry(judge: Scorer, candidate: str, rows: Tensor | str) -> list[Score]:
    return judge.absent(candidate, rows) if isinstance(rows, str) else judge.scores(candidate, rows)


def _path_quantities(bridge: Bridge, source: End, target: End, setting: _Setting) -> tuple[Quantity, ...]:
    """Estimates energies on paths from held-out samples, and the divergence on paths from the ends of the bridge.

    Neither is computed if paths end on given samples (:func:`plug_in_directions`), because they would grow without
    bound with the number of steps, however good the fit.
    """
    count, seed = setting.limits.paths, setting.seed
    there, back = bridge.forward, bridge.backward
    pair = (there, back) if there.direction is Direction.FORWARD else (back, there)
    computations: dict[str, Callable[[], Estimate]] = {
        "energy, forward": lambda: _energy(there, source.held_out, count, derive(seed, "energy, forward")),
        "energy, backward": lambda: _energy(back, target.held_out, count, derive(seed, "energy, backward")),
        "Jeffreys divergence": lambda: jeffreys(*pair, count, seed=derive(seed, "jeffreys")),
    }
    cost = bridge.state_cost
    if cost is not None:
        start = source if there is pair[0] else target
        computations[WITH_COST] = lambda: _action(pair[0], cost, start.held_out, count, derive(seed, "action"))
    endless = plug_in_directions(bridge)
    left_out = {f"energy, {name}" for name in endless} | ({"Jeffreys divergence"} if endless else set())
    left_out |= {WITH_COST} if "forward" in endless else set()
    return tuple(_quantity(name, _attempt(do)) for name, do in computations.items() if name not in left_out)


def _energy(measure: PathMeasure, rows: Tensor, count: int, seed: int) -> Estimate:
    started = replace(measure, start=Samples(rows))
    return path_kl(started, replace(started, control=None), count, seed=seed)


def _action(measure: PathMeasure, cost: AbsorbedCost | RunningCost, rows: Tensor, count: int, seed: int) -> Estimate:
    """Estimates ``KL(P ‖ R) + E∫V dt`` for the reference without the cost.

    A quadratic cost, part of the reference, adds a function of both ends to the energy; any other adds its integral.
    """
    paths = replace(measure, start=Samples(rows)).sample(count, seed=seed)
    first, last = (paths.x[k].double() for k in (0, -1))
    added = cost.between(first, last) if isinstance(cost, AbsorbedCost) else Costs(cost).along(paths)
    return Estimate.of(energies(paths).double() + added)


def _quantity(name: str, found: Estimate | str) -> Quantity:
    if isinstance(found, str):
        return Quantity(name, None, None, None, found)
    return Quantity.of(name, found.value, found.standard_error, found.samples)


def _attempt(compute: Callable[[], _T]) -> _T | str:
    """Returns what ``compute`` returns, or the message of the package error that it raises."""
    try:
        return compute()
    except SbridgeError as error:
        return str(error)


def _then(found: _S | str, use: Callable[[_S], _T]) -> _T | str:
    """Returns ``use(found)``, or the reason why there is nothing to use."""
    return found if isinstance(found, str) else _attempt(lambda: use(found))


def _elsewhere(law: Law, most: int) -> bool:
    """Whether rows of the fit are not in memory, so that not all of them are compared with those that are scored."""
    return isinstance(law, UnkeptRows) or (isinstance(law, StoredRows) and len(law) > most)


def checked_rows(bridge: Bridge, given: dict[str, Rows], most: int, seed: int) -> list[Tensor]:
    """Checks all rows, of stored ones at most ``most``; returns them as tensors of one dtype, the widest of theirs."""
    for name, x in given.items():
        bridge.check_shape(x, name)
    read = {name: x.part(most, derive(seed, name)) if isinstance(x, StoredRows) else x for name, x in given.items()}
    checked = {name: bridge.rows(x, name) for name, x in read.items()}
    for name, rows in checked.items():
        as_rows(rows, name)  # at least two
    double = any(rows.dtype == torch.float64 for rows in checked.values())
    return [rows.double() if double else rows for rows in checked.values()]


def reweighted_rows(bridge: Bridge, rows: list[Tensor], seed: int) -> list[Tensor]:
    """Returns rows of both ends, drawn anew where the bridge has soft ends: with the weights of its own ends."""
    pairs = zip(rows, (bridge.forward, bridge.backward), strict=True)
    return [reweighted(bridge, side, measure, derive(seed, i)) for i, (side, measure) in enumerate(pairs)]


def plug_in_directions(bridge: Bridge) -> tuple[str, ...]:
    """Returns the directions, ``forward`` or ``backward``, whose paths end in given points, where controls diverge."""
    pair = (("forward", bridge.forward), ("backward", bridge.backward))
    return tuple(name for name, measure in pair if any(parts_of(measure.control, PlugInControl)))


def _plug_in_notes(bridge: Bridge) -> list[str]:
    names = plug_in_directions(bridge)
    if not names:
        return []
    return [
        f"{' and '.join(names).capitalize()} paths end in the data points: the energy of that direction and the "
        "divergence of the two directions grow with the number of steps, however good the fit, and are omitted."
    ]
