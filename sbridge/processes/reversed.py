"""A linear process whose drift runs backwards: the uncontrolled process of reverse diffusion."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sbridge.linear import LinearMap
from sbridge.processes.base import LinearProcess, Time, Transition, applied, check_time
from sbridge.storage.registry import register
from sbridge.time import mirrored


@register
@dataclass(frozen=True, eq=False)
class ReversedDrift(LinearProcess):
    """``dY = −b(T − t, Y) dt + σ(T − t) dW`` for ``dX = b(t, X) dt + σ(t) dW``.

    With ``Φ, k, Q`` the transition of ``X`` from ``T − t`` to ``T − s``, the transition of ``Y`` from s to t has
    ``Φ⁻¹, −Φ⁻¹k, Φ⁻¹QΦ⁻ᵀ``. It grows where the process contracts. Started in ``ρ_T`` and controlled by
    ``σᵀ∇log ρ`` it is the process read backwards (Anderson 1982).

    Args:
        process: of X.
    """

    process: LinearProcess

    @property
    def horizon(self) -> float:  # type: ignore[override]
        """The horizon of the process."""
        return self.process.horizon

    @property
    def dim(self) -> int | None:
        """The dimension of the process."""
        return self.process.dim

    def linear(self, t: Time) -> LinearMap:
        """Computes ``−A(T − t)``."""
        return -self.process.linear(self._mirrored(t))

    def offset(self, t: Time) -> Tensor:
        """Computes ``−c(T − t)``."""
        return -self.process.offset(self._mirrored(t))

    def scale(self, t: Time) -> LinearMap:
        """Computes ``σ(T − t)``."""
        return self.process.scale(self._mirrored(t))

    def transition(self, s: Time, t: Time) -> Transition:
        """Computes the transition as in the class's description."""
        law = self.process.transition(self._mirrored(t), self._mirrored(s))
        back = law.map.inverse()
        return Transition(back, -applied(back, law.offset), back @ law.covariance @ back.T)

    def _mirrored(self, t: Time) -> Time:
        return mirrored(check_time(t, self.horizon), self.horizon)
