"""Figures: every function takes an object and ``ax=None``, and returns the matplotlib ``Axes`` that it drew on.

Without ``ax`` a bare ``matplotlib.figure.Figure`` is made, reached as ``axes.figure``; pyplot, its current figure,
the backend and ``rcParams`` are never touched. Blue is the source (``t = 0``), vermillion the target (``t = T``),
times in between have colours in between. Data with more than two dimensions are drawn in the plane of the first two
principal components of both ends (:class:`Projection`); one-dimensional data are drawn against time.
"""

from sbridge.plotting.certificates import certificate
from sbridge.plotting.clouds import course_marginals, marginals
from sbridge.plotting.couplings import coupling
from sbridge.plotting.courses import course_trajectories, trajectories
from sbridge.plotting.diffusion import action_gap, densities, reversals, score_field
from sbridge.plotting.fields import drift_field, velocity_field
from sbridge.plotting.histories import history
from sbridge.plotting.projection import Projection
from sbridge.plotting.standard import course_figures, save_certificate, standard_figures
from sbridge.plotting.style import Clock

__all__ = [
    "Clock",
    "Projection",
    "action_gap",
    "certificate",
    "coupling",
    "course_figures",
    "course_marginals",
    "course_trajectories",
    "densities",
    "drift_field",
    "history",
    "marginals",
    "reversals",
    "save_certificate",
    "score_field",
    "standard_figures",
    "trajectories",
    "velocity_field",
]
