"""Scores of one set of rows against one reference: a value for every metric, with a standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, SbridgeError, check_at_least
from sbridge.evaluation import progress
from sbridge.evaluation.report import Score
from sbridge.measures import Estimate
from sbridge.metrics import Metric
from sbridge.random import derive, generator
from sbridge.storage.registry import register

_LEAST_BLOCK = 16


@register
@dataclass(frozen=True)
class EvaluationBudget:
    """Limits on the work of an evaluation. Larger sets are subsampled with the seed of the evaluation.

    With the defaults, 20 000 samples per end in 1000 dimensions take a few minutes on one core, and less than 2 GB in
    addition to the memory of the bridge.

    Args:
        rows: number of held-out samples per end that are transported and scored.
        fit_rows: number of samples per end for OT baselines; exact transport takes 1 s at 2000.
        paths: number of paths per direction for energies and divergences.
        blocks: number of disjoint blocks of samples for standard errors, at least two.

    Raises:
        InvalidInputError: for numbers that leave nothing to compute.
    """

    rows: int = 4000
    fit_rows: int = 2000
    paths: int = 256
    blocks: int = 8

    def __post_init__(self) -> None:
        check_at_least(self, 2, "rows", "fit_rows", "paths", "blocks")


@dataclass(frozen=True)
class Scorer:
    """Scores samples against ``reference``, shape ``(m, dim)``.

    The standard error of a score of ``n`` samples against ``m`` comes from ``B`` disjoint blocks, which are scored
    separately. It is their standard deviation times ``√(size of a block / size of the whole)``, where a size is
    ``1/(1/n + 1/m)``. This is correct for scores that fluctuate like ``1/√n``; near a floor they fluctuate less, and
    the standard error is too large (Politis, Romano & Wolf 1999). It is conditional on the random projections, which
    all candidates share.

    Args:
        reference: held-out samples in random order.
        metrics: the metrics by column name.
        blocks: ``B``; fewer are used if a block would have fewer than 16 samples.
        seed: of the draws of the metrics.
    """

    reference: Tensor
    metrics: dict[str, Metric]
    blocks: int
    seed: int

    def scores(self, candidate: str, rows: Tensor) -> list[Score]:
        """Returns one score per metric for ``rows`` (in random order), or the reason why the metric failed."""
        found = []
        for column, metric in self.metrics.items():
            found.append(self._score(candidate, column, metric, rows))
            progress.done(f"{candidate}: {column}")
        return found

    def absent(self, candidate: str, reason: str) -> list[Score]:
        """Returns the scores of rows that do not exist."""
        for column in self.metrics:
            progress.done(f"{candidate}: {column}")
        return [Score(candidate, column, None, None, None, reason) for column in self.metrics]

    def _score(self, candidate: str, column: str, metric: Metric, rows: Tensor) -> Score:
        most = int(getattr(metric, "max_rows", max(len(rows), len(self.reference))))
        sizes = (min(len(rows), most), min(len(self.reference), most))
        try:
            value = self._value(column, metric, rows, self.reference)
        except SbridgeError as error:
            return Score(candidate, column, None, None, sizes, str(error))
        blocks = min(self.blocks, min(len(rows), len(self.reference)) // _LEAST_BLOCK)
        if blocks < 2:
            reason = f"no standard error: it needs at least {2 * _LEAST_BLOCK} rows of either end."
            return Score(candidate, column, value, None, sizes, reason)
        try:
            error = self._error(column, metric, rows, blocks, most)
        except SbridgeError as failure:
            return Score(candidate, column, value, None, sizes, f"no standard error: {failure}")
        return Score(candidate, column, value, error, sizes, None)

    def _value(self, column: str, metric: Metric, x: Tensor, y: Tensor) -> float:
        value = metric(x, y, generator(derive(self.seed, column)))
        if not math.isfinite(value):
            raise InvalidInputError(f"the metric returned {value}.")
        return value

    def _error(self, column: str, metric: Metric, rows: Tensor, blocks: int, most: int) -> float:
        judged, reference = (side[: len(side) // blocks * blocks].chunk(blocks) for side in (rows, self.reference))
        values = [self._value(column, metric, x, y) for x, y in zip(judged, reference, strict=True)]
        whole = _harmonic(min(len(rows), most), min(len(self.reference), most))
        part = _harmonic(min(len(judged[0]), most), min(len(reference[0]), most))
        return float(torch.tensor(values, dtype=torch.float64, device="cpu").std()) * math.sqrt(part / whole)


def transport_cost(candidate: str, column: str, start: Tensor, rows: Tensor) -> Score:
    """Computes ``½ E|y − x|²`` over rows ``x`` of ``start`` and their images ``y``."""
    costs, sizes = 0.5 * (rows.double() - start.double()).square().sum(1), (len(start), len(rows))
    if not bool(costs.isfinite().all()):
        return Score(candidate, column, None, None, sizes, "the images are not finite.")
    if len(costs) < 2:
        return Score(candidate, column, float(costs.mean()), None, sizes, "no standard error: there is only one row.")
    cost = Estimate.of(costs)
    return Score(candidate, column, cost.value, cost.standard_error, sizes, None)


def _harmonic(n: int, m: int) -> float:
    return 1.0 / (1.0 / n + 1.0 / m)
