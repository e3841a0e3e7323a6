"""Distributions at the ends of a bridge: samples, a point, closed forms and unnormalised densities."""

from sbridge.laws.base import (
    Density,
    Gaussian,
    GaussianMixture,
    HasDensity,
    Law,
    Point,
    Samples,
    as_law,
    as_rows,
    check_same_kind,
    check_same_space,
)
from sbridge.laws.moments import moments
from sbridge.laws.stored import StoredRows

__all__ = [
    "Density",
    "Gaussian",
    "GaussianMixture",
    "HasDensity",
    "Law",
    "Point",
    "Samples",
    "StoredRows",
    "as_law",
    "as_rows",
    "check_same_kind",
    "check_same_space",
    "moments",
]
