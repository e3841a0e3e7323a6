"""Memory of one update of control learning, by the number of steps.

``python -m docs.benchmarks.control_memory`` measures each loss in fresh processes, in MiB and in arrays of states,
``steps × paths × dim``. Adjoint matching holds a few such arrays and the activations of the network for a batch of
states. The reversible adjoint holds the noise alone. Backpropagation holds the activations for every state, and so do
likelihood-ratio losses, which evaluate a control at all states at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sbridge.benchmarks.memory import in_fresh_process, peak_memory
from sbridge.benchmarks.output import say
from sbridge.controls import MLP
from sbridge.errors import InvalidInputError
from sbridge.laws import Point
from sbridge.problems import ControlProblem
from sbridge.processes import DriftProcess
from sbridge.processes.base import Time
from sbridge.simulation import ReversibleAdjoint
from sbridge.solvers import AdjointMatching, ControlSolver, LogVariance, RelativeEntropy, Replay
from sbridge.time import TimeGrid
from sbridge.training import Optimisation

PATHS, DIM = 512, 20
STEPS = (100, 1000)
_NET = MLP(64, 2)
_OPTIONS = Optimisation(batch=PATHS)

LOSSES: dict[str, Callable[..., ControlSolver]] = {
    "AdjointMatching": partial(AdjointMatching, replay=Replay(paths=PATHS)),
    "RelativeEntropy, adjoint": partial(RelativeEntropy, gradient=ReversibleAdjoint()),
    "RelativeEntropy, backprop": RelativeEntropy,
    "LogVariance": LogVariance,
}


def update(loss: str, steps: int) -> None:
    """One update of the solver: simulation, loss and gradient."""
    solver = LOSSES[loss](updates=1, network=_NET, optimisation=_OPTIONS, grid=TimeGrid.uniform(steps))
    problem = ControlProblem(
        DriftProcess(_drift, 1.0, dimension=DIM), Point(torch.zeros(DIM)), _running, lambda x: x.square().sum(1)
    )
    solver.step(problem, solver.init(problem, 0))


def growth(loss: str, steps: int) -> tuple[float, float]:
    """Peak memory of an update in a fresh process beyond what it had before: in MiB, and in arrays of states."""
    taken = float(in_fresh_process("docs.benchmarks.control_memory", [loss, str(steps)], threads=1))
    return taken, taken / (4 * steps * PATHS * DIM / 2**20)


def main(arguments: list[str]) -> None:
    """Prints the table, or with ``LOSS STEPS`` the MiB of one measurement."""
    if not arguments:
        say(f"One update on {PATHS} paths in {DIM} dimensions: MiB beyond imports (arrays of states)")
        for loss in LOSSES:
            found = [(steps, *growth(loss, steps)) for steps in STEPS]
            cells = [f"{steps:5d} steps {taken:7.1f} ({arrays:5.1f})" for steps, taken, arrays in found]
            say(f"{loss:<28}" + "   ".join(cells))
    elif len(arguments) == 2 and arguments[0] in LOSSES and arguments[1].isdigit():
        update(arguments[0], 2)  # loads what is loaded on first use
        before = peak_memory()
        update(arguments[0], int(arguments[1]))
        say(f"{peak_memory() - before}")
    else:
        raise InvalidInputError(f"no arguments, or LOSS STEPS with a loss of {', '.join(LOSSES)}; got {arguments}.")


def _drift(t: Time, x: Tensor) -> Tensor:
    return -x


def _running(t: Time, x: Tensor) -> Tensor:
    return x.square().sum(1)


if __name__ == "__main__":
    main(sys.argv[1:])
