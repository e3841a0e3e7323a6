"""``sbridge benchmark`` as data: one subcommand for each table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Union

from tyro.conf import OmitArgPrefixes, arg, subcommand

from sbridge.cli.commands import Flag, Spoken


@dataclass(frozen=True, kw_only=True)
class Table(Spoken):
    """What all tables take."""

    quick: Flag = False
    """Little work in a minute or two: whether everything runs, not how good it is."""
    json: Annotated[str | None, arg(metavar="FILE|-", help_behavior_hint="(default: none)")] = None
    """Also write the rows to this .json file, each as it is ready; -: to standard output, in place of the table."""
    resume: Flag = False
    """Take the rows that the file of --json has, and measure the others."""


@dataclass(frozen=True, kw_only=True)
class ControlTable(Table):
    """Optimal control, and sampling from unnormalised densities.

    Each row is a solver on a problem, trained in a process and thread of its own; all of them together take an hour or
    two of CPU time for each seed.
    """

    only: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: all)")] = ()
    """Problems, by name."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of everything random; with several, numbers are means over fits with their standard errors."""
    budget: float = 120.0
    """Seconds of CPU time of every loss in the rows at equal budget; 0: without them."""


@dataclass(frozen=True, kw_only=True)
class BridgeTable(Table):
    """Bridges between two ends whose exact solution is known: every solver beside floors, trivial rows and OT maps.

    Each row is a solver on a pair of ends, fitted in a process of its own. The whole table takes hours: choose from it.
    """

    pairs: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: all)")] = ()
    """Pairs of ends: mixture, gaussian, turning, ring, bananas, spirals, moons."""
    solvers: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: all)")] = ()
    """Rows, by name."""
    dims: Annotated[tuple[int, ...], arg(metavar="INT ...", help_behavior_hint="(default: 2 16 64; --quick: 2)")] = ()
    """Dimensions of mixture and Gaussian pairs."""
    epsilons: Annotated[
        tuple[float, ...], arg(metavar="FLOAT ...", help_behavior_hint="(default: 0.1 1 10; --quick: 1)")
    ] = ()
    """Noise levels ε of mixture pairs."""
    seeds: Annotated[tuple[int, ...], arg(metavar="INT ...", help_behavior_hint="(default: 0 1 2; --quick: 0)")] = ()
    """Seeds of pairs and data."""


Tables = Union[  # noqa: UP007  (what tyro reads)
    Annotated[ControlTable, subcommand("control", prefix_name=False)],
    Annotated[BridgeTable, subcommand("bridge", prefix_name=False)],
]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Measure solvers against problems with exact answers."""

    table: OmitArgPrefixes[Tables]
    """Which table."""

    @property
    def quiet(self) -> bool:
        """As the table has it."""
        return self.table.quiet
