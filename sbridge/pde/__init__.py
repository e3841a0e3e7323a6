"""Grids in one and two dimensions: evolution equations, the action, and the Schrödinger system.

It does not depend on simulations and solvers, so it can be used to check them.
"""

from sbridge.pde.action import GridAction, SpaceTime
from sbridge.pde.densities import Histogram, KernelDensity, SampleDensity, density_on, grid_around, log_density_on
from sbridge.pde.equations import FokkerPlanckSolution, backward_kolmogorov, fokker_planck, hamilton_jacobi_bellman
from sbridge.pde.grids import Field, Grid
from sbridge.pde.heat import amplification, heat_kernel, heat_spectral, wavenumbers
from sbridge.pde.killing import KilledSolution, solve_killed
from sbridge.pde.propagator import CRANK_NICOLSON, IMPLICIT_EULER, L_STABLE, Propagator, StateCost, TimeScheme
from sbridge.pde.schroedinger import (
    FortetSinkhorn,
    GridSolution,
    HalfStep,
    half_steps,
    proportional_fitting,
    solve_schroedinger,
)

__all__ = [
    "CRANK_NICOLSON",
    "IMPLICIT_EULER",
    "L_STABLE",
    "Field",
    "FokkerPlanckSolution",
    "FortetSinkhorn",
    "Grid",
    "GridAction",
    "GridSolution",
    "HalfStep",
    "Histogram",
    "KernelDensity",
    "KilledSolution",
    "Propagator",
    "SampleDensity",
    "SpaceTime",
    "StateCost",
    "TimeScheme",
    "amplification",
    "backward_kolmogorov",
    "density_on",
    "fokker_planck",
    "grid_around",
    "half_steps",
    "hamilton_jacobi_bellman",
    "heat_kernel",
    "heat_spectral",
    "log_density_on",
    "proportional_fitting",
    "solve_killed",
    "solve_schroedinger",
    "wavenumbers",
]
