"""Rows that stay on disk: ``python -m docs.benchmarks.on_disk FOLDER`` for 10⁷ rows of 50 columns a side, 2 GB each.

Ends: the Gaussian mixtures of :mod:`docs.benchmarks.large`, written to ``.npy`` files in ``FOLDER``, which are used
again by the next run. Each line is measured in its own process: seconds, and the peak of its anonymous memory, which
does not count pages of the files. ``imf`` takes 800 updates of two networks: 300 each on the entropic
plan and one stage of 200; compare it with fewer rows (``--rows 100000``).
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from docs.benchmarks import large
from sbridge.benchmarks.memory import in_fresh_process
from sbridge.benchmarks.output import row
from sbridge.benchmarks.tables import timed
from sbridge.cli.main import run as command_line
from sbridge.data.outputs import write_rows

_BLOCK = 100_000
_PLAIN = ("--on-disk", "--no-evaluation", "--no-figures", "--quiet")
_IMF = ("--sigma", "3", "--solver.pretraining", "300", "--solver.stages", "1", "--solver.updates", "200")
TASKS = ("fit", "imf", "evaluate", "sample")
_ONE = "one-task"


@dataclass(frozen=True)
class Settings:
    """Options of this benchmark.

    Args:
        folder: where the files are.
        rows: samples a side.
        dim: columns.
    """

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    rows: int = 10_000_000
    dim: int = 50


def make(settings: Settings) -> list[Path]:
    """Writes the files that are not there."""
    made = []
    for end in ("source", "target"):
        path = settings.folder / f"{end}-{settings.rows}-{settings.dim}.npy"
        if not path.exists():
            ends = large.Settings(dim=settings.dim)
            counts = [min(_BLOCK, settings.rows - first) for first in range(0, settings.rows, _BLOCK)]
            write_rows((large.sample(ends, end, f"block {i}", n) for i, n in enumerate(counts)), path)
        made.append(path)
    return made


def run(task: str, x0: Path, x1: Path) -> None:
    """Runs one command line, and prints its seconds and peak memory as JSON."""
    folder = x0.parent
    arguments = {
        "fit": ["fit", x0, x1, "--out", folder / "mixture", "--solver", "mixture", *_PLAIN],
        "imf": ["fit", x0, x1, "--out", folder / "imf", "--solver", "imf", *_IMF, *_PLAIN],
        "evaluate": ["evaluate", folder / "imf", x0, x1, "--on-disk"],
        "sample": ["sample", folder / "imf", "--input", x0, "--out", folder / "moved.npy", "--overwrite"],
    }[task]
    with _Anonymous() as memory:
        code, seconds = timed(lambda: command_line([str(word) for word in arguments]))
    if code:
        raise SystemExit(code)
    sys.stdout.write("\n" + json.dumps({"seconds": seconds, "peak": memory.peak}) + "\n")


class _Anonymous:
    """Watches the anonymous memory of this process, in MiB, every 5 ms."""

    def __init__(self) -> None:
        self.peak, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Anonymous:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            (line,) = (line for line in status.splitlines() if line.startswith("RssAnon"))
            self.peak = max(self.peak, int(line.split()[1]) / 1024)


def main(settings: Settings) -> None:
    """Makes the files, and prints a line for each task."""
    made = make(settings)
    for task in TASKS:
        for run_folder in ("mixture", "imf"):
            if task == "fit":
                shutil.rmtree(settings.folder / run_folder, ignore_errors=True)
        said = in_fresh_process("docs.benchmarks.on_disk", [_ONE, task, *map(str, made)])
        found = json.loads(said.splitlines()[-1])
        row(f"{task} {settings.rows} × {settings.dim}", s=f"{found['seconds']:.0f}", peak=f"{found['peak']:.0f} MiB")


if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[1] == _ONE:  # for the parent process
        run(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main(tyro.cli(Settings, description=__doc__))
