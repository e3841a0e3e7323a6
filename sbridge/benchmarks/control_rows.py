"""Lines of the control tables: contents, averaging over seeds, storage."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from sbridge.measures import Estimate
from sbridge.storage.documents import Json


@dataclass(frozen=True)
class Row:
    """The results of one solver on one problem.

    Args:
        problem, solver: names.
        seeds: of the fits behind it.
        updates, seconds: of training, per fit; seconds of process CPU time.
        memory: peak of a process that trained it, in MiB.
        numbers: what the table shows, by column; of several seeds the mean over them with its standard error.
        targets: exact answers: of columns, and ``limit``, the optimum in continuous time.
        failure: why there are no numbers.
    """

    problem: str
    solver: str
    seeds: tuple[int, ...] = (0,)
    updates: float = 0.0
    seconds: float = 0.0
    memory: float = 0.0
    numbers: dict[str, Estimate | float] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)
    failure: str | None = None

    @property
    def key(self) -> tuple[str, str, tuple[int, ...]]:
        """The key that distinguishes rows."""
        return self.problem, self.solver, self.seeds

    def __str__(self) -> str:
        """Formats one line."""
        head = f"{self.problem:<18}{self.solver:<34}"
        if self.failure is not None:
            return head + self.failure
        speed = self.updates / self.seconds if self.seconds > 0 else 0.0
        cost = f"{self.seconds:6.1f} s  {speed:6.1f} steps/s  {self.memory:5.0f} MiB"
        return "  ".join([head + cost, *(self._cell(name, value) for name, value in self.numbers.items())])

    def _cell(self, name: str, value: Estimate | float) -> str:
        known = [f"{self.targets[name]:.5g}"] if name in self.targets else []
        if name == "objective" and "limit" in self.targets:
            known.append(f"limit {self.targets['limit']:.5g}")
        return f"{name} {_shown(value)}" + (f" [{'; '.join(known)}]" if known else "")

    def to_json(self) -> Json:
        """Returns the row as stored in files."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Row:
        """Reads what :meth:`to_json` wrote."""
        numbers = {
            name: Estimate(**value) if isinstance(value, dict) else float(value)
            for name, value in document["numbers"].items()
        }
        return cls(**document | {"numbers": numbers, "seeds": tuple(document["seeds"])})


def merged(rows: Sequence[Row]) -> Row:
    """Averages the rows of all seeds: each number is the mean over the fits, with its standard error.

    It covers both the training and the Monte Carlo error of the numbers. If a fit failed, the row says so.
    """
    first, count = rows[0], len(rows)
    seeds = tuple(seed for row in rows for seed in row.seeds)
    for row in rows:
        if row.failure is not None:
            told = row.failure if count == 1 else f"seed {row.seeds[0]} of {count}: {row.failure}"
            return Row(first.problem, first.solver, seeds, failure=told)
    if count == 1:
        return first
    return dataclasses.replace(
        first,
        seeds=seeds,
        updates=sum(row.updates for row in rows) / count,
        seconds=sum(row.seconds for row in rows) / count,
        memory=max(row.memory for row in rows),
        numbers={name: _over_seeds([row.numbers[name] for row in rows]) for name in first.numbers},
    )


def _over_seeds(values: Sequence[Estimate | float]) -> Estimate:
    plain = [value.value if isinstance(value, Estimate) else value for value in values]
    sizes = [value.effective_sample_size for value in values if isinstance(value, Estimate)]
    known = [size for size in sizes if size is not None]
    return Estimate.of(torch.tensor(plain, dtype=torch.float64), sum(known) / len(known) if known else None)


def _shown(value: Estimate | float) -> str:
    if not isinstance(value, Estimate):
        return f"{value:.3g}"
    size = "" if value.effective_sample_size is None else f" (effective {value.effective_sample_size:.0f})"
    return f"{value.value:.5g} ± {value.standard_error:.2g}{size}"
