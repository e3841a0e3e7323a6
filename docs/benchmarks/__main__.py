"""Measures all tables of ``docs/benchmarks.md`` in turn: ``OMP_NUM_THREADS=1 python -m docs.benchmarks --out FOLDER``.

Each table is written to its own file in the folder, with its command as the first line. A table whose file exists is
not measured again, so a run that was stopped continues. All tables take most of a day; ``--only`` chooses some.
The pictures of the gallery are made with the site: ``SBRIDGE_GALLERY=full sphinx-build docs docs/_build``.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sbridge.benchmarks.output import say
from sbridge.errors import NotConvergedError, check_known

_BRIDGE = ("sbridge", "benchmark", "bridge", "--seeds", "3", "4", "5", "--pairs")
_MODULES = "docs.benchmarks"

TABLES: dict[str, tuple[str, ...]] = {
    "simulation": (f"{_MODULES}.simulation",),
    "control": ("sbridge", "benchmark", "control", "--seeds", "0", "1", "2"),
    "control_memory": (f"{_MODULES}.control_memory",),
    "both_ends": (f"{_MODULES}.both_ends",),
    "mixture": (*_BRIDGE, "mixture", "--solvers", "mixture", "light"),
    "mixture_128": (*_BRIDGE, "mixture", "--solvers", "mixture", "light", "--dims", "128", "--epsilons", "1"),
    "planar_pairs": (*_BRIDGE, "ring", "bananas", "spirals", "moons", "--solvers", "mixture", "light"),
    "learned": (*_BRIDGE, "mixture", "--solvers", "imf", "matched", "ipf", "sinkhorn", "gaussian", "--dims", "16"),
    "learned_64": (*_BRIDGE, "mixture", "--solvers", "imf", "--dims", "64"),
    "turning": (
        *(f"{_MODULES}.gaussian_ends", "--reference", "turning", "--dims", "2", "10", "50"),
        *("--solvers", "GaussianBridge", "MixtureBridge", "IMF"),
    ),
    "gaussian_ends": (f"{_MODULES}.gaussian_ends", "--solvers", "IMF"),
    "planar": (f"{_MODULES}.planar", "--fresh", "2000", "--map-rows", "2000"),
    "choices": (f"{_MODULES}.choices",),
    "certificates": (f"{_MODULES}.certificates",),
    "large": (f"{_MODULES}.large",),
    "many_rows": (f"{_MODULES}.many_rows",),
    "diffusion": (f"{_MODULES}.diffusion",),
    "samplers": (f"{_MODULES}.samplers",),
    "reversal": (f"{_MODULES}.reversal",),
    "tilt": (f"{_MODULES}.tilt",),
    "state_costs": (f"{_MODULES}.state_costs",),
    "fates": (f"{_MODULES}.fates",),
}
"""The arguments of ``python -m``, by name of the file."""


@dataclass(frozen=True)
class Settings:
    """Options.

    Args:
        out: folder for the tables.
        only: names of tables; all by default.
        snapshots: files of a time course, in order, for the table that leaves one out.
        times: their times.
        growth: folder of the data of the table on growth and death.
        references: file of the data of the table on learned references.
    """

    out: Path
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    snapshots: tuple[Path, ...] = ()
    times: tuple[float, ...] = ()
    growth: Path | None = None
    references: Path | None = None


def commands(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Returns the requested tables and their commands.

    Raises:
        UnknownNameError: for an unknown name.
    """
    tables = dict(TABLES)
    if settings.snapshots:
        files, times = (str(file) for file in settings.snapshots), (f"{t:g}" for t in settings.times)
        tables["snapshots"] = (f"{_MODULES}.snapshots", *files, "--times", *times)
    if settings.growth is not None:
        tables["growth"] = (f"{_MODULES}.growth", str(settings.growth))
    if settings.references is not None:
        tables["references"] = (f"{_MODULES}.references", str(settings.references))
    check_known("table", settings.only, tables)
    return {name: tables[name] for name in settings.only or tables}


def main(settings: Settings) -> None:
    """Measures the tables that are missing.

    Raises:
        NotConvergedError: if one of them fails; the tables before it are kept.
    """
    settings.out.mkdir(parents=True, exist_ok=True)
    for name, command in commands(settings).items():
        done, under_way = settings.out / f"{name}.txt", settings.out / f"{name}.part"
        if done.exists():
            say(f"{name}: exists")
            continue
        say(f"{name}: python -m {shlex.join(command)}")
        with under_way.open("w", encoding="utf-8") as file:
            file.write(f"python -m {shlex.join(command)}\n")
            file.flush()
            code = subprocess.run([sys.executable, "-m", *command], check=False, stdout=file).returncode
        if code:
            raise NotConvergedError(f"the table {name} ended with exit code {code}: see above, and {under_way}.")
        os.replace(under_way, done)


if __name__ == "__main__":
    main(tyro.cli(Settings))
