"""The static bridge of a killed diffusion between samples: Sinkhorn's iteration with one more column, the cemetery."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from sbridge.display import short_repr
from sbridge.errors import InvalidInputError, NotConvergedError, check_at_least
from sbridge.laws import Samples, as_law, check_same_kind, check_same_space
from sbridge.laws.arrays import Array
from sbridge.problems.costs import RunningCost, checked
from sbridge.processes import LinearProcess
from sbridge.processes.base import Pinned
from sbridge.random import Seed, as_seed, generator

_BATCHES = 8  # of pairs of mirrored paths
_PAIRS = 2**18  # pairs of rows whose paths are followed at once


@dataclass(frozen=True)
class KilledSinkhorn:
    """How the killed kernel is averaged and the plan is solved.

    Args:
        paths: pinned paths, shared by all pairs of rows; every second one mirrors the one before.
        intervals: of the trapezoidal rule for ``∫V dt``.
        tolerance: largest L1 distance of survivors and dead from their shares.
        max_iterations: pairs of updates.
    """

    paths: int = 256
    intervals: int = 16
    tolerance: float = 1e-9
    max_iterations: int = 20_000

    def __post_init__(self) -> None:
        check_at_least(self, 1, "paths", "intervals", "max_iterations")
        if self.paths % (2 * _BATCHES) or not self.tolerance > 0.0:
            raise InvalidInputError(f"paths must be a multiple of {2 * _BATCHES} and tolerance positive, got {self}.")


@dataclass(frozen=True, eq=False)
class KilledPlan:
    """Survivors and dead of a killed diffusion between samples.

    Attributes:
        plan: joint law of start rows and end rows of the living, ``(n, m)``; its sum is the share of survivors.
        death_probability: of each source row, ``(n,)``.
        standard_error: of :attr:`death_probability`, from the average over paths, at the potentials found.
        reference_survival: the share of the reference that survives.
        error: L1 distance of survivors and dead from their shares.
    """

    plan: Tensor = field(repr=False)
    death_probability: Tensor
    standard_error: Tensor
    reference_survival: float
    error: float

    __repr__ = short_repr


def killed_plan(
    x0: Samples | Array,
    x1: Samples | Array,
    process: LinearProcess,
    *,
    rate: RunningCost,
    survival: float,
    seed: Seed,
    options: KilledSinkhorn = KilledSinkhorn(),
) -> KilledPlan:
    """Solves the static problem of a diffusion that is killed at a known rate, with known survivors, between samples.

    ``R`` starts at ``x0`` and dies at the rate ``V ≥ 0``; the share ``survival`` is alive at ``T``, distributed as
    ``x1`` (Chen, Georgiou & Pavon 2021, arXiv:2108.02879). The killed kernel ``R(y|x) E[e^{−∫V}|x, y]`` is an average
    over pinned paths, the cemetery's column ``1 − E[e^{−∫V}|x]`` one over paths of ``R``. In one and two dimensions
    :func:`~sbridge.pde.solve_killed` has the paths too. Memory: ``(paths, n, m)`` is never stored; time grows with it.

    Args:
        x0: source: samples, or an array ``(n, dim)``.
        x1: the survivors.
        process: ``R`` without killing.
        rate: ``V(t, x) → (batch,)``, per unit time.
        survival: the share that is alive at ``T``, strictly between 0 and 1.
        seed: of the paths.
        options: numbers of paths and steps, tolerance.

    Raises:
        InvalidInputError: for a share outside ``(0, 1)``, ends that are no samples, or a rate that is negative.
        NotConvergedError: if the tolerance is not met.
    """
    if not 0.0 < survival < 1.0:
        raise InvalidInputError(f"survival must lie strictly between 0 and 1, got {survival:g}.")
    source, target = (as_law(one, name) for one, name in ((x0, "x0"), (x1, "x1")))
    if not (isinstance(source, Samples) and isinstance(target, Samples) and isinstance(process, LinearProcess)):
        raise InvalidInputError("a killed plan needs samples at both ends and a linear reference.")
    check_same_space(source, target, ("x0", "x1"))
    check_same_kind(source.rows, target.rows, ("x0", "x1"))
    x, y = source.rows.double(), target.rows.double()
    paths = _Paths.of(process, options, x.shape[1], as_seed(seed), rate)
    living, dying = paths.averages(x, y)
    law = process.transition(0.0, process.horizon)
    near, far = law.whitened(x, y)
    kernel = (living.log() - 0.5 * torch.cdist(near, far).square()).logsumexp(0) - math.log(_BATCHES)
    deaths = dying.mean(0)
    a, b = (_weights(one) for one in (source, target))
    log_h, cemetery, error = _iterate(kernel, deaths.log(), a, survival * b, options)
    # Normalised so that the cemetery's potential is 1.
    log_h = log_h - cemetery
    each = (living.log() - 0.5 * torch.cdist(near, far).square() + log_h).logsumexp(2).exp()
    phi = each.mean(0) + deaths
    shares = dying / (each + dying)
    plan = (a.log() - phi.log())[:, None] + kernel + log_h
    spread = shares.std(0) / math.sqrt(_BATCHES)
    return KilledPlan(plan.exp(), deaths / phi, spread, float(a @ (1.0 - deaths)), error)


def _iterate(
    kernel: Tensor, log_deaths: Tensor, a: Tensor, living: Tensor, options: KilledSinkhorn
) -> tuple[Tensor, float, float]:
    """Returns the log potentials of the target rows and of the cemetery, and the error."""
    log_u, log_living, dead, error = a.log(), living.log(), 1.0 - float(living.sum()), math.inf
    for _ in range(options.max_iterations):
        log_h = log_living - torch.logsumexp(log_u[:, None] + kernel, 0)
        cemetery = math.log(dead) - float(torch.logsumexp(log_u + log_deaths, 0))
        log_u = a.log() - torch.logaddexp(torch.logsumexp(kernel + log_h, 1), cemetery + log_deaths)
        reached = (log_h + torch.logsumexp(log_u[:, None] + kernel, 0)).exp()
        died = math.exp(cemetery + float(torch.logsumexp(log_u + log_deaths, 0)))
        error = float((reached - living).abs().sum()) + abs(died - dead)
        if error <= options.tolerance:
            return log_h, cemetery, error
    raise NotConvergedError(
        f"survivors and dead are {error:.3g} (L1) from their shares after {options.max_iterations} iterations; the "
        f"tolerance is {options.tolerance:g}. Take a larger σ, or a larger tolerance."
    )


@dataclass(frozen=True, eq=False)
class _Paths:
    """Centred paths ``Y`` of the reference from 0, at equally spaced times, and the rate along them.

    Args:
        process: the reference.
        times: ``(intervals + 1,)``.
        noise: ``Y``, shape ``(intervals + 1, paths, dim)``.
        rate: ``V``.
    """

    process: LinearProcess
    times: list[float]
    noise: Tensor
    rate: Callable[[float, Tensor], Tensor]

    @classmethod
    def of(cls, process: LinearProcess, options: KilledSinkhorn, dim: int, seed: int, rate: RunningCost) -> _Paths:
        """Simulates the paths by exact transitions."""
        times = torch.linspace(0.0, process.horizon, options.intervals + 1, dtype=torch.float64, device="cpu").tolist()
        draw = generator(seed)
        states = [torch.zeros(options.paths, dim, dtype=torch.float64, device="cpu")]
        for s, t in pairwise(times):
            law = process.transition(s, t)
            noise = torch.randn(options.paths // 2, dim, dtype=torch.float64, generator=draw, device=draw.device).cpu()
            mirrored = torch.stack([noise, -noise], 1).flatten(0, 1)
            states.append(law.map(states[-1]) + law.root(mirrored))

        def checked_rate(t: float, x: Tensor) -> Tensor:
            found = checked(rate(t, x), x, "killing rate", f"t = {t:g}")
            if not bool((found >= 0.0).all()):
                raise InvalidInputError(f"a killing rate must be 0 or more; got {float(found.min()):g} at t = {t:g}.")
            return found

        return cls(process, times, torch.stack(states), checked_rate)

    def averages(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Averages ``e^{−∫V}`` given both ends, ``(batches, n, m)``; ``1 − e^{−∫V}`` given starts, ``(batches, n)``."""
        living = torch.zeros(_BATCHES, len(x), len(y), dtype=torch.float64, device="cpu")
        dying = torch.zeros(_BATCHES, len(x), dtype=torch.float64, device="cpu")
        count, size = self.noise.shape[1] // _BATCHES, max(1, _PAIRS // len(y))
        for batch, members in enumerate(torch.arange(self.noise.shape[1], device="cpu").split(count)):
            for rows in torch.arange(len(x), device="cpu").split(size):
                for paths in members.split(max(1, _PAIRS // (len(rows) * len(y)))):
                    living[batch, rows] += self._pinned(self.noise[:, paths], x[rows], y) / count
            for paths in members.split(size):
                dying[batch] += self._dead(self.noise[:, paths], x) / count
        return living, dying

    def _pinned(self, noise: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Sums ``e^{−∫V}`` over pinned paths between all pairs, ``(n, m)``."""
        total = torch.zeros(noise.shape[1], len(x), len(y), dtype=torch.float64, device="cpu")
        for k, t in enumerate(self.times):
            pinned = self._pinned_laws[k]
            bridge = noise[k] - pinned.gain(noise[-1]) + pinned.shift
            states = pinned.stay(x)[:, None] + pinned.gain(y) + bridge[:, None, None]
            total += self._width(k) * self.rate(t, states.flatten(0, 2)).reshape(total.shape)
        return torch.exp(-total).sum(0)

    def _dead(self, noise: Tensor, x: Tensor) -> Tensor:
        """Sums ``1 − e^{−∫V}`` over paths of the reference from every row, ``(n,)``."""
        total = torch.zeros(noise.shape[1], len(x), dtype=torch.float64, device="cpu")
        for k, t in enumerate(self.times):
            means = x if k == 0 else self.process.transition(0.0, t).mean(x)
            states = means + noise[k][:, None]
            total += self._width(k) * self.rate(t, states.flatten(0, 1)).reshape(total.shape)
        return -torch.expm1(-total).sum(0)

    @cached_property
    def _pinned_laws(self) -> list[Pinned]:
        return [self.process.pinned(t) for t in self.times]

    def _width(self, k: int) -> float:
        """Returns the weight of a time in the trapezoidal rule."""
        inner = 0 < k < len(self.times) - 1
        return self.process.horizon / (len(self.times) - 1) * (1.0 if inner else 0.5)


def _weights(samples: Samples) -> Tensor:
    rows = samples.rows
    if samples.weights is None:
        return torch.full((len(rows),), 1.0 / len(rows), dtype=torch.float64, device="cpu")
    return samples.weights.double()
