"""Couplings of the two ends, used as the start of bridge matching."""

from sbridge.couplings.entropic import EntropicCoupling, MinibatchCoupling
from sbridge.couplings.simple import Coupling, IndependentCoupling, ReferenceCoupling

__all__ = ["Coupling", "EntropicCoupling", "IndependentCoupling", "MinibatchCoupling", "ReferenceCoupling"]
