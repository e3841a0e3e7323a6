"""Schrödinger bridges between two data sets: fit, sample, predict, evaluate.

The public names load on first use, so ``import sbridge`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
        fit_course as fit_course,
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

__version__ = "0.1.0"

# Public name -> the module that holds it. The imports above repeat it for type checkers.
_HOME = {
    # the verbs
    "fit": "sbridge.fitting",
    "fit_course": "sbridge.fitting",
    "solve": "sbridge.fitting",
    "choose_solver": "sbridge.fitting",
    "choose_sigma": "sbridge.fitting",
    "choose_noising": "sbridge.fitting",
    "diffuse": "sbridge.fitting",
    "generate": "sbridge.diffusion",
    "evaluate": "sbridge.evaluation",
    "load": "sbridge.solutions",
    "certify": "sbridge.evaluation",
    "verify": "sbridge.identities",
    # problem, solver, solution
    "BridgeProblem": "sbridge.problems",
    "Solver": "sbridge.solvers",
    "GaussianBridge": "sbridge.solvers",
    "SinkhornBridge": "sbridge.solvers",
    "IMF": "sbridge.solvers",
    "MatchedBridge": "sbridge.solvers",
    "IPF": "sbridge.solvers",
    "MeanMatching": "sbridge.solvers",
    "MaximumLikelihood": "sbridge.solvers",
    "AdjointHalfBridge": "sbridge.solvers",
    "AdjointBridge": "sbridge.solvers",
    "MixtureBridge": "sbridge.solvers",
    "Covariance": "sbridge.solvers",
    "MixturePotential": "sbridge.potentials",
    "Certificate": "sbridge.evaluation",
    "solve_schroedinger": "sbridge.pde",
    "Bridge": "sbridge.solutions",
    # stochastic optimal control
    "ControlProblem": "sbridge.problems",
    "StoppingSet": "sbridge.problems",
    "BridgeCorrection": "sbridge.problems",
    "AdjointMatching": "sbridge.solvers",
    "ReciprocalAdjointMatching": "sbridge.solvers",
    "RelativeEntropy": "sbridge.solvers",
    "LogVariance": "sbridge.solvers",
    "Moment": "sbridge.solvers",
    "CrossEntropy": "sbridge.solvers",
    "Replay": "sbridge.solvers",
    "Annealing": "sbridge.solvers",
    "EarlierStart": "sbridge.solvers",
    "RiccatiStart": "sbridge.solvers",
    "ControlSolution": "sbridge.solutions",
    "load_control": "sbridge.solutions",
    "evaluate_control": "sbridge.evaluation",
    "ControlReport": "sbridge.evaluation",
    "sampling_problem": "sbridge.sampling",
    "log_normaliser": "sbridge.sampling",
    # reference processes
    "Process": "sbridge.processes",
    "LinearProcess": "sbridge.processes",
    "BrownianMotion": "sbridge.processes",
    "OrnsteinUhlenbeck": "sbridge.processes",
    "VariancePreserving": "sbridge.processes",
    "VarianceExploding": "sbridge.processes",
    "DriftProcess": "sbridge.processes",
    # reverse diffusion
    "ExactScore": "sbridge.diffusion",
    "ScoreMatching": "sbridge.diffusion",
    "end_law": "sbridge.diffusion",
    "reverse_diffusion": "sbridge.diffusion",
    "score_of": "sbridge.diffusion",
    "log_likelihood": "sbridge.diffusion",
    "StochasticSampler": "sbridge.diffusion",
    "FlowSampler": "sbridge.diffusion",
    # end laws
    "Law": "sbridge.laws",
    "Samples": "sbridge.laws",
    "Point": "sbridge.laws",
    "Gaussian": "sbridge.laws",
    "GaussianMixture": "sbridge.laws",
    "Density": "sbridge.laws",
    # path measures
    "Direction": "sbridge.measures",
    "PathMeasure": "sbridge.measures",
    "Paths": "sbridge.measures",
    "log_ratio": "sbridge.measures",
    "path_kl": "sbridge.measures",
    "importance_weights": "sbridge.measures",
    "jeffreys": "sbridge.measures",
    # options
    "TimeGrid": "sbridge.time",
    "NoScaling": "sbridge.scaling",
    "CommonScale": "sbridge.scaling",
    "PerCoordinate": "sbridge.scaling",
    "MLP": "sbridge.controls",
    "FourierMLP": "sbridge.controls",
    "AdditiveMLP": "sbridge.controls",
    "ScaledMLP": "sbridge.controls",
    "Optimisation": "sbridge.training",
    "EntropicCoupling": "sbridge.coupling",
    "IndependentCoupling": "sbridge.coupling",
    "MinibatchCoupling": "sbridge.coupling",
    "ReferenceCoupling": "sbridge.coupling",
    # for extensions
    "register": "sbridge.registry",
    "check_process": "sbridge.processes",
    "check_solver": "sbridge.solvers",
    # errors
    "SbridgeError": "sbridge.errors",
    "SbridgeWarning": "sbridge.errors",
}

__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Load the public ``name`` from its module and keep it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
