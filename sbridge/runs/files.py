"""The files of a run folder by name, and its settings: what can be read without torch."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from sbridge.errors import FileFormatError, UnverifiedFileWarning
from sbridge.storage import documents
from sbridge.storage.claims import CONFIG, REPORT, check_run
from sbridge.storage.documents import Json

RUN_FORMAT = "sbridge.run/2"
_WITHOUT_CHECKSUM = "sbridge.run/1"


@dataclass(frozen=True)
class RunFiles:
    """A run folder: the names of its files, and its settings."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The file of settings, digests of the inputs, and versions."""
        return self.path / CONFIG

    @property
    def history_file(self) -> Path:
        """The file of what the training steps reported."""
        return self.path / "history.json"

    @property
    def report_file(self) -> Path:
        """The file of the report; written last, so that it marks a finished run."""
        return self.path / REPORT

    @property
    def checkpoint_file(self) -> Path:
        """The file of the latest state of training."""
        return self.path / "checkpoint.safetensors"

    @property
    def figures(self) -> Path:
        """The folder of the figures."""
        return self.path / "figures"

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return self.report_file.exists()

    def legs_done(self, legs: int) -> int:
        """Returns the number of legs whose bridges are saved."""
        stems = [self.bridge(leg, legs) for leg in range(legs)]
        # The JSON file is written after the tensors and the history.
        missing = [leg for leg, stem in enumerate(stems) if not stem.with_name(f"{stem.name}.json").exists()]
        return missing[0] if missing else legs

    def bridge(self, leg: int, legs: int) -> Path:
        """Returns the path, without ending, of the bridge of leg number ``leg`` (from 0)."""
        return self.path / ("bridge" if legs == 1 else f"bridge-{leg + 1}")

    def config(self) -> Json:
        """Reads ``config.json``; raises FileFormatError if this is not a run folder."""
        check_run(self.path)
        config = documents.read_json(self.config_file)
        if not isinstance(config, dict) or config.get("format") not in (RUN_FORMAT, _WITHOUT_CHECKSUM):
            raise FileFormatError(f"{self.config_file} is not that of a run (expected format {RUN_FORMAT!r}).")
        if config["format"] == RUN_FORMAT:
            documents.check_seal(config, self.config_file)
        else:
            warnings.warn(
                f"{self.config_file} was written by an earlier version and has no checksum, so damage to it cannot be "
                "detected.",
                UnverifiedFileWarning,
                stacklevel=2,
            )
        return config
