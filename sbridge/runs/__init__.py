"""Run folders: the files of a fit, checkpoints, and resuming after an interruption."""

from sbridge.runs.checkpoints import Checkpoint, History, Stopped
from sbridge.runs.folder import FORMAT as RUN_FORMAT, ClaimedFolder, RunFolder, differences
from sbridge.runs.train import Observer, train

__all__ = [
    "RUN_FORMAT",
    "Checkpoint",
    "ClaimedFolder",
    "History",
    "Observer",
    "RunFolder",
    "Stopped",
    "differences",
    "train",
]
