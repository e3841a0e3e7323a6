"""Ends that may bend: what a bridge may change at its two ends, and what it changed."""

from sbridge.problems.ends.base import Growth, SoftEnds
from sbridge.problems.ends.reweighting import LogRatio, Reweighting, ScaledRatio

__all__ = ["Growth", "LogRatio", "Reweighting", "ScaledRatio", "SoftEnds"]
