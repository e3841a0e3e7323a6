"""The networks of bridge solvers: one for each direction, with initial weights that follow from the seed."""

from __future__ import annotations

from sbridge.controls import NetworkRecipe, seeded_control
from sbridge.errors import UnsupportedError
from sbridge.laws import Density, Law
from sbridge.problems import BridgeProblem
from sbridge.processes import Direction
from sbridge.random import derive, generator as generator_of
from sbridge.training import Learner, Optimisation

DIRECTIONS: tuple[Direction, ...] = (Direction.FORWARD, Direction.BACKWARD)


def sampled_end(problem: BridgeProblem) -> Law:
    """An end that can be sampled: the source, unless only its density is known.

    Raises:
        UnsupportedError: if both ends are unnormalised densities.
    """
    for end in (problem.source, problem.target):
        if not isinstance(end, Density):
            return end
    raise UnsupportedError("an end that can be sampled is needed, and both are unnormalised densities.")


def control_learner(
    problem: BridgeProblem,
    direction: Direction,
    network: NetworkRecipe,
    optimisation: Optimisation,
    *,
    updates: int,
    size: float,
    seed: int,
) -> Learner:
    """A network for the control of one direction, with its optimiser; its output is zero at first.

    Args:
        problem: gives the dimension, the horizon, the dtype and the device.
        direction: the two directions start from different weights.
        network: recipe of the network.
        optimisation: how it is trained.
        updates: number of updates over which the learning rate decays.
        size: the expected size of controls.
        seed: seed of the run.
    """
    module = seeded_control(network, problem.dim, problem.reference.horizon, size, derive(seed, direction.name))
    return Learner(module.to(sampled_end(problem).sample(1, generator_of(0))), optimisation, updates)
