"""Monte Carlo means with their errors, and importance weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.display import value_and_error
from sbridge.errors import InvalidInputError, NonFiniteError
from sbridge.storage.registry import register


@register
@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo mean with its error.

    Args:
        value: the mean.
        standard_error: its standard error.
        samples: the number of independent samples.
        effective_sample_size: the effective sample size of the importance weights, if there are any.
    """

    value: float
    standard_error: float
    samples: int
    effective_sample_size: float | None = None

    @classmethod
    def of(cls, values: Tensor, effective_sample_size: float | None = None) -> Estimate:
        """Computes the mean of independent ``values``, shape ``(n,)``, ``n ≥ 2``."""
        if values.ndim != 1 or len(values) < 2:
            raise InvalidInputError(
                f"a standard error needs at least two values of shape (n,), got shape {tuple(values.shape)}."
            )
        values = values.detach().double()
        error = float(values.std()) / math.sqrt(len(values))
        return cls(float(values.mean()), error, len(values), effective_sample_size)

    def __str__(self) -> str:
        """Formats the value with its standard error."""
        size = "" if self.effective_sample_size is None else f", effective {self.effective_sample_size:.0f}"
        return f"{value_and_error(self.value, self.standard_error)} (s.e., n = {self.samples}{size})"


@dataclass(frozen=True, eq=False)
class ImportanceWeights:
    """Self-normalised weights.

    Args:
        values: non-negative with sum 1, shape ``(n,)``.
        effective_sample_size: ``1 / Σ values²``, between 1 and ``n``.
        log_mean: the logarithm of the mean of the weights before normalisation, an estimate of the log ratio of
            normalisers.
    """

    values: Tensor
    effective_sample_size: float
    log_mean: float

    @property
    def log_normaliser(self) -> Estimate:
        """``log_mean`` with the standard error of the delta method, ``√(1/ESS − 1/n)``."""
        size, n = self.effective_sample_size, len(self.values)
        return Estimate(self.log_mean, math.sqrt(max(1.0 / size - 1.0 / n, 0.0)), n, size)


def importance_weights(log_weights: Tensor) -> ImportanceWeights:
    """Normalises weights given by logarithms of shape ``(n,)`` up to a constant; ``−∞`` is weight zero.

    Raises:
        InvalidInputError: for another shape, or if every weight is zero.
        NonFiniteError: for NaN or ``+∞``.
    """
    if log_weights.ndim != 1 or len(log_weights) < 1:
        raise InvalidInputError(f"log weights must have shape (n,), got {tuple(log_weights.shape)}.")
    if bool((log_weights.isnan() | log_weights.isposinf()).any()):
        raise NonFiniteError("log weights contain NaN or +inf: the simulation or the densities failed.")
    if bool(log_weights.isneginf().all()):
        raise InvalidInputError("every weight is zero: the two measures do not overlap on these samples.")
    values = torch.softmax(log_weights, 0)
    size = 1.0 / float(values.detach().double().square().sum())
    log_mean = float(torch.logsumexp(log_weights.detach().double(), 0)) - math.log(len(log_weights))
    return ImportanceWeights(values, size, log_mean)


def effective_sample_size(log_weights: Tensor) -> float:
    """Computes ``(Σ w)² / Σ w²`` from logarithms (Kish); errors as in :func:`importance_weights`."""
    return importance_weights(log_weights).effective_sample_size
