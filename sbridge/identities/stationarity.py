"""Stationarity of the action at a Schrödinger bridge: its change near a grid solution and near perturbed fields."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch

from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.settings import Setting
from sbridge.identities.tools.line import line_grid, shifted_target
from sbridge.pde import GridAction, SpaceTime, solve_schroedinger
from sbridge.random import generator

action_identity = partial(identity, group="action")
_LENGTHS = (2e-3, 1e-3, 5e-4)
"""Step lengths for which the first variation should vanish."""
_SHORT = (4e-5, 2e-5, 1e-5)
"""Step lengths for which a nonzero first variation dominates the second."""
_DIRECTIONS = 3
_ROUNDING = 1e-10  # of values of order one that are differences of larger ones


@dataclass(frozen=True, eq=False)
class Triple:
    """A density, a control and a multiplier, as fields on grid × time."""

    p: np.ndarray
    u: np.ndarray
    multiplier: np.ndarray

    def moved(self, length: float, by: Triple) -> Triple:
        """Returns ``z + h δ``."""
        return Triple(self.p + length * by.p, self.u + length * by.u, self.multiplier + length * by.multiplier)


@dataclass(frozen=True, eq=False)
class World:
    """A grid solution of the Schrödinger problem from the data to :func:`shifted_target`.

    Attributes:
        setting: data and process.
        action: the functional.
        solution: its stationary point: ``φφ̂``, ``σᵀ∇log φ`` and ``−log φ``.
    """

    setting: Setting
    action: GridAction
    solution: Triple

    @classmethod
    def of(cls, setting: Setting, fineness: float, nodes: int) -> World:
        """Makes a grid of ``fineness`` cells in the deviation of the narrowest component, and ``nodes`` times."""
        bridge = solve_schroedinger(
            setting.process, setting.data, shifted_target(setting), line_grid(setting, fineness)
        )
        action = GridAction(setting.process, SpaceTime(bridge.grid, setting.horizon, nodes))
        times = [float(t) for t in action.space.times]
        log_phi = np.stack([bridge.potentials.log_phi(t) for t in times])
        log_phi_hat = np.stack([bridge.potentials.log_phi_hat(t) for t in times])
        solution = Triple(np.exp(log_phi + log_phi_hat), action.control_of(-log_phi), -log_phi)
        return cls(setting, action, solution)

    def direction(self, number: int) -> Triple:
        """Draws a smooth ``(δp, δu, δJ)``; ``δp`` is zero at both ends of time, and decays like ``p``."""
        g, space = generator(self.setting.seed_of("direction", number)), self.action.space
        x, p = space.grid.centres[0], self.solution.p
        mean = (p @ x * space.grid.volume)[:, None]
        width = np.sqrt((p * (x - mean) ** 2).sum(1, keepdims=True) * space.grid.volume)
        place, t = (x - mean) / width, space.times[:, None] / space.horizon
        waves = [_wave(torch.rand(8, generator=g, dtype=torch.float64).tolist(), t, place) for _ in range(3)]
        return Triple(np.sin(np.pi * t) * p * waves[0], waves[1][None] / math.sqrt(space.horizon), waves[2])

    def constraint_form(self, z: Triple) -> float:
        """Computes the action in the form of eq. (3.22)."""
        return self.action.constraint_form(z.p, z.u, z.multiplier)

    def adjoint_form(self, z: Triple) -> float:
        """Computes the action in the form of eq. (3.21)."""
        return self.action.adjoint_form(z.p, z.u, z.multiplier)

    def change(self, at: Triple, along: Triple, length: float) -> float:
        """Computes ``S(z + hδ) − S(z)``."""
        return self.constraint_form(at.moved(length, along)) - self.constraint_form(at)

    def slope(self, at: Triple, along: Triple, lengths: tuple[float, ...]) -> float:
        """Computes the order in ``h`` of ``|S(z + hδ) − S(z)|``."""
        changes = [abs(self.change(at, along, h)) for h in lengths]
        return float(np.polyfit(np.log(lengths), np.log(np.maximum(changes, 1e-300)), 1)[0])


@lru_cache(maxsize=2)
def _worlds(setting: Setting) -> tuple[World, World]:
    """Makes a coarse and a fine grid solution."""
    return World.of(setting, 3.0, 28), World.of(setting, 3.6, 36)


@action_identity(
    statement="|S[z + hδ] − S[z]| = O(h²) for every (δp, δu, δJ) at the Schrödinger bridge",
    equation="Premkumar 2023, eq. (3.21)–(3.23)",
    kind=Kind.ORDER,
    left="order in h of the change of the action around a grid solution of the Schrödinger system, random directions",
    right="2",
    applies=Setting.has_density_on_line,
)
def action_is_stationary(setting: Setting) -> Iterator[Outcome]:
    """Checks that the first variation vanishes."""
    _, fine = _worlds(setting)
    for number in range(_DIRECTIONS):
        slope = fine.slope(fine.solution, fine.direction(number), _LENGTHS)
        yield Outcome(slope, 2.0, allowance=0.2, note=f"direction {number + 1}")


@action_identity(
    statement="|S[z + hδ] − S[z]| is of order h, not h², if z is not a Schrödinger bridge",
    equation="Premkumar 2023, eq. (3.23)",
    kind=Kind.ORDER,
    left="order in h of the change of the action around a perturbed solution, along the steepest of three directions",
    right="1",
    applies=Setting.has_density_on_line,
)
def action_has_a_slope_elsewhere(setting: Setting) -> Iterator[Outcome]:
    """Perturbs each of the three fields in turn."""
    _, fine = _worlds(setting)
    z, other = fine.solution, fine.direction(10)
    perturbed = {
        "a weaker control": replace(z, u=0.8 * z.u),
        "another multiplier": replace(z, multiplier=z.multiplier + 0.2 * other.multiplier),
        "another density": replace(z, p=z.p + 0.2 * other.p),
    }
    for note, at in perturbed.items():
        along = max(map(fine.direction, range(_DIRECTIONS)), key=lambda one: abs(fine.change(at, one, _SHORT[0])))
        yield Outcome(fine.slope(at, along, _SHORT), 1.0, allowance=0.2, note=note)


@action_identity(
    statement="S[p, u* + δu, J] − S[p, u*, J] = ½∫∫ p|δu|² dx dt",
    equation="Premkumar 2023, eq. (3.23c), (3.36)",
    kind=Kind.EQUALITY,
    left="the action in form (3.22)",
    right="quadrature",
    applies=Setting.has_density_on_line,
)
def control_variation_is_half_the_mean_square(setting: Setting) -> Iterator[Outcome]:
    """Checks that the action is quadratic in the control."""
    for number in range(_DIRECTIONS):
        sides = []
        for world in _worlds(setting):
            z, along = world.solution, world.direction(number)
            change = world.constraint_form(replace(z, u=z.u + along.u)) - world.constraint_form(z)
            sides.append((change, world.action.space.integrate(0.5 * z.p * (along.u**2).sum(0))))
        yield _between(sides, f"direction {number + 1}")


@action_identity(
    statement="the action with derivatives of p equals the action with derivatives of J plus ∫p_0J_0 − ∫p_TJ_T",
    equation="Premkumar 2023, eq. (3.21) = (3.22)",
    kind=Kind.EQUALITY,
    left="eq. (3.22) for random fields that solve no equation",
    right="eq. (3.21)",
    applies=Setting.has_density_on_line,
)
def both_forms_of_the_action_agree(setting: Setting) -> Iterator[Outcome]:
    """Checks integration by parts with its boundary terms."""
    for number in range(_DIRECTIONS):
        sides = []
        for world in _worlds(setting):
            waves, other = world.direction(number), world.direction(number + _DIRECTIONS)
            z = Triple(world.solution.p + 0.3 * other.p, waves.u, waves.multiplier + 0.5)
            sides.append((world.constraint_form(z), world.adjoint_form(z)))
        yield _between(sides, f"fields {number + 1}")


def _between(sides: list[tuple[float, float]], note: str) -> Outcome:
    """Compares both sides on the fine grid; the allowance is the change of either by refinement."""
    (left0, right0), (left, right) = sides
    allowance = abs(left - left0) + abs(right - right0) + _ROUNDING * max(abs(left), abs(right), 1.0)
    return Outcome(left, right, allowance=allowance, note=note)


def _wave(shares: list[float], t: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Makes two products of a wave in time and one in space, with random lengths, phases and heights."""
    total = np.zeros(np.broadcast_shapes(t.shape, x.shape))
    for a, b, c, d in (shares[:4], shares[4:]):
        total += (0.5 + a) * np.cos(2.0 * b * t + 6.0 * c) * np.sin((0.5 + d) * x + 6.0 * b)
    return total
