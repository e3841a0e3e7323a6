"""Many samples: ``python -m docs.benchmarks.many_rows``: memory and time per step from 10⁴ to 10⁶ samples a side.

Ends: the Gaussian mixtures of :mod:`docs.benchmarks.large` in 50 dimensions. ``imf`` takes a few updates after its
start coupling. ``mixture`` takes a whole fit of five components, which uses 100 000 samples at most. Each line is
measured in its own process. ``data`` is the memory of the samples; a solver may keep a scaled copy of them, too.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import tyro

from docs.benchmarks import large
from sbridge.benchmarks.memory import in_fresh_process, peak_memory
from sbridge.benchmarks.output import row
from sbridge.benchmarks.tables import timed
from sbridge.couplings import EntropicCoupling
from sbridge.errors import check_known
from sbridge.laws import Samples
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion
from sbridge.solvers.base import Solver
from sbridge.solvers.imf import IMF
from sbridge.solvers.mixture import MixtureBridge
from sbridge.storage.documents import Json

SOLVERS: dict[str, Solver] = {
    "mixture": MixtureBridge(components=(5,), rounds=1, iterations=10),
    "imf": IMF(coupling=EntropicCoupling(rows=1024), pretraining=100, stages=2, updates=50, refresh=50),
}
"""By name; the fits are short, since memory and time per step need no more."""
_SIGMA = 3.0


@dataclass(frozen=True)
class Settings:
    """Options of this benchmark.

    Args:
        solvers: names of rows.
        rows: training samples a side.
        dim: columns.
    """

    solvers: tuple[str, ...] = tuple(SOLVERS)
    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    dim: int = 50


def run(name: str, rows: int, dim: int) -> Json:
    """Measures seconds of the start, seconds per step, and memory in MiB, in this process."""
    ends = large.Settings(dim=dim, rows=rows)
    x0, x1 = (large.sample(ends, end, "train", rows) for end in ("source", "target"))
    problem, solver = BridgeProblem(Samples(x0), Samples(x1), BrownianMotion(_SIGMA)), SOLVERS[name]
    before = peak_memory()
    state, start = timed(lambda: solver.init(problem, 0))
    steps = 0

    def train() -> None:
        nonlocal state, steps
        while not solver.finished(problem, state):
            state, _ = solver.step(problem, state)
            steps += 1

    _, seconds = timed(train)
    _, finish = timed(lambda: solver.finish(problem, state))
    data = 2 * x0.numel() * x0.element_size() / 2**20
    return {
        "start": start,
        "per_step": seconds / steps,
        "finish": finish,
        "data": data,
        "before": before,
        "peak": peak_memory(),
    }


def main(settings: Settings) -> None:
    """Prints a line per solver and number of samples."""
    check_known("solver", settings.solvers, SOLVERS)
    for name in settings.solvers:
        for rows in settings.rows:
            arguments = [_ONE_ROW, name, str(rows), str(settings.dim)]
            found = json.loads(in_fresh_process("docs.benchmarks.many_rows", arguments))
            row(
                f"{name} {rows} × {settings.dim} a side",
                start=f"{found['start']:.1f} s",
                step=f"{1e3 * found['per_step']:.1f} ms",
                finish=f"{found['finish']:.1f} s",
                data=f"{found['data']:.0f} MiB",
                peak=f"{found['peak']:.0f} MiB",
                before=f"{found['before']:.0f} MiB",
            )


_ONE_ROW = "one-row"

if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[1] == _ONE_ROW:  # for the parent process
        sys.stdout.write(json.dumps(run(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))) + "\n")
    else:
        main(tyro.cli(Settings))
