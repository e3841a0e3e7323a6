"""Training and simulation on a GPU beside the CPU: ``python -m docs.benchmarks.gpu``, a few minutes.

One line for each device: seconds of an ``IMF`` fit in 64 columns, and milliseconds of a simulation of 4096 paths with
50 columns and 100 steps, beside those of its drift evaluations and of its noise alone. Wall-clock time, with the device
at rest before and after. ``--device cpu`` prints the line of the CPU alone, which shows that the script runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import tyro

from docs.benchmarks.simulation import control, medians
from sbridge.benchmarks.output import say
from sbridge.devices import as_device
from sbridge.laws import Samples
from sbridge.measures import PathMeasure
from sbridge.parts import moved
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion
from sbridge.random import NormalNoise, generator
from sbridge.solvers import IMF
from sbridge.time import TimeGrid


@dataclass(frozen=True)
class Settings:
    """Options of this benchmark.

    Args:
        device: beside the CPU.
        updates: of each network of the fit, in each of its two parts.
        rows, dim: samples a side of the fit, and their columns.
        shape: paths, columns and steps of the simulation.
        repetitions: of the simulation; times are medians.
    """

    device: str = "cuda"
    updates: int = 200
    rows: int = 10_000
    dim: int = 64
    shape: tuple[int, int, int] = (4096, 50, 100)
    repetitions: int = 9


def at_rest(task: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """Returns ``task`` with a wait for the device after it."""

    def run() -> None:
        task()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def seconds_of_training(settings: Settings, device: torch.device) -> float:
    """Seconds of all steps of a fit but the first, which compiles kernels."""
    x0, x1 = (torch.randn(settings.rows, settings.dim, generator=generator(seed)) for seed in (0, 1))
    problem = BridgeProblem(Samples(x0), Samples(x1 + 1.0), BrownianMotion(1.0)).to(device)
    solver = replace(IMF(), pretraining=settings.updates, stages=1, updates=settings.updates)
    state, _ = solver.step(problem, solver.init(problem, 0))

    def rest() -> None:
        now = state
        while not solver.finished(problem, now):
            now, _ = solver.step(problem, now)

    task = at_rest(rest, device)
    begun = time.perf_counter()
    task()
    return time.perf_counter() - begun


def milliseconds_of_simulation(settings: Settings, device: torch.device) -> dict[str, float]:
    """Median times of all drift evaluations, of the noise, and of whole paths."""
    batch, dim, steps = settings.shape
    network, x = moved(control(dim), device), torch.zeros(batch, dim, device=device)
    measure = PathMeasure(BrownianMotion(1.0), network, Samples(x), grid=TimeGrid.uniform(steps))

    def noise() -> torch.Tensor:
        return NormalNoise(0, steps, batch, dim, device=device).stored()

    states = noise()

    @torch.no_grad()
    def drift() -> None:
        for k in range(steps):
            network(k / steps, states[k])

    tasks = {"drift": drift, "noise": noise, "ours": lambda: measure.simulate(x, seed=0)}
    return medians({name: at_rest(task, device) for name, task in tasks.items()}, settings.repetitions)


def main(settings: Settings) -> None:
    """Prints the table."""
    other = as_device(settings.device)
    say(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {name_of(other)}")
    say("device  | IMF, s | drift, ms  noise, ms  paths, ms  paths / (drift + noise)")
    for device in dict.fromkeys((torch.device("cpu"), other)):
        fit, t = seconds_of_training(settings, device), milliseconds_of_simulation(settings, device)
        ratio = t["ours"] / (t["drift"] + t["noise"])
        say(f"{device!s:7} |{fit:7.1f} |{t['drift']:10.1f} {t['noise']:10.1f} {t['ours']:10.1f} {ratio:24.2f}")


def name_of(device: torch.device) -> str:
    """Returns the name of a GPU as its maker spells it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


if __name__ == "__main__":
    main(tyro.cli(Settings))
