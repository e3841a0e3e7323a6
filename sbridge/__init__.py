"""Schrödinger bridges between two data sets: fit, sample, predict, evaluate.

The public names load on first use, so ``import sbridge`` is quick. They are listed in ``__init__.pyi`` alone, which
type checkers read too.
"""

from __future__ import annotations

import importlib

from sbridge._names import HOMES

__version__ = "0.1.0"


__all__ = ["__version__", *HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Load the public ``name`` from its module and keep it."""
    if name not in HOMES:
        from sbridge.known_as import hint

        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint(name)}")
    home, own = HOMES[name], HOMES[name] == __name__
    value = None if own else getattr(importlib.import_module(home), name, None)
    globals()[name] = importlib.import_module(f"{home}.{name}") if value is None else value
    return globals()[name]


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
