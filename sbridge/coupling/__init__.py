"""Couplings of the two ends, from which bridge matching starts."""

from sbridge.coupling.entropic import EntropicCoupling, MinibatchCoupling
from sbridge.coupling.simple import Coupling, IndependentCoupling, ReferenceCoupling

__all__ = ["Coupling", "EntropicCoupling", "IndependentCoupling", "MinibatchCoupling", "ReferenceCoupling"]
