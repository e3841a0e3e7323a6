"""Peak memory of this process and of new ones."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sbridge.errors import NotConvergedError


def peak_memory() -> float:
    """Returns the peak resident size of this process in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent had when it started this process
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def in_fresh_process(module: str, arguments: Sequence[str], *, threads: int | None = None) -> str:
    """Returns what ``python -m MODULE ARGUMENTS …`` writes on standard output.

    Args:
        module, arguments: see above.
        threads: that it may compute with; ``None``: as many as this process.

    Raises:
        NotConvergedError: with the last line of its errors, if it fails.
    """
    settings = dict(os.environ) | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=settings)
    if done.returncode != 0:
        last = done.stderr.strip().rsplit("\n", 1)[-1]
        raise NotConvergedError(f"the measurement {' '.join(arguments)} failed: {last}")
    return done.stdout
