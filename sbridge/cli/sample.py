"""``sbridge sample``: transports samples through a bridge, from file to file, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sbridge.cli.commands import Sample
from sbridge.cli.console import Console
from sbridge.cli.plan import check_columns, dtype_of, read_options, time_given
from sbridge.data.outputs import Origin, writer_for
from sbridge.data.sources import open_rows
from sbridge.data.text import BLOCK_ROWS
from sbridge.diffusion import generate, is_reverse_diffusion
from sbridge.errors import InvalidInputError, listed, number
from sbridge.fitting.courses import Course
from sbridge.random import derive, generator
from sbridge.runs.folder import RunFolder
from sbridge.time import snapped


@dataclass(frozen=True)
class Journey:
    """A route from one of the snapshots to any time, in either direction.

    Raises:
        InvalidInputError: if ``start`` is no snapshot, or a time lies outside the course.
    """

    course: Course
    start: float
    stop: float

    def __post_init__(self) -> None:
        times = self.course.times
        for name in ("start", "stop"):
            object.__setattr__(self, name, snapped(getattr(self, name), times))
        if self.start not in times:
            raise InvalidInputError(
                f"samples can start at the snapshot times {listed(times)}, not at {number(self.start)}."
            )
        self.course.leg(self.stop)  # refuses times outside

    @classmethod
    def of(cls, course: Course, direction: str, start: float | None, stop: float | None) -> Journey:
        """Makes the route; where no time is given, ``direction`` selects the first or the last time."""
        ends = course.times[0], course.times[-1]
        near, far = ends if direction == "forward" else ends[::-1]
        journey = cls(course, near if start is None else start, far if stop is None else stop)
        forward = journey.stop >= journey.start
        if journey.stop != journey.start and forward != (direction == "forward"):
            span = f"from {number(journey.start)} to {number(journey.stop)}"
            raise InvalidInputError(
                f"{span} is {'forward' if forward else 'backward'}, but --direction is {direction}."
            )
        return journey

    def travel(self, rows: Tensor, seed: int) -> Tensor:
        """Draws the state at ``stop`` once for every row at ``start``."""
        if self.stop >= self.start:
            return self.course.interpolate(rows, self.start, self.stop, seed=seed)
        times, leg = self.course.times, self.course.times.index(self.start) - 1
        while leg >= 0 and times[leg + 1] > self.stop:
            t, bridge = max(self.stop - times[leg], 0.0), self.course.bridges[leg]
            if t == 0.0 and is_reverse_diffusion(bridge):
                rows = generate(bridge, rows, seed=derive(seed, leg))
            else:
                rows = bridge.reversed().interpolate(rows, t, seed=derive(seed, leg))
            leg -= 1
        return rows

    def starts(self, n: int, seed: int) -> Iterator[Tensor]:
        """Yields ``n`` samples of the distribution at ``start``, in blocks."""
        leg = self.course.times.index(self.start)
        last = leg == len(self.course.bridges)
        law = self.course.bridges[-1].backward.start if last else self.course.bridges[leg].forward.start
        for block, first in enumerate(range(0, n, BLOCK_ROWS)):
            yield law.sample(min(BLOCK_ROWS, n - first), generator(derive(seed, "start", block)))


def run_sample(command: Sample, console: Console) -> int:
    """Runs the command; the output file gets its name when it is complete."""
    writer = writer_for(command.out, overwrite=command.overwrite)
    folder = RunFolder(command.folder)
    course, start = folder.course(command.device), command.start
    dim, source, rep = course.bridges[0].dim, None, "X"
    if command.input is not None:
        options = read_options(command.reading, derive(command.seed, "input"), folder)
        rep = options.representation if ".h5ad" in command.input.lower() else "X"
        source = open_rows(command.input, replace(options, inexact=dtype_of(course)))
        check_columns(command.input, source.columns, folder)
        if source.dim != dim:
            raise InvalidInputError(f"{command.input} has {source.dim} columns, but the bridge has dimension {dim}.")
        start = time_given("--start", command.start, source.time, course.times)
    journey = Journey.of(course, command.direction, start, command.time)
    columns = () if source is None else source.columns
    read = () if source is None else (torch.from_numpy(rows).to(command.device) for rows in source.blocks())
    drawn = journey.starts(command.n or 0, command.seed) if source is None else read
    count = 0
    origin = Origin(journey.start, journey.stop, rep, source)
    with writer(columns or tuple(f"x{i}" for i in range(dim)), origin) as out:
        for index, rows in enumerate(drawn):
            carried = journey.travel(rows, derive(command.seed, "block", index))
            out.write(np.asarray(carried.cpu()))
            count += len(rows)
    console.say(f"{command.out}: {count} × {dim}, t = {journey.start:g} → {journey.stop:g}")
    return 0
