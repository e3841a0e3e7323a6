"""Run folders: the files of a fit, checkpoints, and resuming after an interruption."""

from sbridge._names import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
