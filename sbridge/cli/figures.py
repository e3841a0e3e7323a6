"""``sbridge plot``, and the figures of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from torch import Tensor

from sbridge.cli.commands import Plot
from sbridge.cli.console import Console
from sbridge.errors import FileFormatError
from sbridge.evaluation.certificate import Certificate
from sbridge.fitting.courses import Course
from sbridge.plotting import Clock, course_figures, save_certificate, standard_figures
from sbridge.random import derive, generator
from sbridge.runs.folder import RunFolder
from sbridge.runs.summary import leg_folder
from sbridge.storage import documents
from sbridge.training import Numbers


def draw(
    course: Course,
    ends: Sequence[Tensor],
    histories: Sequence[Sequence[Numbers]],
    folder: Path,
    *,
    seed: int,
    certificates: Sequence[Certificate | str | None] = (),
) -> list[Path]:
    """Draws the figures of a bridge and its certificate; of a time course, also those of each bridge in a folder.

    Args:
        course: the bridges.
        ends: samples of every snapshot.
        histories: the history of every leg.
        folder: where to write.
        seed: of the paths.
        certificates: the certificate of every leg, if there are any.
    """
    single = len(course.bridges) == 1
    places = [folder] if single else [folder / leg_folder(leg) for leg in range(len(course.bridges))]
    if single:
        first, last = course.times
        clock = Clock(first, first, last)
        made = [
            *standard_figures(
                course.bridges[0], ends[0], ends[1], histories[0], folder, seed=derive(seed, 0), clock=clock
            )
        ]
    else:
        made = [*course_figures(course, ends, histories, [folder, *places], seed=seed)]
    for place, found in zip(places, certificates, strict=False):
        if isinstance(found, Certificate):
            made.append(save_certificate(found, place / "certificate.png"))
    return made


def run_plot(command: Plot, console: Console) -> int:
    """Draws all figures of a run again, from its model, its history and the certificates in its report.

    It writes to the run folder only if no other process uses it.
    """
    folder = RunFolder(command.folder)
    course = folder.course(command.device)
    starts = [bridge.forward.start for bridge in course.bridges] + [course.bridges[-1].backward.start]
    ends = [
        law.sample(command.rows, generator(derive(command.seed, "rows", place))) for place, law in enumerate(starts)
    ]
    with RunFolder.claimed(command.folder) if command.out is None else nullcontext():
        place, certificates = command.out or folder.figures, _certificates(folder)
        made = draw(course, ends, folder.histories(), place, seed=command.seed, certificates=certificates)
    for path in made:
        console.say(str(path))
    return 0


def _certificates(folder: RunFolder) -> list[Certificate | None]:
    """Returns the certificates in the report of the run; none for an unfinished run."""
    if not folder.finished:
        return []
    document = documents.read_json(folder.report_file)
    if not isinstance(document, dict) or not isinstance(document.get("legs"), list):
        raise FileFormatError(f"{folder.report_file} is not the report of a run.")
    found = [leg.get("certificate") if isinstance(leg, dict) else None for leg in document["legs"]]
    return [Certificate.from_json(one) if isinstance(one, dict) and "reason" not in one else None for one in found]
