"""Accessors for samplers and likelihoods: the backward measure, score and knots of a bridge."""

from __future__ import annotations

import torch
from torch import Tensor

from sbridge.controls import ZeroControl
from sbridge.diffusion.conversions import ControlScore, Score, ScoreControl
from sbridge.errors import UnsupportedError
from sbridge.measures import Direction, PathMeasure
from sbridge.processes import LinearProcess
from sbridge.solutions import Bridge
from sbridge.time import TimeGrid


def backward_measure(bridge: Bridge) -> PathMeasure:
    """Returns the measure that starts at ``t = T``; also of a :meth:`~sbridge.solutions.Bridge.reversed` bridge."""
    return bridge.backward if bridge.backward.direction is Direction.BACKWARD else bridge.forward


def is_reverse_diffusion(bridge: Bridge) -> bool:
    """Returns whether the forward control is zero, so that the backward control is ``σᵀ`` times a score."""
    backward = backward_measure(bridge)
    forward = bridge.forward if backward is bridge.backward else bridge.backward
    return backward.control is not None and (forward.control is None or isinstance(forward.control, ZeroControl))


def score_of(bridge: Bridge) -> Score:
    """Returns the score ``∇ log ρ_t = σ^{−ᵀ} û`` of a reverse diffusion: that of the reference started in the data.

    Raises:
        UnsupportedError: if the forward control is not zero, for then ``û`` is not proportional to a score.
    """
    control = backward_measure(bridge).control
    if control is None or not is_reverse_diffusion(bridge):
        raise UnsupportedError(
            "this needs the score of the noised data, which only a reverse diffusion has: a bridge whose forward "
            "control is None (see reverse_diffusion). For other bridges use StochasticSampler or FlowSampler with "
            "StopEarly() or StepToZero()."
        )
    return control.score if isinstance(control, ScoreControl) else ControlScore(bridge.reference, control)


def linear_reference(bridge: Bridge, purpose: str) -> LinearProcess:
    """Returns the reference; raises UnsupportedError, with ``purpose``, if it has no closed-form transition."""
    if not isinstance(bridge.reference, LinearProcess):
        raise UnsupportedError(
            f"{purpose} needs a LinearProcess such as VariancePreserving(), got {type(bridge.reference).__name__}; use "
            "StochasticSampler or FlowSampler with StopEarly() or StepToZero()."
        )
    return bridge.reference


def knots_from(bridge: Bridge, s_min: float, grid: TimeGrid | None = None) -> Tensor:
    """Returns ``s_min`` and the knots of ``grid`` above it, by default of the backward measure; increasing, float64."""
    knots = (grid or backward_measure(bridge).grid).times(bridge.horizon)
    return torch.cat([knots.new_tensor([s_min]), knots[knots > s_min + 1e-12 * bridge.horizon]])
