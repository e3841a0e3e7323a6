"""Optimal transport: plans, distances, baseline maps, and the package's Sinkhorn solver.

It is the only package that imports POT, and that converts the ε of a bridge to the regularisation of POT.
"""

from sbridge.transport.cloud import Cloud
from sbridge.transport.maps import (
    AffineMap,
    BarycentricMap,
    NearestRowMap,
    entropic_map,
    entropic_maps,
    exact_map,
    exact_maps,
    gaussian_map,
)
from sbridge.transport.plans import entropic_plan, epsilon_of, exact_cost, exact_plan, regularisation, sliced_cost
from sbridge.transport.sinkhorn import (
    EntropicProblem,
    Sinkhorn,
    SinkhornSolution,
    SinkhornState,
    sinkhorn,
    sinkhorn_converged,
    sinkhorn_finish,
    sinkhorn_init,
    sinkhorn_step,
)
from sbridge.transport.unbalanced import UnbalancedSolution, unbalanced
from sbridge.transport.urn import log_transport_probability

__all__ = [
    "AffineMap",
    "BarycentricMap",
    "Cloud",
    "EntropicProblem",
    "NearestRowMap",
    "Sinkhorn",
    "SinkhornSolution",
    "SinkhornState",
    "UnbalancedSolution",
    "entropic_map",
    "entropic_maps",
    "entropic_plan",
    "epsilon_of",
    "exact_cost",
    "exact_map",
    "exact_maps",
    "exact_plan",
    "gaussian_map",
    "log_transport_probability",
    "regularisation",
    "sinkhorn",
    "sinkhorn_converged",
    "sinkhorn_finish",
    "sinkhorn_init",
    "sinkhorn_step",
    "sliced_cost",
    "unbalanced",
]
