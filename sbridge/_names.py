"""The public names of the package root and their modules, read from ``__init__.pyi``: the one list of them."""

from __future__ import annotations

import ast
import re
from pathlib import Path


def _listed() -> dict[str, str]:
    """Public name -> the module that it is imported from, or whose submodule it is."""
    tree = ast.parse(Path(__file__).with_name("__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


HOMES = _listed()


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
