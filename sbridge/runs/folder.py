"""The contents of a run folder.

::

    config.json                           settings, digests of the inputs, versions
    bridge.json, bridge.safetensors       the model (bridge-1, bridge-2, … for the legs of a time course)
    history.json                          numbers reported by the training steps
    figures/, report.txt, report.json     written last
    checkpoint.safetensors                while the run is unfinished

Everything is written atomically, so a process may be killed at any moment. Nothing but the report depends on wall
time: a run that was interrupted and taken up again ends in the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sbridge import files
from sbridge.errors import FileFormatError, InvalidInputError
from sbridge.fitting import Course
from sbridge.registry import Json
from sbridge.solutions import load
from sbridge.training import Info

FORMAT = "sbridge.run/1"
HISTORY_FORMAT = "sbridge.history/1"
_LEFTOVERS = ".*.part"  # of writes that were killed
_FREE_TO_CHANGE = ("command", "name", "threads", "versions")


@dataclass(frozen=True)
class RunFolder:
    """Names and contents of a run folder."""

    path: Path

    @property
    def config_file(self) -> Path:
        """Settings, digests of the inputs, versions."""
        return self.path / "config.json"

    @property
    def history_file(self) -> Path:
        """What the training steps reported."""
        return self.path / "history.json"

    @property
    def report_file(self) -> Path:
        """The report; written last, so that it marks a finished run."""
        return self.path / "report.json"

    @property
    def checkpoint_file(self) -> Path:
        """The latest state of training."""
        return self.path / "checkpoint.safetensors"

    @property
    def figures(self) -> Path:
        """The folder of the figures."""
        return self.path / "figures"

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.report_file.exists()

    def legs_done(self, legs: int) -> int:
        """The number of legs whose bridges are saved."""
        stems = [self.bridge(leg, legs) for leg in range(legs)]
        # The JSON file is written after the tensors and the history.
        missing = [leg for leg, stem in enumerate(stems) if not stem.with_name(f"{stem.name}.json").exists()]
        return missing[0] if missing else legs

    def bridge(self, leg: int, legs: int) -> Path:
        """Where the bridge of leg number ``leg`` (from 0) is saved, without ending."""
        return self.path / ("bridge" if legs == 1 else f"bridge-{leg + 1}")

    @classmethod
    def create(cls, path: Path, config: Json) -> RunFolder:
        """A new folder with its ``config.json``.

        Raises:
            InvalidInputError: if the folder exists and is not empty.
            OSError: if it cannot be written; nothing is left behind then.
        """
        check_vacant(path)
        made = not path.exists()
        folder = cls(path)
        try:
            files.write_text(folder.config_file, dumps(config))
        except BaseException:
            if made:
                with suppress(OSError):
                    path.rmdir()
            raise
        return folder

    @classmethod
    def reopen(cls, path: Path, config: Json) -> RunFolder:
        """The folder of an unfinished run of the same settings and inputs.

        Raises:
            InvalidInputError: if ``config`` differs from the one that the run was begun with; versions, the number
                of threads and the names of the input files may.
            FileFormatError: if the folder holds no run.
        """
        folder = cls(path)
        changed = differences(folder.config(), json.loads(dumps(config)))
        if changed:
            raise InvalidInputError(
                f"{path} was begun with other settings or inputs: {'; '.join(changed[:5])}"
                f"{f'; {len(changed) - 5} more' if len(changed) > 5 else ''}. "
                "Use those again to resume it, or start a new run in another folder."
            )
        for leftover in path.glob(_LEFTOVERS):
            leftover.unlink(missing_ok=True)
        return folder

    def config(self) -> Json:
        """The contents of ``config.json``; FileFormatError if this is no run folder."""
        if not self.path.is_dir():
            raise FileFormatError(f"{self.path} is not a run folder: it does not exist.")
        if not self.config_file.exists():
            raise FileFormatError(f"{self.path} is not a run folder: it has no config.json.")
        config = files.read_json(self.config_file)
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            raise FileFormatError(f"{self.config_file} is not that of a run (expected format {FORMAT!r}).")
        return config

    def course(self) -> Course:
        """The fitted bridges on their time axis; FileFormatError if the run is not that far."""
        times = tuple(float(t) for t in self.config()["times"])
        legs = len(times) - 1
        if self.legs_done(legs) < legs:
            raise FileFormatError(f"{self.path} holds no finished model yet; repeat its command with --resume.")
        return Course(times, tuple(load(self.bridge(leg, legs)) for leg in range(legs)))

    def histories(self) -> list[list[Info]]:
        """For each leg, what its steps reported."""
        document = files.read_json(self.history_file)
        if not isinstance(document, dict) or document.get("format") != HISTORY_FORMAT:
            raise FileFormatError(f"{self.history_file} is no history (expected format {HISTORY_FORMAT!r}).")
        return document["legs"]

    def write_histories(self, histories: Sequence[Sequence[Info]]) -> None:
        """``history.json``."""
        legs = ",\n".join("  [" + ",\n   ".join(json.dumps(row) for row in rows) + "]" for rows in histories)
        files.write_text(self.history_file, f'{{"format": "{HISTORY_FORMAT}", "legs": [\n{legs}\n]}}\n')

    def discard(self) -> None:
        """Takes away a folder in which nothing but ``config.json`` was written yet."""
        if [path.name for path in self.path.iterdir()] == [self.config_file.name]:
            self.config_file.unlink()
            self.path.rmdir()

    @contextmanager
    def claimed(self) -> Iterator[Self]:
        """Keeps other processes out of the folder; InvalidInputError if one is at work in it.

        The claim is a lock of the operating system, which ends with the process, however it ends.
        """
        try:
            import fcntl
        except ImportError:  # not on Windows
            yield self
            return
        handle = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InvalidInputError(
                    f"another process is at work in {self.path}. Wait until it ends, or stop it first."
                ) from error
            yield self
        finally:
            os.close(handle)


def check_vacant(path: Path) -> None:
    """InvalidInputError unless ``path`` is free for a new run: it does not exist, or is an empty folder."""
    if path.is_dir() and any(not entry.match(_LEFTOVERS) for entry in path.iterdir()):
        if not (path / "config.json").exists():
            raise InvalidInputError(f"{path} is not empty. Choose another --out.")
        unfinished = not RunFolder(path).finished
        raise InvalidInputError(
            f"{path} holds {'an unfinished' if unfinished else 'another'} run. Choose another --out, or delete the "
            f"folder first{'; the same command with --resume goes on with it' if unfinished else ''}."
        )
    if path.exists() and not path.is_dir():
        raise InvalidInputError(f"{path} is a file; --out needs a folder.")


def differences(old: Json, new: Json, at: str = "") -> list[str]:
    """What differs between two configurations, in words; names of files, versions and threads may."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in {**old, **new} if key not in _FREE_TO_CHANGE]
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{at}.{key}".lstrip("."))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for index, (a, b) in pairs for line in differences(a, b, f"{at}[{index}]")]
    return [] if old == new else [f"{at} was {_shown(old)}, is {_shown(new)}"]


def dumps(document: Json) -> str:
    """JSON as it stands in run folders."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _shown(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
