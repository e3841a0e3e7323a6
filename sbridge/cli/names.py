"""What the command line calls solvers and reference processes: the public classes, by rule."""

from __future__ import annotations

from sbridge._names import spelled

SOLVERS = {
    "auto": "sbridge.cli.options:Automatic",
    **spelled("sbridge.solvers", without=r"\.control|AdjointBridge", suffix="Bridge"),
}
"""Bridge solvers for samples at both ends: name -> ``module:class``. ``AdjointBridge`` needs a density."""

REFERENCES = spelled("sbridge.processes", without="Process$", suffix="Motion")
"""Processes that need no function of the user: name -> ``module:class``."""

NOISING = ("variance-preserving", "variance-exploding")
"""References that forget where they started."""
