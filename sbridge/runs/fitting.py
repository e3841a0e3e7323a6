"""Training of the legs of a run, in a folder, with checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sbridge import distributed
from sbridge.errors import NonFiniteError, NotConvergedError
from sbridge.fitting import Preparation
from sbridge.fitting.courses import Course
from sbridge.runs.checkpoints import Checkpoint, History, Keeper, StopRequest
from sbridge.runs.folder import RunFolder
from sbridge.solutions import Bridge, load_bridge, save_bridge
from sbridge.training import Callback

Observer = Callable[[int, int], Sequence[Callback]]
"""Called with the index of a leg and its largest number of steps; returns callbacks to run after every step."""


def train(
    folder: RunFolder, legs: Sequence[Preparation], times: Sequence[float], observer: Observer, *, every: float
) -> Course:
    """Fits the legs that the folder lacks, from its checkpoint if there is one; saves bridges and history.

    Args:
        folder: claimed by the caller.
        legs: one prepared fit for each pair of neighbouring times.
        times: of the snapshots.
        observer: makes the callbacks of a leg.
        every: seconds between checkpoints.

    Raises:
        Stopped: if a signal asked for it; the checkpoint is written.
        NonFiniteError, NotConvergedError: as the solver, with the last good checkpoint.
    """
    done, run = folder.legs_done(len(legs)), folder.checksum()
    found = Checkpoint.read(folder.checkpoint_file, run) if folder.checkpoint_file.exists() else None
    distributed.from_first(lambda: (done, found))
    histories = folder.histories()[:done] if done else []
    bridges: list[Bridge] = [load_bridge(folder.bridge(leg, len(legs)), run) for leg in range(done)]
    with StopRequest() as stop:
        for leg in range(done, len(legs)):
            # A checkpoint of an earlier leg is what a kill left behind after the leg's bridge was saved.
            resumed = found if found is not None and found.leg == leg else None
            histories.append(resumed.history if resumed else [])
            length = legs[leg].solver.max_steps(legs[leg].model)
            keeper = Keeper(folder.checkpoint_file, run, leg, History(length, histories[-1]), every, stop)
            bridges.append(_fit(legs[leg], keeper, observer(leg, length), resumed))
            folder.write_histories(histories)
            save_bridge(bridges[-1], folder.bridge(leg, len(legs)), run)
            folder.checkpoint_file.unlink(missing_ok=True)
            stop.raise_between_legs(length)
    distributed.leave()
    folder.checkpoint_file.unlink(missing_ok=True)  # of a process that was killed after the last bridge was saved
    return Course(tuple(times), tuple(bridges))


def take_part(legs: Sequence[Preparation]) -> None:
    """Shares the fits of process 0 in another process: :func:`train` there reads and writes all files.

    Raises:
        Stopped, NonFiniteError, NotConvergedError: as there.
        DistributedError: if process 0 has ended.
    """
    begun: tuple[int, Checkpoint | None] | None = distributed.from_first(lambda: None)
    if begun is None:
        return
    done, found = begun
    with StopRequest() as stop:
        for leg in range(done, len(legs)):
            resumed = found if found is not None and found.leg == leg else None
            legs[leg].run(callbacks=[stop.follow], resume_from=resumed.state if resumed else None)
            stop.raise_between_legs(legs[leg].solver.max_steps(legs[leg].model))
    distributed.leave()


def return_others() -> None:
    """Lets the other processes return from :func:`take_part`, because there is nothing to fit."""
    distributed.from_first(lambda: None)
    distributed.leave()


def _fit(prepared: Preparation, keeper: Keeper, watchers: Sequence[Callback], resumed: Checkpoint | None) -> Bridge:
    if resumed is not None:
        keeper.last_step = int(resumed.state["step"])  # type: ignore[arg-type]
    callbacks = [keeper.history, *watchers, keeper]
    try:
        return prepared.run(callbacks=callbacks, resume_from=resumed.state if resumed else None)
    except (NonFiniteError, NotConvergedError) as error:
        raise type(error)(f"{error} {_last_good(keeper)}") from error


def _last_good(keeper: Keeper) -> str:
    if keeper.last_step is None:
        return "No checkpoint was written before."
    return f"The last good checkpoint, from step {keeper.last_step}, is {keeper.path}."
