"""The normaliser of an unnormalised density, and weighted samples of it, from controlled paths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.display import short_repr
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.measures import Estimate, ImportanceWeights, importance_weights
from sbridge.objectives.control import weighted_ends
from sbridge.problems.sampling import DensityCost
from sbridge.processes import ExactTransition
from sbridge.random import Seed, as_seed
from sbridge.solutions import ControlSolution


@dataclass(frozen=True, eq=False)
class WeightedSamples:
    """End states of controlled paths, with weights that make them samples of the density.

    Attributes:
        x: end states, shape ``(n, dim)``.
        weights: self-normalised, with their effective sample size.
        log_normaliser: ``log Z``, with the standard error of the delta method, ``√(1/ESS − 1/n)``. It is reliable if
            the effective sample size is large and no mode was missed.
        lower_bound: ``E[log α] ≤ log Z``, the evidence lower bound of the control.
    """

    x: Tensor
    weights: ImportanceWeights
    log_normaliser: Estimate
    lower_bound: Estimate

    __repr__ = short_repr


@torch.no_grad()
def log_normaliser(solution: ControlSolution, n: int, *, seed: Seed) -> WeightedSamples:
    """Computes ``log Z``, its lower bound and weighted samples, from ``n`` paths of a solved :func:`sampling_problem`.

    Args:
        solution: with any control; a better control gives a larger effective sample size.
        n: number of paths, at least 2.
        seed: of the paths.

    Raises:
        InvalidInputError: if the problem is no sampling problem.
        UnsupportedError: if the steps of the chain are not exact, because its end distribution then differs from the
            cost.
    """
    if not isinstance(solution.problem.terminal_cost, DensityCost):
        raise InvalidInputError("a solution of sampling_problem(target, process, start) is needed.")
    rule = solution.measure.rule
    if rule is not None and not isinstance(rule, ExactTransition):
        raise UnsupportedError(
            f"the chain was stepped by {type(rule).__name__}, whose end distribution is not that of the process; use "
            "rule=ExactTransition(), the default, in solve."
        )
    x, log_alpha = weighted_ends(solution.measure, solution.problem.costs, n, seed=as_seed(seed))
    weights = importance_weights(log_alpha)
    return WeightedSamples(x, weights, weights.log_normaliser, Estimate.of(log_alpha))
