"""``sbridge plot``, and the figures of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from torch import Tensor

from sbridge.cli.commands import Plot
from sbridge.cli.console import Console
from sbridge.errors import InvalidInputError
from sbridge.evaluation import Certificate
from sbridge.fitting import Course
from sbridge.plotting import save_certificate, standard_figures
from sbridge.random import derive, generator
from sbridge.runs import RunFolder
from sbridge.training import Info


def draw(
    course: Course,
    ends: Sequence[Tensor],
    histories: Sequence[Sequence[Info]],
    folder: Path,
    *,
    seed: int,
    certificates: Sequence[Certificate | str | None] = (),
) -> list[Path]:
    """The standard figures of every leg and its certificate, each in a folder of its own if there are several.

    Args:
        course: the bridges.
        ends: rows of every snapshot.
        histories: of every leg.
        folder: where to.
        seed: of the paths drawn.
        certificates: of every leg, if there are any.
    """
    made: list[Path] = []
    for leg, bridge in enumerate(course.bridges):
        place = folder if len(course.bridges) == 1 else folder / f"{course.times[leg]:g}-{course.times[leg + 1]:g}"
        rows = ends[leg], ends[leg + 1]
        made += standard_figures(bridge, *rows, histories[leg], place, seed=derive(seed, leg))
        found = certificates[leg] if certificates else None
        if isinstance(found, Certificate):
            made.append(save_certificate(found, place / "certificate.png"))
    return made


def run_plot(command: Plot, console: Console) -> int:
    """Draws the figures of a run again, from its model; figures in the run folder only when nobody works in it."""
    if command.rows < 2:
        raise InvalidInputError(f"--rows must be at least 2, got {command.rows}.")
    folder = RunFolder(command.folder)
    course = folder.course()
    starts = [bridge.forward.start for bridge in course.bridges] + [course.bridges[-1].backward.start]
    ends = [
        law.sample(command.rows, generator(derive(command.seed, "rows", place))) for place, law in enumerate(starts)
    ]
    with RunFolder.claimed(command.folder) if command.out is None else nullcontext():
        made = draw(course, ends, folder.histories(), command.out or folder.figures, seed=command.seed)
    for path in made:
        console.say(str(path))
    return 0
