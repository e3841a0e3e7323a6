"""Reverse diffusion: a bridge whose reference is the noising process and whose backward control is the score."""

from sbridge.diffusion.conversions import ControlScore, Score, ScoreControl
from sbridge.diffusion.exact import ExactScore
from sbridge.diffusion.networks import NetworkScore
from sbridge.diffusion.objectives import Action, Denoising, Implicit, Likelihood, Simple
from sbridge.diffusion.reverse import (
    denoise,
    end_law,
    generate,
    is_reverse_diffusion,
    reverse_diffusion,
    reverse_grid,
    score_of,
)
from sbridge.diffusion.training import ScoreMatching

__all__ = [
    "Action",
    "ControlScore",
    "Denoising",
    "ExactScore",
    "Implicit",
    "Likelihood",
    "NetworkScore",
    "Score",
    "ScoreControl",
    "ScoreMatching",
    "Simple",
    "denoise",
    "end_law",
    "generate",
    "is_reverse_diffusion",
    "reverse_diffusion",
    "reverse_grid",
    "score_of",
]
