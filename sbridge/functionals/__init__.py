"""Functionals of path measures: action, divergences, score matching, bounds on the likelihood, Feynman–Kac weights.

Every functional maps :class:`~sbridge.measures.Paths` to :class:`PathValues`: a number for each path, the mean with its
standard error, and the change of the mean when the time step is halved. For two functionals of the same paths, subtract
these numbers path by path: common noise then cancels.
"""

from sbridge.functionals.action import action, action_difference, action_gap, constraint, killed_log_ratio
from sbridge.functionals.elbo import RowBounds, denoising_elbo, implicit_elbo, row_elbo
from sbridge.functionals.entropy import entropy_change, entropy_production
from sbridge.functionals.feynman_kac import Killing, feynman_kac, kill, log_weights
from sbridge.functionals.quadrature import LeftPoint, PathValues, Quadrature, RightPoint, Trapezoid, integrate, streamed
from sbridge.functionals.score_matching import (
    denoising_constant,
    denoising_score_matching,
    explicit_score_matching,
    implicit_constant,
    implicit_score_matching,
)

__all__ = [
    "Killing",
    "LeftPoint",
    "PathValues",
    "Quadrature",
    "RightPoint",
    "RowBounds",
    "Trapezoid",
    "action",
    "action_difference",
    "action_gap",
    "constraint",
    "denoising_constant",
    "denoising_elbo",
    "denoising_score_matching",
    "entropy_change",
    "entropy_production",
    "explicit_score_matching",
    "feynman_kac",
    "implicit_constant",
    "implicit_elbo",
    "implicit_score_matching",
    "integrate",
    "kill",
    "killed_log_ratio",
    "log_weights",
    "row_elbo",
    "streamed",
]
