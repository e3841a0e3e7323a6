"""The package root: quick to import, every public name where it says, the same names for type checkers."""

import operator
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
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
