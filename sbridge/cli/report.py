"""``sbridge report``: the page of a run."""

from __future__ import annotations

from pathlib import Path

from sbridge import files
from sbridge.cli.commands import Report
from sbridge.cli.console import Console
from sbridge.errors import FileFormatError, InvalidInputError
from sbridge.page import report_page
from sbridge.runs import RunFolder


def run_report(command: Report, console: Console) -> int:
    """Writes the page from what stands in the folder; nothing is computed again."""
    folder = RunFolder(command.folder)
    out = command.out or folder.path / "report.html"
    if out.exists() and not command.overwrite:
        raise InvalidInputError(f"{out} exists. Choose another --out, or say --overwrite.")
    folder.config()
    if not folder.finished:
        raise FileFormatError(f"{folder.path} holds no finished run yet; repeat its command with --resume.")
    document = files.read_json(folder.report_file)
    try:
        page = report_page(document, _figures(folder.figures))
    except (TypeError, AttributeError, ValueError, ArithmeticError, LookupError) as error:
        raise FileFormatError(
            f"{folder.report_file} is not a report of this version ({error!r}); repeat the fit to write it again."
        ) from error
    files.write_text(out, page)
    console.say(str(out))
    return 0


def _figures(folder: Path) -> list[Path]:
    """PNG files in the order in which they were drawn; the legs of a time course one after the other."""
    return sorted(folder.glob("**/*.png"), key=lambda path: (path.parent.stat().st_mtime_ns, path.stat().st_mtime_ns))
