"""Linear–quadratic control in closed form: the Riccati equation, and its recursion for a chain.

For a linear process ``dX = (A X + c + σu) dt + σ dW`` and quadratic costs the value is quadratic and the optimal
control is affine: ``V(t, x) = zᵀ F(t) z + κ(t)`` with ``z = (x, 1)``. With ``a = σσᵀ``, everything written for ``z``::

    −Ḟ = AᵀF + FA − 2FaF + P,    −κ̇ = tr(aF),    F(T) = Q,    u* = −2σᵀFz

The problem in continuous time and the problem for a chain have different solutions. A control learned on a grid
approaches the solution for the chain.
"""

from sbridge.exact.riccati.base import RiccatiControl
from sbridge.exact.riccati.chain import ChainRiccati
from sbridge.exact.riccati.limit import Riccati

__all__ = ["ChainRiccati", "Riccati", "RiccatiControl"]
