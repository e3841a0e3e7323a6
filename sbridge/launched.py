"""What torchrun tells a process in its environment. Nothing here needs torch."""

from __future__ import annotations

import os

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> tuple[int, int]:
    """Returns the index of this process and the number of processes that torchrun started; ``(0, 1)`` without it."""
    if any(name not in os.environ for name in _TORCHRUN):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
