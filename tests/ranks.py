"""What the processes of tests/test_distributed.py do: ``torchrun … tests/ranks.py OUT``."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import sbridge as sb
from sbridge import distributed
from sbridge.controls.networks import Perceptron
from sbridge.errors import InvalidInputError
from sbridge.solvers import IPF, AdjointBridge, MaximumLikelihood, MeanMatching, Replay
from sbridge.training import Numbers, State

G = torch.Generator().manual_seed(0)
X0, X1 = (torch.randn(60, 2, generator=G, dtype=torch.float64) + shift for shift in (0.0, 1.5))
GRID, NET = sb.TimeGrid.uniform(6), sb.networks.MLP(12, 2)
PROBLEM = sb.ControlProblem(
    sb.BrownianMotion(1.0),
    sb.Point(torch.zeros(2, dtype=torch.float64)),
    running_cost=lambda t, x: x.square().sum(1),
    terminal_cost=lambda x: (x - 1.0).square().sum(1),
)


def training(**options: object) -> sb.Optimisation:
    return sb.Optimisation(learning_rate=3e-3, batch=51, warm_up=2, **options)  # an odd number of rows to share


def tiny(**options: object) -> dict[str, object]:
    return {"network": NET, "optimisation": training(**options), "grid": GRID}


def normal(x: Tensor) -> Tensor:
    return -0.5 * (x - 1.0).square().sum(1)


FITS: dict[str, Callable[[], sb.Bridge | sb.ControlSolution]] = {
    "IMF": lambda: sb.fit(X0, X1, solver=sb.IMF(pretraining=8, stages=2, updates=6, pairs=4096, **tiny()), seed=0),
    "IMF, accumulated": lambda: sb.fit(
        X0, X1, solver=sb.IMF(pretraining=20, stages=0, pairs=60, **tiny(accumulate=2)), seed=0
    ),
    "IPF": lambda: sb.fit(X0, X1, solver=IPF(half_steps=2, updates=10, paths=4096, **tiny()), seed=0),
    "IPF, second derivatives": lambda: sb.fit(
        X0,
        X1,
        solver=IPF(half_steps=2, updates=10, paths=60, forward=MeanMatching(), backward=MaximumLikelihood(), **tiny()),
        seed=0,
    ),
    "AdjointBridge": lambda: sb.fit(
        X0, sb.Density(normal, 2), reference=sb.BrownianMotion(1.0), solver=AdjointBridge(updates=20, **tiny()), seed=0
    ),
    "diffuse": lambda: sb.diffuse(
        X0, solver=sb.ScoreMatching(updates=20, network=NET, optimisation=training()), seed=0
    ),
    "AdjointMatching": lambda: sb.solve(
        PROBLEM, sb.AdjointMatching(updates=20, replay=Replay(1024, 10), **tiny()), seed=0
    ),
    "RelativeEntropy": lambda: sb.solve(PROBLEM, sb.RelativeEntropy(updates=20, **tiny()), seed=0),
    "Moment": lambda: sb.solve(PROBLEM, sb.Moment(updates=20, **tiny()), seed=0),
}


def weights(solution: sb.Bridge | sb.ControlSolution) -> Tensor:
    """All weights of the learned controls."""
    bridge = isinstance(solution, sb.Bridge)
    measures = (solution.forward, solution.backward) if bridge else (solution.measure,)
    return torch.cat([one.reshape(-1) for measure in measures for one in _weights(measure.control)])


def _weights(control: object) -> list[Tensor]:
    if isinstance(control, torch.nn.Module):
        return [one.double() for one in control.state_dict().values()]
    inner = getattr(control, "__dict__", {}).values()
    parts = [one for item in inner for one in (item if isinstance(item, tuple) else (item,))]
    return [tensor for part in parts if callable(part) for tensor in _weights(part)]


def counted(fit: Callable[[], sb.Bridge | sb.ControlSolution]) -> tuple[Tensor, int]:
    """The weights of a fit, and the number of rows that networks computed in this process."""
    rows, forward = [0], Perceptron.forward

    def count(self: Perceptron, features: Tensor, x: Tensor) -> Tensor:
        rows[0] += len(x)
        return forward(self, features, x)

    Perceptron.forward = count  # type: ignore[method-assign]
    try:
        return weights(fit()), rows[0]
    finally:
        Perceptron.forward = forward  # type: ignore[method-assign]


def refused(fit: Callable[[], object]) -> str:
    try:
        fit()
    except InvalidInputError as error:
        return str(error)
    return "not refused"


def stop_in_one(state: State, info: Numbers) -> None:
    """Ends the run in process 1 alone; process 0 alone looks at the network and simulates."""
    if distributed.rank() == 1 and state.step == 5:
        raise sb.StopTraining("process 1 has seen enough")
    if distributed.rank() == 0:
        averaged = next(iter(state.learners.values())).averaged
        sb.PathMeasure(sb.BrownianMotion(1.0), averaged, sb.Samples(X0), grid=GRID).sample(4000, seed=0)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rank, found = distributed.rank(), {}
    tensors = {}
    for name, fit in FITS.items():
        tensors[name], found[f"{name}: rows"] = counted(fit)
    short = sb.MatchedBridge(updates=8, pairs=60, **tiny())
    found["stopped"] = sb.fit(X0, X1, solver=short, seed=0, callbacks=[stop_in_one]).stopped
    found["other data"] = refused(
        lambda: sb.fit(X0[: 60 - rank], X1, solver=short, reference=sb.BrownianMotion(1.0), seed=0)
    )
    found["other settings"] = refused(
        lambda: sb.fit(X0, X1, solver=sb.MatchedBridge(updates=8 + rank, pairs=60, **tiny()), seed=rank)
    )
    torch.save(tensors, out / f"weights-{rank}.pt")
    (out / f"found-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
