"""Controls: the one thing that every method of this field chooses."""

from sbridge.controls.base import Control, ScaledControl, SumControl, ZeroControl
from sbridge.controls.networks import MLP, FourierMLP, NetworkControl, NetworkRecipe, seeded_control

__all__ = [
    "MLP",
    "Control",
    "FourierMLP",
    "NetworkControl",
    "NetworkRecipe",
    "ScaledControl",
    "SumControl",
    "ZeroControl",
    "seeded_control",
]
