"""Exact answers: closed forms of bridges and of optimal control."""

from sbridge.exact.conditional import ConditionalMixture
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.exact.mixture import MixtureControl, MixtureKernel, MixturePotential
from sbridge.exact.plug_in import FarEnd, PlugInControl, PlugInKernel
from sbridge.exact.rewards import TiltedLaw, tilted_law
from sbridge.exact.riccati import ChainRiccati, Riccati, RiccatiControl

__all__ = [
    "ChainRiccati",
    "ConditionalMixture",
    "FarEnd",
    "GaussianCoupling",
    "MixtureControl",
    "MixtureKernel",
    "MixturePotential",
    "PlugInControl",
    "PlugInKernel",
    "Riccati",
    "RiccatiControl",
    "TiltedLaw",
    "tilted_law",
]
