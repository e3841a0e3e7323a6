"""Fits with every choice made from the data: a bridge, a diffusion, a time course."""

from sbridge.fitting.choice import SolverChoice, choose_solver
from sbridge.fitting.courses import Course, fit_course, prepare_course
from sbridge.fitting.fit import (
    Preparation,
    SigmaChoice,
    choose_noise_schedule,
    choose_sigma,
    diffuse,
    fit,
    prepare,
    solve,
)
from sbridge.fitting.mixture_start import MixtureStart
from sbridge.fitting.pairs import fit_pairs
from sbridge.fitting.references import LearnedReference, learn_reference
from sbridge.fitting.tilting import TiltedBridge, tilt, tilting_solver

__all__ = [
    "Course",
    "LearnedReference",
    "MixtureStart",
    "Preparation",
    "SigmaChoice",
    "SolverChoice",
    "TiltedBridge",
    "choose_noise_schedule",
    "choose_sigma",
    "choose_solver",
    "diffuse",
    "fit",
    "fit_course",
    "fit_pairs",
    "learn_reference",
    "prepare",
    "prepare_course",
    "solve",
    "tilt",
    "tilting_solver",
]
