"""Sampling conditional on a part of the state: the score of data that agree with an observation.

The state has an unknown and an observed part, ``X_0 = (unknown, observed)``, and is conditioned on ``y = A X_0 + r η``.
The score of the conditioned, noised distribution is ``∇ log ρ_t(x) + ∇_x log p(y | X_t = x)``. For mixtures and points
it is exact (:func:`conditioned`); for any score the second term is approximated (:class:`GuidedScore`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbridge.controls.base import Time
from sbridge.diffusion.conversions import Score, checked_score, start_from_score
from sbridge.diffusion.posterior import posterior
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Law
from sbridge.problems import Quadratic
from sbridge.processes import LinearProcess
from sbridge.storage.registry import register


@register
@dataclass(frozen=True, eq=False)
class LinearObservation:
    """The observation ``y = A X_0 + r η`` with standard normal ``η``.

    Args:
        matrix: ``A``, shape ``(m, dim)``.
        noise_std: ``r ≥ 0``, in units of ``y``.

    Raises:
        InvalidInputError: for another shape, or negative noise.
    """

    matrix: Tensor
    noise_std: float = 0.0

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2 or not self.matrix.is_floating_point():
            raise InvalidInputError(f"an observation needs a matrix (m, dim), got {tuple(self.matrix.shape)}.")
        if not self.noise_std >= 0.0:
            raise InvalidInputError(f"the noise of an observation must be non-negative, got {self.noise_std}.")

    @classmethod
    def of_coordinates(cls, observed: Sequence[int], dim: int, noise_std: float = 0.0) -> LinearObservation:
        """Observes some coordinates of a state of dimension ``dim``."""
        if not observed or len(set(observed)) < len(observed) or not all(0 <= i < dim for i in observed):
            raise InvalidInputError(f"observed must be different indices in 0 … {dim - 1}, got {list(observed)}.")
        return cls(torch.eye(dim, dtype=torch.float64, device="cpu")[list(observed)], noise_std)

    @property
    def noise(self) -> Tensor:
        """Returns ``r² I``, shape ``(m, m)``."""
        return self.noise_std**2 * torch.eye(len(self.matrix), device="cpu").to(self.matrix)

    def log_likelihood(self, y: Tensor) -> Quadratic:
        """Returns ``x ↦ log p(y | X_0 = x) = −|y − Ax|²/2r² − ½m log 2πr²`` as a reward for :func:`sbridge.tilt`.

        The tilted distribution is the posterior ``X_0 | y``, and minus its value is the evidence ``log p(y)``.

        Args:
            y: shape ``(m,)``.

        Raises:
            InvalidInputError: for another shape, or without noise.
        """
        matrix, y = self.matrix.double().cpu(), y.double().cpu()
        if y.shape != matrix.shape[:1] or not self.noise_std > 0.0:
            raise InvalidInputError(
                f"a log likelihood needs y of shape ({len(matrix)},) and noise, got shape {tuple(y.shape)} and "
                f"noise_std = {self.noise_std:g}. Without noise use GuidedScore."
            )
        precision = self.noise_std**-2
        constant = -0.5 * precision * float(y @ y) - 0.5 * len(y) * math.log(2.0 * math.pi / precision)
        return Quadratic(-0.5 * precision * matrix.mT @ matrix, precision * matrix.mT @ y, constant)


def conditioned(data: Law, observation: LinearObservation, y: Tensor, unknown: Sequence[int] | None = None) -> Law:
    """Computes the exact distribution of ``X_0`` given one observation; its :class:`ExactScore` is conditional.

    Args:
        data: Gaussian, GaussianMixture or Samples; for samples only the weights change.
        observation: with noise; it may have none if only ``unknown`` coordinates are wanted.
        y: shape ``(m,)``.
        unknown: the coordinates whose distribution is wanted; all by default.

    Raises:
        InvalidInputError: if the conditional distribution has no density (observed coordinates without noise), or no
            data point is possible given ``y``.
    """
    if y.shape != observation.matrix.shape[:1]:
        raise InvalidInputError(f"y must have shape ({len(observation.matrix)},), got {tuple(y.shape)}.")
    seen = posterior(data, observation.matrix, observation.noise, y[None])
    return seen.law(0, None if unknown is None else torch.tensor(list(unknown), device="cpu"))


class StartCovariance(ABC):
    """An approximation of ``A Cov(X_0 | X_t = x) Aᵀ``."""

    @abstractmethod
    def __call__(self, process: LinearProcess, t: Time, rows: Tensor, matrix: Tensor) -> Tensor:
        """Computes it, shape ``(batch | 1, m, m)``, from ``rows = A ∂E[X_0 | x]/∂x`` of shape ``(batch, m, dim)``."""


@register
@dataclass(frozen=True)
class TweedieCovariance(StartCovariance):
    """Tweedie's second formula ``Cov(X_0 | x) = (∂E[X_0 | x]/∂x) Q Φ^{−ᵀ}`` (Boys et al. 2023, arXiv:2310.06721).

    Exact for the true score; a network's derivative need not be symmetric, and eigenvalues below the rounding error
    are raised to it. If a network's are negative, give the observation noise or use :class:`IsotropicCovariance`.
    """

    def __call__(self, process: LinearProcess, t: Time, rows: Tensor, matrix: Tensor) -> Tensor:
        """Computes one matrix per row."""
        law = process.transition(0.0, t)
        dim = matrix.shape[1]
        right = law.covariance.expanded(dim) @ law.map.inverse().T.expanded(dim)
        found = rows @ right.to(rows) @ matrix.mT
        prior = matrix @ (law.map.inverse().expanded(dim) @ right).to(rows) @ matrix.mT
        values, vectors = torch.linalg.eigh(0.5 * (found + found.mT))
        least = 10.0 * torch.finfo(rows.dtype).eps * prior.diagonal(dim1=-2, dim2=-1).mean(-1)
        return vectors * torch.maximum(values, least.unsqueeze(-1)).unsqueeze(-2) @ vectors.mT


@register
@dataclass(frozen=True)
class IsotropicCovariance(StartCovariance):
    """The covariance ``(I/scale² + ΦᵀQ⁻¹Φ)⁻¹`` of data ``N(·, scale² I)`` (Song et al. 2023, ΠGDM), always positive.

    Args:
        scale: standard deviation of the data, in units of state.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise InvalidInputError(f"the scale of the data must be positive, got {self.scale}.")

    def __call__(self, process: LinearProcess, t: Time, rows: Tensor, matrix: Tensor) -> Tensor:
        """Computes one matrix for each time."""
        law, dim = process.transition(0.0, t), matrix.shape[1]
        information = (law.map.T @ law.precision @ law.map).expanded(dim)
        covariance = torch.linalg.inv(information + torch.eye(dim, device="cpu").to(information) / self.scale**2)
        return (matrix @ covariance.to(rows) @ matrix.mT).reshape(-1, len(matrix), len(matrix))


@register
@dataclass(frozen=True, eq=False)
class GuidedScore:
    """Reconstruction guidance ``s(t, x) + ∇_x log N(y; A E[X_0 | x], C_t(x))`` with ``C_t`` held fixed.

    ``p(y | X_t = x)`` is approximated by a Gaussian with the mean of Tweedie's formula and the covariance
    ``C_t = A Cov(X_0 | x) Aᵀ + r² I``. This is exact for Gaussian data under any linear process (with
    :class:`TweedieCovariance`), and an approximation for other data; its error is largest at intermediate times. It
    costs one evaluation of the score and ``m`` reverse derivatives.

    Args:
        process: the noising process.
        score: score of the joint state.
        observation: what is observed.
        y: observed values, shape ``(1, m)`` or one row per state ``(batch, m)``.
        covariance: how ``Cov(X_0 | x)`` is computed.

    Raises:
        UnsupportedError: for a process that is not linear, or, when called, a score that torch cannot differentiate.
        InvalidInputError: for shapes that do not fit.
    """

    process: LinearProcess
    score: Score
    observation: LinearObservation
    y: Tensor
    covariance: StartCovariance = field(default_factory=TweedieCovariance)

    def __post_init__(self) -> None:
        if not isinstance(self.process, LinearProcess):
            raise UnsupportedError(
                f"guidance needs E[X_0 | x] in closed form, which a {type(self.process).__name__} does not have; use a "
                "LinearProcess such as VariancePreserving()."
            )
        if self.y.ndim != 2 or self.y.shape[1] != len(self.observation.matrix):
            raise InvalidInputError(
                f"y must have shape (1, {len(self.observation.matrix)}) or (batch, {len(self.observation.matrix)}), "
                f"got {tuple(self.y.shape)}."
            )

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes the guided score, shape ``(batch, dim)``."""
        matrix = self.observation.matrix.to(x)
        if matrix.shape[1] != x.shape[1] or len(self.y) not in (1, len(x)):
            raise InvalidInputError(
                f"the observation has matrix {tuple(matrix.shape)} and {len(self.y)} rows, but states have shape "
                f"{tuple(x.shape)}."
            )
        score, seen, rows = self._seen(t, x, matrix)
        spread = self.covariance(self.process, t, rows, matrix) + self.observation.noise.to(x)
        misfit = torch.linalg.solve(spread, (self.y.to(x) - seen).unsqueeze(-1))
        return score + (rows.mT @ misfit).squeeze(-1)

    def _seen(self, t: Time, x: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the score, ``A E[X_0 | x]`` and its derivative ``(batch, m, dim)``."""
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            states = x if recorded and x.requires_grad else x.detach().requires_grad_()
            score = checked_score(self.score, t, states)
            if not score.requires_grad:
                raise UnsupportedError(
                    "guidance needs the derivative of the score, but torch cannot differentiate this one."
                )
            seen = start_from_score(self.process, t, states, score) @ matrix.mT
            rows = [
                torch.autograd.grad(one.sum(), states, retain_graph=True, create_graph=recorded)[0]
                for one in seen.unbind(1)
            ]
        found = score, seen, torch.stack(rows, 1)
        return found if recorded else (found[0].detach(), found[1].detach(), found[2].detach())
