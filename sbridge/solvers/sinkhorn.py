"""The plug-in bridge: the exact Schrödinger bridge between two empirical distributions, from Sinkhorn's potentials."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbridge.errors import UnsupportedError, check_at_least
from sbridge.exact.plug_in import FarEnd, PlugInControl, PlugInKernel
from sbridge.laws import Samples
from sbridge.measures import PathMeasure
from sbridge.problems import BridgeProblem, not_plain, unknown_transition
from sbridge.processes import Direction
from sbridge.random import generator as generator_of
from sbridge.solutions import Bridge
from sbridge.solvers.base import Solver
from sbridge.storage.registry import register
from sbridge.time import TimeGrid
from sbridge.training import Derived, Info, State
from sbridge.transport import (
    Cloud,
    EntropicProblem,
    Sinkhorn,
    SinkhornState,
    sinkhorn_converged,
    sinkhorn_finish,
    sinkhorn_init,
    sinkhorn_step,
)


@dataclass(eq=False)
class SinkhornBridgeState(State):
    """The state of the iteration.

    Attributes:
        static: the static problem between the samples of the iteration.
        iteration: potentials, level of ε, and measures of convergence.
    """

    static: Derived[EntropicProblem]
    iteration: SinkhornState


@register
@dataclass(frozen=True)
class SinkhornBridge(Solver[SinkhornBridgeState]):
    """The exact bridge between the two empirical distributions, under any linear reference.

    Whitened by the reference, ``x̄ = Q_T^{−½} m(T | 0, x)`` and ``ȳ = Q_T^{−½} y``, the static problem is entropic
    optimal transport with ε = 1; Sinkhorn's potentials give plan, controls and both processes in closed form. End
    points are always training samples; the bridge does not generalise.

    Args:
        max_rows: largest number of samples per end in Sinkhorn's iteration. Larger sets use a random subset; the
            potentials of the other samples follow by one c-transform (cost ``O(n · max_rows)``), so that paths can end
            at every sample.
        sinkhorn: tolerance and limits of the iteration.
        grid: time grid on which the solution is simulated; finer towards both ends by default.

    Memory: one ``max_rows × max_rows`` array of the dtype of the samples while fitting.

    Raises:
        InvalidInputError: for an option of another kind or out of its range.
        UnsupportedError: by ``solve`` and ``fit``, with what :meth:`refusal` says.
        InvalidInputError: by ``solve`` and ``fit``, if ε is so small that the plan degenerates; the message gives the
            smallest workable ε.
    """

    max_rows: int = 10_000
    sinkhorn: Sinkhorn = field(default_factory=Sinkhorn)
    grid: TimeGrid = field(default_factory=lambda: TimeGrid.cosine(100))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 2, "max_rows")

    def refusal(self, problem: BridgeProblem) -> str | None:
        """Needs samples at both ends and a linear reference."""
        unknown = not_plain("SinkhornBridge", problem) or unknown_transition("SinkhornBridge", problem.reference)
        if unknown is not None:
            return unknown
        for law in (problem.source, problem.target):
            if not isinstance(law, Samples):
                return (
                    f"SinkhornBridge needs samples in memory at both ends, got {type(law).__name__}: draw samples from "
                    "it first (StoredRows.part reads some)."
                )
        return None

    def max_steps(self, problem: BridgeProblem) -> int:
        """The largest number of steps that ``max_iterations`` allows."""
        return 2 + self.sinkhorn.max_iterations // min(self.sinkhorn.batch, self.sinkhorn.warm_batch)

    def finished(self, problem: BridgeProblem, state: SinkhornBridgeState) -> bool:
        """Whether the tolerance is met at the final ε."""
        return sinkhorn_converged(state.static, state.iteration, self.sinkhorn)

    def init(self, problem: BridgeProblem, seed: int) -> SinkhornBridgeState:
        """Chooses the rows that carry potentials."""
        generator = generator_of(seed)
        source, target = (_subset(len(end.rows), self.max_rows, generator) for end in _ends(problem))
        static = _static(problem, source, target)
        return SinkhornBridgeState(seed, static, sinkhorn_init(static, self.sinkhorn))

    def step(self, problem: BridgeProblem, state: SinkhornBridgeState) -> tuple[SinkhornBridgeState, Info]:
        """One batch of Sinkhorn iterations."""
        state.iteration = sinkhorn_step(state.static, state.iteration, self.sinkhorn)
        state.step += 1
        info = {"marginal error": float(state.iteration["error"]), "epsilon": float(state.iteration["epsilon"])}
        return state, info

    def finish(self, problem: BridgeProblem, state: SinkhornBridgeState) -> Bridge:
        """Potentials on all rows, and the two processes."""
        solution = sinkhorn_finish(state.static, state.iteration)
        x, y = _whitened(problem)
        # Each side's potential is the transform of the other's: for rows that took part this changes nothing at
        # convergence, for the others it is the out-of-sample extension (Seguy et al. 2018).
        f = -solution.forward.log_normaliser(x, 1.0)
        g = -solution.backward.log_normaliser(y, 1.0)
        source, target = _ends(problem)
        return Bridge(
            self._measure(problem, Direction.FORWARD, source, Cloud(target.rows, _logits(target, g))),
            self._measure(problem, Direction.BACKWARD, target, Cloud(source.rows, _logits(source, f))),
        )

    def _measure(self, problem: BridgeProblem, direction: Direction, start: Samples, cloud: Cloud) -> PathMeasure:
        far = FarEnd(problem.linear_reference, cloud, direction)
        kernel = PlugInKernel(far)
        return PathMeasure(problem.reference, PlugInControl(far), start, direction, self.grid, end_kernel=kernel)


def _logits(end: Samples, potential: Tensor) -> Tensor:
    """Potential plus log weight; uniform weights drop out of the softmax."""
    return potential if end.weights is None else potential + end.weights.double().log()


def _ends(problem: BridgeProblem) -> tuple[Samples, Samples]:
    source, target = problem.source, problem.target
    if not (isinstance(source, Samples) and isinstance(target, Samples)):
        raise UnsupportedError("SinkhornBridge needs samples at both ends: draw samples from the ends first.")
    return source, target


def _whitened(problem: BridgeProblem) -> tuple[Tensor, Tensor]:
    """``Q_T^{−½} m(T | 0, x)`` and ``Q_T^{−½} y``, whose squared distances are those of the reference."""
    reference = problem.linear_reference
    source, target = _ends(problem)
    return reference.transition(0.0, reference.horizon).whitened(source.rows, target.rows)


def _static(problem: BridgeProblem, source_index: Tensor, target_index: Tensor) -> EntropicProblem:
    x, y = _whitened(problem)
    source, target = _ends(problem)
    a, b = _part(source, source_index), _part(target, target_index)
    return EntropicProblem(x[source_index], y[target_index], 1.0, a, b)


def _part(end: Samples, index: Tensor) -> Tensor | None:
    return None if end.weights is None else end.weights[index] / end.weights[index].sum()


def _subset(count: int, limit: int, generator: torch.Generator) -> Tensor:
    if count <= limit:
        return torch.arange(count)
    return torch.randperm(count, generator=generator, device=generator.device)[:limit].sort().values.cpu()
