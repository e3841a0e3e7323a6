"""The plug-in bridge in closed form: between two weighted clouds of points, from their potentials."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.controls.base import Time
from sbridge.errors import InvalidInputError
from sbridge.processes import Direction, LinearProcess
from sbridge.processes.base import as_time
from sbridge.processes.coefficients import identity
from sbridge.storage.registry import register
from sbridge.transport import Cloud
from sbridge.transport.cloud import draw_indices


@register
@dataclass(frozen=True, eq=False)
class FarEnd:
    """The distribution of the far end given the state at time ``t``, on a cloud of rows ``z_j`` with logits ``ℓ_j``.

    With ``t`` before the far end::

        forward    w_j(t, x) ∝ exp(ℓ_j) R(X_T = z_j | X_t = x)        z: target rows, ℓ = log of φ(T, ·)
        backward   w_j(t, x) ∝ exp(ℓ_j) R(X_t = x | X_0 = z_j)        z: source rows, ℓ = log of φ̂(0, ·)

    (φ and φ̂ as densities with respect to the weighted rows: weights that are not uniform are part of ℓ.)
    """

    process: LinearProcess
    cloud: Cloud
    direction: Direction

    def mean(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``E[far end | X_t = x]``, shape ``(batch, dim)``."""
        found = torch.empty_like(x)
        for _, rows, view in self.views(t, x):
            means = [part @ self.cloud.rows.to(part) for _, part, _ in view.blocks(x.dtype)]
            found = found.index_put((rows,), torch.cat(means))
        return found

    def log_potential(self, t: Time, x: Tensor) -> Tensor:
        """``log φ(t, x)``, or ``log φ̂(t, x)`` if backward: the log of the sum of the ``w_j``, shape ``(batch,)``."""
        found = torch.empty_like(x[:, 0])
        for _, rows, view in self.views(t, x):
            value = torch.cat([log_sum for _, _, log_sum in view.blocks(x.dtype)]) + view.constants
            found = found.index_put((rows,), value.to(x.dtype))
        return found

    def draw(self, t: float, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draws one far end per row: a row of the cloud."""
        blocks = self._view(t, x.detach()).blocks(x.dtype)
        return self.cloud.rows.to(x)[draw_indices(blocks, len(x), generator)]

    def views(self, t: Time, x: Tensor) -> Iterator[tuple[Time, Tensor, View]]:
        """The rows of ``x`` in groups that can be looked at together, each with its time and its indices.

        One group if there is one time, or one kernel width a row is all that times change.
        """
        everything = torch.arange(len(x), device=x.device)
        if not (isinstance(t, Tensor) and t.ndim) or self._is_scalar:
            yield t, everything, self._view(t, x)
            return
        for moment in t.unique():
            rows = everything[t.to(x.device) == moment.to(x.device)]
            yield float(moment), rows, self._view(float(moment), x[rows])

    @property
    def _is_scalar(self) -> bool:
        law = self.process.transition(0.0, self.process.horizon)
        return law.covariance.dim is None and law.map.dim is None

    def _view(self, t: Time, x: Tensor) -> View:
        forward = self.direction is Direction.FORWARD
        far = self.process.horizon if forward else 0.0
        if bool((as_time(t) == far).any()):
            raise InvalidInputError(
                f"the control of a bridge to single rows is infinite at its far end, t = {far:g}; use a time "
                + ("before it." if forward else "after it.")
            )
        law = self.process.transition(t, self.process.horizon) if forward else self.process.transition(0.0, t)
        x, cloud, dim = x.double(), self.cloud, x.shape[1]
        centre = cloud.centre.to(x.device).unsqueeze(0)
        # |y_j − m(x)|² and |x − m(y_j)|² in the metric Q⁻¹ about the centre of the cloud: nothing is divided by Φ.
        if forward:
            gap, reach = law.mean(x) - centre, identity(law.offset.shape[:-1])
        else:
            gap, reach = x - law.mean(centre.expand(len(law.offset) if law.offset.ndim > 1 else 1, -1)), law.map
        white = law.root.inverse()
        whitened = white.to(x)(gap)
        log_scale = law.root.log_abs_det(dim).to(x.device) + 0.5 * dim * math.log(2.0 * math.pi)
        constants = -0.5 * whitened.square().sum(1) - log_scale
        if self._is_scalar:
            precisions = (reach @ law.precision @ reach).values.to(x).expand(len(x), 1)
            return View(cloud, (reach @ law.precision).to(x)(gap), precisions, constants)
        moved = Cloud((white @ reach).to(x)(cloud.rows.to(x)), cloud.logits)
        return View(moved, whitened, torch.ones_like(x[:, :1]), constants)


@dataclass(frozen=True, eq=False)
class View:
    """A cloud as it looks from states: weights are ``exp(ℓ_j + slope·z_j − ½ precision |z_j|²)``.

    Args:
        cloud: the rows, moved; ``z`` are their distances from their centre.
        slopes: shape ``(n, dim)``.
        precisions: shape ``(n, 1)``.
        constants: what is left of the log transition densities, ``(n,)``.
    """

    cloud: Cloud
    slopes: Tensor
    precisions: Tensor
    constants: Tensor

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yields slices of the states, their weights and the logarithms of their sums: see :meth:`Cloud.tilts`."""
        return self.cloud.tilts(self.slopes, self.precisions, dtype)


@register
@dataclass(frozen=True, eq=False)
class PlugInControl:
    """``u = σᵀ Φᵀ Q⁻¹ (E[X_T | x] − m(T | t, x))``; backward ``û = −σᵀ Q_t⁻¹ (x − m(t | 0, E[X_0 | x]))``.

    The gradients of ``log Σ_j exp(ℓ_j) R(z_j | x)`` and ``log Σ_i exp(ℓ_i) R(x | z_i)``: Pooladian & Niles-Weed 2024
    (arXiv:2408.11686) for a Brownian reference.
    """

    far: FarEnd

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """The control at ``(t, x)``: before the far end, where it is infinite."""
        process, mean = self.far.process, self.far.mean(t, x)
        forward = self.far.direction is Direction.FORWARD
        gradient = process.guiding_term(t, x, mean) if forward else process.conditional_score(t, x, mean)
        return process.scale(t).T.to(x)(gradient)


@register
@dataclass(frozen=True, eq=False)
class PlugInKernel:
    """The far end given the near one, exactly: a draw among the rows of the far end."""

    far: FarEnd

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draws one far end per row."""
        return self.far.draw(self._near_time, x, generator)

    def mean(self, x: Tensor) -> Tensor:
        """Conditional mean per row (the entropic barycentric map)."""
        return self.far.mean(self._near_time, x)

    @property
    def _near_time(self) -> float:
        return 0.0 if self.far.direction is Direction.FORWARD else self.far.process.horizon
