"""``sbridge report``: the HTML page of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sbridge.cli.commands import Report
from sbridge.cli.console import Console
from sbridge.errors import FileFormatError, listed, shown
from sbridge.runs.files import RunFiles
from sbridge.runs.page import FIGURES, report_page
from sbridge.storage import documents


def run_report(command: Report, console: Console) -> int:
    """Writes the page from the files in the folder; computes nothing again."""
    folder = RunFiles(command.folder)
    out = command.out or folder.path / "report.html"
    folder.config()
    if not folder.finished:
        raise FileFormatError(f"{folder.path} has no finished run; repeat its command with --resume.")
    document = documents.read_json(folder.report_file)
    try:
        page = report_page(document, _own(folder, _figures(folder.figures), console))
    except (TypeError, AttributeError, ValueError, ArithmeticError, LookupError) as error:
        raise FileFormatError(
            f"{folder.report_file} is not a report of this version ({shown(error)}); repeat the fit to write it again."
        ) from error
    documents.write_text(out, page)
    console.say(str(out))
    return 0


def _figures(folder: Path) -> list[Path]:
    """Returns the PNG files: those of the whole run first, then bridge by bridge, in the order of the page."""
    order = {name: place for place, name in enumerate(FIGURES)}

    def place(path: Path) -> tuple[int, str, int, str]:
        folders = path.relative_to(folder).parts[:-1]
        leg = folders[0].removeprefix("leg-") if folders else "0"
        return int(leg) if leg.isdecimal() else 0, "/".join(folders), order.get(path.stem, len(order)), path.name

    return sorted(folder.glob("**/*.png"), key=place)


def _own(folder: RunFiles, figures: Sequence[Path], console: Console) -> list[Path]:
    """Returns the figures that are files of the run folder: a link could put any other file into the page."""
    home = folder.path.resolve() / folder.figures.name
    foreign = [path for path in figures if not path.resolve().is_relative_to(home)]
    if foreign:
        console.complain(f"warning: omitted from the page because they are links to other places: {listed(foreign)}.")
    return [path for path in figures if path not in foreign]
