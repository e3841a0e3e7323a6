"""The plug-in bridge: the exact Schrödinger bridge between two empirical laws, from Sinkhorn's potentials."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbridge.controls.base import Time
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Samples
from sbridge.measures import PathMeasure
from sbridge.problems import BridgeProblem, unknown_transition
from sbridge.processes import Direction, LinearProcess
from sbridge.processes.coefficients import identity
from sbridge.registry import register
from sbridge.solutions import Bridge
from sbridge.solvers.base import Solver
from sbridge.time import TimeGrid
from sbridge.training import Flat, Info, flat_number, flat_tensor
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
from sbridge.transport.cloud import draw_indices


@register
@dataclass(frozen=True, eq=False)
class FarEnd:
    """The law of the far end given the state at time ``t``, on a cloud of rows ``z_j`` with logits ``ℓ_j``.

    With ``t`` before the far end::

        forward    w_j(t, x) ∝ exp(ℓ_j) R(X_T = z_j | X_t = x)        z: target rows, ℓ = log of φ(T, ·)
        backward   w_j(t, x) ∝ exp(ℓ_j) R(X_t = x | X_0 = z_j)        z: source rows, ℓ = log of φ̂(0, ·)

    (φ and φ̂ as densities with respect to the weighted rows: weights that are not uniform are part of ℓ.)
    """

    process: LinearProcess
    cloud: Cloud
    direction: Direction

    def mean(self, t: Time, x: Tensor) -> Tensor:
        """``E[far end | X_t = x]``, shape ``(batch, dim)``."""
        found = torch.empty_like(x)
        for _, rows, view in self.views(t, x):
            means = [part @ self.cloud.rows.to(part) for _, part, _ in view.blocks(x.dtype)]
            found = found.index_put((rows,), torch.cat(means))
        return found

    def log_potential(self, t: Time, x: Tensor) -> Tensor:
        """``log φ(t, x)``, or ``log φ̂(t, x)`` if backward: the log of the sum of the ``w_j``, shape ``(batch,)``."""
        found = torch.empty_like(x[:, 0])
        for _, rows, view in self.views(t, x):
            value = torch.cat([log_sum for _, _, log_sum in view.blocks(x.dtype)]) + view.constants
            found = found.index_put((rows,), value.to(x.dtype))
        return found

    def draw(self, t: float, x: Tensor, generator: torch.Generator) -> Tensor:
        """One far end per row: a row of the cloud."""
        blocks = self._view(t, x.detach()).blocks(x.dtype)
        return self.cloud.rows.to(x)[draw_indices(blocks, len(x), generator)]

    def views(self, t: Time, x: Tensor) -> Iterator[tuple[Time, Tensor, View]]:
        """The rows of ``x`` in groups that can be looked at together, each with its time and its indices.

        One group if there is one time, or one kernel width a row is all that times change.
        """
        everything = torch.arange(len(x), device=x.device)
        if not (isinstance(t, Tensor) and t.ndim) or self._is_scalar:
            yield t, everything, self._view(t, x)
            return
        for moment in t.unique():
            rows = everything[t.to(x.device) == moment.to(x.device)]
            yield float(moment), rows, self._view(float(moment), x[rows])

    @property
    def _is_scalar(self) -> bool:
        law = self.process.transition(0.0, self.process.horizon)
        return law.covariance.dim is None and law.map.dim is None

    def _view(self, t: Time, x: Tensor) -> View:
        forward = self.direction is Direction.FORWARD
        far = self.process.horizon if forward else 0.0
        if bool((torch.as_tensor(t, dtype=torch.float64) == far).any()):
            raise InvalidInputError(
                f"the control of a bridge to single rows is infinite at its far end, t = {far:g}; ask for a time "
                + ("before it." if forward else "after it.")
            )
        law = self.process.transition(t, self.process.horizon) if forward else self.process.transition(0.0, t)
        x, cloud, dim = x.double(), self.cloud, x.shape[1]
        centre = cloud.centre.to(x.device).unsqueeze(0)
        # |y_j − m(x)|² and |x − m(y_j)|² in the metric Q⁻¹ about the centre of the cloud: nothing is divided by Φ.
        if forward:
            gap, reach = law.mean(x) - centre, identity(law.offset.shape[:-1])
        else:
            gap, reach = x - law.mean(centre.expand(len(law.offset) if law.offset.ndim > 1 else 1, -1)), law.map
        white = law.root.inverse()
        whitened = white.to(x)(gap)
        log_scale = law.root.log_abs_det(dim).to(x.device) + 0.5 * dim * math.log(2.0 * math.pi)
        constants = -0.5 * whitened.square().sum(1) - log_scale
        if self._is_scalar:
            precisions = (reach @ law.precision @ reach).values.to(x).expand(len(x), 1)
            return View(cloud, (reach @ law.precision).to(x)(gap), precisions, constants)
        moved = Cloud((white @ reach).to(x)(cloud.rows.to(x)), cloud.logits)
        return View(moved, whitened, torch.ones_like(x[:, :1]), constants)


@dataclass(frozen=True, eq=False)
class View:
    """A cloud as it looks from states: weights are ``exp(ℓ_j + slope·z_j − ½ precision |z_j|²)``.

    Args:
        cloud: the rows, moved; ``z`` are their distances from their centre.
        slopes: shape ``(n, dim)``.
        precisions: shape ``(n, 1)``.
        constants: what is left of the log transition densities, ``(n,)``.
    """

    cloud: Cloud
    slopes: Tensor
    precisions: Tensor
    constants: Tensor

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Slices of the states, their weights and the logarithms of their sums: see :meth:`Cloud.tilts`."""
        return self.cloud.tilts(self.slopes, self.precisions, dtype)


@register
@dataclass(frozen=True, eq=False)
class PlugInControl:
    """``u = σᵀ Φᵀ Q⁻¹ (E[X_T | x] − m(T | t, x))``; backward ``û = −σᵀ Q_t⁻¹ (x − m(t | 0, E[X_0 | x]))``.

    The gradients of ``log Σ_j exp(ℓ_j) R(z_j | x)`` and ``log Σ_i exp(ℓ_i) R(x | z_i)``: Pooladian & Niles-Weed 2024
    (arXiv:2408.11686) for a Brownian reference.
    """

    far: FarEnd

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """The control at ``(t, x)``: before the far end, where it is infinite."""
        process, mean = self.far.process, self.far.mean(t, x)
        forward = self.far.direction is Direction.FORWARD
        gradient = process.pull(t, x, mean) if forward else process.push(t, x, mean)
        return process.scale(t).T.to(x)(gradient)


@register
@dataclass(frozen=True, eq=False)
class PlugInKernel:
    """The far end given the near one, exactly: a draw among the rows of the far end."""

    far: FarEnd

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """One far end per row."""
        return self.far.draw(self._near_time, x, generator)

    def mean(self, x: Tensor) -> Tensor:
        """Conditional mean per row (the entropic barycentric map)."""
        return self.far.mean(self._near_time, x)

    @property
    def _near_time(self) -> float:
        return 0.0 if self.far.direction is Direction.FORWARD else self.far.process.horizon


@dataclass
class SinkhornBridgeState:
    """The state of the iteration, the rows that carry potentials, and a step counter.

    ``static`` is the problem of those rows, which follows from them and is no part of the flat form.
    """

    static: EntropicProblem
    iteration: SinkhornState
    source_index: Tensor
    target_index: Tensor
    step: int = 0

    def flat(self) -> Flat:
        """Potentials, level of ε, row indices, counter."""
        own: Flat = {"source_index": self.source_index, "target_index": self.target_index, "step": self.step}
        return own | {f"sinkhorn.{key}": value for key, value in self.iteration.items()}


@register
@dataclass(frozen=True)
class SinkhornBridge(Solver[SinkhornBridgeState]):
    """The exact bridge between the two empirical laws, under any linear reference.

    Whitened by the reference, ``x̄ = Q_T^{−½} m(T | 0, x)`` and ``ȳ = Q_T^{−½} y``, the static problem is entropic
    optimal transport with ε = 1; Sinkhorn's potentials give plan, controls and both processes in closed form. End
    points are always training rows: nothing is learned, and nothing is generalised, about the target.

    Args:
        max_rows: rows a side that carry potentials; of larger sets a random subset does, and the potentials of all
            other rows follow by one c-transform (cost ``O(n · max_rows)``), so that every row can still be reached.
        sinkhorn: tolerance and limits of the iteration.
        grid: time grid on which the solution is simulated; finer towards both ends by default.

    Memory: one ``max_rows × max_rows`` array of the rows' dtype while fitting.

    Raises:
        InvalidInputError: for an option of another kind or out of its range.
        UnsupportedError: by ``solve`` and ``fit``, with what :meth:`refusal` says.
        InvalidInputError: by them, if ε is so small that the plan degenerates; the message says the smallest workable.
    """

    max_rows: int = 10_000
    sinkhorn: Sinkhorn = field(default_factory=Sinkhorn)
    grid: TimeGrid = field(default_factory=lambda: TimeGrid.cosine(100))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_rows < 2:
            raise InvalidInputError(f"max_rows must be at least 2, got {self.max_rows}.")

    def refusal(self, problem: BridgeProblem) -> str | None:
        """Needs samples at both ends and a linear reference."""
        unknown = unknown_transition("SinkhornBridge", problem.reference)
        if unknown is not None:
            return unknown
        for law in (problem.source, problem.target):
            if not isinstance(law, Samples):
                return f"SinkhornBridge needs samples at both ends, got {type(law).__name__}: draw rows from it first."
        return None

    def length(self, problem: BridgeProblem) -> int:
        """The largest number of steps that ``max_iterations`` allows."""
        return 2 + self.sinkhorn.max_iterations // min(self.sinkhorn.batch, self.sinkhorn.warm_batch)

    def finished(self, problem: BridgeProblem, state: SinkhornBridgeState) -> bool:
        """Whether the tolerance is met at the final ε."""
        return sinkhorn_converged(state.static, state.iteration, self.sinkhorn)

    def init(self, problem: BridgeProblem, generator: torch.Generator) -> SinkhornBridgeState:
        """Chooses the rows that carry potentials."""
        source, target = (_subset(len(end.rows), self.max_rows, generator) for end in _ends(problem))
        static = _static(problem, source, target)
        return SinkhornBridgeState(static, sinkhorn_init(static, self.sinkhorn), source, target)

    def step(self, problem: BridgeProblem, state: SinkhornBridgeState) -> tuple[SinkhornBridgeState, Info]:
        """One batch of Sinkhorn iterations."""
        state.iteration = sinkhorn_step(state.static, state.iteration, self.sinkhorn)
        state.step += 1
        info = {"marginal error": float(state.iteration["error"]), "epsilon": float(state.iteration["epsilon"])}
        return state, info

    def restore(self, problem: BridgeProblem, flat: Flat) -> SinkhornBridgeState:
        """The state of an interrupted run."""
        prefix = "sinkhorn."
        iteration: SinkhornState = {
            key[len(prefix) :]: value
            for key, value in flat.items()
            if key.startswith(prefix) and not isinstance(value, str)
        }
        source, target = flat_tensor(flat, "source_index"), flat_tensor(flat, "target_index")
        static = _static(problem, source, target)
        return SinkhornBridgeState(static, iteration, source, target, int(flat_number(flat, "step")))

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
        raise UnsupportedError("SinkhornBridge needs samples at both ends: draw rows from the laws first.")
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
