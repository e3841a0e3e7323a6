"""The commands as data: what tyro reads from the command line, with its help.

Nothing heavy is imported before a command runs, so that ``--help`` and typing errors answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Generic, Literal, Protocol, TypeVar, runtime_checkable

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

SolverOptions = TypeVar("SolverOptions")
ReferenceOptions = TypeVar("ReferenceOptions")
Flag = FlagCreatePairsOff[bool]


@runtime_checkable
class Command(Protocol):
    """One of the subcommands, filled in."""

    @property
    def quiet(self) -> bool:
        """Whether progress and notes are left out."""
        ...


def _default(text: str) -> object:
    """Says in the help what happens by default, where the default value itself says nothing."""
    return arg(help_behavior_hint=f"(default: {text})")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files are read."""

    rep: Annotated[str | None, arg(metavar="NAME"), _default("X_pca; with RUN, that of its fit")] = None
    """The representation in an .h5ad file: a name in obsm, or X."""
    time_key: Annotated[str | None, arg(metavar="NAME"), _default("none; with RUN, that of its fit")] = None
    """The column of obs that holds times, in an .h5ad file with several snapshots."""
    columns: Annotated[tuple[str, ...], arg(metavar="NAME ..."), _default("all")] = ()
    """Columns of .csv files to use, by name."""
    rows: int = 10_000
    """Rows drawn from a built-in data set."""
    dtype: Literal["keep", "float32", "float64"] = "keep"
    """Floating-point type of the fit. keep: that of the file (text and integers: float32 if its digits are enough for
    every column, else float64); float64 is slower."""
    header: Literal["auto", "yes", "no"] = "auto"
    """Whether the first line of a .csv file names the columns. auto: if a cell in it is no number."""


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """What every command takes."""

    quiet: Flag = False
    """Print results, warnings and errors alone: no progress, no notes."""


@dataclass(frozen=True, kw_only=True)
class Training(Spoken):
    """What all commands take that train something in a run folder."""

    out: Annotated[Path, arg(metavar="RUN")]
    """Run folder to write: model, report, history, figures."""
    held_out: Annotated[float, arg(metavar="FRACTION")] = 0.1
    """Fraction of the rows of every data set kept from the fit, for the report; 0: score nothing."""
    seed: int = 0
    """Seed of everything random. Equal seeds and threads give equal models."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1."""
    evaluation: bool = True
    """Score on the rows kept from the fit. That may take longer than the fit; sbridge evaluate does it later."""
    figures: bool = True
    """Draw figures."""
    checkpoint_every: Annotated[float, arg(metavar="SECONDS")] = 10.0
    """Time between checkpoints."""
    resume: Flag = False
    """Go on with an interrupted run in the same folder; everything else on the command line as before."""
    reading: OmitArgPrefixes[Reading] = field(default_factory=Reading)


@dataclass(frozen=True, kw_only=True)
class Demo(Spoken):
    """Two moons to eight Gaussians: fit, report, figures."""

    out: Path = Path("sbridge-demo")
    """Run folder to write."""
    seed: int = 0
    """Seed of data and fit."""
    resume: Flag = False
    """Go on with an interrupted demo in the same folder."""


@dataclass(frozen=True, kw_only=True)
class Fit(Training, Generic[SolverOptions, ReferenceOptions]):
    """Fit a bridge between two data sets, or a chain of bridges through a time course.

    Two data sets: SOURCE TARGET. A time course: more of them with --times, or one .h5ad file with --time-key.
    """

    inputs: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCE TARGET ...", help_behavior_hint="")]
    """Files, rows × columns: .npy, .npz (file.npz:array), .csv, .tsv, .h5ad (file.h5ad:time); or built-in data sets."""
    times: Annotated[tuple[float, ...], arg(metavar="T0 T1 ..."), _default("none: from 0 to --horizon")] = ()
    """Times of the data sets, rising, in any unit; from then on times are on this axis."""
    reference: Literal["brownian", "ornstein-uhlenbeck", "variance-preserving", "variance-exploding"] = "brownian"
    """Reference process. Its own options: --reference NAME --help."""
    sigma: Annotated[float | None, arg(metavar="S"), _default("chosen from the data, and told")] = None
    """Noise σ of the reference, in data units per square root of time."""
    epsilon: Annotated[float | None, arg(metavar="E"), _default("σ² T follows from --sigma")] = None
    """In place of --sigma: ε = σ² T, the entropic constant for the cost ½|x − y|², in squared data units."""
    horizon: Annotated[float | None, arg(metavar="T"), _default("1, or the differences of --times")] = None
    """Duration T of the bridge, in units of time."""
    reference_options: Annotated[ReferenceOptions, arg(name="reference")]
    solver: Literal["auto", "gaussian", "sinkhorn", "imf", "matched", "ipf", "mixture"] = "auto"
    """Method; auto takes one that suits the data, and tells which. Its own options: --solver NAME --help."""
    solver_options: Annotated[SolverOptions, arg(name="solver")]
    scaling: Literal["auto", "common", "per-coordinate", "none"] = "auto"
    """Units inside the fit: one factor for all columns, or one for each; σ goes along, the problem stays the same."""


@dataclass(frozen=True, kw_only=True)
class Diffuse(Training, Generic[SolverOptions, ReferenceOptions]):
    """Learn to generate a data set: reverse diffusion with a trained score.

    New rows then come from: sbridge sample RUN --direction backward --n N --out FILE.
    """

    input: Annotated[Positional[str], arg(metavar="DATA", help_behavior_hint="")]
    """File, rows × columns, or a built-in data set, as for fit."""
    reference: Literal["variance-preserving", "variance-exploding"] = "variance-preserving"
    """Noising process. Its own options: --reference NAME --help."""
    horizon: Annotated[float, arg(metavar="T")] = 1.0
    """Duration of the noising, in units of time."""
    reference_options: Annotated[ReferenceOptions, arg(name="reference")]
    solver_options: Annotated[SolverOptions, arg(name="solver")]


@dataclass(frozen=True, kw_only=True)
class Sample(Spoken):
    """Carry rows through a fitted bridge, from file to file, in little memory."""

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run folder of a fit."""
    out: Annotated[Path, arg(metavar="FILE")]
    """File to write: .npy or .csv."""
    input: Annotated[str | None, arg(metavar="FILE"), _default("rows drawn from the start law: --n")] = None
    """Rows to start from; the result has one row for each."""
    n: Annotated[int | None, arg(metavar="N"), _default("none")] = None
    """In place of --input: the number of start rows to draw."""
    direction: Literal["forward", "backward"] = "forward"
    """From the source to the target, or back."""
    start: Annotated[
        float | None, arg(metavar="T0"), _default("that of FILE.h5ad:T0, or the first; backward: last")
    ] = None
    """Time of the start rows; one of the snapshots."""
    time: Annotated[float | None, arg(metavar="T"), _default("the last time; backward: the first")] = None
    """Time at which the state is wanted."""
    seed: int = 0
    """Seed of the noise."""
    overwrite: Flag = False
    """Replace FILE if it exists."""
    reading: OmitArgPrefixes[Reading] = field(default_factory=Reading)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Spoken):
    """Score a fitted bridge on rows that it has not seen."""

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run folder of a fit."""
    inputs: Annotated[Positional[tuple[str, str]], arg(metavar="SOURCE TARGET", help_behavior_hint="")]
    """Rows to start from, and rows to compare with; files or built-in sets as for fit."""
    start: Annotated[float | None, arg(metavar="T0"), _default("that of FILE.h5ad:T0, or the first time")] = None
    """Time of SOURCE; one of the snapshots."""
    time: Annotated[float | None, arg(metavar="T"), _default("that of FILE.h5ad:T, or the last time")] = None
    """Time of TARGET: any time of the run. Between snapshots the prediction for that time is scored."""
    out: Annotated[Path | None, arg(metavar="FILE"), _default("none")] = None
    """Also write the numbers to this .json file."""
    figure: Annotated[Path | None, arg(metavar="FILE"), _default("none")] = None
    """Also draw the certificate to this .png file."""
    max_rows: int = 4000
    """Rows of either side that are used, at most; larger sets are thinned at random."""
    seed: int = 0
    """Seed of the noise."""
    reading: OmitArgPrefixes[Reading] = field(default_factory=Reading)


@dataclass(frozen=True, kw_only=True)
class Plot(Spoken):
    """Draw the figures of a fitted bridge again."""

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run folder of a fit."""
    out: Annotated[Path | None, arg(metavar="FOLDER"), _default("RUN/figures")] = None
    """Folder for the .png files."""
    rows: int = 2000
    """Rows drawn from either end."""
    seed: int = 0
    """Seed of the rows and paths drawn."""


@dataclass(frozen=True, kw_only=True)
class Report(Spoken):
    """Write the report of a fit as one HTML page that opens anywhere: settings, scores with their floors, figures."""

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run folder of a fit."""
    out: Annotated[Path | None, arg(metavar="FILE.html"), _default("RUN/report.html")] = None
    """The page."""
    overwrite: Flag = False
    """Replace FILE if it exists."""


@dataclass(frozen=True, kw_only=True)
class Verify(Spoken, Generic[ReferenceOptions]):
    """Check the identities of the theory numerically, on built-in problems or on your data, process and network.

    Every identity is computed by two routes; a row says by how many standard errors they differ. Exit code 0 if all
    hold, 1 if one fails. Without --data: Gaussian mixtures in 1, 2 and 8 dimensions under three noising processes.
    """

    data: Annotated[str | None, arg(metavar="FILE"), _default("Gaussian mixtures; with --model, the data it keeps")] = (
        None
    )
    """Your rows, as for fit: a file, or a built-in data set. Their empirical law has an exact score."""
    model: Annotated[Path | None, arg(metavar="RUN"), _default("a small network, trained for a few seconds")] = None
    """Run folder of a diffusion model, whose score is judged under its own noising process."""
    process: Literal["auto", "brownian", "ornstein-uhlenbeck", "variance-preserving", "variance-exploding"] = "auto"
    """Noising process; auto: three on built-in problems, variance-preserving on your data, the model's with --model."""
    process_options: Annotated[ReferenceOptions, arg(name="process")]
    only: Annotated[tuple[str, ...], arg(metavar="NAME|GROUP ..."), _default("all")] = ()
    """Identities to check, or groups of them: see --list."""
    max_rows: int = 500
    """Rows of your data that make the empirical law, at most; larger sets are thinned at random."""
    samples: int = 4000
    """Paths or points of every Monte Carlo mean."""
    seed: int = 0
    """Seed of everything random."""
    json: Annotated[str | None, arg(metavar="FILE|-"), _default("none")] = None
    """Also write the rows to this .json file; -: to standard output, in place of the table."""
    list: Flag = False
    """List the identities and stop."""
    reading: OmitArgPrefixes[Reading] = field(default_factory=Reading)


@dataclass(frozen=True, kw_only=True)
class Control(Spoken):
    """Solve a control problem given as a small Python file.

    The file defines `problem`, a ControlProblem, and if you like `solver`, a control solver, and `known`, the optimal
    control where you have it. The file is run as it is: use files that you trust.
    """

    file: Annotated[Positional[Path], arg(metavar="FILE.py")]
    """The file."""
    out: Annotated[Path | None, arg(metavar="RUN"), _default("none: only print")] = None
    """Folder to write: control, report, history, and a copy of the file."""
    updates: Annotated[int | None, arg(metavar="N"), _default("those of the solver")] = None
    """Number of updates, in place of the solver's."""
    paths: int = 4096
    """Fresh paths for the diagnostics."""
    seed: int = 0
    """Seed of everything random."""
