"""Path measures: a reference, a control, a start and a direction; and distances between two of them."""

from sbridge.measures.estimates import Estimate, ImportanceWeights, effective_sample_size, importance_weights
from sbridge.measures.kernels import ControlledKernel, MatchedKernel, StepKernel
from sbridge.measures.measure import EndKernel, PathMeasure, Paths, Times
from sbridge.measures.partitions import partition_kl
from sbridge.measures.ratios import energies, energy, jeffreys, kernel_log_ratio, log_ratio, martingale, path_kl
from sbridge.processes.chain import Direction

__all__ = [
    "ControlledKernel",
    "Direction",
    "EndKernel",
    "Estimate",
    "ImportanceWeights",
    "MatchedKernel",
    "PathMeasure",
    "Paths",
    "StepKernel",
    "Times",
    "effective_sample_size",
    "energies",
    "energy",
    "importance_weights",
    "jeffreys",
    "kernel_log_ratio",
    "log_ratio",
    "martingale",
    "partition_kl",
    "path_kl",
]
