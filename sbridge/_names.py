"""The public names of packages and their modules, read from ``__init__.pyi``: the one list of them."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path


def _listed(beside: str) -> dict[str, str]:
    """Public name -> the module that it is imported from, or whose submodule it is."""
    tree = ast.parse(Path(beside).with_name("__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


HOMES = _listed(__file__)
"""Of the package root."""


def lazy(package: str) -> tuple[list[str], Callable[[str], object], Callable[[], list[str]]]:
    """Makes ``__all__``, ``__getattr__`` and ``__dir__`` of a package whose public names load on first use.

    No submodule may have one of these names: its import would put it in the place of the name.

    Args:
        package: its ``__name__``; its ``__init__.pyi`` lists the names.
    """
    module = sys.modules[package]
    homes = _listed(str(module.__file__))

    def load(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(module, name, value)
        return value

    return sorted(homes), load, lambda: sorted({*vars(module), *homes})


def spelled(package: str, *, without: str, suffix: str) -> dict[str, str]:
    """The public classes of ``package`` as the command line spells them: ``mixture`` for ``MixtureBridge``.

    Args:
        package: as ``sbridge.solvers``.
        without: classes and modules to leave out, as a regular expression for ``module:class``.
        suffix: of a class name, left out.

    Returns:
        spelling -> ``module:class``.
    """
    places = [(name, f"{home}:{name}") for name, home in HOMES.items() if f"{home}.".startswith(f"{package}.")]
    kept = [(name, place) for name, place in places if name[0].isupper() and not re.search(without, place)]
    return {re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name.removesuffix(suffix)).lower(): place for name, place in kept}
