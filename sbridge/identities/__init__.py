"""The equations of the theory as checks: both sides of each identity are computed and compared in standard errors."""

from sbridge.identities import (  # noqa: F401  (each module registers its identities)
    action,
    control,
    duality,
    equations,
    equilibrium,
    flows,
    generalisation,
    gradients,
    kernels,
    killing,
    likelihood,
    momentum,
    most_probable,
    reversal,
    sampling,
    schroedinger,
    soft_ends,
    state_costs,
    stationarity,
    thermodynamics,
    velocities,
)
from sbridge.identities.base import Check, Identity, Kind, Outcome, confirmed, identities, identity, run
from sbridge.identities.own import PlainScore, Predicts, own_setting
from sbridge.identities.settings import Setting, standard_settings
from sbridge.identities.verification import Verification, listing, verify

__all__ = [
    "Check",
    "Identity",
    "Kind",
    "Outcome",
    "PlainScore",
    "Predicts",
    "Setting",
    "Verification",
    "confirmed",
    "identities",
    "identity",
    "listing",
    "own_setting",
    "run",
    "standard_settings",
    "verify",
]
