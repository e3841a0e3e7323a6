"""Reverse diffusion: a bridge whose reference is the noising process and whose backward control is the score."""

from sbridge.diffusion.accessors import is_reverse_diffusion, score_of
from sbridge.diffusion.conversions import (
    ControlScore,
    Score,
    ScoreControl,
    noise_from_score,
    score_from_noise,
    score_from_start,
    start_from_score,
    start_from_velocity,
    velocity_from_start,
)
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
from sbridge.diffusion.monitor import GapRecorder
from sbridge.diffusion.networks import NetworkScore
from sbridge.diffusion.objectives import Action, Denoising, Implicit, Likelihood, Simple
from sbridge.diffusion.pinned import draw_earlier, draw_start, pinned_kernel, pinned_kl
from sbridge.diffusion.posterior import noise_and_average
from sbridge.diffusion.reverse import (
    NegativeLogDensity,
    end_distribution,
    reversal_problem,
    reverse_diffusion,
    reverse_grid,
)
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
    denoised,
    generate,
    langevin,
)
from sbridge.diffusion.training import ScoreMatching

__all__ = [
    "Action",
    "AncestralSampler",
    "AnnealedLangevin",
    "ControlScore",
    "DDIMSampler",
    "Denoise",
    "Denoising",
    "DiscreteDenoising",
    "DiscreteNoise",
    "ExactScore",
    "FlowSampler",
    "GapRecorder",
    "GuidedScore",
    "Implicit",
    "IsotropicCovariance",
    "LastStep",
    "Likelihood",
    "LinearObservation",
    "LogLikelihood",
    "NegativeLogDensity",
    "NetworkScore",
    "PredictorCorrector",
    "Sampled",
    "Sampler",
    "Score",
    "ScoreControl",
    "ScoreMatching",
    "Simple",
    "StepToZero",
    "StepVariance",
    "StochasticSampler",
    "StopEarly",
    "TweedieCovariance",
    "conditioned",
    "denoised",
    "draw_earlier",
    "draw_start",
    "end_distribution",
    "generate",
    "is_reverse_diffusion",
    "langevin",
    "log_likelihood",
    "noise_and_average",
    "noise_from_score",
    "pinned_kernel",
    "pinned_kl",
    "reversal_problem",
    "reverse_diffusion",
    "reverse_grid",
    "score_from_noise",
    "score_from_start",
    "score_of",
    "start_from_score",
    "start_from_velocity",
    "velocity_from_start",
]
