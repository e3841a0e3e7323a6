"""Linear reference processes learned from the means and covariances of snapshots: rounds of bridge and regression."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, number
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.processes import BrownianMotion, LinearProcess, OrnsteinUhlenbeck
from sbridge.processes.coefficients import gauss_legendre, panels_for

_PROBE = 1e-4  # of the parameters, for central differences of a round


@dataclass(frozen=True, eq=False)
class LinearDrift:
    """The drift ``b(x) = A x + c`` with noise σ.

    Args:
        matrix: ``A``, ``(dim, dim)``.
        offset: ``c``, ``(dim,)``.
        sigma: σ, in units of the state per root of time.
    """

    matrix: Tensor
    offset: Tensor
    sigma: float

    @property
    def mean(self) -> Tensor:
        """The fixed point of the drift, ``−A⁻¹c``.

        Raises:
            InvalidInputError: if there is none, because ``A`` is singular.
        """
        found = -torch.linalg.pinv(self.matrix) @ self.offset
        if not torch.allclose(self.matrix @ found, -self.offset, rtol=1e-6, atol=1e-12):
            raise InvalidInputError(
                "the learned drift A x + c has no fixed point, because A is singular: the snapshots do not vary in a "
                "direction in which they move. Give fewer columns."
            )
        return found

    def process(self, horizon: float) -> LinearProcess:
        """Makes the process: Brownian motion if the drift is zero, an Ornstein–Uhlenbeck process otherwise."""
        if not bool(self.matrix.any() or self.offset.any()):
            return BrownianMotion(sigma=self.sigma, horizon=horizon)
        return OrnsteinUhlenbeck(-self.matrix, self.sigma, self.mean, horizon=horizon)

    def flat(self) -> Tensor:
        """Returns ``A``, ``c`` and ``log σ`` as one vector."""
        return torch.cat([self.matrix.reshape(-1), self.offset, self.offset.new_tensor([math.log(self.sigma)])])

    def moved(self, change: Tensor) -> LinearDrift:
        """Adds ``change`` to :meth:`flat`."""
        dim = len(self.offset)
        values = self.flat() + change
        return LinearDrift(values[: dim * dim].reshape(dim, dim), values[dim * dim : -1], math.exp(float(values[-1])))


@dataclass(frozen=True, eq=False)
class Snapshots:
    """Gaussian snapshots, and what of a linear reference is to be learned from them.

    Args:
        means: of each snapshot, ``(dim,)``, float64.
        covariances: of each snapshot, ``(dim, dim)``.
        times: increasing.
        fit_sigma: whether σ is learned too.
    """

    means: Sequence[Tensor]
    covariances: Sequence[Tensor]
    times: Sequence[float]
    fit_sigma: bool

    def couplings(self, drift: LinearDrift) -> Iterator[GaussianCoupling]:
        """Yields the bridge of each leg under a reference."""
        durations = [number(t - s) for s, t in pairwise(self.times)]
        processes = {one: drift.process(float(one)) for one in set(durations)}
        for (m0, m1), (before, after), one in zip(
            pairwise(self.means), pairwise(self.covariances), durations, strict=True
        ):
            yield GaussianCoupling(m0, before, m1, after, processes[one])

    def divergence(self, drift: LinearDrift) -> float:
        """Computes ``min_P KL(P ‖ R_θ)`` in nats, the sum over legs."""
        return sum(coupling.value for coupling in self.couplings(drift))

    def round(self, drift: LinearDrift) -> tuple[float, LinearDrift]:
        """Makes the bridge ``P`` under ``R_θ``, then the regression of its drift along whole paths.

        With ``b_P = b_θ + σu`` and ``z = (x, 1)``::

            (A, c) ← argmin E_P ∫ |b_P − (A x + c)|² dt = (∫ E b_P zᵀ dt)(∫ E z zᵀ dt)⁻¹
            σ²     ← Σ E|X_t − m(t | s, X_s)|² over Q/σ², divided by dim · legs; new bridges, the same drift

        Neither line can raise ``min_P KL(P ‖ R_θ)``. For a given ``P``, the first lowers the divergence of the paths,
        the second that of the plan, which is again that of the paths if these are pinned paths of the reference.

        Returns:
            ``min_P KL(P ‖ R_θ)`` of the given reference, and the next reference.
        """
        couplings = list(self.couplings(drift))
        divergence = sum(coupling.value for coupling in couplings)
        squares, products = map(sum, zip(*(_second_moments(one, drift) for one in couplings), strict=True))
        found = torch.linalg.solve(squares, products.mT).mT  # type: ignore[union-attr]
        new = LinearDrift(found[:, :-1], found[:, -1], drift.sigma)
        if self.fit_sigma:
            shares = [one.mean_square_residual / one.dim for one in self.couplings(new)]
            new = replace(new, sigma=new.sigma * math.sqrt(sum(shares) / len(shares)))
        return divergence, new

    def learn(self, start: LinearDrift, rounds: int, tolerance: float) -> tuple[LinearDrift, tuple[float, ...]]:
        """Repeats :meth:`round` with extrapolation until the parameters stand still.

        Two rounds ``θ_0 → θ_1 → θ_2`` give ``r = θ_1 − θ_0``, ``v = θ_2 − 2θ_1 + θ_0`` and the proposal
        ``θ_0 + 2αr + α²v`` with ``α = max(1, |r|/|v|)`` (SQUAREM, Varadhan & Roland 2008; ``α = 1`` is ``θ_2``). It is
        kept if its divergence is not above that of ``θ_1``; otherwise the iteration goes on from ``θ_2``.

        Args:
            start: the first reference.
            rounds: the largest number of rounds.
            tolerance: the iteration ends when a round changes the parameters by less than this share of their norm.

        Returns:
            The reference, and ``min_P KL(P ‖ R_θ)`` before each round and at the end: it never rises.
        """
        drift, (now, first) = start, self.round(start)
        divergences = [now]
        while len(divergences) < rounds:
            before, second = self.round(first)
            divergences.append(before)
            r = first.flat() - drift.flat()
            v = second.flat() - first.flat() - r
            if float(r.norm()) <= tolerance * float(drift.flat().norm()):
                break
            longer = max(1.0, float(r.norm() / v.norm()))
            drift, (now, first) = self._at(drift.moved(2.0 * longer * r + longer**2 * v), before) or (
                second,
                self.round(second),
            )
            divergences.append(now)
        return first, (*divergences, self.divergence(first))

    def _at(self, bold: LinearDrift, bound: float) -> tuple[LinearDrift, tuple[float, LinearDrift]] | None:
        """Makes a round from a proposal; ``None`` if its divergence is above ``bound``."""
        try:
            found = self.round(bold)
        except InvalidInputError:  # the extrapolated process leaves the floating-point range
            return None
        return (bold, found) if found[0] <= bound else None

    def least_curvature(self, drift: LinearDrift, rounds: int = 20) -> float:
        """Estimates how well the snapshots determine the parameters: 0 not at all in some direction, 1 as whole paths.

        A round moves an error ``e`` of the parameters to ``(1 − I_c⁻¹I) e``, with the curvature ``I`` of
        ``min_P KL(P ‖ R_θ)`` and the curvature ``I_c`` that it would have if whole paths were seen. The result is the
        least eigenvalue of ``I_c⁻¹I``, by power iteration.
        """
        direction, rate = torch.ones_like(drift.flat()), 0.0
        if not self.fit_sigma:
            direction[-1] = 0.0
        scale = _PROBE * float(drift.flat().norm())
        for _ in range(rounds):
            direction = direction / direction.norm()
            ahead, behind = (self.round(drift.moved(sign * scale * direction))[1].flat() for sign in (1.0, -1.0))
            direction = (ahead - behind) / (2.0 * scale)
            rate = float(direction.norm())
        return max(0.0, 1.0 - rate)


def _second_moments(coupling: GaussianCoupling, drift: LinearDrift) -> tuple[Tensor, Tensor]:
    """Computes ``∫E z zᵀ dt`` and ``∫E b_P zᵀ dt`` of one leg."""
    duration = coupling.process.horizon
    speed = float(torch.linalg.matrix_norm(drift.matrix, 2))
    nodes, weights = gauss_legendre(panels_for(speed, torch.tensor(duration, device="cpu")))
    (mean, covariance), (gain, shift) = coupling.marginal_and_gain(duration * nodes)
    row = torch.cat([mean, mean.new_ones(len(mean), 1)], 1)
    second = row[:, :, None] * row[:, None, :]
    second[:, :-1, :-1] += covariance
    whole = torch.cat([drift.matrix + drift.sigma * gain, (drift.offset + drift.sigma * shift)[:, :, None]], 2)
    second = (duration * weights)[:, None, None] * second
    return second.sum(0), (whole @ second).sum(0)
