"""The commands and their options, which tyro parses and documents.

No large package is imported before a command runs, so that ``--help`` and errors in options are quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Generic, Literal, Protocol, TypeVar, runtime_checkable

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from sbridge.cli.names import NOISING, REFERENCES, SOLVERS

if TYPE_CHECKING:
    SolverName = ReferenceName = NoisingName = ProcessName = str
else:  # the choices that tyro offers
    SolverName, ReferenceName, NoisingName = Literal[tuple(SOLVERS)], Literal[tuple(REFERENCES)], Literal[NOISING]
    ProcessName = Literal[("auto", *REFERENCES)]

SolverOptions = TypeVar("SolverOptions")
ReferenceOptions = TypeVar("ReferenceOptions")
Flag = FlagCreatePairsOff[bool]


@runtime_checkable
class Command(Protocol):
    """A parsed subcommand."""

    @property
    def quiet(self) -> bool:
        """Whether to omit progress and notes."""
        ...


def _default(text: str) -> object:
    """Describes the default in the help, where the default value itself says nothing."""
    return arg(help_behavior_hint=f"(default: {text})")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Options for reading files."""

    rep: Annotated[str | None, arg(metavar="NAME"), _default("X_pca; with RUN, as in its fit")] = None
    """The representation in an .h5ad file: a name in obsm, or X."""
    time_key: Annotated[str | None, arg(metavar="NAME"), _default("none; with RUN, as in its fit")] = None
    """The column of obs that holds times, in an .h5ad file with several snapshots."""
    columns: Annotated[tuple[str, ...], arg(metavar="NAME ..."), _default("all")] = ()
    """Columns of .csv files to use, by name."""
    rows: int = 10_000
    """Rows drawn from a built-in data set."""
    dtype: Literal["keep", "float32", "float64"] = "keep"
    """Floating-point type of the fit. keep: that of the file (text and integers: float32 if it holds the digits of
    every column, else float64); float64 is slower."""
    header: Literal["auto", "yes", "no"] = "auto"
    """Whether the first line of a .csv file names the columns. auto: yes if a cell in it is not a number."""
    on_disk: Flag = False
    """Leave rows in .npy files and read them as they are drawn: for files larger than memory."""


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """Options shared by all commands."""

    quiet: Flag = False
    """Print only results, warnings and errors: no progress, no notes."""


@dataclass(frozen=True, kw_only=True)
class Computing(Spoken):
    """Options shared by all commands that compute with samples or a model."""

    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1."""


@dataclass(frozen=True, kw_only=True)
class Training(Computing):
    """Options shared by all commands that train a model in a run folder."""

    out: Annotated[Path, arg(metavar="RUN")]
    """Run folder to write: model, report, history and figures."""
    held_out: Annotated[float, arg(metavar="FRACTION")] = 0.1
    """Fraction of the rows of every data set to hold out for the report; 0: score nothing."""
    seed: int = 0
    """Seed of all random numbers. Equal seeds, threads and devices give equal models."""
    evaluation: bool = True
    """Score the fit on the held-out rows. This may take longer than the fit; sbridge evaluate does it later."""
    figures: bool = True
    """Draw figures."""
    checkpoint_every: Annotated[float, arg(metavar="SECONDS")] = 10.0
    """Time between checkpoints."""
    resume: Flag = False
    """Continue an interrupted run in the same folder; leave all other options as they were."""
    reading: OmitArgPrefixes[Reading] = field(default_factory=Reading)


@dataclass(frozen=True, kw_only=True)
class Demo(Computing):
    """Fit two moons to eight Gaussians, and write the report and figures."""

    out: Path = Path("sbridge-demo")
    """Run folder to write."""
    seed: int = 0
    """Seed of the data and the fit."""
    resume: Flag = False
    """Continue an interrupted demo in the same folder."""


@dataclass(frozen=True, kw_only=True)
class Fit(Training, Generic[SolverOptions, ReferenceOptions]):
    """Fit a bridge between two data sets, or a chain of bridges through a time course.

    Give SOURCE TARGET for two data sets. For a time course, give several files with --times, or one .h5ad file with
    --time-key.
    """

    inputs: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCE TARGET ...", help_behavior_hint="")]
    """Files, rows × columns: .npy, .npz (file.npz:array), .csv, .tsv, .h5ad (file.h5ad:time); or built-in data sets."""
    times: Annotated[tuple[float, ...], arg(metavar="T0 T1 ..."), _default("none: from 0 to --horizon")] = ()
    """Times of the data sets, increasing, in any unit; all later times are on this axis."""
    reference: ReferenceName = "brownian"
    """Reference process. Options of a process: --reference NAME --help."""
    sigma: Annotated[float | None, arg(metavar="S"), _default("chosen from the data and printed")] = None
    """Noise σ of the reference, in data units per square root of time."""
    epsilon: Annotated[float | None, arg(metavar="E"), _default("computed from --sigma: σ² T")] = None
    """Instead of --sigma: ε = σ² T, the entropic constant for the cost ½|x − y|², in squared data units."""
    horizon: Annotated[float | None, arg(metavar="T"), _default("1, or the differences of --times")] = None
    """Duration T of the bridge, in units of time."""
    reference_options: Annotated[ReferenceOptions, arg(name="reference")]
    state_cost: Annotated[str | None, arg(metavar="FILE.py:NAME"), _default("none")] = None
    """State cost V to keep low on the way, per unit of time: a costs.Quadratic called NAME in a Python file."""
    soft_ends: Annotated[tuple[float, float] | None, arg(metavar="SOURCE TARGET"), _default("inf inf: hard")] = None
    """Ends that may change, by growth and death: the price of a change of either end in nats; inf: a hard end."""
    solver: SolverName = "auto"
    """Method; auto chooses one that suits the data and prints the choice. Options of a method: --solver NAME --help."""
    solver_options: Annotated[SolverOptions, arg(name="solver")]
    scaling: Literal["auto", "common", "per-coordinate", "none"] = "auto"
    """Scaling inside the fit: one factor for all columns, or one for each; σ is scaled too: the problem is the same."""


@dataclass(frozen=True, kw_only=True)
class Diffuse(Training, Generic[SolverOptions, ReferenceOptions]):
    """Learn to generate a data set: reverse diffusion with a trained score.

    To generate samples: sbridge sample RUN --direction backward --n N --out FILE.
    """

    input: Annotated[Positional[str], arg(metavar="DATA", help_behavior_hint="")]
    """File, rows × columns, or a built-in data set, as for fit."""
    reference: NoisingName = "variance-preserving"
    """Noising process. Options of a process: --reference NAME --help."""
    horizon: Annotated[float, arg(metavar="T")] = 1.0
    """Duration of the noising, in units of time."""
    reference_options: Annotated[ReferenceOptions, arg(name="reference")]
    solver_options: Annotated[SolverOptions, arg(name="solver")]


@dataclass(frozen=True, kw_only=True)
class Sample(Computing):
    """Transport samples through a fitted bridge, from file to file, in little memory."""

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run folder of a fit."""
    out: Annotated[Path, arg(metavar="FILE")]
    """File to write: .npy, .csv, or .h5ad, which keeps names and annotations of the cells of --input."""
    input: Annotated[str | None, arg(metavar="FILE"), _default("drawn from the start distribution: --n")] = None
    """Samples to start from; the output has one row for each."""
    n: Annotated[int | None, arg(metavar="N"), _default("none")] = None
    """Instead of --input: the number of start samples to draw."""
    direction: Literal["forward", "backward"] = "forward"
    """From the source to the target (forward), or back (backward)."""
    start: Annotated[
        float | None, arg(metavar="T0"), _default("the time in FILE.h5ad:T0, or the first; backward: last")
    ] = None
    """Time of the start samples; one of the snapshot times."""
    time: Annotated[float | None, arg(metavar="T"), _default("the last time; backward: the first")] = None
    """Time of the output."""
    seed: int = 0
    """Seed of the noise."""
    overwrite: Flag = False
    """Replace FILE if it exists."""
    reading: OmitArgPrefixes[Reading] = field(default_factory=Reading)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Computing):
    """Score a fitted bridge on held-out samples."""

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run folder of a fit."""
    inputs: Annotated[Positional[tuple[str, str]], arg(metavar="SOURCE TARGET", help_behavior_hint="")]
    """Samples to start from, and samples to compare with; files or built-in data sets as for fit."""
    start: Annotated[float | None, arg(metavar="T0"), _default("the time in FILE.h5ad:T0, or the first time")] = None
    """Time of SOURCE; one of the snapshot times."""
    time: Annotated[float | None, arg(metavar="T"), _default("the time in FILE.h5ad:T, or the last time")] = None
    """Time of TARGET: any time of the run. Between snapshots, the prediction for that time is scored."""
    out: Annotated[Path | None, arg(metavar="FILE"), _default("none")] = None
    """Also write the numbers to this .json file."""
    figure: Annotated[Path | None, arg(metavar="FILE"), _default("none")] = None
    """Also draw the certificate to this .png file."""
    max_rows: int = 4000
    """Largest number of rows used of either side; larger sets are subsampled at random."""
    seed: int = 0
    """Seed of the noise."""
    reading: OmitArgPrefixes[Reading] = field(default_factory=Reading)


@dataclass(frozen=True, kw_only=True)
class CrossValidate(Computing):
    """Leave every inner snapshot out, predict it from its neighbours, and compare with answers that need no fit."""

    inputs: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE ...", help_behavior_hint="")]
    """At least three snapshots, or one .h5ad file with --time-key; files as for fit."""
    times: Annotated[tuple[float, ...], arg(metavar="T0 T1 ..."), _default("those of the files")] = ()
    """Times of the data sets, increasing, in any unit."""
    solvers: Annotated[tuple[SolverName, ...], arg(metavar="NAME ...")] = ("auto",)
    """Methods, with their default options; auto: the choice of fit."""
    sigma: Annotated[float | None, arg(metavar="S"), _default("chosen for each prediction")] = None
    """Noise σ of the Brownian reference, in data units per square root of time."""
    max_rows: int = 4000
    """Largest number of rows of a snapshot that are scored; fits use all."""
    seeds: Annotated[tuple[int, ...], arg(metavar="N ...")] = (0, 1, 2)
    """Seeds of fits and draws; standard errors are over these."""
    reading: OmitArgPrefixes[Reading] = field(default_factory=Reading)


@dataclass(frozen=True, kw_only=True)
class Plot(Computing):
    """Draw the figures of a fitted bridge again."""

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run folder of a fit."""
    out: Annotated[Path | None, arg(metavar="FOLDER"), _default("RUN/figures")] = None
    """Folder for the .png files."""
    rows: int = 2000
    """Number of rows drawn from either end."""
    seed: int = 0
    """Seed of the rows and paths drawn."""


@dataclass(frozen=True, kw_only=True)
class Report(Spoken):
    """Write the report of a fit as one self-contained HTML page: settings, scores with their floors, figures."""

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run folder of a fit."""
    out: Annotated[Path | None, arg(metavar="FILE.html"), _default("RUN/report.html")] = None
    """HTML file to write."""
    overwrite: Flag = False
    """Replace FILE if it exists."""


@dataclass(frozen=True, kw_only=True)
class Verify(Spoken, Generic[ReferenceOptions]):
    """Check the identities of the theory numerically, on built-in problems or on your data, process and network.

    Both sides of every identity are computed independently and compared in standard errors. The exit code is 0 if all
    hold, and 1 if one fails. Without --data, the problems are Gaussian mixtures in 1, 2 and 8 dimensions under four
    noising processes.
    """

    data: Annotated[str | None, arg(metavar="FILE"), _default("Gaussian mixtures; with --model, its training data")] = (
        None
    )
    """Your data, as for fit: a file, or a built-in data set. The score of its empirical distribution is exact."""
    model: Annotated[Path | None, arg(metavar="RUN"), _default("a small network, trained for a few seconds")] = None
    """Run folder of a diffusion model; its score is tested under its own noising process."""
    network: Annotated[str | None, arg(metavar="FILE.py:NAME"), _default("none")] = None
    """Your own network, with --data: a module or function (t, x) → (batch, dim). The file is executed; if it defines
    `process`, that is the noising process."""
    predicts: Literal["score", "noise"] = "score"
    """What --network returns: the score, or the noise of a denoising diffusion model."""
    process: ProcessName = "auto"
    """Noising process; auto: all on built-in problems, variance-preserving on your data, the model's with --model."""
    process_options: Annotated[ReferenceOptions, arg(name="process")]
    only: Annotated[tuple[str, ...], arg(metavar="NAME|GROUP ..."), _default("all")] = ()
    """Identities to check, or groups of identities: see --list."""
    max_rows: int = 256
    """Largest number of rows that form the empirical distribution; larger data are subsampled at random."""
    samples: int = 4000
    """Number of paths or points in each Monte Carlo mean."""
    seed: int = 0
    """Seed of all random numbers."""
    workers: Annotated[int | None, _default("one for each thread of torch; 1 with --network")] = None
    """Number of processes that share the identities."""
    json: Annotated[str | None, arg(metavar="FILE|-"), _default("none")] = None
    """Also write the results to this .json file; -: to standard output, in place of the table."""
    list: Flag = False
    """List the identities and exit."""
    reading: OmitArgPrefixes[Reading] = field(default_factory=Reading)


@dataclass(frozen=True, kw_only=True)
class Control(Computing):
    """Solve a control problem given as a small Python file.

    The file defines `problem`, a ControlProblem. It may define `solver`, a control solver, and `known`, the optimal
    control. The file is executed, so use only files that you trust.
    """

    file: Annotated[Positional[Path], arg(metavar="FILE.py")]
    """Python file to read."""
    out: Annotated[Path | None, arg(metavar="RUN"), _default("none: print only")] = None
    """Folder to write: control, report, history, and a copy of the file."""
    updates: Annotated[int | None, arg(metavar="N"), _default("that of the solver")] = None
    """Number of updates, instead of the solver's default."""
    paths: int = 4096
    """Number of new paths for the diagnostics."""
    seed: int = 0
    """Seed of all random numbers."""
