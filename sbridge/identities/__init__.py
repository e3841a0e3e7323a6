"""The theory's equations as checks: each identity computed by two routes, judged in standard errors."""

from sbridge.identities import equilibrium, flows, kernels  # noqa: F401  (each enters its identities)
from sbridge.identities.base import Check, Identity, Kind, Outcome, identities, identity, run
from sbridge.identities.settings import Setting, standard_settings

__all__ = ["Check", "Identity", "Kind", "Outcome", "Setting", "identities", "identity", "run", "standard_settings"]
