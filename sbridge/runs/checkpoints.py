"""Checkpoints, and requests to stop a run."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import ChainMap
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Self

import torch
from torch import Tensor

from sbridge import distributed
from sbridge.errors import FileFormatError, NonFiniteError, shown
from sbridge.storage import documents, files
from sbridge.training import Numbers, State, StateDict

_ANY_FORMAT = "sbridge.checkpoint/"
CHECKPOINT_FORMAT = f"{_ANY_FORMAT}4"
_READ = (CHECKPOINT_FORMAT, f"{_ANY_FORMAT}3")
HISTORY_ROWS = 2000
_ASKED_EVERY = 10
_DOCUMENT = "document"  # name of the tensor that holds the JSON part of a checkpoint


@dataclass(frozen=True)
class Checkpoint:
    """A saved state of training.

    Args:
        leg: index of the leg in training.
        state: state of its solver, as :meth:`~sbridge.training.State.state_dict` gives it.
        history: the history of the leg so far.
        run: checksum of the settings and data of the run (:attr:`RunFolder.checksum <sbridge.runs.RunFolder>`).
    """

    leg: int
    state: StateDict
    history: list[Numbers]
    run: str

    def write(self, path: Path) -> None:
        """Writes one safetensors file: tensors, and all else as JSON in a tensor of bytes, with the SHA-256 of both."""
        tensors = {f"state.{key}": value for key, value in self.state.items() if isinstance(value, Tensor)}
        scalars = {key: value for key, value in self.state.items() if not isinstance(value, Tensor)}
        document = {
            "format": CHECKPOINT_FORMAT,
            "run": self.run,
            "leg": self.leg,
            "scalars": scalars,
            "history": [dict(row) for row in self.history],
            "threads": torch.get_num_threads(),
            "tensors": files.checksum_of_tensors(tensors),
        }
        text = json.dumps(documents.sealed(document)).encode()
        tensors[_DOCUMENT] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        files.write_tensors(path, tensors)

    @classmethod
    def read(cls, path: Path, run: str) -> Checkpoint:
        """Reads a checkpoint that :meth:`write` wrote in the same ``run``.

        Raises:
            FileFormatError: if the file is damaged, of another kind, or of a run with other settings or data.
        """
        tensors = files.read_tensors(path)
        document = tensors.pop(_DOCUMENT, None)
        advice = "delete it to start training again"
        try:
            known = {} if document is None else json.loads(document.numpy().tobytes())
        except (ValueError, RecursionError) as error:
            raise FileFormatError(f"{path} is damaged ({error}); {advice}.") from error
        written = known.get("format") if isinstance(known, dict) else None
        if written not in _READ and str(written).startswith(_ANY_FORMAT):
            raise FileFormatError(
                f"{path} was written by another version of this package (format {shown(written)}, this one reads "
                f"{CHECKPOINT_FORMAT!r}): resume the run with that version, or {advice}."
            )
        if written not in _READ:
            raise FileFormatError(f"{path} is not a checkpoint (expected format {CHECKPOINT_FORMAT!r}); {advice}.")
        documents.check_seal(known, path)
        if known["tensors"] != files.checksum_of_tensors(tensors):
            raise FileFormatError(f"{path} is damaged: the SHA-256 of its numbers does not match; {advice}.")
        if known["run"] != run:
            raise FileFormatError(f"{path} belongs to a run with other settings or data; {advice}.")
        state: StateDict = {key.removeprefix("state."): value for key, value in tensors.items()}
        return cls(known["leg"], state | known["scalars"], known["history"], run)


class Stopped(KeyboardInterrupt):
    """Raised when a signal has stopped the run and its checkpoint is written.

    Args:
        signal: number of the signal.
        step: steps done.
    """

    def __init__(self, signal: int, step: int) -> None:
        super().__init__(signal, step)
        self.signal = signal
        self.step = step


class StopRequest:
    """Context in which the first SIGINT or SIGTERM only sets ``signal``, which is read between two steps.

    A second one interrupts at once and leaves the latest checkpoint. Outside the main thread, signals are not changed.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def agreed(self, state: State) -> int | None:
        """The signal that one of the processes of this fit got; several processes ask each other every ten steps."""
        if distributed.size() == 1:
            return self.signal
        return (distributed.largest(self.signal or 0) or None) if state.step % _ASKED_EVERY == 0 else None

    def follow(self, state: State, info: Numbers) -> None:
        """Callback of the processes that write nothing: raises Stopped when process 0 does."""
        number = self.agreed(state)
        if number is not None:
            raise Stopped(number, state.step)

    def raise_between_legs(self, step: int) -> None:
        """Raises Stopped if one of the processes got a signal, after ``step`` steps of a leg that is finished."""
        number = distributed.largest(self.signal or 0)
        if number:
            raise Stopped(number, step)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


@dataclass
class History:
    """Callback that records the reports of steps: all of them up to 2000 steps, otherwise every k-th and the latest.

    Args:
        length: the largest number of steps.
        rows: the recorded reports, each with its ``step``.
    """

    length: int
    rows: list[Numbers] = field(default_factory=list)

    def __call__(self, state: State, info: Numbers) -> None:
        """Appends ``info``; replaces the previous entry if that one is not to be kept."""
        every = max(1, -(-self.length // HISTORY_ROWS))
        if self.rows and self.rows[-1]["step"] % every:
            self.rows.pop()
        # The numbers stay unread until the row is written, so that no step waits for them.
        self.rows.append(ChainMap(info, {"step": state.step}))  # type: ignore[arg-type]


class Keeper:
    """Callback that writes checkpoints at intervals in seconds, and when the run is stopped.

    Args:
        path: path of the checkpoint.
        run: checksum of the settings and data of the run.
        leg: index of the leg in training.
        history: the history of the leg; it is called before the keeper.
        every: seconds between checkpoints.
        stop: checked between steps.
    """

    def __init__(self, path: Path, run: str, leg: int, history: History, every: float, stop: StopRequest) -> None:
        self.path, self.run, self.leg, self.history, self.every, self.stop = path, run, leg, history, every, stop
        self.last_step: int | None = None
        self._due = time.monotonic() + every

    def __call__(self, state: State, info: Numbers) -> None:
        """Writes a checkpoint if one is due; raises Stopped after a signal."""
        number = self.stop.agreed(state)
        if number is not None or time.monotonic() >= self._due:
            self._write(state)
        if number is not None:
            raise Stopped(number, state.step)

    def _write(self, state: State) -> None:
        saved = state.state_dict()
        for name, value in saved.items():
            if isinstance(value, Tensor) and value.is_floating_point() and bool(value.isnan().any()):
                raise NonFiniteError(
                    f"{name} holds NaN at step {state.step} of {self.history.length}. Likely causes: a learning rate "
                    "that is too large, σ far smaller than the scale of the data, or extreme outliers in the data."
                )
        Checkpoint(self.leg, saved, self.history.rows, self.run).write(self.path)
        self.last_step = state.step
        self._due = time.monotonic() + self.every
