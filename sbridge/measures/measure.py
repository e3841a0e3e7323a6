"""Path measures and their paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from sbridge import distributed
from sbridge.controls import Control
from sbridge.devices import Movable, check_device, common_device
from sbridge.display import short_repr
from sbridge.errors import InvalidInputError, shown
from sbridge.laws import Law, as_rows
from sbridge.laws.scaling import AffineScaling
from sbridge.modes import standard_modes
from sbridge.parts import parts_of
from sbridge.processes.base import LinearProcess, Process, check_time
from sbridge.processes.chain import Chain, Direction, ExactTransition, StepRule, check_growth, default_rule
from sbridge.random import ROW_BLOCK, NormalNoise, Seed, as_seed, derive, generator
from sbridge.simulation import Detached, GradientMethod, propagate, simulate
from sbridge.storage.registry import register
from sbridge.time import TimeGrid

Times = Sequence[float] | np.ndarray | Tensor
_HUNDRED_STEPS = TimeGrid.uniform(100)
_CHUNK_NUMBERS = 2**20  # rows × dim of a chunk; 32 steps of its noise are held at a time, 128 MiB in float32
_CHUNK_ROWS = 16 * ROW_BLOCK


@runtime_checkable
class EndKernel(Protocol):
    """The exact distribution of the far end of a measure given the near one.

    It may be given only for a measure whose paths, given both ends, are those of its process, as for every Schrödinger
    bridge: :meth:`PathMeasure.interpolate` uses this. It can be saved if its class is registered.
    """

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draws one far end for each row of ``x``, shape ``(batch, dim)``."""
        ...

    def mean(self, x: Tensor) -> Tensor:
        """Computes the conditional mean of the far end, shape ``(batch, dim)``."""
        ...


@register
@dataclass(frozen=True, eq=False)
class ScaledKernel:
    """An end kernel of model units, used in data units."""

    kernel: EndKernel
    scaling: AffineScaling

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draws one far end per row of ``x``."""
        return self.scaling.to_data(self.kernel.draw(self.scaling.to_model(x), generator))

    def mean(self, x: Tensor) -> Tensor:
        """Computes the conditional mean of the far end per row of ``x``."""
        return self.scaling.to_data(self.kernel.mean(self.scaling.to_model(x)))


@dataclass(frozen=True, eq=False)
class Paths:
    """Simulated paths with the quantities that Girsanov's formula needs.

    Args:
        x: states in the order visited, shape ``(N + 1, batch, dim)``; paths of a backward measure begin at ``T``.
        noise: ``ξ``, shape ``(N, batch, dim)``.
        v: values of the control that made them, shape ``(N, batch, dim)``.
        chain: the steps, ``x_{j+1} = m_j(x_j) + L_j (√Δ_j v_j + ξ_j)``.
    """

    x: Tensor
    noise: Tensor
    v: Tensor
    chain: Chain

    __repr__ = short_repr

    @property
    def t(self) -> Tensor:
        """Bridge times of the states, float64, shape ``(N + 1,)``; decreasing if the measure runs backward."""
        return self.chain.visited


@register
@dataclass(frozen=True, eq=False)
class PathMeasure(Movable):
    """The distribution of ``dX = (b + σu) dt + σ dW``, forward from ``t = 0`` or backward from ``t = T``.

    A backward measure follows ``dY = (−b + σû) ds + σ dB`` in ``s = T − t``; its control is also called with bridge
    time. All times are bridge times in ``[0, T]``, in the unit of the process. Results have the dtype and device of the
    start states. For a given seed, a path does not depend on the chunks of the batch (up to the rounding of matrix
    products). Gradients are computed only in :meth:`simulate`.

    Args:
        process: the reference.
        control: ``u`` or ``û``, any ``(t, x) → (batch, dim)`` in noise units; ``None`` for zero.
        start: the distribution at ``t = 0`` (forward) or ``t = T`` (backward).
        direction: forward or backward in time.
        grid: the steps of simulations.
        rule: the rule of a step; by default the exact transition for linear processes, Euler–Maruyama for others.
        end_kernel: the exact distribution of the far end given the near one, when it is known.

    Raises:
        InvalidInputError: if dimensions disagree, or the direction or the control is of another kind.
    """

    process: Process
    control: Control | None
    start: Law
    direction: Direction = Direction.FORWARD
    grid: TimeGrid = _HUNDRED_STEPS
    rule: StepRule | None = None
    end_kernel: EndKernel | None = None

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if not isinstance(self.direction, Direction):
            raise InvalidInputError(
                f"direction must be Direction.FORWARD or Direction.BACKWARD, got {shown(self.direction)}."
            )
        if self.control is not None and not callable(self.control):
            raise InvalidInputError(f"control must be a function (t, x) -> u, or None; got {shown(self.control)}.")
        if self.process.dim not in (None, self.start.dim):
            raise InvalidInputError(
                f"the process has dimension {self.process.dim}, its start distribution has {self.start.dim}; they must "
                "agree."
            )

    @cached_property
    def device(self) -> torch.device | None:
        """The device of its start and of the networks in its control; ``None`` if neither has tensors.

        Raises:
            InvalidInputError: if they are on several.
        """
        networks = (weight.device for network in parts_of(self.control, nn.Module) for weight in network.parameters())
        return common_device((self.start.device, *networks))

    def chain(self, like: Tensor, grid: TimeGrid | None = None) -> Chain:
        """Returns its steps on ``grid`` (by default its own), in the dtype and on the device of ``like``.

        Raises:
            InvalidInputError: if the process grows so much over a step that no control could stabilise it.
        """
        times = (grid or self.grid).times(self.process.horizon)
        rule = self.rule or default_rule(self.process)
        if self.control is not None and isinstance(rule, ExactTransition):
            check_growth(self.process, times, self.direction)
        return Chain(self.process, times, self.direction, rule, like)

    @standard_modes()
    def starts(self, n: int, *, seed: Seed) -> Tensor:
        """Draws the start states of ``sample(n, seed=seed)``, shape ``(n, dim)``."""
        check_count(n, "n")
        return self.start.sample(n, generator(derive(as_seed(seed), "start")))

    def sample(self, n: int, *, seed: Seed) -> Paths:
        """Draws ``n`` whole paths from the start distribution: :meth:`simulate` from :meth:`starts`."""
        seed = as_seed(seed)
        return self.simulate(self.starts(n, seed=seed), seed=seed)

    @standard_modes()
    def simulate(self, x: Tensor, *, seed: Seed, gradient: GradientMethod = Detached()) -> Paths:
        """Simulates one whole path with its noise from each row of ``x``.

        Args:
            x: start states, shape ``(batch, dim)``.
            seed: of the noise.
            gradient: ``Detached()``, or ``Backprop()`` to differentiate through states and control values.

        Raises:
            InvalidInputError: for states of another shape, or with NaN.
            NonFiniteError: if a path becomes infinite or NaN.
        """
        x = self._check_states(x)
        chain = self.chain(x)
        noise = noise_for(x, chain.length, as_seed(seed)).stored()
        states, controls = simulate(chain, self.control, x, noise, gradient)
        return Paths(states, noise, controls, chain)

    @standard_modes(gradients=False)
    def marginals(self, times: Times, n: int, *, seed: Seed, chunk: int | None = None) -> Tensor:
        """Returns the states of ``n`` paths at ``times``, shape ``(len(times), n, dim)``, without keeping the paths.

        At times on the grid these are states of ``sample(n, seed=seed)``; other times are added to the grid.

        Args:
            times: bridge times in any order.
            n: number of paths.
            seed: of start and noise.
            chunk: number of paths that are simulated together, rounded up to a multiple of 1024. By default their noise
                takes about 100 MB.
        """
        seed = as_seed(seed)
        return self._recorded(self.starts(n, seed=seed), self._fractions(times), seed, chunk)

    @standard_modes(gradients=False)
    def transport(self, x: Tensor, *, seed: Seed, chunk: int | None = None) -> Tensor:
        """Draws the far end for each row of ``x``: from the end kernel if there is one, otherwise by simulation.

        Args:
            x: states at the near end, shape ``(batch, dim)``.
            seed: of the draws.
            chunk: as in :meth:`marginals`.
        """
        x, seed = self._check_states(x), as_seed(seed)
        if self.end_kernel is not None:
            return _draw_ends(self.end_kernel, x, seed)
        return self._run(x, self.grid, self.grid.steps, seed, chunk)

    @standard_modes(gradients=False)
    def conditional_mean(self, x: Tensor, *, seed: Seed, draws: int = 64) -> Tensor:
        """Computes ``E[far end | near end]`` for each row of ``x``: exact with an end kernel, else a mean of draws."""
        x, seed = self._check_states(x), as_seed(seed)
        if self.end_kernel is not None:
            return self.end_kernel.mean(x)
        check_count(draws, "draws")
        total = torch.zeros_like(x)
        for draw in range(draws):
            total += self.transport(x, seed=derive(seed, "mean", draw))
        return total / draws

    @standard_modes(gradients=False)
    def interpolate(self, x: Tensor, t: float | Times, *, seed: Seed, chunk: int | None = None) -> Tensor:
        """Draws the states at time ``t`` of paths that start in the rows of ``x``, shape ``(batch, dim)``.

        With an end kernel and a linear process, the ends are those of :meth:`transport` for the same seed, and the
        states are drawn from the pinned bridge without time steps. Otherwise the paths are simulated on the grid, with
        ``t`` added to it, up to ``t``.

        Args:
            x: states at the near end.
            t: bridge time; at the near end the result is a copy of ``x``. Several times, in any order, give shape
                ``(len(t), batch, dim)``: the states of one path per row, drawn jointly.
            seed: of the draws.
            chunk: as in :meth:`marginals`.
        """
        x, seed = self._check_states(x), as_seed(seed)
        several = np.ndim(t) > 0
        fractions = self._fractions(t)
        if not fractions:
            raise InvalidInputError("interpolate needs at least one time, got an empty list.")
        near = 0.0 if self.direction is Direction.FORWARD else 1.0
        if all(fraction == near for fraction in fractions):
            states = x.expand(len(fractions), *x.shape).clone()
        elif self.end_kernel is None or not isinstance(self.process, LinearProcess):
            states = self._recorded(x, fractions, seed, chunk)
        else:
            ends = near, 1.0 - near, _draw_ends(self.end_kernel, x, seed)
            states = _pinned_states(self.process, x, ends, fractions, seed)
        return states if several else states[0]

    def _check_states(self, x: Tensor) -> Tensor:
        x = as_rows(x, "x", least=1)
        if x.shape[1] != self.start.dim:
            raise InvalidInputError(f"x has {x.shape[1]} columns; the measure has dimension {self.start.dim}.")
        check_device(x, self.device, "x", "the measure")
        return x

    def _fractions(self, times: float | Times) -> list[float]:
        horizon, listed = self.process.horizon, np.asarray(times, dtype=float)
        if listed.ndim > 1:
            raise InvalidInputError(f"times must be a number or a list of numbers, got shape {listed.shape}.")
        return [min(float(check_time(t, horizon)) / horizon, 1.0) for t in listed.reshape(-1).tolist()]

    def _steps_to(self, grid: TimeGrid, fraction: float) -> int:
        index = grid.index(fraction)
        return index if self.direction is Direction.FORWARD else grid.steps - index

    def _recorded(self, x: Tensor, fractions: list[float], seed: int, chunk: int | None) -> Tensor:
        """Simulates paths from the rows of ``x`` and returns their states at ``fractions`` of the horizon."""
        grid = self.grid.including(fractions)
        chain = self.chain(x, grid)
        places: dict[int, list[int]] = {}
        for place, fraction in enumerate(fractions):
            places.setdefault(self._steps_to(grid, fraction), []).append(place)
        found = x.new_empty(len(fractions), *x.shape)
        for rows, noise in pieces(x, chain.length, seed, chunk):

            def keep(j: int, x: Tensor, u: Tensor | None, rows: slice = rows) -> None:
                for place in places.get(j, ()):
                    found[place, rows] = x

            propagate(chain, self.control, x[rows], noise, keep, stop=max(places, default=0))
        return found

    def _run(self, x: Tensor, grid: TimeGrid, steps: int, seed: int, chunk: int | None) -> Tensor:
        chain, end, own = self.chain(x, grid), torch.empty_like(x), distributed.share_of(len(x), ROW_BLOCK)
        with distributed.own_rows() if own != slice(0, len(x)) else nullcontext():
            for rows, noise in pieces(x, grid.steps, seed, chunk, own):
                end[rows] = propagate(chain, self.control, x[rows], noise, stop=steps)
        return distributed.whole(end[own], len(x), ROW_BLOCK)


def _pinned_states(
    process: LinearProcess, x: Tensor, ends: tuple[float, float, Tensor], fractions: list[float], seed: int
) -> Tensor:
    """Draws states at ``fractions`` of the horizon given both ends of every path, in order from the near end on.

    Args:
        process: the reference.
        x: states at the near end.
        ends: the near and the far end as fractions of the horizon, and the states at the far end.
        fractions: where the states are asked for.
        seed: of the call.
    """
    near, far, last = ends
    states = {near: x, far: last}
    between = sorted({one for one in fractions if one not in states}, key=lambda one: abs(one - near))
    here = near
    for place, there in enumerate(between):
        keys = ("bridge",) if place == 0 else ("bridge", place)
        low, high = sorted((here, far))
        pinned = process.pinned(there * process.horizon, start=low * process.horizon, end=high * process.horizon)
        noise = noise_for(x, 1, derive(seed, *keys)).step(0)
        states[there] = pinned.sample(states[low], states[high], noise)
        here = there
    return torch.stack([states[one] for one in fractions])


def noise_for(x: Tensor, steps: int, seed: int) -> NormalNoise:
    """Makes the noise of ``seed`` for paths from the rows of ``x``."""
    return NormalNoise(derive(seed, "noise"), steps, *x.shape, dtype=x.dtype, device=x.device)


def pieces(
    x: Tensor, steps: int, seed: int, chunk: int | None, own: slice = slice(None)
) -> Iterator[tuple[slice, NormalNoise]]:
    """Yields chunks of the rows ``own`` of ``x``, by default of all, each with its part of the noise."""
    if chunk is None:
        chunk = min(_CHUNK_ROWS, max(_CHUNK_NUMBERS // x.shape[1], 1))
    check_count(chunk, "chunk")
    size = -(-chunk // ROW_BLOCK) * ROW_BLOCK
    noise = noise_for(x, steps, seed)
    start, stop, _ = own.indices(len(x))
    for first in range(start, stop, size):
        last = min(first + size, stop)
        yield slice(first, last), noise.rows(first, last)


def check_count(value: int, name: str) -> None:
    """Raises InvalidInputError unless ``value`` is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInputError(f"{name} must be a positive integer, got {shown(value)}.")


def _draw_ends(kernel: EndKernel, x: Tensor, seed: int) -> Tensor:
    """Draws ends block by block, each with its own generator: memory is bounded, and rows do not depend on chunks."""
    blocks = enumerate(x.split(ROW_BLOCK))
    return torch.cat([kernel.draw(rows, generator(derive(seed, "end", i), x.device)) for i, rows in blocks])
