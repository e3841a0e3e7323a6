"""A trained diffusion or bridge, tilted by a reward of its ends: control learning on top of the process it has."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sbridge.controls import Control, MirroredControl, ScaledControl, on_top
from sbridge.diffusion.accessors import backward_measure, is_reverse_diffusion
from sbridge.errors import ConvergenceWarning, InvalidInputError, MarginalWarning, shown
from sbridge.fitting.fit import solve
from sbridge.fitting.mixture_start import MixtureStart
from sbridge.laws import Law, Point, Samples
from sbridge.laws.scaling import AffineScaling, CommonScale
from sbridge.measures import Direction, Estimate, PathMeasure, importance_weights
from sbridge.measures.generating import MeasureProcess, MeasureSteps, knots_since_start
from sbridge.modes import standard_modes
from sbridge.objectives.control import log_weight
from sbridge.problems import ControlProblem
from sbridge.problems.costs import checked
from sbridge.random import Seed, as_seed, derive
from sbridge.solutions import Bridge
from sbridge.solvers.control import ControlSolver, LogVariance, Replay, TrustRegion
from sbridge.storage.registry import register
from sbridge.time import TimeGrid
from sbridge.training import Callback, Optimisation

Reward = Callable[[Tensor], Tensor]
"""A reward ``r(x) → (batch,)`` of end states in units of the data, in nats."""

_STARTS, _COPIES = 256, 16
_STANDARD_ERRORS, _REMEMBERED = 4.0, 0.01
_PATHS, _CHUNK = 4096, 512
_STEPS = 40
_LEAST_SHARE = 0.1


@register
@dataclass(frozen=True, eq=False)
class TiltedBridge(Bridge):
    """A :class:`~sbridge.solutions.Bridge` tilted by a reward, with the numbers that judge it.

    The direction that generates has the learned control on top of its own. The other direction has the control that it
    had, and starts in the generated ends, weighted so that they are draws of ``p e^r / Z`` up to Monte Carlo error:
    ``Samples`` of 4096 rows.

    Attributes:
        value: ``−log Z = −log E_p e^r``, with the effective sample size of the path weights from which it is computed.
        memory: the largest share of the variance of a coordinate of the end, or of the reward, that the start explains.
    """

    value: Estimate
    memory: float


@standard_modes(gradients=True)
def tilt(
    bridge: Bridge,
    reward: Reward,
    *,
    solver: ControlSolver | None = None,
    seed: Seed = 0,
    callbacks: Sequence[Callback] = (),
) -> TiltedBridge:
    """Tilts the generated distribution ``p`` of a diffusion or a bridge to ``p e^r / Z``.

    Minimises ``KL(P ‖ P_model) − E_P r(X_end)`` over controls ``v`` on top of the model's (Domingo-Enrich et al. 2024,
    arXiv:2409.08861)::

        dY = (b_model + σv) ds + σ dW,   min_v E[∫ ½|v|² ds − r(Y_end)],   dP*/dP_model = e^{r(Y_end)}/E[e^r | Y_start]

    The end then has the density ``p e^r / Z``, exactly if start and end of the model are independent (a *memoryless*
    start). If they are not, ``E[e^r | Y_start]`` differs from start to start: ends of correlation ρ with unit variances
    and ``r = a x`` shift by ``a(1 − ρ²)`` instead of ``a``. The dependence is measured on simulated paths first. With
    ``r = −|y − Hx|²/2s²`` the result is the posterior of ``x`` given ``y = Hx`` plus noise
    (:meth:`sbridge.diffusion.LinearObservation.log_likelihood`).

    Of a reverse diffusion (:func:`sbridge.diffuse`, :func:`sbridge.diffusion.reverse_diffusion`) the end is the data;
    the result is a reverse diffusion, for :func:`sbridge.generate`. Of another bridge it is that of ``transport``, the
    target; tilt ``bridge.reversed()`` for the source.

    Args:
        bridge: with an exact score or control, or a trained one.
        reward: ``r(x) → (batch,)`` in nats, of states in units of the data.
        solver: any control solver; its grid counts time from the start of the generating process, and its steps are
            those of the model. ``None``: :func:`tilting_solver`, which needs no gradient of the reward.
        seed: integer or generator.
        callbacks: called after every update.

    Returns:
        The tilted bridge, with ``value``. It can be saved if ``bridge`` can.

    Warns:
        MarginalWarning: if the start is not memoryless, with the measured share of variance.
        ConvergenceWarning: if the effective sample size of the path weights is below a tenth.

    Raises:
        InvalidInputError: for a reward of another shape.
        NonFiniteError: if it is NaN or infinite at ends of the model.
        UnsupportedError: for a solver that differentiates a reward without gradient, or a start that is a density.
    """
    seed = as_seed(seed)
    model = _generating(bridge, reward, solver)
    memory, scaling = _measured(model, reward, derive(seed, "memory"))
    process, cost = MeasureProcess(model, scaling), _NegativeReward(reward, scaling)
    problem = ControlProblem(process, model.start.rescaled(scaling), terminal_cost=cost)
    solver = tilting_solver(model) if solver is None else solver
    solution = solve(problem, replace(solver, rule=MeasureSteps()), seed=derive(seed, "fit"), callbacks=callbacks)
    value, ends = _value_and_ends(problem, model, scaling, solution.control, derive(seed, "value"))
    tilted = _with_control(model, solution.control, scaling)
    other = bridge.forward if model is bridge.backward else bridge.backward
    other = replace(other, start=ends, end_kernel=None)
    forward, backward = (tilted, other) if model is bridge.forward else (other, tilted)
    kept = {"columns": bridge.columns, "shape": bridge.shape, "stopped": solution.stopped}
    return TiltedBridge(forward, backward, value, memory, **kept)


def tilting_solver(model: PathMeasure) -> LogVariance:
    """The default of :func:`tilt`: log-variance with a trust region, on some knots of the model's grid."""
    return LogVariance(
        updates=400,
        optimisation=Optimisation(learning_rate=1e-3, batch=128, ema_decay=0.99),
        grid=_thinned(knots_since_start(model), _STEPS),
        start=MixtureStart(),
        trust_region=TrustRegion(),
        replay=Replay(paths=512, updates=20, kept=2),
    )


@dataclass(frozen=True, eq=False)
class _NegativeReward:
    """The terminal cost ``−r``, of states in units of the control problem."""

    reward: Reward
    scaling: AffineScaling

    def __call__(self, x: Tensor) -> Tensor:
        rows = self.scaling.to_data(x)
        return -checked(self.reward(rows), rows, "reward", "the end")


def _generating(bridge: Bridge, reward: Reward, solver: ControlSolver | None) -> PathMeasure:
    """The measure that is tilted; InvalidInputError for arguments of other kinds."""
    if not isinstance(bridge, Bridge):
        raise InvalidInputError(
            f"tilt needs a Bridge, such as diffuse(rows) or reverse_diffusion(process, data, score); got "
            f"{shown(bridge)}."
        )
    if not callable(reward):
        raise InvalidInputError(f"reward must be a function x -> (batch,), got {shown(reward)}.")
    if solver is not None and not isinstance(solver, ControlSolver):
        raise InvalidInputError(f"solver must be a control solver such as LogVariance(), got {shown(solver)}.")
    return backward_measure(bridge) if is_reverse_diffusion(bridge) else bridge.forward


@torch.no_grad()
def _measured(model: PathMeasure, reward: Reward, seed: int) -> tuple[float, AffineScaling]:
    """The memory of the model's ends, with a warning if it is too large, and the units in which they are of order one.

    Several paths run from each start. The variance between the means of these groups, less that of the noise within
    them, is the part of the variance that the start explains (one-way analysis of variance).
    """
    point = isinstance(model.start, Point)
    starts = model.starts(1 if point else _STARTS, seed=seed)
    copies = _STARTS * _COPIES // len(starts)
    ends = model.transport(starts.repeat_interleave(copies, 0), seed=seed)
    scaling = CommonScale()(ends[:0], ends)
    rewards = checked(reward(ends), ends, "reward", "the ends of the model")
    if point:
        return 0.0, scaling
    groups = torch.cat([ends, rewards.to(ends).unsqueeze(1)], 1).double().unflatten(0, (-1, copies))
    within = groups.var(1).mean(0)
    between = groups.mean(1).var(0) - within / copies
    shares = between / (between + within).clamp_min(torch.finfo(torch.float64).tiny)
    memory, chance = float(shares.max().clamp_min(0.0)), (2.0 / (_STARTS - 1)) ** 0.5 / copies
    if memory > _REMEMBERED + _STANDARD_ERRORS * chance:
        column = int(shares.argmax())
        what = "the reward" if column == ends.shape[1] else f"coordinate {column} of the end"
        warnings.warn(
            f"the start of the model is not memoryless: it explains {memory:.1%} of the variance of {what} (chance: "
            f"{chance:.1%}). Tilted ends then do not follow p e^r: between Gaussians, a linear reward shifts them by "
            f"{1.0 - memory:.0%} of the right amount. Use a model that forgets its start: a longer horizon, a larger β "
            "or σ.",
            MarginalWarning,
            stacklevel=4,
        )
    return memory, scaling


@torch.no_grad()
def _value_and_ends(
    problem: ControlProblem, model: PathMeasure, scaling: AffineScaling, control: Control, seed: int
) -> tuple[Estimate, Law]:
    """``−log Z`` and weighted ends, from paths on the model's own grid; warns if few of them count."""
    grid = TimeGrid(knots_since_start(model))
    measure = PathMeasure(problem.process, control, problem.start, grid=grid, rule=MeasureSteps())
    logs, ends = [], []
    for part in range(_PATHS // _CHUNK):
        paths = measure.sample(_CHUNK, seed=derive(seed, part))
        logs.append(log_weight(paths, problem.costs))
        ends.append(paths.x[-1])
    weights = importance_weights(torch.cat(logs))
    found = weights.log_normaliser
    if weights.effective_sample_size < _LEAST_SHARE * _PATHS:
        warnings.warn(
            "the tilted process is far from the optimal one: its path weights have an effective sample size of "
            f"{weights.effective_sample_size:.0f} of {_PATHS}. Use more updates, or tilt in steps: half the reward, "
            "then the other half on the tilted bridge.",
            ConvergenceWarning,
            stacklevel=4,
        )
    rows = scaling.to_data(torch.cat(ends))
    return replace(found, value=-found.value), Samples(rows, weights.values.to(rows))


def _with_control(model: PathMeasure, control: Control, scaling: AffineScaling) -> PathMeasure:
    """The model with a further control, learned in other units and in the time since its start."""
    added: Control = ScaledControl(control, scaling)
    if model.direction is Direction.BACKWARD:
        added = MirroredControl(added, model.process.horizon)
    return replace(model, control=on_top(model.control, added), end_kernel=None)


def _thinned(knots: tuple[float, ...], steps: int) -> TimeGrid:
    """About ``steps`` steps between some of the knots, with the first and the last step as they are."""
    count = len(knots) - 1
    if count <= steps:
        return TimeGrid(knots)
    kept = {0, count, count - 1} | {round(k * (count - 1) / (steps - 1)) for k in range(steps)}
    return TimeGrid(tuple(knots[k] for k in sorted(kept)))
