"""A process with an arbitrary drift."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from sbridge.errors import InvalidInputError, shown
from sbridge.linear import LinearMap
from sbridge.processes.base import Process, Time, check_horizon
from sbridge.processes.coefficients import Diffusion, Scale, as_scale, clock
from sbridge.storage.registry import register


@register
@dataclass(frozen=True, eq=False)
class DriftProcess(Process):
    """The process ``dX = b(t, X) dt + σ(t) dW`` with a user-defined drift.

    Args:
        drift_function: ``b``, called as ``b(t, x)`` with states ``x`` of shape ``(batch, dim)`` and a time:
            a float, or a tensor of shape ``()`` or ``(batch,)`` in the dtype of ``x``. Returns the shape and
            dtype of ``x``, in units of state per unit time; row ``i`` depends on row ``i`` only. A process
            made of a plain function cannot be saved; one made of an object of a registered class can.
        sigma: σ as in :class:`BrownianMotion`.
        horizon: ``T > 0``.
        dimension: the dimension of the drift; ``None`` if it works in any dimension.

    Raises:
        InvalidInputError: as for :class:`BrownianMotion`; if ``dimension`` disagrees with σ; when it is used,
            if the drift returns another shape or dtype.
    """

    drift_function: Callable[[Time, Tensor], Tensor]
    sigma: Scale
    horizon: float = 1.0
    dimension: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "horizon", check_horizon(self.horizon))
        object.__setattr__(self, "sigma", as_scale(self.sigma, self.horizon))
        if not callable(self.drift_function):
            raise InvalidInputError(
                f"drift_function must be a function (t, x) -> drift, got {shown(self.drift_function)}."
            )
        wanted, found = self.dimension, self._diffusion.probe.dim
        if wanted is not None and (wanted < 1 or found not in (None, wanted)):
            raise InvalidInputError(
                f"dimension must be a positive integer that agrees with sigma, got {wanted} and sigma of "
                f"dimension {found}."
            )

    @cached_property
    def _diffusion(self) -> Diffusion:
        return Diffusion(self.sigma)  # type: ignore[arg-type]

    @property
    def dim(self) -> int | None:
        """The given ``dimension``, or that of σ."""
        return self._diffusion.probe.dim if self.dimension is None else self.dimension

    def drift(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``b(t, x)``."""
        value = self.drift_function(t.to(x) if isinstance(t, Tensor) else t, x)
        if not isinstance(value, Tensor) or value.shape != x.shape or value.dtype != x.dtype:
            said = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise InvalidInputError(
                f"drift_function must return the shape and dtype of its states, {tuple(x.shape)} {x.dtype}; it "
                f"returned {said}. Combine a time of shape (batch,) with x as t.unsqueeze(-1)."
            )
        return value

    def scale(self, t: Time) -> LinearMap:
        """Returns σ(t)."""
        return self._diffusion.at(clock(t))
