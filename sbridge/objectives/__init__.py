"""Differentiable losses over one bundle of paths, or of noised rows."""
