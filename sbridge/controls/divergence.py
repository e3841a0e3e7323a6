"""The divergence ``∇·v`` of a field ``v(t, x)``: the exact trace of its derivative, or Hutchinson's estimate."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.controls.base import Control, Time
from sbridge.errors import InvalidInputError, UnsupportedError, shown
from sbridge.random import Seed, generator
from sbridge.storage.registry import register


class Divergence(ABC):
    """A method to compute a divergence: it makes :class:`Probes`."""

    @abstractmethod
    def probes(self, like: Tensor, seed: Seed) -> Probes:
        """Makes probes for states like ``like``, to be kept along the paths of those states."""


@register
@dataclass(frozen=True)
class ExactTrace(Divergence):
    """The exact divergence ``Σ_i ∂_i v_i``: one reverse derivative per coordinate."""

    def probes(self, like: Tensor, seed: Seed) -> Probes:
        """Returns the unit vectors; draws nothing."""
        dim = like.shape[-1]
        return Probes(torch.eye(dim, dtype=like.dtype, device=like.device).unsqueeze(1), 1.0)


@register
class ProbeLaw(enum.Enum):
    """Distribution of Hutchinson's probes, with the variance of one probe, ``J`` being the derivative of the field."""

    RADEMACHER = "rademacher"
    """Independent signs: ``½ Σ_{i≠j} (J + Jᵀ)_ij²``."""
    GAUSSIAN = "gaussian"
    """Standard normal numbers: ``½ ‖J + Jᵀ‖²_F``."""


@register
@dataclass(frozen=True)
class Hutchinson(Divergence):
    """Hutchinson's estimate ``ηᵀ (∂v/∂x) η``, ``E ηηᵀ = I``: unbiased, one reverse derivative per probe (1989).

    Args:
        count: number of probes per sample; their estimates are averaged.
        law: distribution of the probes.
    """

    count: int = 1
    law: ProbeLaw = ProbeLaw.RADEMACHER

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InvalidInputError(f"the number of probes must be positive, got {self.count}.")

    def probes(self, like: Tensor, seed: Seed) -> Probes:
        """Draws new probes, ``count`` for each row."""
        g, shape = generator(seed, like.device), (self.count, *like.shape)
        if self.law is ProbeLaw.RADEMACHER:
            return Probes(rademacher(like, self.count, g), 1.0 / self.count)
        return Probes(torch.randn(shape, generator=g, dtype=like.dtype, device=like.device), 1.0 / self.count)


@dataclass(frozen=True, eq=False)
class Probes:
    """Probe vectors for ``∇·v ≈ weight · Σ_p η_pᵀ (∂v/∂x) η_p``.

    Args:
        directions: ``η``, shape ``(count, batch | 1, dim)``.
        weight: of each.
    """

    directions: Tensor
    weight: float

    def __call__(self, field: Control, t: Time, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes ``v(t, x)``, shape ``(batch, dim)``, and its divergence, shape ``(batch,)``.

        Row ``i`` of the field may depend on row ``i`` of the states only. Both results are differentiable if the
        ambient grad mode is on.

        Raises:
            UnsupportedError: if the field cannot be differentiated by torch.
        """
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            states = x if recorded and x.requires_grad else x.detach().requires_grad_()
            values = field(t, states)
            if not values.requires_grad:
                raise UnsupportedError(
                    "the divergence of a field needs its derivative, but torch cannot differentiate the values of this "
                    "one. Compute them with torch from x, without detach() or no_grad()."
                )
            total = probed_trace(values, states, self.directions, recorded=recorded)
        if not recorded:
            values, total = values.detach(), total.detach()
        return values, self.weight * total


def probed_trace(values: Tensor, x: Tensor, directions: Tensor, *, recorded: bool) -> Tensor:
    """Computes ``Σ_p η_pᵀ (∂v/∂x) η_p`` for values ``v`` computed from ``x``, shape ``(batch,)``.

    Args:
        values: ``v(x)`` with its graph, shape ``(batch, dim)``.
        x: the states, which require a gradient.
        directions: ``η``, shape ``(count, batch | 1, dim)``.
        recorded: whether the result is to be differentiated.
    """
    total = x.new_zeros(len(x))
    for k, probe in enumerate(directions):
        more = recorded or k + 1 < len(directions)
        (pulled,) = torch.autograd.grad(
            (values * probe).sum(), x, retain_graph=more, create_graph=recorded, materialize_grads=True
        )
        total = total + (pulled * probe).sum(1)
    return total


def rademacher(like: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws signs ±1 of shape ``(count, *like.shape)``, in the dtype and on the device of ``like``."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InvalidInputError(f"the number of probes must be a positive integer, got {shown(count)}.")
    signs = torch.randint(0, 2, (count, *like.shape), generator=generator, device=generator.device)
    return 2.0 * signs.to(like) - 1.0
