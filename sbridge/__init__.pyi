"""The public names of the package root, and the modules that they come from: the one list of them."""

from sbridge import (
    datasets as datasets,
    diffusion as diffusion,
    functionals as functionals,
    metrics as metrics,
    plotting as plotting,
    transport as transport,
)
from sbridge.controls import (
    MLP as MLP,
    AdditiveMLP as AdditiveMLP,
    FourierMLP as FourierMLP,
    ScaledMLP as ScaledMLP,
)
from sbridge.coupling import (
    EntropicCoupling as EntropicCoupling,
    IndependentCoupling as IndependentCoupling,
    MinibatchCoupling as MinibatchCoupling,
    ReferenceCoupling as ReferenceCoupling,
)
from sbridge.courses import (
    Course as Course,
    fit_course as fit_course,
)
from sbridge.diffusion import (
    ExactScore as ExactScore,
    FlowSampler as FlowSampler,
    ScoreMatching as ScoreMatching,
    StochasticSampler as StochasticSampler,
    end_law as end_law,
    generate as generate,
    log_likelihood as log_likelihood,
    reverse_diffusion as reverse_diffusion,
    score_of as score_of,
)
from sbridge.errors import (
    SbridgeError as SbridgeError,
    SbridgeWarning as SbridgeWarning,
)
from sbridge.evaluation import (
    Certificate as Certificate,
    ControlReport as ControlReport,
    certify as certify,
    evaluate as evaluate,
    evaluate_control as evaluate_control,
)
from sbridge.fitting import (
    choose_noising as choose_noising,
    choose_sigma as choose_sigma,
    choose_solver as choose_solver,
    diffuse as diffuse,
    fit as fit,
    solve as solve,
)
from sbridge.identities import (
    verify as verify,
)
from sbridge.laws import (
    Density as Density,
    Gaussian as Gaussian,
    GaussianMixture as GaussianMixture,
    Law as Law,
    Point as Point,
    Samples as Samples,
)
from sbridge.measures import (
    Direction as Direction,
    PathMeasure as PathMeasure,
    Paths as Paths,
    importance_weights as importance_weights,
    jeffreys as jeffreys,
    log_ratio as log_ratio,
    path_kl as path_kl,
)
from sbridge.pde import (
    solve_schroedinger as solve_schroedinger,
)
from sbridge.potentials import (
    MixturePotential as MixturePotential,
)
from sbridge.problems import (
    BridgeCorrection as BridgeCorrection,
    BridgeProblem as BridgeProblem,
    ControlProblem as ControlProblem,
    StoppingSet as StoppingSet,
)
from sbridge.processes import (
    BrownianMotion as BrownianMotion,
    DriftProcess as DriftProcess,
    LinearProcess as LinearProcess,
    OrnsteinUhlenbeck as OrnsteinUhlenbeck,
    Process as Process,
    VarianceExploding as VarianceExploding,
    VariancePreserving as VariancePreserving,
    check_process as check_process,
)
from sbridge.registry import (
    register as register,
)
from sbridge.sampling import (
    log_normaliser as log_normaliser,
    sampling_problem as sampling_problem,
)
from sbridge.scaling import (
    CommonScale as CommonScale,
    NoScaling as NoScaling,
    PerCoordinate as PerCoordinate,
)
from sbridge.solutions import (
    Bridge as Bridge,
    ControlSolution as ControlSolution,
    load as load,
    load_control as load_control,
)
from sbridge.solvers import (
    IMF as IMF,
    IPF as IPF,
    AdjointBridge as AdjointBridge,
    AdjointHalfBridge as AdjointHalfBridge,
    AdjointMatching as AdjointMatching,
    Annealing as Annealing,
    Covariance as Covariance,
    CrossEntropy as CrossEntropy,
    EarlierStart as EarlierStart,
    GaussianBridge as GaussianBridge,
    LogVariance as LogVariance,
    MatchedBridge as MatchedBridge,
    MaximumLikelihood as MaximumLikelihood,
    MeanMatching as MeanMatching,
    MixtureBridge as MixtureBridge,
    Moment as Moment,
    ReciprocalAdjointMatching as ReciprocalAdjointMatching,
    RelativeEntropy as RelativeEntropy,
    Replay as Replay,
    RiccatiStart as RiccatiStart,
    SinkhornBridge as SinkhornBridge,
    Solver as Solver,
    check_solver as check_solver,
)
from sbridge.time import (
    TimeGrid as TimeGrid,
)
from sbridge.training import (
    Optimisation as Optimisation,
)

__version__: str
