"""Functionals of path measures: action, divergences, score matching, likelihood bounds, Feynman–Kac weights, entropy.

Every functional maps :class:`~sbridge.measures.Paths` to :class:`PathValues`: a number for each path, the mean with its
standard error, and the change of the mean when the time step is halved. For two functionals of the same paths, subtract
these numbers path by path: common noise then cancels.
"""

from sbridge.functionals.action import action, action_difference, action_gap, constraint, killed_log_ratio
from sbridge.functionals.elbo import RowBounds, denoising_elbo, implicit_elbo, row_elbo
from sbridge.functionals.entropy import entropy_change, integrated_entropy_rate
from sbridge.functionals.feynman_kac import Killing, feynman_kac, kill, log_weights
from sbridge.functionals.most_probable import PathAction, freidlin_wentzell, most_probable_path, onsager_machlup
from sbridge.functionals.quadrature import LeftPoint, PathValues, Quadrature, RightPoint, Trapezoid, integrate, streamed
from sbridge.functionals.score_matching import (
    denoising_constant,
    denoising_score_matching,
    explicit_score_matching,
    implicit_constant,
    implicit_score_matching,
)
from sbridge.functionals.thermodynamics import (
    dissipation,
    entropy_production,
    excess_heat,
    heat,
    housekeeping_heat,
    reversal_cost,
    work,
)

__all__ = [
    "Killing",
    "LeftPoint",
    "PathAction",
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
    "dissipation",
    "entropy_change",
    "entropy_production",
    "excess_heat",
    "explicit_score_matching",
    "feynman_kac",
    "freidlin_wentzell",
    "heat",
    "housekeeping_heat",
    "implicit_constant",
    "implicit_elbo",
    "implicit_score_matching",
    "integrate",
    "integrated_entropy_rate",
    "kill",
    "killed_log_ratio",
    "log_weights",
    "most_probable_path",
    "onsager_machlup",
    "reversal_cost",
    "row_elbo",
    "streamed",
    "work",
]
