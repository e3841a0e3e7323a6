"""Rows of reciprocal adjoint matching: states on pinned bridges between given ends, and regression targets there."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sbridge.linear import LinearMap
from sbridge.processes import LinearProcess
from sbridge.processes.coefficients import identity


@dataclass(frozen=True, eq=False)
class ReciprocalRows:
    """Coefficients of pinned bridges and targets, tabulated once at given times before the end.

    With ``Φ, k, Q`` of the transition from ``t`` to ``T`` and ends ``(X_0, X_T)`` of the optimal path measure, let
    ``X_t`` be drawn from the bridge of the uncontrolled process between them. Two vectors have the optimal control
    ``u*(t, X_t)`` as their mean given ``X_t``: the lean adjoint ``−σᵀΦᵀ∇g(X_T)``, and the bridge score
    ``σᵀ∇_x log R(X_T | X_t) = σᵀΦᵀQ⁻¹(X_T − ΦX_t − k)``. The target mixes them with the matrices
    ``C = v(v + Q)⁻¹`` and ``1 − C``::

        σᵀ Φᵀ (v + Q)⁻¹ (X_T − ΦX_t − k − v ∇g(X_T))

    For a Gaussian ``e^{−g}`` of covariance ``v`` it does not depend on ``X_T``: it is ``u*`` itself.

    Args:
        t: times, float64, shape ``(N,)``.
        stay: multiplies ``X_0`` in the mean of ``X_t``.
        gain: multiplies ``X_T`` there.
        shift: is added there.
        root: multiplies standard normal noise.
        ahead: ``Φ``.
        offset: ``k``.
        spread: ``Q``.
        pull: ``σᵀΦᵀ``.
    """

    t: Tensor
    stay: LinearMap
    gain: LinearMap
    shift: Tensor
    root: LinearMap
    ahead: LinearMap
    offset: Tensor
    spread: LinearMap
    pull: LinearMap

    @classmethod
    def of(cls, process: LinearProcess, t: Tensor, like: Tensor) -> ReciprocalRows:
        """Tabulates a process at times ``t`` in ``[0, T)``, for states of the dtype and on the device of ``like``."""
        pinned, law = process.pinned(t), process.transition(t, process.horizon)
        return cls(
            t.to(like.device),
            pinned.stay.to(like),
            pinned.gain.to(like),
            pinned.shift.to(like),
            pinned.root.to(like),
            law.map.to(like),
            law.offset.to(like),
            law.covariance,
            process.scale(t).T @ law.map.T,
        )

    def target_maps(self, variance: Tensor) -> LinearMap:
        """Computes ``σᵀΦᵀ(v + Q)⁻¹`` for ``v`` of shape ``()``, one map a time."""
        smoothing = (self.spread + identity(self.t.shape) * variance.to(self.spread.values)).inverse()
        return LinearMap((self.pull @ smoothing).values.to(self.offset), self.pull.dense or smoothing.dense)

    def states(self, k: Tensor, start: Tensor, end: Tensor, noise: Tensor) -> Tensor:
        """Draws ``X_t`` at time number ``k`` of each row; all ``(batch, dim)``."""
        bridge = self.stay.at(k)(start) + self.gain.at(k)(end) + self.shift[k]
        return bridge + self.root.at(k)(noise)

    def targets(self, k: Tensor, x: Tensor, end: Tensor, gradient: Tensor, maps: LinearMap, variance: Tensor) -> Tensor:
        """Computes the targets at states ``x`` of time number ``k``, from ends and ``∇g`` there."""
        gap = end - self.ahead.at(k)(x) - self.offset[k] - variance * gradient
        return maps.at(k)(gap)
