"""Damages of the code, for tests that the checks of the code see them."""

from sbridge.solutions import Bridge


def scaled(owner, name, factor):
    """What a function or method returns, times a factor."""

    def damage(patch):
        original = getattr(owner, name)
        patch.setattr(owner, name, lambda *a, **k: factor * original(*a, **k))

    return damage


def sde_velocity(patch):
    """σσᵀs for ½σσᵀs in the flow."""
    original = Bridge.current_velocity
    patch.setattr(
        Bridge, "current_velocity", lambda self, t, x: 2.0 * original(self, t, x) - self.reference.drift(t, x)
    )
