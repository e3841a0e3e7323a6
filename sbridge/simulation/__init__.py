"""Simulation with torchsde, integrated over step indices.

A chain (``sbridge.processes.chain``) is handed to torchsde as an equation in *index time*: knots
``0, 1, …, N``, step 1, drift ``m_j(x) − x + L_j √Δ_j u``, diffusion 1, and a Brownian motion whose
increment over ``[j, j + 1]`` is ``L_j ξ_j``. One Euler step of that equation is one step of the chain,
whatever the time grid, and index time is exact in every dtype.

:func:`propagate` runs a chain and shows every state to an observer, so its memory does not grow with the
number of steps; :func:`simulate` keeps the whole path; :func:`endpoint` is the reversible-Heun route, whose
gradient needs no stored path.
"""

from sbridge.simulation.chains import Observer, propagate, simulate
from sbridge.simulation.engine import Noise
from sbridge.simulation.heun import RunningCost, endpoint
from sbridge.simulation.options import Backprop, Detached, GradientMethod, ReversibleAdjoint

__all__ = [
    "Backprop",
    "Detached",
    "GradientMethod",
    "Noise",
    "Observer",
    "ReversibleAdjoint",
    "RunningCost",
    "endpoint",
    "propagate",
    "simulate",
]
