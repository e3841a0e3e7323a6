"""Diagnostics of a solved control problem: numbers that need no ground truth, and the error where one is known."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sbridge.controls import Control
from sbridge.errors import InvalidInputError
from sbridge.measures import Direction, Estimate, Paths, importance_weights
from sbridge.objectives.adjoint import adjoint_targets, lean_adjoint
from sbridge.objectives.control import control_values, log_variance, log_weight
from sbridge.parts import visible_tensors
from sbridge.problems import ControlProblem
from sbridge.processes import Chain, default_rule
from sbridge.random import NormalNoise, Seed, as_seed, derive
from sbridge.simulation import simulate
from sbridge.solutions import ControlSolution


@dataclass(frozen=True)
class ControlReport:
    """Diagnostics of a :class:`~sbridge.solutions.ControlSolution`.

    Attributes:
        objective: ``E[Σ Δ (f + ½|u|²) + g]``, an upper bound on the optimum of the chain.
        value: ``−log E α``, an estimate of the value of the tilted chain, which is a lower bound on every objective;
            with the effective sample size of the weights α. The standard error is not reliable if that size is small.
        gap: objective minus value, ``KL(P^u ‖ P*)`` of the chain; it is positive even for the best feedback control.
        control_error: ``E_{P*} Σ Δ |u − u*|² / E_{P*} Σ Δ |u*|²`` against a known control, or ``None``.
        fixed_point_residual: relative residual of adjoint matching, or ``None`` if it is not defined.
        signal_to_noise: signal-to-noise ratio of the gradient of the objective, or ``None`` if the control has no
            visible parameters.
    """

    objective: Estimate
    value: Estimate
    gap: float
    control_error: Estimate | None
    fixed_point_residual: Estimate | None
    signal_to_noise: float | None

    def __str__(self) -> str:
        """Formats one line for each available number."""
        named = [(field.name.replace("_", " "), getattr(self, field.name)) for field in dataclasses.fields(self)]
        shown = [f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}" for name, value in named]
        return "\n".join(line for line, (_, value) in zip(shown, named, strict=True) if value is not None)


def evaluate_control(
    solution: ControlSolution, *, n: int = 4096, seed: Seed, known: Control | None = None
) -> ControlReport:
    """Computes all diagnostics of a solution, each from ``n`` new paths.

    Args:
        solution: the result of a control solver, or any control in a ``ControlSolution``.
        n: number of paths.
        seed: of all paths.
        known: the optimal control of the chain, if it is known; it takes times of shape ``(batch,)``.
    """
    seed = as_seed(seed)
    top, bottom = objective_and_value(solution, n, seed=derive(seed, "paths"))
    error = None if known is None else control_error(solution, known, n, seed=derive(seed, "known"))
    differentiable = solution.problem.costs.refusal(solution.problem.probe, (0.0, solution.horizon)) is None
    relative = solution.measure.control is not None  # of no control there is no relative residual
    fixed = fixed_point_residual(solution, seed=derive(seed, "fixed point")) if differentiable and relative else None
    noise = signal_to_noise(solution, seed=derive(seed, "gradient"))
    return ControlReport(top, bottom, top.value - bottom.value, error, fixed, noise)


@torch.no_grad()
def objective_and_value(solution: ControlSolution, n: int, *, seed: Seed) -> tuple[Estimate, Estimate]:
    """Estimates the objective of the control and ``−log E α`` from the same ``n`` paths.

    The objective is the mean of ``−log α``, the action plus the martingale ``Σ √Δ u·ξ`` of mean zero. Near the optimum
    the martingale removes most of the variance (all of it for Δ → 0). The standard error of ``−log E α`` follows from
    the delta method, ``√(1/ESS − 1/n)``.
    """
    seed = as_seed(seed)
    paths = solution.sample(n, seed=seed)
    log_alpha = log_weight(paths, solution.problem.costs, _alive(solution.problem, paths, seed))
    found = importance_weights(log_alpha).log_normaliser
    return Estimate.of(-log_alpha), dataclasses.replace(found, value=-found.value)


@torch.no_grad()
def control_error(solution: ControlSolution, known: Control, n: int, *, seed: Seed) -> Estimate:
    """Estimates ``E_{P*} Σ Δ |u − u*|² / E_{P*} Σ Δ |u*|²`` on ``n`` paths of the known control ``u*``.

    Raises:
        InvalidInputError: if the known control is zero.
    """
    seed = as_seed(seed)
    paths = dataclasses.replace(solution.measure, control=known).sample(n, seed=seed)
    alive = _alive(solution.problem, paths, seed)
    spans = paths.t.diff().to(paths.x).unsqueeze(1)
    spans = spans if alive is None else spans * alive[:-1]
    own = control_values(solution.control, paths)
    wrong, whole = ((spans * u.square().sum(2)).sum(0).double() for u in (own - paths.v, paths.v))
    size = float(whole.mean())
    if size == 0:
        raise InvalidInputError(
            "the known control is zero, so the relative error is undefined; compare objectives instead."
        )
    return Estimate.of(wrong / size)


@torch.no_grad()
def fixed_point_residual(
    solution: ControlSolution, *, seed: Seed, states: int = 64, draws: int = 64, times: int = 4
) -> Estimate:
    """Estimates ``E|u_k + E[L_kᵀ a_{k+1} | x_k]/√Δ_k|² / E|u_k|²``, zero exactly at the optimum of the chain.

    ``x_k`` are ``states`` states of controlled paths at each of ``times`` knots. The conditional expectation is a mean
    over ``draws`` new paths from each state, and its square is the product of two independent halves. The estimate is
    unbiased and may be negative.

    Args:
        solution: the solution of a problem with differentiable costs and without a stopping set.
        seed: of all paths.
        states, draws, times: numbers, see above; ``draws`` is even.

    Raises:
        InvalidInputError: for other numbers.
        UnsupportedError: with a stopping set.
    """
    if states < 2 or draws < 2 or draws % 2 or times < 1:
        raise InvalidInputError(
            f"at least 2 states, an even number of draws and 1 time are needed, got {states}, {draws}, {times}."
        )
    seed = as_seed(seed)
    paths = solution.sample(states, seed=seed)
    knots = sorted({(paths.chain.length * i) // times for i in range(times)})
    products, squares = [], []
    for k in knots:
        half = [_residual(solution, paths, k, draws // 2, derive(seed, "half", k, i)) for i in range(2)]
        products.append((half[0] * half[1]).sum(1))
        squares.append(paths.v[k].square().sum(1))
    size = float(torch.stack(squares).double().mean())
    if size == 0:
        raise InvalidInputError("the control is zero at all tested states, so the relative residual is undefined.")
    return Estimate.of(torch.stack(products).double().mean(0) / size)


def signal_to_noise(solution: ControlSolution, *, seed: Seed, batch: int = 128, batches: int = 16) -> float | None:
    """Estimates ``|E G|²/(tr Cov G)`` for the gradient ``G`` of the objective on a batch; ``None`` without parameters.

    ``G`` is half the gradient of the log-variance loss on the control's own paths, which needs no gradient of a
    cost and holds with a stopping set. The numerator is unbiased, so the ratio may be negative. If it is far below one,
    training with this batch size makes no more progress.

    Args:
        solution: its control is a module, or a dataclass that contains modules.
        seed: of the paths.
        batch: paths of a gradient.
        batches: gradients, at least 2.
    """
    seed, problem = as_seed(seed), solution.problem
    control = copy.deepcopy(solution.control)
    found = {id(p): p.requires_grad_() for p in visible_tensors(control) if isinstance(p, nn.Parameter)}
    parameters = list(found.values())
    if not parameters:
        return None
    gradients = []
    for i in range(batches):
        own = derive(seed, "batch", i)
        paths = solution.sample(batch, seed=own)
        loss = 0.5 * log_variance(paths, problem.costs, control_values(control, paths), _alive(problem, paths, own))
        slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients.append(torch.cat([slope.flatten().double() for slope in slopes if slope is not None]))
    stacked = torch.stack(gradients)
    noise = float(stacked.var(0).sum())
    signal = float(stacked.mean(0).square().sum()) - noise / batches
    return signal / noise if noise > 0 else 0.0


def _residual(solution: ControlSolution, paths: Paths, k: int, draws: int, seed: int) -> Tensor:
    """Returns ``u_k − mean of the targets`` at the states of knot ``k``, over new paths from there."""
    measure = solution.measure
    rule = measure.rule or default_rule(measure.process)
    chain = Chain(measure.process, paths.chain.times[k:], Direction.FORWARD, rule, paths.x)
    x = paths.x[k].repeat_interleave(draws, 0)
    noise = NormalNoise(seed, chain.length, *x.shape, dtype=x.dtype, device=x.device).stored()
    states, controls = simulate(chain, measure.control, x, noise)
    ahead = Paths(states, noise, controls, chain)
    targets = adjoint_targets(chain, lean_adjoint(ahead, solution.problem.costs))[0]
    return paths.v[k] - targets.unflatten(0, (-1, draws)).mean(1)


def _alive(problem: ControlProblem, paths: Paths, seed: int) -> Tensor | None:
    return None if problem.stopping is None else problem.stopping.alive(paths, derive(seed, "stopping"))
