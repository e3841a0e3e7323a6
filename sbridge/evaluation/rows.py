"""Selection of the rows to score, to use as perfect samples, and to fit baselines on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.laws import Density, Law, Samples, StoredRows, as_rows
from sbridge.laws.stored import UnkeptRows, known_rows
from sbridge.measures import Direction, PathMeasure
from sbridge.random import derive, generator
from sbridge.solutions import Bridge

_LEAST_ROWS = 16


@dataclass(frozen=True)
class End:
    """The samples of one end.

    Args:
        held_out: held-out samples in random order, at most as many as are scored.
        fit: samples that the fit may have used, or new draws of a distribution in closed form, in random order;
            ``None`` if there are none.
        seen: how many of the given held-out samples were also used in the fit.
        given: how many held-out samples were given.
    """

    held_out: Tensor
    fit: Tensor | None
    seen: int
    given: int

    @property
    def fresh(self) -> Tensor | None:
        """Returns the rows of the same distribution that are not held out."""
        if self.fit is None or not self.seen:
            return self.fit
        known = _fingerprints(self.held_out)
        return self.fit[torch.tensor([mark not in known for mark in _marks(self.fit)], device=self.fit.device)]


def end_of(
    held_out: Tensor, fit: Tensor | np.ndarray | StoredRows | None, law: Law, *, name: str, most: int, seed: int
) -> End:
    """Returns the samples of an end: ``fit`` if it is given, otherwise those of its ``law``.

    Raises:
        InvalidInputError: if fit and held-out samples have different numbers of columns.
    """
    if isinstance(fit, StoredRows):
        fit = fit.part(most, derive(seed, name, "law"))
    other = _rows_of(law, most, derive(seed, name, "law")) if fit is None else as_rows(fit, f"{name}_fit")
    if other is not None:
        if other.shape[1] != held_out.shape[1]:
            raise InvalidInputError(
                f"{name}_fit has {other.shape[1]} columns, {name} has {held_out.shape[1]}: both need the same number."
            )
        other = shuffled(other.to(held_out), len(other), derive(seed, name, "fit"))
    known = set() if other is None else _fingerprints(other)
    seen = sum(mark in known for mark in _marks(held_out)) if known else 0
    return End(shuffled(held_out, most, derive(seed, name, "held out")), other, seen, len(held_out))


def reweighted(bridge: Bridge, rows: Tensor, measure: PathMeasure, seed: int) -> Tensor:
    """Draws rows of the changed end at which ``measure`` begins, systematically; rows of a hard end as they are.

    Their number is the effective sample size of the weights, so that standard errors are those of independent rows.
    """
    found = bridge.balance
    forward = measure.direction is Direction.FORWARD
    if found is None or (found.source if forward else found.target) is None:
        return rows
    ratio = found.growth(rows) if forward else found.explained(rows)
    weights = ratio.double().cpu() / ratio.double().sum().cpu()
    count = min(len(rows), max(_LEAST_ROWS, int(1.0 / float(weights.square().sum()))))
    draw = generator(seed)
    steps = torch.arange(count, dtype=torch.float64, device="cpu") + torch.rand(
        (), generator=draw, dtype=torch.float64, device="cpu"
    )
    index = torch.searchsorted(weights.cumsum(0), steps / count).clamp(max=len(rows) - 1)
    return rows[index[torch.randperm(count, generator=draw, device="cpu")].to(rows.device)]


def shuffled(rows: Tensor, most: int, seed: int) -> Tensor:
    """Returns at most ``most`` rows, drawn without replacement, in random order."""
    return rows[torch.randperm(len(rows), generator=generator(seed), device="cpu")[:most].to(rows.device)]


def pooled(first: Tensor, last: Tensor, share: float, seed: int) -> Tensor:
    """Draws rows of the mixture ``(1 − share)·first + share·last`` without replacement, in random order.

    Their number is that of ``first``, or less if ``last`` is too short for its share.
    """
    count = len(first) if share * len(first) <= len(last) else int(len(last) / share)
    of_last = round(share * count)
    rows = torch.cat([shuffled(first, count - of_last, derive(seed, "first")), last[:of_last].to(first)])
    return shuffled(rows, count, derive(seed, "order"))


def _rows_of(law: Law, count: int, seed: int) -> Tensor | None:
    if isinstance(law, (Density, UnkeptRows)):
        return None
    rows = None if isinstance(law, Samples) and law.weights is not None else known_rows(law, count, seed)
    if rows is not None:
        return rows
    return law.sample(count, generator(seed))


def _marks(rows: Tensor) -> list[bytes]:
    # In float32, so that rows are recognised that were fitted in one dtype and are scored in the other.
    values = np.ascontiguousarray(rows.detach().float().cpu().numpy())
    return [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in values]


def _fingerprints(rows: Tensor) -> set[bytes]:
    return set(_marks(rows))
