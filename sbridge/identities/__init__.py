"""The theory's equations as checks: each identity computed by two routes, judged in standard errors."""

from sbridge.identities import reversal  # noqa: F401  (each group enters its identities)
from sbridge.identities.base import Check, Identity, Kind, Outcome, confirmed, identities, identity, run
from sbridge.identities.settings import Setting, standard_settings
from sbridge.identities.verification import Verification, listing, verify

__all__ = [
    "Check",
    "Identity",
    "Kind",
    "Outcome",
    "Setting",
    "Verification",
    "confirmed",
    "identities",
    "identity",
    "listing",
    "run",
    "standard_settings",
    "verify",
]
