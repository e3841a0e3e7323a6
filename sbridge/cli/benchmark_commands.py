"""Options of ``sbridge benchmark``: one subcommand for each table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Union

from tyro.conf import OmitArgPrefixes, arg, subcommand

from sbridge.cli.commands import Flag, Spoken


@dataclass(frozen=True, kw_only=True)
class Table(Spoken):
    """Options shared by all tables."""

    quick: Flag = False
    """Run a small version in a minute or two: it tests that everything runs, not how good the solvers are."""
    json: Annotated[str | None, arg(metavar="FILE|-", help_behavior_hint="(default: none)")] = None
    """Also write the rows to this .json file as they finish; -: to standard output, in place of the table."""
    resume: Flag = False
    """Keep the rows that the file of --json has, and measure the others."""


@dataclass(frozen=True, kw_only=True)
class ControlTable(Table):
    """Optimal control, and sampling from unnormalised densities.

    Each row is a solver on a problem, trained in its own process with one thread. The whole table takes one to two
    hours of CPU time per seed.
    """

    only: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: all)")] = ()
    """Names of problems."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of everything random; with several, numbers are means over fits with their standard errors."""
    budget: float = 120.0
    """CPU seconds for each loss in the rows at equal budget; 0: omit these rows."""
    nulls: Flag = False
    """Only the rows without a fit: no control, and Laplace's approximation of densities. They take a minute."""


@dataclass(frozen=True, kw_only=True)
class BridgeTable(Table):
    """Bridges between two ends with a known exact solution: all solvers, floors, trivial baselines and OT maps.

    Each row is a solver on a pair of ends, fitted in its own process. The whole table takes hours, so select rows.
    """

    pairs: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: all)")] = ()
    """Pairs of ends: mixture, state-cost, gaussian, turning, ring, bananas, spirals, moons."""
    solvers: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: all)")] = ()
    """Names of rows."""
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
    """Table to compute."""

    @property
    def quiet(self) -> bool:
        """Whether the table is to be computed quietly."""
        return self.table.quiet
