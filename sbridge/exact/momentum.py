"""The Schrödinger bridge with momentum through Gaussian snapshots of positions, in closed form but for potentials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sbridge.controls.base import Time
from sbridge.display import short_repr
from sbridge.errors import InvalidInputError, UnsupportedError, number, shown
from sbridge.exact.quadratic_potentials import bend_to_unit_blocks
from sbridge.laws import Gaussian, as_rows
from sbridge.laws.frames import common_columns
from sbridge.laws.moments import is_singular, sample_moments
from sbridge.linear import LinearMap
from sbridge.measures import PathMeasure
from sbridge.processes import UnderdampedLangevin
from sbridge.processes.base import as_time
from sbridge.random import Seed, as_seed, derive, generator
from sbridge.storage.registry import register
from sbridge.time import TimeGrid, snapped


@register
@dataclass(frozen=True, eq=False)
class GaussianMomentumCourse:
    """The law ``P`` of states ``(x, v)`` closest to an underdamped Langevin process whose positions pass snapshots.

    ``P`` minimises ``KL(P ‖ R)`` under ``x_{t_i} ~ N(m_i, S_i)``, ``i = 1 … K``; velocities are not observed. R starts
    with any positions and independent velocities ``N(0, s²)``, or ``dv`` for ``s = ∞``. Then::

        dP/dR = Π_i e^{ψ_i(x_{t_i})}        ψ_i(x) = −½ xᵀA_i x + b_i·x
        u = σᵀ∇_v log φ        φ(t, x, v) = E_R[Π_{t_i > t} e^{ψ_i} | x, v] ∝ exp(−½ zᵀΠz + π·z),   z = (x, v)

    The ``A_i`` give the ``K d`` positions the covariances ``S_i`` (:mod:`sbridge.exact.quadratic_potentials`); the rest
    is linear algebra. The mean path does not depend on the ``S_i`` and σ: without friction, potential and law of the
    initial velocity it is the natural cubic spline through the means. Between two snapshots the plan is that of a
    Brownian bridge with ``ε = s²e² + (σ²/γ²)(T − 2e + (1 − e^{−2γT})/2γ)``, ``e = (1 − e^{−γT})/γ``; for ``γ = 0``,
    ``ε = s²T² + σ²T³/3``. (Chen et al. 2018, arXiv:1801.03186; Hong et al. 2025, arXiv:2503.00530.)

    Computed in float64; times are those of the snapshots, and the process starts at the first of them.

    Args:
        snapshots: two or more :class:`Gaussian` laws of positions.
        times: one for each, increasing.
        process: R, at least as long as the course.
        speed: ``s``, the standard deviation of the velocities of R at the first time; ``inf`` for none.

    Raises:
        InvalidInputError: for fewer than two snapshots, times that do not increase, dimensions that do not fit, a
            process that is too short, or ``s ≤ 0``.
        UnsupportedError: for another process.
        NotConvergedError: when it is used, for noise so weak that positions determine each other to rounding.
    """

    snapshots: tuple[Gaussian, ...]
    times: tuple[float, ...]
    process: UnderdampedLangevin
    speed: float = math.inf

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if not isinstance(self.process, UnderdampedLangevin):
            raise UnsupportedError(
                f"a course with momentum needs an UnderdampedLangevin process, got {type(self.process).__name__}."
            )
        object.__setattr__(self, "snapshots", tuple(self.snapshots))
        object.__setattr__(self, "times", tuple(map(float, self.times)))
        if len(self.times) != len(self.snapshots) or len(self.times) < 2:
            raise InvalidInputError(
                f"a course needs two or more snapshots with one time each, got {len(self.snapshots)} snapshots and "
                f"{len(self.times)} times."
            )
        if not all(a < b for a, b in pairwise(self.times)) or not math.isfinite(self.times[-1] - self.times[0]):
            raise InvalidInputError(f"times must increase and be finite, got {shown(self.times)}.")
        dims = [law.dim if isinstance(law, Gaussian) else shown(law) for law in self.snapshots]
        if dims != [self.process.dim // 2] * len(dims):
            raise InvalidInputError(
                f"every snapshot must be a Gaussian of the {self.process.dim // 2} positions of the process, got "
                f"{dims}. For rows use GaussianMomentumCourse.of_rows; a process of d positions has positions=d."
            )
        if snapped(self.times[-1] - self.times[0], (self.process.horizon,)) > self.process.horizon:
            raise InvalidInputError(
                f"the course lasts {number(self.times[-1] - self.times[0])} and the process only "
                f"{number(self.process.horizon)}: give it a longer horizon."
            )
        if not self.speed > 0.0:
            raise InvalidInputError(f"speed must be positive, inf for any velocity, got {shown(self.speed)}.")

    @classmethod
    def of_rows(
        cls,
        arrays: Sequence[Tensor | np.ndarray],
        times: Sequence[float],
        process: UnderdampedLangevin,
        speed: float = math.inf,
    ) -> GaussianMomentumCourse:
        """Makes the course through the means and covariances of rows of positions, one array for each time.

        Raises:
            InvalidInputError: as for the class; for rows that span fewer dimensions than they have columns.
        """
        found = []
        common_columns(arrays, [f"arrays[{place}]" for place in range(len(arrays))])
        for place, rows in enumerate(arrays):
            mean, covariance = sample_moments(as_rows(rows, f"arrays[{place}]", least=2))
            if is_singular(mean, covariance):
                raise InvalidInputError(
                    f"the rows of snapshot {place} span fewer dimensions than they have columns. Drop constant or "
                    "repeated columns, or use more rows."
                )
            found.append(Gaussian(mean, covariance))
        return cls(tuple(found), tuple(times), process, speed)

    def law(self, t: float) -> Gaussian:
        """Returns the law of ``(x_t, v_t)``, positions first."""
        leg, t = self._leg(t)
        mean, covariance = self._joint[0][leg], self._joint[1][leg, :, leg]
        map_, offset, noise = self._leg_kernel(leg, self.times[leg], t)
        return Gaussian(map_ @ mean + offset, _symmetric(map_ @ covariance @ map_.mT + noise))

    def covariance(self, s: float, t: float) -> Tensor:
        """Computes ``Cov(z_s, z_t)`` of the states at two times, shape ``(2 d, 2 d)``."""
        if s > t:
            return self.covariance(t, s).mT
        return self.law(s).covariance @ self._kernel(s, t)[0].mT

    def control(self, t: float, z: Tensor) -> Tensor:
        """Computes ``u(t, z) = σᵀ(π − Πz)``, shape ``(batch, 2 d)``: zero on positions, at a snapshot that after it."""
        leg, t = self._leg(t)
        precision, slope = self._message(leg, t)
        pull = slope.to(z) - z @ precision.to(z)
        return self.process.scale(t - self.times[0]).T.to(z)(pull)

    def forward(self, grid: TimeGrid | None = None) -> PathMeasure:
        """Returns ``P`` from the first to the last snapshot, as a measure that can be simulated.

        Args:
            grid: of the steps; 100 equal steps if ``None``.
        """
        span = self.times[-1] - self.times[0]
        process = UnderdampedLangevin(
            self.process.friction,
            self.process.sigma,
            self.process.stiffness,
            self.process.mean,
            span,
            self.process.positions,
        )
        return PathMeasure(process, CourseControl(self), self.law(self.times[0]), grid=grid or TimeGrid.uniform(100))

    def interpolate(self, x: Tensor | np.ndarray, start: float, t: float, *, seed: Seed) -> Tensor:
        """Draws states ``(x, v)`` at time ``t``, shape ``(n, 2 d)``, given rows at time ``start``, in either direction.

        Args:
            x: positions ``(n, d)``, whose velocities are drawn from their law given the position; or states
                ``(n, 2 d)``.
            start: the time of the rows.
            t: any time of the course, before ``start`` too.
            seed: of all draws.
        """
        rows, seed = as_rows(x, "x", least=1), as_seed(seed)
        states = rows.double()
        d = self.process.dim // 2
        if rows.shape[1] not in (d, 2 * d):
            raise InvalidInputError(
                f"rows need {d} positions, or {2 * d} columns with velocities; got {rows.shape[1]}."
            )
        begin = self.law(start)
        if rows.shape[1] == d:
            states = torch.cat([states, _given_positions(begin, states, _noise(states, derive(seed, "velocities")))], 1)
        map_, offset, noise = self._kernel(start, t) if t >= start else self._backward_kernel(start, t)
        drawn = LinearMap(noise, dense=True).cholesky()(_noise(states, derive(seed, "end")))
        return (states @ map_.mT + offset + drawn).to(rows)

    def _leg(self, t: float) -> tuple[int, float]:
        """Returns ``i`` with ``t_i ≤ t < t_{i+1}`` (the last at the end), and ``t`` snapped to the snapshots."""
        t = snapped(float(t), self.times)
        if not self.times[0] <= t <= self.times[-1]:
            raise InvalidInputError(
                f"time {number(t)} is outside the course, {number(self.times[0])} … {number(self.times[-1])}."
            )
        return min(int(np.searchsorted(self.times, t, side="right")) - 1, len(self.times) - 2), t

    def _step(self, s: float, t: float) -> tuple[Tensor, Tensor, Tensor]:
        law = self.process.transition(s - self.times[0], t - self.times[0])
        return law.map.values, law.offset, law.covariance.values

    @cached_property
    def _joint(self) -> tuple[Tensor, Tensor]:
        """Mean ``(K, 2 d)`` and covariance ``(K, 2 d, K, 2 d)`` of the states at the snapshots.

        Given all positions, velocities have the law that they have under R: the potentials enter by the covariance of
        the positions alone.
        """
        joint, slope = self._reference
        count, dim = slope.shape
        d = dim // 2
        xx, xv, vv = (joint[:, a, :, b].reshape(count * d, -1) for a, b in _blocks(d))
        gain = -torch.linalg.solve(vv, xv.mT)  # E[v | x] = gain x + shift
        roots = [torch.linalg.cholesky(law.covariance.double()) for law in self.snapshots]
        whole, means = torch.block_diag(*roots), torch.cat([law.mean.double() for law in self.snapshots])
        precision = whole.mT @ _symmetric(xx + xv @ gain) @ whole
        bent = precision + torch.block_diag(*bend_to_unit_blocks(precision, count))
        side = whole @ torch.linalg.inv(torch.linalg.cholesky(_symmetric(bent))).mT
        positions = side @ side.mT
        mean, covariance = (
            torch.zeros(count, dim, device="cpu").double(),
            torch.zeros(count, dim, count, dim, device="cpu").double(),
        )
        mean[:, :d] = means.reshape(count, d)
        mean[:, d:] = (gain @ means + torch.linalg.solve(vv, slope[:, d:].flatten())).reshape(count, d)
        blocks = (positions, positions @ gain.mT, gain @ positions @ gain.mT + torch.linalg.inv(vv))
        for (a, b), block in zip(_blocks(d), blocks, strict=True):
            covariance[:, a, :, b] = block.reshape(count, d, count, d)
        covariance[:, d:, :, :d] = blocks[1].mT.reshape(count, d, count, d)
        return mean, covariance

    @cached_property
    def _reference(self) -> tuple[Tensor, Tensor]:
        """Precision ``(K, 2 d, K, 2 d)`` and linear term of the states at the snapshots under R."""
        count, dim = len(self.times), self.process.dim
        d = dim // 2
        joint, slope = (
            torch.zeros(count, dim, count, dim, device="cpu").double(),
            torch.zeros(count, dim, device="cpu").double(),
        )
        joint[0, d:, 0, d:] += torch.eye(d, device="cpu").double() / self.speed**2
        for i, (s, t) in enumerate(pairwise(self.times)):
            map_, offset, noise = self._step(s, t)
            both = torch.cat(
                [-map_, torch.eye(dim, device="cpu").double()], 1
            )  # times (z_s, z_t): the noise, and the offset
            weighted = torch.linalg.solve(noise, both).mT
            pair = slice(i, i + 2)
            joint[pair, :, pair] += (weighted @ both).reshape(2, dim, 2, dim)
            slope[pair] += (weighted @ offset).reshape(2, dim)
        return joint, slope

    @cached_property
    def _messages(self) -> list[tuple[Tensor, Tensor]]:
        """``Π, π`` at the end of every leg, the potential of that snapshot included.

        They follow from the transition of ``P`` over the leg, of covariance ``C``: ``Π = C⁻¹ − Q⁻¹``. Handed from leg
        to leg they would lose digits where the potentials are large and of both signs.
        """
        mean, covariance = self._joint
        found = []
        for i, (s, t) in enumerate(pairwise(self.times)):
            map_, offset, noise = self._step(s, t)
            start, cross, end = (covariance[i + a, :, i + b] for a, b in ((0, 0), (0, 1), (1, 1)))
            root = torch.linalg.cholesky(_symmetric(end - cross.mT @ torch.linalg.solve(start, cross)))
            precision, inverse = torch.cholesky_inverse(root), torch.cholesky_inverse(torch.linalg.cholesky(noise))
            slope = precision @ mean[i + 1] - inverse @ (map_ @ mean[i] + offset)
            found.append((precision - inverse, slope))
        return found

    def _message(self, leg: int, t: float) -> tuple[Tensor, Tensor]:
        """``Π, π`` at time ``t`` of a leg, from the snapshot at its end."""
        return _moved_back(*self._step(t, self.times[leg + 1]), *self._messages[leg])

    def _leg_kernel(self, leg: int, s: float, t: float) -> tuple[Tensor, Tensor, Tensor]:
        """The transition of ``P`` within a leg: that of R, weighted by ``φ(t, ·)``."""
        map_, offset, noise = self._step(s, t)
        precision, slope = self._message(leg, t)
        kept = torch.linalg.inv(torch.eye(len(slope), device="cpu").double() + noise @ precision)
        return kept @ map_, kept @ (offset + noise @ slope), _symmetric(kept @ noise)

    def _kernel(self, s: float, t: float) -> tuple[Tensor, Tensor, Tensor]:
        """The transition of ``P`` from ``s`` to a later time, through the snapshots in between."""
        (first, s), (last, t) = self._leg(s), self._leg(t)
        dim = self.process.dim
        map_, offset, noise = (
            torch.eye(dim, device="cpu").double(),
            torch.zeros(dim, device="cpu").double(),
            torch.zeros(dim, dim, device="cpu").double(),
        )
        for leg in range(first, last + 1):
            step, shift, added = self._leg_kernel(leg, s, min(t, self.times[leg + 1]))
            map_, offset, noise = step @ map_, step @ offset + shift, step @ noise @ step.mT + added
            s = self.times[leg + 1]
        return map_, offset, _symmetric(noise)

    def _backward_kernel(self, s: float, t: float) -> tuple[Tensor, Tensor, Tensor]:
        """The transition of ``P`` from ``s`` to an earlier time."""
        here, there = self.law(s), self.law(t)
        cross = self.covariance(t, s)
        gain = torch.linalg.solve(here.covariance, cross.mT).mT
        return gain, there.mean - gain @ here.mean, _symmetric(there.covariance - gain @ cross.mT)


@register
@dataclass(frozen=True, eq=False)
class CourseControl:
    """The control of a :class:`GaussianMomentumCourse` on the clock of its process, which starts at zero."""

    course: GaussianMomentumCourse

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``u(t, x)``; all times must be equal."""
        return self.course.control(float(as_time(t).reshape(-1)[0]) + self.course.times[0], x)


def _moved_back(map_: Tensor, offset: Tensor, noise: Tensor, precision: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """``Π, π`` of ``z ↦ E exp(−½ yᵀΠy + π·y)`` for ``y ~ N(Φz + k, Q)``: ``ΦᵀMΠΦ`` and ``ΦᵀM(π − Πk)``."""
    mixed = torch.linalg.inv(torch.eye(len(slope), device="cpu").double() + precision @ noise)
    return _symmetric(map_.mT @ mixed @ precision @ map_), map_.mT @ (mixed @ (slope - precision @ offset))


def _given_positions(law: Gaussian, places: Tensor, noise: Tensor) -> Tensor:
    """Draws velocities given positions."""
    d = places.shape[1]
    (xx, xv), vv = law.covariance[:d].split(d, 1), law.covariance[d:, d:]
    gain = torch.linalg.solve(xx, xv).mT
    root = LinearMap(_symmetric(vv - gain @ xv), dense=True).cholesky()
    return law.mean[d:] + (places - law.mean[:d]) @ gain.mT + root(noise)


def _noise(like: Tensor, seed: int) -> Tensor:
    return torch.randn(like.shape, generator=generator(seed), dtype=torch.float64, device="cpu")


def _blocks(d: int) -> tuple[tuple[slice, slice], ...]:
    first, second = slice(0, d), slice(d, 2 * d)
    return (first, first), (first, second), (second, second)


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)
