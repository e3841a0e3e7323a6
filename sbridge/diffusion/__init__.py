"""Reverse diffusion: a bridge whose reference is the noising process and whose backward control is the score."""

from sbridge.diffusion.conversions import ControlScore, Score, ScoreControl
from sbridge.diffusion.exact import ExactScore
from sbridge.diffusion.networks import NetworkScore
from sbridge.diffusion.reverse import end_law, reverse_diffusion

__all__ = [
    "ControlScore",
    "ExactScore",
    "NetworkScore",
    "Score",
    "ScoreControl",
    "end_law",
    "reverse_diffusion",
]
