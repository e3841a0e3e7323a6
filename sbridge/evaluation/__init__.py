"""Evaluation of bridges on held-out samples: distances with errors, floors and baselines; path measures.

:func:`evaluate` judges both ends, :func:`score_at` a prediction at a time in between. Both return a :class:`Report`.
:func:`certify` bounds how far a bridge is from the best one.
"""

from sbridge.evaluation.baselines import (
    STANDARD_BASELINES,
    Baseline,
    EntropicTransport,
    ExactTransport,
    GaussianTransport,
)
from sbridge.evaluation.certificate import (
    Certificate,
    certificate_json,
    certificate_or_reason,
    certificate_text,
    certify,
    dual_bound,
)
from sbridge.evaluation.control import (
    ControlReport,
    control_error,
    evaluate_control,
    fixed_point_residual,
    objective_and_value,
    signal_to_noise,
)
from sbridge.evaluation.evaluate import evaluate, score_at
from sbridge.evaluation.normaliser import WeightedSamples, log_normaliser
from sbridge.evaluation.progress import Watcher, watched
from sbridge.evaluation.report import SCHEMA, Column, Quantity, Report, Score, Task
from sbridge.evaluation.scorer import EvaluationBudget

__all__ = [
    "SCHEMA",
    "STANDARD_BASELINES",
    "Baseline",
    "Certificate",
    "Column",
    "ControlReport",
    "EntropicTransport",
    "EvaluationBudget",
    "ExactTransport",
    "GaussianTransport",
    "Quantity",
    "Report",
    "Score",
    "Task",
    "Watcher",
    "WeightedSamples",
    "certificate_json",
    "certificate_or_reason",
    "certificate_text",
    "certify",
    "control_error",
    "dual_bound",
    "evaluate",
    "evaluate_control",
    "fixed_point_residual",
    "log_normaliser",
    "objective_and_value",
    "score_at",
    "signal_to_noise",
    "watched",
]
