"""Couplings of the two ends, used as the start of bridge matching."""

from sbridge.couplings.entropic import EntropicCoupling, MinibatchCoupling
from sbridge.couplings.simple import Coupling, GivenPairs, IndependentCoupling, ReferenceCoupling

__all__ = [
    "Coupling",
    "EntropicCoupling",
    "GivenPairs",
    "IndependentCoupling",
    "MinibatchCoupling",
    "ReferenceCoupling",
]
