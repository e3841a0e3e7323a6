"""The package root: quick to import, every public name where it says, the same names for type checkers."""

import importlib
import operator
import pkgutil
import re
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import grimp
import numpy as np
import pytest

import sbridge
from sbridge.known_as import METHODS

ROOT = Path(__file__).parents[1]


def modules_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after ``statement``."""
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_the_root_loads_nothing_heavy():
    loaded = modules_after("import sbridge")
    assert "sbridge" in loaded
    assert {name for name in loaded if name.startswith("sbridge.")} == {"sbridge._names"}
    assert loaded.isdisjoint({"torch", "torchsde", "ot", "matplotlib", "scipy", "numpy", "tyro", "tqdm"})


@pytest.mark.parametrize("name", ["TimeGrid", "BrownianMotion", "Gaussian", "SbridgeError"])
def test_a_basic_name_needs_no_engine(name):
    loaded = modules_after(f"from sbridge import {name}")
    assert loaded.isdisjoint({"torchsde", "ot", "matplotlib", "tyro", "sbridge.cli"})


@pytest.mark.parametrize("name", sbridge.__all__)
def test_public_name_resolves(name):
    assert name in dir(sbridge)
    assert getattr(sbridge, name) is not None


@pytest.mark.parametrize("package", ["evaluation", "runs"])
def test_the_names_of_a_lazy_package_resolve(package):
    """Each to what its module defines: a submodule of the same name would take its place once imported."""
    module = importlib.import_module(f"sbridge.{package}")
    for submodule in pkgutil.iter_modules(module.__path__):
        importlib.import_module(f"sbridge.{package}.{submodule.name}")
        assert submodule.name not in module.__all__
    for name in module.__all__:
        assert name in dir(module)
        assert not isinstance(getattr(module, name), ModuleType)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


def test_a_lazy_package_loads_what_is_asked_for():
    loaded = modules_after("from sbridge.evaluation import Report")
    assert "sbridge.evaluation.report" in loaded
    assert loaded.isdisjoint({"torch", "sbridge.evaluation.scores"})


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Bridg'"):
        _ = sbridge.Bridg


@pytest.mark.parametrize("name", ["LightSB", "lightsb", "SF2M", "DSBM", "DDPM"])
def test_a_name_from_the_literature_leads_to_the_class(name):
    with pytest.raises(AttributeError, match=r"\(.* \d{4}, arXiv:[\d.]+\) is sbridge\.\w+"):
        getattr(sbridge, name)


def test_the_names_of_the_literature_are_those_of_the_documentation():
    page = (ROOT / "docs" / "solvers.md").read_text(encoding="utf-8")
    references = (ROOT / "docs" / "references.bib").read_text(encoding="utf-8")
    for method in METHODS:
        assert f"| {', '.join(method.names)} | `{method.here}` | {method.paper} |" in page
        assert method.paper.split("arXiv:")[1] in references
        for word in re.findall(r"([A-Za-z_.]+)\(", method.here):
            assert operator.attrgetter(word)(sbridge), word


def test_submodules_of_the_root_load_on_first_use():
    statement = "import sbridge; sbridge.datasets, sbridge.metrics, sbridge.plotting"
    assert {"sbridge.data.datasets", "sbridge.metrics", "sbridge.plotting"} <= modules_after(statement)


def test_no_file_imports_one_that_imports_it():
    """Imports within functions count: they hide a wrong direction, and do not mend it."""
    graph = grimp.build_graph("sbridge")
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules if name != "sbridge"}
    TopologicalSorter(imports).prepare()  # raises CycleError


SOLVER = """
from dataclasses import dataclass
from sbridge.solvers.gaussian import GaussianBridge
from sbridge.storage.registry import register

@register
@dataclass(frozen=True)
class OneMoreBridge(GaussianBridge):
    \"\"\"One more solver.\"\"\"
"""
PROCESS = """
from dataclasses import dataclass
from sbridge.processes.brownian import BrownianMotion
from sbridge.storage.registry import register

@register
@dataclass(frozen=True, eq=False)
class OneMoreMotion(BrownianMotion):
    \"\"\"One more process.\"\"\"

    factor: float = 2.0
"""


def test_a_new_solver_and_process_need_their_own_files_and_a_line_each_in_the_list(tmp_path):
    """Then the root, the command line and the reference of the site have them."""
    shutil.copytree(ROOT / "sbridge", tmp_path / "sbridge", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "sbridge/solvers/one_more.py").write_text(SOLVER)
    (tmp_path / "sbridge/processes/one_more.py").write_text(PROCESS)
    with (tmp_path / "sbridge/__init__.pyi").open("a") as names:
        names.write("from sbridge.solvers.one_more import OneMoreBridge as OneMoreBridge\n")
        names.write("from sbridge.processes.one_more import OneMoreMotion as OneMoreMotion\n")
    for seed in range(2):
        np.save(tmp_path / f"x{seed}.npy", np.random.default_rng(seed).normal(size=(50, 2)))
    code = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT / "docs/_extensions")!r}]
import sbridge, public_names
assert {{"OneMoreBridge", "OneMoreMotion"}} <= set(dir(sbridge))
names = public_names.groups()
assert "OneMoreBridge" in names["Solvers"] and "OneMoreMotion" in names["Processes"]
from sbridge.cli import run
options = "--solver one-more --reference one-more --reference.factor 3 --sigma 1 --held-out 0 --quiet".split()
sys.exit(run(["fit", "x0.npy", "x1.npy", *options, "--out", "run", "--no-evaluation"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "run/config.json").read_text()
    assert "OneMoreBridge" in text
    assert '"factor": 3.0' in text
