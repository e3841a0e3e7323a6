"""The bridge whose potential is a Gaussian mixture: components, their likelihood, and its maximisation."""

from sbridge.solvers.mixture.bridge import Covariance, MixtureBridge

__all__ = ["Covariance", "MixtureBridge"]
