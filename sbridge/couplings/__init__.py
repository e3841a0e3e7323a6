"""Couplings of the two ends, from which bridge matching starts."""

from sbridge.couplings.entropic import EntropicCoupling, MinibatchCoupling
from sbridge.couplings.simple import Coupling, IndependentCoupling, ReferenceCoupling

__all__ = ["Coupling", "EntropicCoupling", "IndependentCoupling", "MinibatchCoupling", "ReferenceCoupling"]
