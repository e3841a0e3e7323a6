"""The package root: quick to import, every public name where it says, the same names for type checkers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sbridge

ROOT = Path(__file__).parents[1]


def modules_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after ``statement``."""
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_the_root_loads_nothing_heavy():
    loaded = modules_after("import sbridge")
    assert "sbridge" in loaded
    assert {name for name in loaded if name.startswith("sbridge.")} == set()
    assert loaded.isdisjoint({"torch", "torchsde", "ot", "matplotlib", "scipy", "numpy", "tyro", "tqdm"})


@pytest.mark.parametrize("name", ["TimeGrid", "BrownianMotion", "Gaussian", "SbridgeError"])
def test_a_basic_name_needs_no_engine(name):
    loaded = modules_after(f"from sbridge import {name}")
    assert loaded.isdisjoint({"torchsde", "ot", "matplotlib", "tyro", "sbridge.cli"})


@pytest.mark.parametrize("name", sbridge.__all__)
def test_public_name_resolves(name):
    assert name in dir(sbridge)
    assert getattr(sbridge, name) is not None


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Bridg'"):
        _ = sbridge.Bridg


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "sbridge" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == sbridge._HOME
