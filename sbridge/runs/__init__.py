"""Run folders: what a fit leaves on disk, checkpoints, and how it goes on after an interruption."""

from sbridge.runs.checkpoints import Checkpoint, History, Stopped
from sbridge.runs.folder import FORMAT as RUN_FORMAT, RunFolder, check_vacant, differences
from sbridge.runs.train import Observer, train

__all__ = [
    "RUN_FORMAT",
    "Checkpoint",
    "History",
    "Observer",
    "RunFolder",
    "Stopped",
    "check_vacant",
    "differences",
    "train",
]
