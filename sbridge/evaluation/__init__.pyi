from sbridge.evaluation.baselines import (
    STANDARD_BASELINES as STANDARD_BASELINES,
    Baseline as Baseline,
    EntropicTransport as EntropicTransport,
    ExactTransport as ExactTransport,
    GaussianTransport as GaussianTransport,
)
from sbridge.evaluation.certificate import (
    Certificate as Certificate,
    certificate_json as certificate_json,
    certificate_or_reason as certificate_or_reason,
    certificate_text as certificate_text,
    certify as certify,
    dual_bound as dual_bound,
)
from sbridge.evaluation.control import (
    ControlReport as ControlReport,
    control_error as control_error,
    evaluate_control as evaluate_control,
    fixed_point_residual as fixed_point_residual,
    objective_and_value as objective_and_value,
    signal_to_noise as signal_to_noise,
)
from sbridge.evaluation.cross_validation import CrossValidation as CrossValidation, cross_validate as cross_validate
from sbridge.evaluation.normaliser import (
    WeightedSamples as WeightedSamples,
    evidence_upper_bound as evidence_upper_bound,
    log_normaliser as log_normaliser,
)
from sbridge.evaluation.progress import Watcher as Watcher, watched as watched
from sbridge.evaluation.report import (
    SCHEMA as SCHEMA,
    Column as Column,
    Quantity as Quantity,
    Report as Report,
    Score as Score,
    Task as Task,
)
from sbridge.evaluation.scorer import EvaluationBudget as EvaluationBudget
from sbridge.evaluation.scores import evaluate as evaluate, score_at as score_at
