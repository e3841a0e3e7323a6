"""The Riccati recursion of the linear–quadratic problem for a chain."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sbridge.exact.riccati.base import LinearQuadratic, unbounded
from sbridge.problems import Quadratic
from sbridge.processes import Direction, EulerMaruyama, StepRule
from sbridge.processes.base import Time, as_time, check_time
from sbridge.storage.registry import register
from sbridge.time import TimeGrid


@register
@dataclass(frozen=True, eq=False)
class ChainRiccati(LinearQuadratic):
    """The linear–quadratic problem for a chain ``z' = M z + L(√Δ u + ξ)``, with cost ``Σ Δ(½|u|² + f) + g``.

    Exact at any step size. With ``F = F_{k+1}``::

        F_k = ΔP + MᵀFM − 2 MᵀFL (I + 2LᵀFL)⁻¹ LᵀFM        √Δ u_k = −2 (I + 2LᵀFL)⁻¹ LᵀFM z
        κ_k = κ_{k+1} + tr(LᵀFL)            optimum over feedback controls, :attr:`value_function`
        κ_k = κ_{k+1} + ½ log det(I + 2LᵀFL)      −log E e^{−ΣΔf − g}, :attr:`tilted_value_function`, which is smaller

    The control is constant between knots.

    Args:
        process, running, terminal: as for :class:`Riccati`.
        grid: the knots.
        rule: how the process becomes a chain.
    """

    grid: TimeGrid = field(default_factory=lambda: TimeGrid.uniform(100))
    rule: StepRule = field(default_factory=EulerMaruyama)

    def gain(self, t: Time) -> Tensor:
        """Returns the gain of the last knot at or before ``t``, to rounding of a float32."""
        times = as_time(check_time(t, self.process.horizon))[..., 0]
        knots = self.grid.times(self.process.horizon)[:-1]
        index = torch.searchsorted(knots, times * (1.0 + 1e-6) + 1e-12, right=True) - 1
        return self._gains[index.clamp_min(0)]

    @cached_property
    def tilted_value_function(self) -> Quadratic:
        """``−log E[e^{−ΣΔf − g} | X_0 = ·]`` over the uncontrolled chain."""
        value, _, tilted, _ = self._recurse(self.running.homogeneous, self.terminal.homogeneous)
        return Quadratic.of(value, tilted)

    @cached_property
    def _gains(self) -> Tensor:
        return self._recurse(self.running.homogeneous, self.terminal.homogeneous)[3]

    def _solve(self, running: Tensor, terminal: Tensor) -> tuple[Tensor, Tensor]:
        value, optimum, _, _ = self._recurse(running, terminal)
        return value, optimum

    @cached_property
    def _steps(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Computes ``Δ_k``, ``M_k`` and ``L_k`` in homogeneous form."""
        dim, times = self.dim, self.grid.times(self.process.horizon)
        basis = torch.cat(
            [torch.eye(dim, dtype=torch.float64, device="cpu"), torch.zeros(1, dim, dtype=torch.float64, device="cpu")]
        )
        steps = self.rule.steps(self.process, times, Direction.FORWARD, basis)
        maps, roots = [], []
        for k in range(self.grid.steps):
            moved = basis + steps.move(k, basis)
            whole = torch.eye(dim + 1, dtype=torch.float64, device="cpu")
            whole[:-1, :-1], whole[:-1, -1] = (moved[:-1] - moved[-1]).mT, moved[-1]
            maps.append(whole)
            root = torch.zeros(dim + 1, dim, dtype=torch.float64, device="cpu")
            root[:-1] = steps.roots.at(k).expanded(dim)
            roots.append(root)
        return times.diff(), maps, roots

    def _recurse(self, running: Tensor, terminal: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Computes ``F_0``, both ``κ_0``, and all gains."""
        spans, maps, roots = self._steps
        f, optimum, tilted, gains = terminal, terminal.new_zeros(()), terminal.new_zeros(()), []
        for span, m, root in zip(spans.flip(0), maps[::-1], roots[::-1], strict=True):
            inner = root.mT @ f @ root
            precision = torch.eye(self.dim, dtype=torch.float64, device="cpu") + 2.0 * inner
            chol, failed = torch.linalg.cholesky_ex(0.5 * (precision + precision.mT))
            if bool(failed):
                raise unbounded()
            pull = root.mT @ f @ m
            shift = -2.0 * torch.cholesky_solve(pull, chol)
            gains.append(shift / span.sqrt())
            optimum = optimum + inner.trace()
            tilted = tilted + chol.diagonal().log().sum()
            f = span * running + m.mT @ f @ m + pull.mT @ shift
            f = 0.5 * (f + f.mT)
        return f, optimum, tilted, torch.stack(gains[::-1]).detach()
