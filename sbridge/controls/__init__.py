"""Controls: the one thing that every method of this field chooses."""

from sbridge.controls.base import Control, ScaledControl, ZeroControl
from sbridge.controls.networks import MLP, NetworkControl, NetworkRecipe, seeded_control

__all__ = [
    "MLP",
    "Control",
    "NetworkControl",
    "NetworkRecipe",
    "ScaledControl",
    "ZeroControl",
    "seeded_control",
]
