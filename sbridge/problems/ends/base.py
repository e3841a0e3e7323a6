"""Ends that a bridge may change at a price, or by a known rate of growth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sbridge.errors import InvalidInputError, shown
from sbridge.storage.registry import register


@register
@dataclass(frozen=True)
class SoftEnds:
    """Ends that a bridge may change: ``min KL(P ‖ R) + λ₀ KL(P_0 ‖ p_0) + λ_T KL(P_T ‖ p_T)``.

    ``R`` starts at ``p_0``, and ``KL(α ‖ β) = ∫ log(dα/dβ) dα − α(1) + β(1)`` also of measures that are not
    probabilities. ``dP_0/dp_0`` is the relative growth of a source row, ``dP_T/dp_T`` the part of the target that is
    explained. With ``λ → ∞`` an end becomes hard; with ``λ_T = 0`` nothing moves but by the reference.

    The scale of λ: in optimal transport with the cost ``|x − y|²``, λ nats are the marginal penalty ``2ελ``,
    ``ε = σ²T``. At small ε, λ of about 1 makes growth a function of distance. Take ``λ = ρ/2ε`` with ``ρ`` of the order
    of squared distances between source and target, hundreds of nats. Above (squared gap)/(log ratio of masses) the
    bridge transports mass across gaps instead of letting it grow.

    Args:
        source: ``λ₀ ≥ 0`` in nats; ``math.inf``: a hard end.
        target: ``λ_T ≥ 0`` in nats.

    Raises:
        InvalidInputError: for a λ that is negative or no number.

    Example:
        >>> import math, torch
        >>> import sbridge as sb
        >>> eye = torch.eye(1, dtype=torch.float64)
        >>> source, target = sb.Gaussian(0.0 * eye[0], eye), sb.Gaussian(2.0 * eye[0], eye)
        >>> soft = sb.ends.SoftEnds(source=1.0, target=math.inf)
        >>> bridge = sb.fit(source, target, reference=sb.BrownianMotion(1.0), balance=soft)
        >>> bridge.balance.growth(torch.tensor([[-1.0], [1.0]])) > 1.0
        tensor([False,  True])
    """

    source: float
    target: float

    def __post_init__(self) -> None:
        for name in ("source", "target"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0.0:
                raise InvalidInputError(
                    f"SoftEnds: {name} must be a number of nats, 0 or more, or math.inf for a hard end; got "
                    f"{shown(value)}."
                )
            object.__setattr__(self, name, float(value))

    @property
    def hard(self) -> bool:
        """Whether neither end may change."""
        return math.isinf(self.source) and math.isinf(self.target)


@register
@dataclass(frozen=True, eq=False)
class Growth:
    """Growth at a known rate: the weight of a source row is multiplied by ``e^{rate(x) T}`` before the bridge.

    For numbers of descendants that are known row by row, give their logarithm over ``T`` (Schiebinger et al. 2019), or
    weights of the rows, ``Samples(rows, weights)``.

    Args:
        rate: births minus deaths per unit time, a function of states ``(batch, dim)`` to ``(batch,)``.

    Raises:
        InvalidInputError: if the rate is not a function.

    Example:
        >>> import torch
        >>> import sbridge as sb
        >>> x0, x1 = torch.randn(2, 300, 1, generator=torch.Generator().manual_seed(0))
        >>> growth = sb.ends.Growth(lambda x: x[:, 0])
        >>> bridge = sb.fit(x0, x1, reference=sb.BrownianMotion(1.0), balance=growth, solver=sb.SinkhornBridge())
        >>> bool(bridge.balance.growth(x0)[x0[:, 0].argmax()] > 1.0)
        True
    """

    rate: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        if not callable(self.rate):
            raise InvalidInputError(f"Growth: rate must be a function of states, got {shown(self.rate)}.")
