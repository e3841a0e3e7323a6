"""Throughput of two processes of one thread against one: ``python -m docs.benchmarks.processes``.

The two kinds of run take turns, so that other work on the machine meets both. Each fits the same problem by ``IMF``;
two stages are timed, simulation of pairs included. Wall time is what counts on an idle machine. On a busy one,
processes that wait for each other lose more than one alone; the CPU seconds of the busiest process then tell how the
work is shared out.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time

import torch

import sbridge as sb
from sbridge.couplings import IndependentCoupling

DIM, ROWS = 64, 5000


def run(updates: int) -> tuple[float, float]:
    """Updates per second of wall time and of CPU time, from the third stage on."""
    generator = torch.Generator().manual_seed(0)
    x0, x1 = (torch.randn(ROWS, DIM, generator=generator) for _ in range(2))
    problem = sb.BridgeProblem(sb.Samples(x0), sb.Samples(0.8 * x1 + 1.0), sb.BrownianMotion(1.0))
    solver = sb.IMF(IndependentCoupling(), pretraining=10, stages=4, updates=updates)
    begun: list[tuple[float, float]] = []

    def look(state: sb.solvers.State, info: object) -> None:
        if state.step in (10 + updates, 10 + 3 * updates):
            begun.append((time.perf_counter(), time.process_time()))

    sb.solve(problem, solver, seed=0, callbacks=[look])
    wall, cpu = (2 * updates / (after - before) for before, after in zip(*begun, strict=True))
    return wall, cpu


def measured(processes: int, updates: int) -> tuple[float, float]:
    words = [sys.executable, "-m", __spec__.name, "--rates", str(updates)]
    if processes > 1:
        words[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    rates = [json.loads(found) for found in re.findall(r"\[.*?\]", told)]  # lines of two processes may mix
    return min(wall for wall, _ in rates), min(cpu for _, cpu in rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=200, help="per stage")
    parser.add_argument("--pairs", type=int, default=5, help="number of pairs of runs")
    parser.add_argument("--rates", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.rates is not None:
        print(json.dumps(run(options.rates)), flush=True)  # noqa: T201
        return
    ratios = []
    for _ in range(options.pairs):
        one, two = (measured(processes, options.updates) for processes in (1, 2))
        ratios.append([b / a for a, b in zip(one, two, strict=True)])
        text = ", ".join(
            f"{name}: one process {a:.1f}, two {b:.1f} updates/s, ratio {b / a:.2f}"
            for name, a, b in zip(("wall", "CPU"), one, two, strict=True)
        )
        print(text, flush=True)  # noqa: T201
    wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"medians of {len(ratios)} pairs: wall {wall:.2f}, CPU {cpu:.2f}")  # noqa: T201


if __name__ == "__main__":
    main()
