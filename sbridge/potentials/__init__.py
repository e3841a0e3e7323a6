"""Potentials of bridges in closed form, and what tilting a linear process by them gives."""

from sbridge.potentials.conditional import ConditionalMixture
from sbridge.potentials.mixture import MixtureControl, MixtureKernel, MixturePotential

__all__ = ["ConditionalMixture", "MixtureControl", "MixtureKernel", "MixturePotential"]
