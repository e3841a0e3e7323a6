"""Stochastic thermodynamics along paths: heat, work and entropy production (Sekimoto 1998; Seifert 2012).

A diffusion ``dX = F dt + σ dW``, ``F = b + σu``, in contact with a medium has the diffusion matrix ``D = ½σσᵀ``, the
force ``f = D⁻¹F`` in units of the thermal energy, and the current velocity ``v = F − D∇log ρ``. With Stratonovich's
product ``∘``, along one path::

    heat given to the medium         Q = ∫ f ∘ dX
    work done on the system          W = U(T, X_T) − U(0, X_0) + Q          for an energy U
    total entropy production        ΔS = Q + log ρ_0(X_0) − log ρ_T(X_T),   E ΔS = E ∫ v·D⁻¹v dt ≥ 0
    excess and housekeeping heat  Q_ex = ∫ ∇log π_t ∘ dX,  Q_hk = Q − Q_ex  for the stationary densities π_t

``ΔS`` is the log ratio of the path measure to that of the time reversal: the same process, with its coefficients taken
in reversed order, started in ``ρ_T`` and read backwards. All log ratios here are those of the simulated chain, whose
step ``k`` is reversed by the same kernel, ``Q = Σ_k log F_k(x_{k+1}|x_k) − log F_k(x_k|x_{k+1})``. So
``E e^{−ΔS} = 1`` and the second law hold without step error; only the limit ``∫ f ∘ dX`` has one, of first order.
Everything is in nats: heat, work and energy in units of the thermal energy.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.errors import UnsupportedError
from sbridge.functionals.elbo import normalised_log_density
from sbridge.functionals.quadrature import PathValues, Quadrature, RowFunction, Trapezoid, integrate, row_values
from sbridge.measures import PathMeasure, Paths, kernel_log_ratio
from sbridge.measures.ratios import control_value, half_square_gap
from sbridge.objectives.score_matching import ScoreFunction, checked_score
from sbridge.processes.base import Time
from sbridge.processes.chain import Chain


def heat(paths: Paths, control: Control | None = None) -> PathValues:
    """Computes ``Q = Σ_k log F_k(x_{k+1}|x_k) − log F_k(x_k|x_{k+1})``, the heat that each path gives to the medium.

    Args:
        paths: of either direction; the heat is that of the motion in the order visited.
        control: the control of the process, ``None`` for zero. Called at the time at which each step starts, at both
            ends of the step.

    Returns:
        one number for each path in units of the thermal energy; ``coarse`` is the same from every second knot.

    Raises:
        UnsupportedError: for a process with noise in velocities alone.
    """
    fine, coarse = _levels(paths)
    return PathValues(_kernel_ratio(*fine, control), _kernel_ratio(*coarse, control))


def work(paths: Paths, control: Control | None, energy: RowFunction) -> PathValues:
    """Computes ``W = U(T, X_T) − U(0, X_0) + Q``, the work done on each path: the first law.

    If the paths start in the equilibrium ``e^{F_0 − U(0, x)}``, then ``E e^{−W} = e^{−(F_T − F_0)}`` without step error
    (Jarzynski 1997).

    Args:
        paths, control: as for :func:`heat`.
        energy: ``U(t, x) → (batch,)``, in units of the thermal energy.

    Raises:
        InvalidInputError: if ``U`` returns another shape than ``(batch,)``.
        NonFiniteError: if it is NaN or infinite.
    """
    return heat(paths, control) - _fall(paths, energy, "the energy U")


def entropy_production(paths: Paths, control: Control | None, log_density: RowFunction) -> PathValues:
    """Computes ``ΔS = Q + log ρ_0(X_0) − log ρ_T(X_T)``: the log ratio of a path measure to that of its time reversal.

    ``E e^{−ΔS} = 1`` and ``E ΔS ≥ 0`` for the simulated chain (Seifert 2005), whatever normalised density stands at
    the end; ``ΔS`` is the total entropy production if it is that of the paths.

    Args:
        paths, control: as for :func:`heat`.
        log_density: ``log ρ_t(x) → (batch,)``, called at the first and the last time, in the order visited.

    Raises:
        InvalidInputError, NonFiniteError: as for :func:`work`.
    """
    return heat(paths, control) + _fall(paths, log_density, "the log density")


def excess_heat(paths: Paths, log_stationary: RowFunction) -> PathValues:
    """Computes ``Q_ex = Σ_k log π_k(x_{k+1}) − log π_k(x_k)``, the heat of the relaxation towards ``π``.

    ``Q_ex + log ρ_0(X_0) − log ρ_T(X_T)`` is the non-adiabatic part of the entropy production. Its exponential has mean
    one, like that of the whole (Hatano & Sasa 2001), if ``π_k`` is stationary under step ``k``.

    Args:
        paths: as for :func:`heat`.
        log_stationary: ``log π_t(x) → (batch,)``, the density that would be stationary if the coefficients stayed as
            they are at ``t``, up to a constant in ``x``; called where each step starts, at both ends of the step.

    Raises:
        InvalidInputError, NonFiniteError: as for :func:`work`.
    """
    fine, coarse = _levels(paths)
    return PathValues(_stationary_rise(*fine, log_stationary), _stationary_rise(*coarse, log_stationary))


def housekeeping_heat(paths: Paths, control: Control | None, log_stationary: RowFunction) -> PathValues:
    """Computes ``Q_hk = Q − Q_ex``, the heat that keeps a stationary current going; zero in detailed balance.

    ``E e^{−Q_hk} = 1`` (Speck & Seifert 2005) if ``π_k`` is stationary under step ``k``, as it is for exact transitions
    with constant coefficients.

    Args:
        paths, control: as for :func:`heat`.
        log_stationary: as for :func:`excess_heat`.

    Raises:
        InvalidInputError, NonFiniteError: as for :func:`work`.
    """
    return heat(paths, control) - excess_heat(paths, log_stationary)


def dissipation(
    paths: Paths, velocity: ScoreFunction, *, quadrature: Quadrature = Trapezoid(), start_time: float = 0.0
) -> PathValues:
    """Computes ``∫ v·D⁻¹v dt = ∫ 2|σ⁻¹v|² dt``, whose mean is that of the entropy production (Seifert 2012).

    Args:
        paths: samples of the process at all times.
        velocity: the current velocity ``v(t, x)``, shape ``(batch, dim)``, such as
            :meth:`~sbridge.solutions.Bridge.current_velocity`; with the stationary one, ``F − D∇log π``, the result has
            the mean of the housekeeping heat.
        quadrature: the rule in time, trapezoids of order two by default.
        start_time: the bridge time from which the integral runs.

    Raises:
        InvalidInputError: if the velocity has another shape than the states.
        UnsupportedError: if the noise does not enter every coordinate.
    """
    process = paths.chain.process

    def rate(t: Time, x: Tensor) -> Tensor:
        return 2.0 * process.inverse_scale(t).to(x)(checked_score(velocity, t, x)).square().sum(1)

    return integrate(paths, rate, quadrature, start_time)


def reversal_cost(paths: Paths, forward: PathMeasure, backward: PathMeasure) -> PathValues:
    """Computes ``log dF/dB`` for a process ``F`` and a model ``B`` of its reversal, along each path.

    The mean over paths of ``F`` is ``KL(F ‖ B) ≥ 0``, and ``E_F e^{−log dF/dB} = 1``. For a diffusion model the mean is
    the cost of an imperfect reversal, ``½∫ E|σᵀ(s_θ − ∇log ρ_t)|² dt`` plus the KL of the ends; it tends to zero with
    the step size for the exact score and the right end. If ``B`` keeps the force of ``F`` and has no score, it is the
    entropy production.

    Args:
        paths: of ``forward``; of ``backward`` for ``E_B``.
        forward: a measure that runs forward, such as the noising process from the data.
        backward: one that runs backward, with the same process, grid and rule.

    Raises:
        InvalidInputError: as for :func:`~sbridge.measures.kernel_log_ratio`, or if a start distribution has no
            normalised density.
    """
    with torch.no_grad():
        ordered = paths.x if bool(paths.t[0] < paths.t[-1]) else paths.x.flip(0)
        ends = [
            normalised_log_density(law, x, "the cost of a reversal").double()
            for law, x in ((forward.start, ordered[0]), (backward.start, ordered[-1]))
        ]
        return PathValues.exact(kernel_log_ratio(paths, forward, backward).double() + ends[0] - ends[1])


def _levels(paths: Paths) -> tuple[tuple[Chain, Tensor], tuple[Chain, Tensor]]:
    """Returns the chain with the states, and the chain of every second knot with the states there."""
    chain = paths.chain
    kept = [*range(0, chain.length, 2), chain.length]
    wide = dataclasses.replace(chain, times=chain.visited[kept].sort().values)
    return (chain, paths.x), (wide, paths.x[kept])


@torch.no_grad()
def _kernel_ratio(chain: Chain, x: Tensor, control: Control | None) -> Tensor:
    """Computes ``Σ ½|ξ'|² − ½|ξ|²`` with the noise ξ of a step and ξ' of the same step taken back."""
    if chain.process.scale(float(chain.step_times[0])).singular:
        raise UnsupportedError(
            "the heat compares each step with the same step taken back, and a velocity taken back changes its sign, "
            f"which is not done here: use a process with noise in every coordinate, not {type(chain.process).__name__}."
        )
    total = x.new_zeros(x.shape[1], dtype=torch.float64)
    for j, width in enumerate(chain.root_durations):
        t = chain.step_times[j]
        there = chain.shift(j, x[j], x[j + 1]) - width * control_value(control, t, x[j])
        back = chain.shift(j, x[j + 1], x[j]) - width * control_value(control, t, x[j + 1])
        total += half_square_gap(back, there)
    return total


@torch.no_grad()
def _stationary_rise(chain: Chain, x: Tensor, log_stationary: RowFunction) -> Tensor:
    total = x.new_zeros(x.shape[1], dtype=torch.float64)
    for j, t in enumerate(chain.step_times):
        before, after = (row_values(log_stationary, t, x[k], "the log density") for k in (j, j + 1))
        total += after.double() - before.double()
    return total


def _fall(paths: Paths, function: RowFunction, name: str) -> PathValues:
    """Computes ``f(t, X)`` at the first minus at the last state."""
    with torch.no_grad():
        first, last = (row_values(function, float(paths.t[k]), paths.x[k], name).double() for k in (0, -1))
    return PathValues.exact(first - last)
