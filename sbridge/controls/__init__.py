"""Controls: the functions that all methods of this package choose or learn."""

from sbridge.controls.base import Control, MirroredControl, ScaledControl, SumControl, ZeroControl, on_top
from sbridge.controls.divergence import Divergence, ExactTrace, Hutchinson, ProbeLaw, Probes
from sbridge.controls.networks import (
    MLP,
    AdditiveMLP,
    FourierMLP,
    NetworkControl,
    NetworkRecipe,
    ScaledMLP,
    UNet,
    seeded_control,
)

__all__ = [
    "MLP",
    "AdditiveMLP",
    "Control",
    "Divergence",
    "ExactTrace",
    "FourierMLP",
    "Hutchinson",
    "MirroredControl",
    "NetworkControl",
    "NetworkRecipe",
    "ProbeLaw",
    "Probes",
    "ScaledControl",
    "ScaledMLP",
    "SumControl",
    "UNet",
    "ZeroControl",
    "on_top",
    "seeded_control",
]
