"""Exact answers: closed forms of bridges and of optimal control."""

from sbridge.exact.conditional import ConditionalMixture
from sbridge.exact.ends import PlugInRatio, balanced
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.exact.killed import KilledPlan, KilledSinkhorn, killed_plan
from sbridge.exact.mixture import MixtureControl, MixtureKernel, MixturePotential
from sbridge.exact.momentum import CourseControl, GaussianMomentumCourse
from sbridge.exact.plug_in import FarEnd, PlugInControl, PlugInKernel
from sbridge.exact.rewards import TiltedLaw, tilted_law
from sbridge.exact.riccati import ChainRiccati, Riccati, RiccatiControl
from sbridge.exact.soft_gaussian import SoftGaussianCoupling

__all__ = [
    "ChainRiccati",
    "ConditionalMixture",
    "CourseControl",
    "FarEnd",
    "GaussianCoupling",
    "GaussianMomentumCourse",
    "KilledPlan",
    "KilledSinkhorn",
    "MixtureControl",
    "MixtureKernel",
    "MixturePotential",
    "PlugInControl",
    "PlugInKernel",
    "PlugInRatio",
    "Riccati",
    "RiccatiControl",
    "SoftGaussianCoupling",
    "TiltedLaw",
    "balanced",
    "killed_plan",
    "tilted_law",
]
