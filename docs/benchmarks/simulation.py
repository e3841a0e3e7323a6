"""Time of a simulation and memory of its gradient.

``python -m docs.benchmarks.simulation`` prints the tables. Times are medians of interleaved repetitions in wall-clock
time. Memory is the peak resident size of a fresh process. On a machine with other work, ``OMP_NUM_THREADS=1`` keeps
threads from waiting for each other.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from docs.benchmarks.native import native_euler
from sbridge.benchmarks import memory
from sbridge.benchmarks.output import say
from sbridge.controls import MLP, Control, seeded_control
from sbridge.errors import InvalidInputError
from sbridge.processes import BrownianMotion, Chain, Direction, ExactTransition
from sbridge.random import NormalNoise
from sbridge.simulation import Backprop, Detached, GradientMethod, ReversibleAdjoint, endpoint, simulate
from sbridge.time import TimeGrid

SHAPES = [(256, 2, 100), (1024, 50, 100), (4096, 2, 100), (256, 2, 1000)]
"""``(batch, dim, steps)``."""
REPETITIONS = 9
MEMORY_SHAPE = (512, 20)
GRADIENTS: dict[str, GradientMethod] = {"adjoint": ReversibleAdjoint(), "backprop": Backprop(), "detached": Detached()}


def medians(tasks: Mapping[str, Callable[[], object]], repetitions: int = REPETITIONS) -> dict[str, float]:
    """Median wall time of each task in milliseconds; the tasks take turns, so drifts of the machine hit all."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for repetition in range(repetitions + 1):
        for name, task in tasks.items():
            begin = time.perf_counter()
            task()
            if repetition:  # the first round is a warm-up
                taken[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(times) for name, times in taken.items()}


def time_simulation(batch: int, dim: int, steps: int, repetitions: int = REPETITIONS) -> dict[str, float]:
    """Milliseconds of the drift evaluations alone, of drawing the noise, of a plain loop, and of :func:`simulate`.

    Brownian reference, the default network, float32; the noise is drawn and kept, states and control values are kept.
    """
    process, network = BrownianMotion(1.0), control(dim)
    x0 = torch.zeros(batch, dim)
    times = TimeGrid.uniform(steps).times(1.0)
    moments = times.tolist()
    elsewhere = noise(batch, dim, steps)

    @torch.no_grad()
    def drift() -> None:
        for k in range(steps):
            network(moments[k], elsewhere[k])

    def ours() -> None:
        chain = Chain(process, times, Direction.FORWARD, ExactTransition(), x0)
        simulate(chain, network, x0, noise(batch, dim, steps))

    tasks: dict[str, Callable[[], object]] = {
        "drift": drift,
        "noise": lambda: noise(batch, dim, steps),
        "loop": lambda: plain_loop(network, x0, steps),
        "ours": ours,
    }
    return medians(tasks, repetitions)


@torch.no_grad()
def plain_loop(network: Control, x0: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """The loop that one would write by hand for this case."""
    (batch, dim), width = x0.shape, steps**-0.5
    xi = noise(batch, dim, steps)
    states, controls = x0.new_empty(steps + 1, *x0.shape), x0.new_empty(steps, *x0.shape)
    x = states[0] = x0
    for k in range(steps):
        u = controls[k] = network(k / steps, x)
        x = states[k + 1] = x + width * (width * u + xi[k])
    return states, controls, xi


def time_native(batch: int, dim: int, steps: int) -> dict[str, float]:
    """Milliseconds of torchsde with its own Brownian motion, without and with a hint of the step."""
    network, x0 = control(dim), torch.zeros(batch, dim)
    tasks: dict[str, Callable[[], object]] = {
        "native": lambda: native_euler(network, x0, steps, 0, None),
        "hinted": lambda: native_euler(network, x0, steps, 0, 1.0 / steps),
    }
    return medians(tasks, 3 if steps <= 100 else 1)


def gradient_step(gradient: GradientMethod, batch: int, dim: int, steps: int, *, recipe: MLP = MLP()) -> None:
    """One gradient of ``E[∫ ½|u|² dt + |X_T|²]`` by the reversible Heun scheme, with noise drawn when needed."""
    network, x0 = control(dim, recipe), torch.zeros(batch, dim)
    xi, times = NormalNoise(0, steps, batch, dim), TimeGrid.uniform(steps).times(1.0)

    def running_cost(t: float | Tensor, x: Tensor, u: Tensor) -> Tensor:
        return 0.5 * u.square().sum(1)

    end, cost = endpoint(BrownianMotion(1.0), network, x0, times, xi, gradient, running_cost)
    if not isinstance(gradient, Detached):
        (cost + end.square().sum(1)).mean().backward()


def peak_memory(gradient: str, steps: int) -> tuple[float, float]:
    """Peak resident MB of a fresh process that takes one :func:`gradient_step`: in all, and beyond its imports."""
    printed = memory.in_fresh_process("docs.benchmarks.simulation", ["memory", gradient, str(steps)])
    total, before = (float(word) for word in printed.split())
    return total, total - before


def control(dim: int, recipe: MLP = MLP()) -> Control:
    """A network control with weights from a fixed seed."""
    return seeded_control(recipe, dim, 1.0, 1.0, torch.Generator().manual_seed(0))


def noise(batch: int, dim: int, steps: int) -> Tensor:
    """Stored noise, shape ``(steps, batch, dim)``."""
    return NormalNoise(0, steps, batch, dim).stored()


def _report_memory(gradient: str, steps: int) -> None:
    batch, dim = MEMORY_SHAPE
    gradient_step(GRADIENTS[gradient], 2, dim, 2, recipe=MLP(64, 2))  # loads what is loaded on first use
    before = memory.peak_memory()
    gradient_step(GRADIENTS[gradient], batch, dim, steps, recipe=MLP(64, 2))
    say(f"{memory.peak_memory()} {before}")


def _print_times() -> None:
    say(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    say("Simulation, ms (median); ratio = ours / (drift + noise); over = (ours − loop) per step, µs")
    say("batch  dim steps |   drift   noise    loop    ours |  ratio    over |  native  hinted")
    for batch, dim, steps in SHAPES:
        t = {**time_simulation(batch, dim, steps), **time_native(batch, dim, steps)}
        ratio, over = t["ours"] / (t["drift"] + t["noise"]), 1e3 * (t["ours"] - t["loop"]) / steps
        say(
            f"{batch:5d} {dim:4d} {steps:5d} |{t['drift']:8.1f}{t['noise']:8.1f}{t['loop']:8.1f}{t['ours']:8.1f} |"
            f"{ratio:7.3f}{over:8.1f} |{t['native']:8.0f}{t['hinted']:8.0f}"
        )


def _print_gradients() -> None:
    tasks = {name: partial(gradient_step, gradient, 256, 2, 100) for name, gradient in GRADIENTS.items()}
    taken = ", ".join(f"{name} {value:.0f}" for name, value in medians(tasks, 5).items())
    say(f"Reversible Heun at (256, 2, 100), ms: {taken}")
    say(f"Peak memory of one gradient at {MEMORY_SHAPE}, noise drawn again when needed, MB in all (beyond imports)")
    for name, many in (("adjoint", 10_000), ("backprop", 1000)):
        few, more = peak_memory(name, 100), peak_memory(name, many)
        say(
            f"{name:9s} 100 steps {few[0]:7.1f} ({few[1]:6.1f})   {many} steps {more[0]:7.1f} ({more[1]:6.1f})"
            f"   growth {100 * (more[0] / few[0] - 1):.1f} %"
        )


def main(arguments: list[str]) -> None:
    """Print the tables, or with ``memory GRADIENT STEPS`` the two numbers of one measurement."""
    if not arguments:
        _print_times()
        _print_gradients()
    elif len(arguments) == 3 and arguments[0] == "memory" and arguments[1] in GRADIENTS:
        _report_memory(arguments[1], int(arguments[2]))
    else:
        raise InvalidInputError(f"no arguments, or `memory adjoint|backprop STEPS`; got {arguments}.")


if __name__ == "__main__":
    main(sys.argv[1:])
