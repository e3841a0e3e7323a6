"""``sbridge fit`` and ``sbridge diffuse``: plan, train, score, draw, report."""

from __future__ import annotations

import json
import shlex
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from sbridge.cli.commands import Demo, Diffuse, Fit, Training
from sbridge.cli.console import Console, Progress, ScoringBar, duration, peak_memory
from sbridge.cli.figures import draw
from sbridge.cli.options import Automatic, Brownian
from sbridge.cli.plan import Plan, make_diffusion_plan, make_plan
from sbridge.diffusion import is_reverse_diffusion
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.evaluation.certificate import certificate_or_reason
from sbridge.evaluation.progress import watched
from sbridge.evaluation.scores import evaluate
from sbridge.fitting.courses import Course
from sbridge.laws.stored import in_memory
from sbridge.random import derive
from sbridge.runs.checkpoints import Stopped
from sbridge.runs.fitting import return_others, take_part, train
from sbridge.runs.folder import ClaimedFolder, RunFolder
from sbridge.runs.report import LegReport, RunReport, describe
from sbridge.solvers.base import Solver
from sbridge.storage import documents
from sbridge.storage.claims import check_vacant
from sbridge.storage.documents import Json
from sbridge.training import Callback, Numbers

_FIGURE_ROWS = 2000


@dataclass
class Clock:
    """Seconds spent on each part of the work."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measured(self, part: str) -> Iterator[None]:
        """Adds the time of the block to ``part``."""
        begun = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - begun


def run_demo(command: Demo, console: Console) -> int:
    """Runs :func:`run_fit` on the built-in data sets with default options."""
    return run_fit(_of_demo(command), console)


def _of_demo(command: Demo) -> Fit[Any, Any]:
    return Fit(
        inputs=("two_moons", "eight_gaussians"),
        out=command.out,
        solver_options=Automatic(),
        reference_options=Brownian(),
        seed=command.seed,
        device=command.device,
        resume=command.resume,
    )


def run_fit(command: Fit[Any, Any], console: Console) -> int:
    """Runs the command; returns the exit code."""
    return _run(command, lambda: make_plan(command), console)


def run_diffuse(command: Diffuse[Any, Any], console: Console) -> int:
    """Runs the command; returns the exit code."""
    return _run(command, lambda: make_diffusion_plan(command), console)


def follow(command: Demo | Fit[Any, Any] | Diffuse[Any, Any]) -> int:
    """Takes part in the fit of process 0, which reads and writes the run folder; returns the exit code."""
    command = _of_demo(command) if isinstance(command, Demo) else command
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # process 0 gives them
        plan = make_diffusion_plan(command) if isinstance(command, Diffuse) else make_plan(command)
        try:
            take_part(plan.legs)
        except Stopped as stop:
            return 128 + stop.signal
    return 0


def _run(command: Training, planned: Callable[[], Plan], console: Console) -> int:
    """Claims the run folder before any work, so that only one of two processes fits."""
    clock = Clock()
    with RunFolder.claimed(command.out) as folder:
        resumed = command.resume and folder.config_file.exists()
        if resumed and folder.finished:
            console.say(f"{folder.path} is already finished: {folder.report_file}")
            return_others()
            return 0
        if not resumed:
            check_vacant(command.out)
        with clock.measured("reading"):
            plan = planned()
        config = plan.config(command, shlex.join(["sbridge", *console.arguments]))
        if resumed:
            folder.reopen(config)
            _warn_of_changes(folder.config(), config, console)
        else:
            folder.create(config)
        _introduce(plan, console)
        try:
            _complete(command, plan, folder, console, clock)
        except (InvalidInputError, UnsupportedError):
            if not resumed:
                folder.discard()
            raise
        except KeyboardInterrupt as stop:
            _tell_how_to_go_on(stop, folder, console)
            return 128 + int(stop.signal if isinstance(stop, Stopped) else signal.SIGINT)
    return 0


def _complete(command: Training, plan: Plan, folder: ClaimedFolder, console: Console, clock: Clock) -> None:
    """Fits, scores, draws and reports in a claimed folder."""
    watchers = _Watchers(plan, command.checkpoint_every, console)
    try:
        with clock.measured("fitting"):
            course = train(folder, plan.legs, plan.times, watchers, every=command.checkpoint_every)
    finally:
        watchers.close()
    histories = folder.histories()
    if command.held_out and command.evaluation:
        console.remark("scoring on held-out rows …")
    bar = ScoringBar(console)
    with clock.measured("scoring"), watched(bar), closing(bar):
        legs = [_leg_report(plan, course, leg, histories[leg], command) for leg in range(len(plan.legs))]
    if command.figures:
        console.remark("drawing figures …")
        with clock.measured("drawing"):
            ends = [in_memory(rows, _FIGURE_ROWS, command.seed)[:_FIGURE_ROWS] for rows in plan.kept]
            certificates = [leg.certificate for leg in legs]
            seed = derive(command.seed, "figures")
            draw(course, ends, histories, folder.figures, seed=seed, certificates=certificates)
    report = RunReport(folder.config(), plan.notes, legs, clock.seconds, peak_memory())
    documents.write_text(folder.path / "report.txt", report.text())
    folder.tidy()
    documents.write_text(folder.report_file, json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n")
    console.say(report.text(choices=False))  # they were told before the fit
    console.say(f"Run folder: {folder.path}")


def _leg_report(plan: Plan, course: Course, leg: int, history: Sequence[Numbers], command: Training) -> LegReport:
    bridge, prepared = course.bridges[leg], plan.legs[leg]
    seed = command.seed if len(plan.legs) == 1 else derive(command.seed, "scores", leg)
    x0, x1 = plan.held_out[leg], plan.held_out[leg + 1]
    scored = command.evaluation and len(x0) > 0
    evaluation = evaluate(bridge, x0, x1, seed=seed) if scored else None
    certificate = None
    if scored and not is_reverse_diffusion(bridge):  # whose forward process is the reference: nothing to bound
        certificate = certificate_or_reason(bridge, x0, x1, seed=seed)
    return LegReport(
        plan.times[leg],
        plan.times[leg + 1],
        describe(prepared.problem.reference),
        describe(prepared.solver),
        history[-1] if history else {},
        evaluation,
        certificate,
    )


class _Watchers:
    """Makes the progress display of each leg, and closes the previous one."""

    def __init__(self, plan: Plan, every: float, console: Console) -> None:
        self.plan, self.every, self.console = plan, every, console
        self.now: Progress | None = None

    def __call__(self, leg: int, length: int) -> Sequence[Callback]:
        self.close()
        times, count = self.plan.times, len(self.plan.legs)
        label = "training" if count == 1 else f"training {times[leg]:g} → {times[leg + 1]:g}"
        solver = self.plan.legs[leg].solver
        open_ended = type(solver).finished is not Solver.finished
        advice = f"saving a checkpoint every {duration(self.every)}; you can stop (Ctrl-C) and resume"
        self.now = Progress(self.console, label, length, open_ended, advice)
        return (self.now,)

    def close(self) -> None:
        if self.now is not None:
            self.now.close()
            self.now = None


def _introduce(plan: Plan, console: Console) -> None:
    for moment, table, held in zip(plan.times, plan.inputs.tables, plan.held_out, strict=False):
        shape = f"{len(table.rows)} × {table.dim} {str(table.dtype)[6:]}"
        console.tell(f"t = {moment:g}: {table.name}, {shape}, {len(held)} rows held out")
    for note in plan.notes:
        console.tell(note)


def _warn_of_changes(before: Json, now: Json, console: Console) -> None:
    """Warns of changed versions and threads, which may change the last bits of the result."""
    for key in ("versions", "threads"):
        if before.get(key) != now[key]:
            console.complain(
                f"warning: {key} changed from {before.get(key)} to {now[key]}: the last digits of the model may differ "
                "from those of an uninterrupted run."
            )


def _tell_how_to_go_on(stop: KeyboardInterrupt, folder: RunFolder, console: Console) -> None:
    again = shlex.join(["sbridge", *(word for word in console.arguments if word != "--resume"), "--resume"])
    if isinstance(stop, Stopped):
        console.complain(f"stopped after step {stop.step}; a checkpoint was written. To continue:", again)
    else:
        kept = "a checkpoint is" if folder.checkpoint_file.exists() else "the work so far is"
        console.complain(f"stopped; {kept} kept in {folder.path}. To continue:", again)
