"""Contents of a run folder.

::

    config.json                           settings, digests of the inputs, versions
    bridge.json, bridge.safetensors       the model (bridge-1, bridge-2, … for the legs of a time course)
    history.json                          numbers reported by the training steps
    figures/, report.txt, report.json     written last
    checkpoint.safetensors                while the run is unfinished

Everything is written atomically, so a process may be killed at any moment. Nothing but the report depends on wall
time: an interrupted and resumed run ends in the same bytes. Only a process that has claimed the folder writes to it or
removes files from it: see :meth:`RunFolder.claimed`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from sbridge.devices import Device, as_device
from sbridge.errors import FileFormatError, InvalidInputError
from sbridge.fitting.courses import Course
from sbridge.parts import moved
from sbridge.runs.files import RunFiles
from sbridge.solutions import load_bridge
from sbridge.storage import documents
from sbridge.storage.claims import check_vacant, claimed, remove_parts
from sbridge.storage.documents import Json
from sbridge.training import Numbers

HISTORY_FORMAT = "sbridge.history/1"
_FREE_TO_CHANGE = ("command", "name", "threads", "versions", "format", "checksum")


@dataclass(frozen=True)
class RunFolder(RunFiles):
    """A run folder: its files and what they hold."""

    @classmethod
    @contextmanager
    def claimed(cls, path: Path) -> Iterator[ClaimedFolder]:
        """Claims the folder ``path``, made if it does not exist, and locks out other processes.

        Raises:
            InvalidInputError: if another process uses it, or ``path`` is a file.
            OSError: if the folder cannot be made.
        """
        with claimed(path):
            yield ClaimedFolder(path)

    def checksum(self) -> str:
        """Returns the SHA-256 of settings and data: of ``config.json`` without what may differ when it is resumed."""
        return documents.checksum(_binding(self.config()))

    def course(self, device: Device = "cpu") -> Course:
        """Loads the fitted bridges on their time axis, onto ``device``.

        Raises:
            FileFormatError: if the run is not finished.
            InvalidInputError: if there is no such device.
        """
        place = as_device(device)
        times = _times(self.config(), self.config_file)
        legs, run = len(times) - 1, self.checksum()
        if self.legs_done(legs) < legs:
            raise FileFormatError(f"{self.path} has no finished model; repeat its command with --resume.")
        return moved(Course(times, tuple(load_bridge(self.bridge(leg, legs), run) for leg in range(legs))), place)

    def histories(self) -> list[list[Numbers]]:
        """Reads, for each leg, what its steps reported."""
        document = documents.read_json(self.history_file)
        if not isinstance(document, dict) or document.get("format") != HISTORY_FORMAT:
            raise FileFormatError(f"{self.history_file} is not a history (expected format {HISTORY_FORMAT!r}).")
        legs = document.get("legs")
        if not (isinstance(legs, list) and all(isinstance(leg, list) and all(map(_is_info, leg)) for leg in legs)):
            raise FileFormatError(f"{self.history_file} needs legs, each a list of steps with numbers.")
        return legs

    def write_histories(self, histories: Sequence[Sequence[Numbers]]) -> None:
        """Writes ``history.json``."""
        legs = ",\n".join("  [" + ",\n   ".join(json.dumps(dict(row)) for row in rows) + "]" for rows in histories)
        documents.write_text(self.history_file, f'{{"format": "{HISTORY_FORMAT}", "legs": [\n{legs}\n]}}\n')


@dataclass(frozen=True)
class ClaimedFolder(RunFolder):
    """A run folder that only this process may change, made by :meth:`RunFolder.claimed`."""

    def create(self, config: Json) -> None:
        """Starts a run: writes ``config.json``.

        Raises:
            InvalidInputError: if the folder is not empty.
            OSError: if it cannot be written.
        """
        check_vacant(self.path)
        remove_parts(self.path)
        documents.write_text(self.config_file, dumps(documents.sealed(config)))

    def reopen(self, config: Json) -> None:
        """Continues an unfinished run with the same settings and inputs.

        Raises:
            InvalidInputError: if ``config`` differs from the configuration of the run; versions, the number of threads
                and the names of input files may differ.
            FileFormatError: if the folder holds no run.
        """
        changed = differences(self.config(), json.loads(dumps(config)))
        if changed:
            raise InvalidInputError(
                f"{self.path} was started with other settings or inputs: "
                f"{'; '.join(changed[:5])}{f'; {len(changed) - 5} more' if len(changed) > 5 else ''}. Use the original "
                "ones to resume it, or start a new run in another folder."
            )
        remove_parts(self.path)

    def discard(self) -> None:
        """Undoes :meth:`create` as long as nothing but ``config.json`` was written."""
        if [path.name for path in self.path.iterdir()] == [self.config_file.name]:
            self.config_file.unlink()

    def tidy(self) -> None:
        """Removes the checkpoint and leftovers of killed writes, at the end of a run."""
        self.checkpoint_file.unlink(missing_ok=True)
        remove_parts(self.path)


def differences(old: Json, new: Json, at: str = "") -> list[str]:
    """Describes the differences between two configurations; names of files, versions and threads may differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in {**old, **new} if key not in _FREE_TO_CHANGE]
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{at}.{key}".lstrip("."))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for index, (a, b) in pairs for line in differences(a, b, f"{at}[{index}]")]
    return [] if old == new else [f"{at} was {_shown(old)}, is {_shown(new)}"]


def _binding(config: Json) -> Json:
    """Returns what ties a model to its run: the settings and the checksums of the data."""
    if isinstance(config, dict):
        return {key: _binding(value) for key, value in config.items() if key not in _FREE_TO_CHANGE}
    return [_binding(item) for item in config] if isinstance(config, list) else config


def _times(config: dict[str, Json], path: Path) -> tuple[float, ...]:
    """Returns the times of the snapshots; raises FileFormatError unless they are at least two increasing numbers."""
    times = config.get("times")
    if not isinstance(times, list) or not all(type(t) in (int, float) and math.isfinite(t) for t in times):
        raise FileFormatError(f"{path} needs times, a list of numbers, got {_shown(times)}.")
    if len(times) < 2 or any(a >= b for a, b in pairwise(times)):
        raise FileFormatError(f"{path} needs at least two increasing times, got {_shown(times)}.")
    return tuple(map(float, times))


def dumps(document: Json) -> str:
    """Formats JSON as in run folders."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _is_info(row: Json) -> bool:
    return isinstance(row, dict) and "step" in row and all(type(value) in (int, float) for value in row.values())


def _shown(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
