"""The public names of the package root, and the modules that they come from: the one list of them."""

from sbridge import (
    cells as cells,
    couplings as couplings,
    diffusion as diffusion,
    distributed as distributed,
    evaluation as evaluation,
    exact as exact,
    fitting as fitting,
    functionals as functionals,
    laws as laws,
    measures as measures,
    metrics as metrics,
    pde as pde,
    plotting as plotting,
    processes as processes,
    solvers as solvers,
    transport as transport,
)
from sbridge.cells import ancestors as ancestors, annotate as annotate, fates as fates
from sbridge.controls import networks as networks
from sbridge.data import datasets as datasets
from sbridge.diffusion import generate as generate, reversal_problem as reversal_problem, samplers as samplers
from sbridge.diffusion.exact import ExactScore as ExactScore
from sbridge.diffusion.training import ScoreMatching as ScoreMatching
from sbridge.errors import SbridgeError as SbridgeError, SbridgeWarning as SbridgeWarning
from sbridge.evaluation import (
    certify as certify,
    cross_validate as cross_validate,
    evaluate as evaluate,
    evaluate_control as evaluate_control,
    log_normaliser as log_normaliser,
)
from sbridge.fitting import (
    Course as Course,
    choose_sigma as choose_sigma,
    choose_solver as choose_solver,
    diffuse as diffuse,
    fit as fit,
    fit_course as fit_course,
    fit_pairs as fit_pairs,
    learn_reference as learn_reference,
    solve as solve,
    tilt as tilt,
)
from sbridge.identities import verify as verify
from sbridge.laws import (
    Density as Density,
    Gaussian as Gaussian,
    GaussianMixture as GaussianMixture,
    Point as Point,
    Samples as Samples,
    StoredRows as StoredRows,
)
from sbridge.laws.scaling import CommonScale as CommonScale, NoScaling as NoScaling, PerCoordinate as PerCoordinate
from sbridge.measures import PathMeasure as PathMeasure, Paths as Paths, log_ratio as log_ratio, path_kl as path_kl
from sbridge.problems import (
    BridgeProblem as BridgeProblem,
    ControlProblem as ControlProblem,
    costs as costs,
    ends as ends,
    sampling_problem as sampling_problem,
)
from sbridge.processes import (
    BrownianMotion as BrownianMotion,
    DriftProcess as DriftProcess,
    LinearProcess as LinearProcess,
    OrnsteinUhlenbeck as OrnsteinUhlenbeck,
    VarianceExploding as VarianceExploding,
    VariancePreserving as VariancePreserving,
)
from sbridge.solutions import (
    Bridge as Bridge,
    ControlSolution as ControlSolution,
    load as load,
    load_control as load_control,
)
from sbridge.solvers.adjoint_bridge import AdjointBridge as AdjointBridge
from sbridge.solvers.control import starts as starts
from sbridge.solvers.control.adjoint import AdjointMatching as AdjointMatching
from sbridge.solvers.control.entropy import RelativeEntropy as RelativeEntropy
from sbridge.solvers.control.ratios import CrossEntropy as CrossEntropy, LogVariance as LogVariance, Moment as Moment
from sbridge.solvers.control.reciprocal import ReciprocalAdjointMatching as ReciprocalAdjointMatching
from sbridge.solvers.gaussian import GaussianBridge as GaussianBridge
from sbridge.solvers.imf import IMF as IMF
from sbridge.solvers.ipf import IPF as IPF
from sbridge.solvers.matched import MatchedBridge as MatchedBridge
from sbridge.solvers.mixture import MixtureBridge as MixtureBridge
from sbridge.solvers.sinkhorn import SinkhornBridge as SinkhornBridge
from sbridge.storage.registry import register as register
from sbridge.time import TimeGrid as TimeGrid
from sbridge.training import (
    Optimisation as Optimisation,
    Patience as Patience,
    StopTraining as StopTraining,
)

__version__: str
