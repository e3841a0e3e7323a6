"""Reverse diffusion: a bridge whose reference is the noising process and whose backward control is the score."""

from sbridge.diffusion.conversions import ControlScore, Score, ScoreControl
from sbridge.diffusion.ddpm import DiscreteDenoising, DiscreteNoise, StepVariance
from sbridge.diffusion.exact import ExactScore
from sbridge.diffusion.guidance import (
    GuidedScore,
    IsotropicCovariance,
    LinearObservation,
    TweedieCovariance,
    conditioned,
)
from sbridge.diffusion.likelihood import LogLikelihood, log_likelihood
from sbridge.diffusion.networks import NetworkScore
from sbridge.diffusion.parts import score_of
from sbridge.diffusion.reverse import end_law, reverse_diffusion
from sbridge.diffusion.samplers import (
    AncestralSampler,
    AnnealedLangevin,
    DDIMSampler,
    Denoise,
    FlowSampler,
    LastStep,
    PredictorCorrector,
    Sampled,
    Sampler,
    StepToZero,
    StochasticSampler,
    StopEarly,
    langevin,
)

__all__ = [
    "AncestralSampler",
    "AnnealedLangevin",
    "ControlScore",
    "DDIMSampler",
    "Denoise",
    "DiscreteDenoising",
    "DiscreteNoise",
    "ExactScore",
    "FlowSampler",
    "GuidedScore",
    "IsotropicCovariance",
    "LastStep",
    "LinearObservation",
    "LogLikelihood",
    "NetworkScore",
    "PredictorCorrector",
    "Sampled",
    "Sampler",
    "Score",
    "ScoreControl",
    "StepToZero",
    "StepVariance",
    "StochasticSampler",
    "StopEarly",
    "TweedieCovariance",
    "conditioned",
    "end_law",
    "langevin",
    "log_likelihood",
    "reverse_diffusion",
    "score_of",
]
