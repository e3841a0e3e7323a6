"""Checks that a user-defined process follows the rules that the package relies on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, shown
from sbridge.linear import LinearMap
from sbridge.processes.base import LinearProcess, Process, Transition
from sbridge.processes.chain import EulerMaruyama, default_rule
from sbridge.random import Seed, generator as generator_of

_ROWS = 5
_TOLERANCE = 1e-7
_FRACTIONS = (0.13, 0.29, 0.5, 0.77, 0.94)  # of the horizon: one time a row


def check_process(process: Process, dim: int, *, seed: Seed = 0) -> None:
    """Raises an error if ``process`` violates a rule of :class:`Process` or :class:`LinearProcess`.

    For every process: a positive horizon; ``drift`` of the shape and dtype of its states, in float32 and
    float64; a float64 ``scale``, invertible unless the noise reaches every coordinate through the drift; times of
    shape ``(batch,)`` mean what single times mean. For a linear one also: shapes of ``linear``, ``offset`` and
    ``transition``; ``drift = A x + c``; positive definite covariances; Chapman–Kolmogorov; ``Φ = 1 + AΔ``,
    ``k = cΔ`` and ``Q = σσᵀΔ`` up to ``O(Δ²)``; the pinned bridge is the conditioned Gaussian; ``guiding_term`` and
    ``conditional_score`` are the gradients of ``log_transition``, and those of the pinned bridge agree with them.

    Args:
        process: the process.
        dim: the dimension of the states in the checks.
        seed: of the states.

    Raises:
        InvalidInputError: with the rule and the violation.
    """
    trial = _Trial(process, dim, generator_of(seed))
    _check_size(trial)
    if isinstance(process, LinearProcess):
        _check_coefficients(trial, process)
    _check_drift(trial)
    _check_scale(trial)
    if isinstance(process, LinearProcess):
        _check_transition(trial, process)
        _check_affine_drift(trial, process)
        _check_semigroup(trial, process)
        _check_small_times(trial, process)
        _check_pinned(trial, process)
        _check_gradients(trial, process)


@dataclass
class _Trial:
    process: Process
    dim: int
    generator: torch.Generator
    times: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.times = torch.tensor(_FRACTIONS, dtype=torch.float64, device="cpu") * self.process.horizon

    def states(self, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(_ROWS, self.dim, generator=self.generator, dtype=torch.float64, device="cpu").to(dtype)

    def require(self, *, rule: str, holds: bool, found: str) -> None:
        if not holds:
            raise InvalidInputError(f"{type(self.process).__name__} violates the rule “{rule}”: {found}.")

    def equal(self, rule: str, left: Tensor, right: Tensor, tolerance: float = _TOLERANCE) -> None:
        """Checks ``left = right`` up to ``tolerance`` times the largest entry."""
        size = max(float(left.abs().max()), float(right.abs().max()))
        error = float((left - right).abs().max())
        self.require(
            rule=rule, holds=error <= tolerance * size, found=f"they differ by {error:.2e} at a size of {size:.2e}"
        )


def _check_size(trial: _Trial) -> None:
    horizon, dim = trial.process.horizon, trial.process.dim
    positive = isinstance(horizon, float) and horizon > 0
    trial.require(rule="horizon is a positive float", holds=positive, found=f"it is {shown(horizon)}")
    trial.require(
        rule="dim is None or the dimension of the states", holds=dim in (None, trial.dim), found=f"it is {dim}"
    )


def _check_drift(trial: _Trial) -> None:
    process, times = trial.process, trial.times
    rule = "drift has the shape and dtype of its states"
    for dtype in (torch.float32, torch.float64):
        x = trial.states(dtype)
        for t in (float(times[2]), times[2], times):
            value = process.drift(t, x)
            good = value.shape == x.shape and value.dtype == dtype
            trial.require(
                rule=rule, holds=good, found=f"{tuple(value.shape)} {value.dtype} for {dtype} states at t = {t}"
            )
        trial.require(rule="drift is finite", holds=bool(torch.isfinite(value).all()), found="it is not")
    one_by_one = torch.cat([process.drift(float(t), x[i : i + 1]) for i, t in enumerate(times)])
    trial.equal("drift at times (batch,) is drift row by row", process.drift(times, x), one_by_one)


def _check_scale(trial: _Trial) -> None:
    process, times = trial.process, trial.times
    for t in (float(times[2]), times[2], times):
        _check_map(trial, "scale", process.scale(t), t)
    together = process.scale(times)
    one_by_one = torch.stack([process.scale(float(t)).expanded(trial.dim) for t in times])
    trial.equal("scale at times (batch,) is scale time by time", together.expanded(trial.dim), one_by_one)
    sound = bool(torch.isfinite(together.log_abs_det(trial.dim)).all())
    noisy = bool((together.values != 0.0).any()) and together.singular
    reached = noisy and not isinstance(default_rule(process), EulerMaruyama)  # the others through the drift
    trial.require(rule="scale is invertible", holds=sound or reached, found="its determinant is zero or not finite")


def _check_map(trial: _Trial, name: str, value: LinearMap, t: object) -> None:
    """Checks that leading dimensions are those of the time, trailing ones fit the states, and numbers are float64."""
    leading = tuple(t.shape) if isinstance(t, Tensor) else ()
    shape, dim = tuple(value.values.shape), trial.dim
    tails = [(dim, dim)] if value.dense else [(1,), (dim,)]
    holds = shape in [leading + tail for tail in tails] and value.values.dtype == torch.float64
    rule = f"{name} is a float64 map with the leading dimensions of the time"
    trial.require(
        rule=rule, holds=holds, found=f"shape {shape}, {value.values.dtype}, dense={value.dense} for times {leading}"
    )


def _check_vector(trial: _Trial, name: str, value: Tensor, t: object, *, full: bool) -> None:
    leading = tuple(t.shape) if isinstance(t, Tensor) else ()
    tails = [(trial.dim,)] if full else [(1,), (trial.dim,)]
    holds = tuple(value.shape) in [leading + tail for tail in tails] and value.dtype == torch.float64
    rule = f"{name} is a float64 vector with the leading dimensions of the time, (dim,) beside a dense map"
    trial.require(rule=rule, holds=holds, found=f"shape {tuple(value.shape)}, {value.dtype} for times {leading}")


def _check_coefficients(trial: _Trial, process: LinearProcess) -> None:
    for t in (float(trial.times[2]), trial.times[2], trial.times):
        _check_map(trial, "linear", process.linear(t), t)
        _check_vector(trial, "offset", process.offset(t), t, full=process.linear(t).dense)


def _check_transition(trial: _Trial, process: LinearProcess) -> None:
    times = trial.times
    for t in (float(times[2]), times[2], times):
        for s, end in ((0.0, t), (t, process.horizon)):
            law = process.transition(s, end)
            _check_map(trial, "transition's map", law.map, t)
            _check_map(trial, "transition's covariance", law.covariance, t)
            _check_vector(trial, "transition's offset", law.offset, t, full=law.map.dense)
    together = _dense(process.transition(times * 0.5, times), trial.dim)
    single = [_dense(process.transition(float(t) * 0.5, float(t)), trial.dim) for t in times]
    for left, rows in zip(together, zip(*single, strict=True), strict=True):
        trial.equal("transition at times (batch,) is transition time by time", left, torch.stack(rows))
    covariance = together[2]
    definite = not bool(torch.linalg.cholesky_ex(covariance).info.any())
    found = "its eigenvalues are not all positive"
    trial.require(rule="transition's covariance is positive definite", holds=definite, found=found)
    trial.equal("transition's covariance is symmetric", covariance, covariance.mT)


def _check_affine_drift(trial: _Trial, process: LinearProcess) -> None:
    x, times = trial.states(), trial.times
    value = process.linear(times)(x) + process.offset(times)
    trial.equal("drift is linear(t) x + offset(t)", process.drift(times, x), value)


def _check_semigroup(trial: _Trial, process: LinearProcess) -> None:
    start, end = 0.3 * trial.times, trial.times
    middle = 0.5 * (start + end)
    first, second, whole = (
        _dense(process.transition(s, t), trial.dim) for s, t in ((start, middle), (middle, end), (start, end))
    )
    phi = second[0] @ first[0]
    offset = (second[0] @ first[1].unsqueeze(-1)).squeeze(-1) + second[1]
    covariance = second[2] + second[0] @ first[2] @ second[0].mT
    for name, left, right in zip(("map", "offset", "covariance"), (phi, offset, covariance), whole, strict=True):
        trial.equal(f"Chapman–Kolmogorov: transitions compose ({name})", left, right)
    nothing = _dense(process.transition(middle, middle), trial.dim)
    still = torch.eye(trial.dim, dtype=torch.float64, device="cpu").expand_as(phi)
    trial.equal("the transition over no time is the identity", nothing[0], still)
    for left, size in ((nothing[1], whole[1]), (nothing[2], whole[2])):
        trial.equal("the transition over no time is the identity", left + size, size)


def _check_small_times(trial: _Trial, process: LinearProcess) -> None:
    """Checks that halving Δ quarters the remainder: the observed order is 2."""
    t = trial.times[:-1] * 0.97
    generator_map = process.linear(t).expanded(trial.dim)
    drift = process.offset(t).expand(len(t), trial.dim)
    sigma = process.scale(t)
    noise = (sigma @ sigma.T).expanded(trial.dim)
    identity = torch.eye(trial.dim, dtype=torch.float64, device="cpu")
    left_over = []
    for step in (process.horizon * 2.0**-12, process.horizon * 2.0**-13):
        phi, offset, covariance = _dense(process.transition(t, t + step), trial.dim)
        left_over.append((phi - identity - step * generator_map, offset - step * drift, covariance - step * noise))
    step = process.horizon * 2.0**-13
    sizes = (1.0 + step * generator_map.abs().max(), step * drift.abs().max(), step * noise.abs().max())
    names = ("map is 1 + linear Δ", "offset is offset(t) Δ", "covariance is scale scaleᵀ Δ")
    for name, size, coarse, fine in zip(names, sizes, *left_over, strict=True):
        before, after = float(coarse.abs().max()), float(fine.abs().max())
        # 0.3 rather than 1/4: the next order still shows; below 1e-12 of the size there is only rounding
        holds = after <= 0.3 * before + 1e-12 * float(size)
        found = f"halving Δ took the remainder from {before:.2e} to {after:.2e}"
        trial.require(rule=f"transition's {name} up to O(Δ²)", holds=holds, found=found)


def _check_pinned(trial: _Trial, process: LinearProcess) -> None:
    times, dim = trial.times, trial.dim
    x, y, noise = trial.states(), trial.states(), trial.states()
    behind, ahead = process.transition(0.0, times), process.transition(times, process.horizon)
    phi, k, q = _dense(behind, dim)
    phi_on, k_on, q_on = _dense(ahead, dim)
    cross = q @ phi_on.mT
    end = q_on + phi_on @ q @ phi_on.mT
    gain = torch.linalg.solve(end, cross.mT).mT
    at_t = _apply(phi, x) + k
    mean = at_t + _apply(gain, y - _apply(phi_on, at_t) - k_on)
    pinned = process.pinned(times)
    trial.equal("pinned mean is the conditional mean of the Gaussian (X_t, X_T)", pinned.mean(x, y), mean)
    rule = "pinned covariance is the conditional covariance of the Gaussian (X_t, X_T)"
    trial.equal(rule, pinned.covariance.expanded(dim), q - gain @ cross.mT, 1e-6)
    at = pinned.sample(x, y, noise)
    trial.equal(
        "pinned.guiding_term is guiding_term at the sampled point",
        pinned.guiding_term(x, y, noise),
        process.guiding_term(times, at, y),
        1e-6,
    )
    trial.equal(
        "pinned.conditional_score is conditional_score at the sampled point",
        pinned.conditional_score(x, y, noise),
        process.conditional_score(times, at, x),
        1e-6,
    )
    for dtype in (torch.float32, torch.float64):
        ends = trial.states(dtype), trial.states(dtype), trial.states(dtype)
        same = (
            pinned.sample(*ends).dtype
            == pinned.guiding_term(*ends).dtype
            == pinned.conditional_score(*ends).dtype
            == dtype
        )
        trial.require(rule="pinned keeps the dtype of the states", holds=same, found=f"it does not keep {dtype}")


def _check_gradients(trial: _Trial, process: LinearProcess) -> None:
    times, x, y = trial.times, trial.states(), trial.states()
    at = x.clone().requires_grad_()
    value = process.log_transition(times, at, process.horizon, y)
    trial.require(rule="log_transition is (batch,)", holds=value.shape == (_ROWS,), found=f"shape {tuple(value.shape)}")
    (gradient,) = torch.autograd.grad(value.sum(), at)
    trial.equal(
        "guiding_term is the gradient of log_transition in where it starts", process.guiding_term(times, x, y), gradient
    )
    (gradient,) = torch.autograd.grad(process.log_transition(0.0, y, times, at).sum(), at)
    trial.equal(
        "conditional_score is the gradient of log_transition in where it ends",
        process.conditional_score(times, x, y),
        gradient,
    )
    single = x.float()
    kept = (
        process.guiding_term(times, single, single).dtype
        == process.conditional_score(times, single, single).dtype
        == torch.float32
    )
    trial.require(
        rule="guiding_term and conditional_score keep the dtype of the states",
        holds=kept,
        found="float32 became another",
    )


def _dense(law: Transition, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns Φ, k and Q in full."""
    covariance = law.covariance.expanded(dim)
    return law.map.expanded(dim), law.offset.expand(*covariance.shape[:-1]), covariance


def _apply(matrices: Tensor, x: Tensor) -> Tensor:
    return (matrices @ x.unsqueeze(-1)).squeeze(-1)
