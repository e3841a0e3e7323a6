"""The normaliser of an unnormalised density, and weighted samples of it, from controlled paths."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sbridge.display import short_repr
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Gaussian, Point
from sbridge.linear import LinearMap
from sbridge.measures import ControlledKernel, Estimate, ImportanceWeights, StepKernel, importance_weights
from sbridge.measures.kernels import ratio_along
from sbridge.objectives.control import weighted_ends
from sbridge.problems import ControlProblem
from sbridge.problems.sampling import DensityCost
from sbridge.processes import ExactTransition, LinearProcess
from sbridge.random import Seed, as_seed, derive, generator
from sbridge.solutions import ControlSolution

_ROWS = 2**12


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
def log_normaliser(
    solution: ControlSolution, n: int, *, seed: Seed, kernel: StepKernel | None = None
) -> WeightedSamples:
    """Computes ``log Z``, its lower bound and weighted samples, from ``n`` paths of a solved :func:`sampling_problem`.

    Args:
        solution: with any control; a better control gives a larger effective sample size.
        n: number of paths, at least 2.
        seed: of the paths.
        kernel: how the chain steps; ``None``: as the measure of the solution does. With
            :class:`~sbridge.measures.MatchedKernel` the variance of the steps follows from the derivative of the
            control, which gives a good control a far larger effective sample size on the same grid.

    Raises:
        InvalidInputError: if the problem is no sampling problem.
        UnsupportedError: if the steps of the chain are not exact, because its end distribution then differs from the
            cost; or if the kernel cannot be used with the process or the control.
    """
    _check_sampling(solution)
    x, log_alpha = weighted_ends(solution.measure, solution.problem.costs, n, seed=as_seed(seed), kernel=kernel)
    weights = importance_weights(log_alpha)
    return WeightedSamples(x, weights, weights.log_normaliser, Estimate.of(log_alpha))


@torch.no_grad()
def evidence_upper_bound(
    solution: ControlSolution, draws: Tensor, *, seed: Seed, kernel: StepKernel | None = None
) -> Estimate:
    """Estimates ``E_{P*}[log α] = log Z + KL(P* ‖ P) ≥ log Z`` of a solved :func:`sampling_problem`.

    Paths of the optimal path measure ``P*`` are exact: from a draw of the density back by the uncontrolled process,
    given its end. The effective sample size of controlled paths does not see a mode that they never visit; this bound
    does, since its paths end in all modes (Blessing et al. 2024, arXiv:2406.07423).

    Args:
        solution: with any control.
        draws: exact draws of the density, shape ``(n, dim)``, ``n ≥ 2``, like the states of the problem.
        seed: of the paths.
        kernel: as in :func:`log_normaliser`.

    Raises:
        InvalidInputError: if the problem is no sampling problem, or the draws have another shape.
        UnsupportedError: as for :func:`log_normaliser`.
    """
    _check_sampling(solution)
    problem, measure, seed = solution.problem, solution.measure, as_seed(seed)
    if draws.ndim != 2 or draws.shape[1] != problem.dim or len(draws) < 2:
        raise InvalidInputError(f"draws of shape (n, {problem.dim}), n ≥ 2, are needed, got {tuple(draws.shape)}.")
    draws = draws.to(problem.probe)
    chain = measure.chain(draws)
    at = (kernel or ControlledKernel()).on(chain, measure.control)
    found = []
    for first, ends in enumerate(draws.split(_ROWS)):
        paths = _paths_to(problem, chain.times, ends, generator(derive(seed, "chunk", first)))
        found.append(ratio_along(chain, at, paths) - problem.costs.end(ends).double())
    return Estimate.of(torch.cat(found))


def _check_sampling(solution: ControlSolution) -> None:
    if not isinstance(solution.problem.terminal_cost, DensityCost):
        raise InvalidInputError("a solution of sampling_problem(target, process, start) is needed.")
    rule = solution.measure.rule
    if rule is not None and not isinstance(rule, ExactTransition):
        raise UnsupportedError(
            f"the chain was stepped by {type(rule).__name__}, whose end distribution is not that of the process; use "
            "rule=ExactTransition(), the default, in solve."
        )


def _paths_to(problem: ControlProblem, times: Tensor, ends: Tensor, draws: torch.Generator) -> Tensor:
    """Draws paths of the uncontrolled process given their ends, ``(N + 1, batch, dim)``, from the start forwards."""
    process = problem.process
    if not isinstance(process, LinearProcess):
        raise UnsupportedError(f"a LinearProcess is needed, got a {type(process).__name__}.")

    def noise() -> Tensor:
        return torch.randn(ends.shape, generator=draws, dtype=torch.float64, device="cpu").to(ends)

    states = [_starts_given(problem.start, process, ends, noise())]
    knots = times.tolist()
    for before, now in pairwise(knots[:-1]):
        states.append(process.pinned(now, start=before).sample(states[-1], ends, noise()))
    return torch.stack([*states, ends])


def _starts_given(start: object, process: LinearProcess, ends: Tensor, noise: Tensor) -> Tensor:
    """Draws ``X_0`` given ``X_T``, for a start at a point or a Gaussian one: conditioning of a Gaussian vector."""
    if isinstance(start, Point):
        return start.position.to(ends).expand_as(ends)
    if not isinstance(start, Gaussian):
        raise UnsupportedError(f"the start must be a Point or a Gaussian, got a {type(start).__name__}.")
    law, mean = process.transition(0.0, process.horizon), start.mean.double().cpu()
    spread = LinearMap(start.covariance.double().cpu(), dense=True)
    gain = spread @ law.map.T @ (law.map @ spread @ law.map.T + law.covariance).inverse()
    left = spread + -(gain @ law.map @ spread)
    middle = mean.to(ends) + gain.to(ends)(ends - law.mean(mean.unsqueeze(0)).to(ends))
    return middle + left.cholesky().to(ends)(noise)
