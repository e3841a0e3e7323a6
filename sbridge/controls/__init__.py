"""Controls: the one thing that every method of this field chooses."""

from sbridge.controls.base import Control, ScaledControl, SumControl, ZeroControl
from sbridge.controls.networks import MLP, NetworkControl, NetworkRecipe, seeded_control

__all__ = [
    "MLP",
    "Control",
    "NetworkControl",
    "NetworkRecipe",
    "ScaledControl",
    "SumControl",
    "ZeroControl",
    "seeded_control",
]
