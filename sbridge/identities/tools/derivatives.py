"""Derivatives of functions of time and state, by automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.processes import LinearProcess

_LEAST = 1e-6
"""Size below which terms are rounding errors, because the function hardly depends on its arguments."""

RowFunction = Callable[[Tensor, Tensor], Tensor]
"""A function ``f(t, x)`` with one time per row of ``x``, shape ``(batch,)``, differentiable in both."""


def gradient(values: Tensor, x: Tensor) -> Tensor:
    """Computes the gradient of each value with respect to its row of ``x``; it can be differentiated again."""
    return torch.autograd.grad(values.sum(), x, create_graph=True)[0]


def divergence(field: Tensor, x: Tensor) -> Tensor:
    """Computes ``Σ_i ∂_i field_i`` of a field computed from ``x``; zero if it does not depend on ``x``."""
    parts = [
        torch.autograd.grad(one.sum(), x, retain_graph=True, materialize_grads=True, allow_unused=True)[0][:, i]
        for i, one in enumerate(field.unbind(1))
    ]
    return torch.stack(parts).sum(0)


@dataclass(frozen=True, eq=False)
class Derivatives:
    """Derivatives of a function of time and state at points ``(t, x)``.

    Attributes:
        rate: ``∂_t f``, shape ``(batch,)``.
        slope: ``∇f``, shape ``(batch, dim)``.
        hessian: ``∇²f``, shape ``(batch, dim, dim)``.
    """

    rate: Tensor
    slope: Tensor
    hessian: Tensor

    @classmethod
    def of(cls, function: RowFunction, t: Tensor, x: Tensor) -> Derivatives:
        """Differentiates automatically."""
        t, x = t.detach().requires_grad_(), x.detach().requires_grad_()
        values = function(t, x)
        rate, slope = torch.autograd.grad(values.sum(), (t, x), create_graph=True, materialize_grads=True)
        rows = [
            torch.autograd.grad(part.sum(), x, retain_graph=True, materialize_grads=True)[0] for part in slope.unbind(1)
        ]
        return cls(rate.detach(), slope.detach(), torch.stack(rows, 1))

    def along(self, drift: Tensor) -> Tensor:
        """Computes ``b·∇f``."""
        return (drift * self.slope).sum(1)

    def diffusion_term(self, process: LinearProcess, t: Tensor) -> Tensor:
        """Computes ``½ tr(σσᵀ∇²f)``."""
        scale = process.scale(t)
        square = (scale @ scale.T).expanded(self.slope.shape[1])
        return 0.5 * torch.einsum("bij,bji->b", square, self.hessian)


def relative_size(residual: Tensor, *terms: Tensor) -> float:
    """Returns the largest residual relative to the largest sum of absolute terms."""
    size = torch.stack([term.abs() for term in terms]).sum(0).max()
    return float(residual.abs().max() / size.clamp_min(_LEAST))
