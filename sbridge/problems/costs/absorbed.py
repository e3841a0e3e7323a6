"""A quadratic state cost as part of a linear reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.laws.scaling import AffineScaling
from sbridge.problems.costs.quadratic import Quadratic
from sbridge.processes import LinearProcess, OrnsteinUhlenbeck, TiltedLinearProcess
from sbridge.processes.noise_coordinates import NoiseCoordinates
from sbridge.storage.registry import register


@register
@dataclass(frozen=True, eq=False)
class AbsorbedCost:
    """What is left of a quadratic state cost ``V`` once the reference contains it: a constant of the two ends.

    With ``R^V`` of :func:`quadratic_reference` and ``ψ(t, ·) = −log E_R[e^{−∫_t^T V − ψ(T, X_T)} | X_t = ·]``, for
    every ``P`` with the same start as ``R`` and ``R^V``::

        KL(P ‖ R) + E_P∫V dt = KL(P ‖ R^V) + E ψ(0, X_0) − E ψ(T, X_T)

    Args:
        start: ``ψ(0, ·)``.
        end: ``ψ(T, ·)``.
    """

    start: Quadratic
    end: Quadratic

    def between(self, x0: Tensor, xT: Tensor) -> Tensor:
        """Computes ``ψ(0, X_0) − ψ(T, X_T)`` for rows of both ends of paths, shape ``(batch,)``."""
        return self.start(x0) - self.end(xT)

    @property
    def dim(self) -> int:
        """The dimension of the state."""
        return self.start.dim

    def rescaled(self, scaling: AffineScaling) -> AbsorbedCost:
        """Returns the same cost of ``X̃ = (X − shift)/scale``."""
        return AbsorbedCost(self.start.rescaled(scaling), self.end.rescaled(scaling))


def quadratic_reference(process: LinearProcess, cost: Quadratic) -> LinearProcess:
    """Returns the linear process whose bridges are those of ``process`` with the state cost ``cost``.

    ``min KL(P ‖ R) + E_P∫V dt`` between two ends is the plain bridge under ``R^V``, the process tilted by ``e^{−∫V}``
    (Chen, Georgiou & Pavon 2018, arXiv:1608.03622). For ``dX = (AX + c) dt + σ dW``, ``a = σσᵀ`` and
    ``V = ½xᵀQx + q·x + r`` its drift is ``(A − aΠ) x + c − aπ``, where ``Π`` and ``π`` solve a Riccati equation. If
    that has a stationary root with which the process contracts, as for every ``Q > 0``, ``R^V`` is an
    Ornstein–Uhlenbeck process: Brownian motion and ``V = ½ω²|x|²/σ²`` give the rate ω. Otherwise, as for a cost that
    repels, it is a :class:`~sbridge.processes.TiltedLinearProcess`.

    Args:
        process: a BrownianMotion or an OrnsteinUhlenbeck with constant σ.
        cost: ``V`` per unit time; its matrix is ``½Q``, of any sign.

    Raises:
        InvalidInputError: for a cost of another dimension, or one that repels beyond the conjugate time.
        UnsupportedError: for another process.

    Example:
        >>> import torch
        >>> import sbridge as sb
        >>> attraction = sb.costs.Quadratic(torch.tensor([[2.0]]))
        >>> reference = sb.costs.quadratic_reference(sb.BrownianMotion(sigma=1.0), attraction)
        >>> type(reference).__name__, float(reference.rate)
        ('OrnsteinUhlenbeck', 2.0)
    """
    return absorb(process, cost)[0]


def absorb(process: LinearProcess, cost: Quadratic) -> tuple[LinearProcess, AbsorbedCost]:
    """Returns :func:`quadratic_reference`, and what the cost adds at the ends; raises the same errors."""
    if process.dim not in (None, cost.dim):
        raise InvalidInputError(f"the state cost has dimension {cost.dim}, the process has {process.dim}.")
    curvature = 2.0 * cost.matrix.detach().double().cpu()
    slope = curvature.new_zeros(cost.dim) if cost.vector is None else cost.vector.detach().double().cpu()
    found = NoiseCoordinates.of(process, curvature, slope)
    fixed = found.stationary()
    if fixed is None:
        tilted = TiltedLinearProcess(process, curvature, slope)
        (form, vector, constant), (last, _, _) = tilted.potential(0.0), tilted.potential(process.horizon)
        start = Quadratic(0.5 * form, vector, constant + process.horizon * cost.constant)
        return tilted, AbsorbedCost(start, Quadratic(0.5 * last))
    tilt, slope = fixed
    rate = tilt - found.linear
    # Where the rate is zero nothing pushes, and any mean will do.
    mean = (torch.linalg.pinv(rate) @ (found.offset - slope).unsqueeze(-1)).squeeze(-1)
    sigma = process.scale(0.0).values
    reference = OrnsteinUhlenbeck(found.map(rate).values, sigma, found.vector(mean), process.horizon)
    gained = (slope * (found.offset - 0.5 * slope)).sum() + 0.5 * tilt.diagonal(dim1=-2, dim2=-1).sum()
    constant = process.horizon * (float(gained) * found.multiplicity(cost.dim) + cost.constant)
    form, vector = found.form(tilt, slope, cost.dim)
    return reference, AbsorbedCost(Quadratic(0.5 * form, vector, constant), Quadratic(0.5 * form, vector))
