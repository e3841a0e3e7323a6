"""Blocks of Python in the README and on the site run, command lines are understood, names and papers have places."""

import importlib.util
import re
import shlex
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from sbridge.cli import run
from sbridge.cli.parsing import parse
from sbridge.data import datasets
from sbridge.identities import identities
from sbridge.solvers import density_ratio
from sbridge.solvers.base import Method

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
NO_PAPERS = {("January", "1986"), ("Accident", "1986")}
STEPS = 20
"""Of every solver that is trained: whether a block runs, not how good its result is."""


def blocks(page):
    return [match[1] for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(
        Method, "finished", lambda self, problem, state: state.step >= min(STEPS, self.max_steps(problem))
    )
    monkeypatch.setattr(density_ratio, "_LONGER", 1)


def write_cells(path):
    """Three days of cells with two types, as the page on cells reads them."""
    anndata, pandas = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    rows = [datasets.make("two_moons", 60, seed=seed).numpy() + day for seed, day in enumerate((2, 4, 7))]
    obs = pandas.DataFrame({"day": np.repeat([2, 4, 7], 60)}, index=[f"cell {i}" for i in range(180)])
    data = anndata.AnnData(obs=obs, obsm={"X_pca": np.concatenate(rows)})
    data.obs["cell_type"] = np.where(np.arange(180) % 60 < 30, "alpha", "beta")
    data.write_h5ad(path)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_blocks_run(page, short, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "cells.h5ad" in "".join(blocks(page)):
        write_cells("cells.h5ad")
    x0, x1 = datasets.make("two_moons", 300, seed=0), datasets.make("eight_gaussians", 300, seed=1)
    data, data_test = datasets.make("two_moons", 300, seed=2), datasets.make("two_moons", 20, seed=3)
    names = {
        "x0": x0,
        "x1": x1,
        "x0_test": x0[:100],
        "x1_test": x1[:100],
        "data": data,
        "data_test": data_test,
        "start": torch.zeros(2),
        "__name__": f"page_{page.stem}",
    }
    for number, block in enumerate(blocks(page), 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)


SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def command_lines(page, *, prose=False):
    """Arguments of every line of a page's shell blocks that runs ``sbridge``, and of those in its ``prose``."""
    text = page.read_text(encoding="utf-8")
    lines = [line for match in SHELL.finditer(text) for line in match[1].splitlines()]
    lines += re.findall(r"`(sbridge [a-z]+ [^`…]*)`", text) if prose else []
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("sbridge ")]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if command_lines(page, prose=True)], ids=lambda page: page.name
)
def test_command_lines_are_understood(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in command_lines(page, prose=True):
        if not any(argument.isupper() for argument in arguments):  # such a word stands for something
            for argument in arguments:
                if re.fullmatch(r"\w+\.(npy|npz|csv|tsv|h5ad)", argument):
                    Path(argument).write_text("0")
            parse(arguments)


@pytest.mark.parametrize("name", ["docs/start.md", "README.md"])
def test_command_lines_run_one_after_the_other(name, short, tmp_path, monkeypatch):
    """On small files of the names they use; all but the long ones, which have tests of their own."""
    monkeypatch.chdir(tmp_path)
    for seed, file in enumerate(("day2", "day3", "day4", "data")):
        np.save(f"{file}.npy", datasets.make("two_moons", 300, seed=seed).numpy())
    for arguments in command_lines(ROOT / name):
        if arguments[0] not in ("verify", "control", "benchmark"):
            assert run(arguments) == 0, arguments


def test_the_readme_is_short_and_its_figures_are_those_of_the_benchmarks():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tables = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 120
    figures = re.findall(r"[\d.]+ ± [\d.]*\d", readme)
    assert len(figures) >= 4
    assert [figure for figure in figures if figure not in tables] == []
    assert "neighbouring days pooled" in readme, "the strongest answer without a model is printed with the result"


def test_the_number_of_identities_is_told():
    (told,) = re.findall(r"(\d+) identities", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert int(told) == len(identities())


def test_broken_local_links_are_found(tmp_path):
    file = ROOT / "docs/_extensions/local_links.py"
    spec = importlib.util.spec_from_file_location("local_links", file)
    local_links = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(local_links)
    (tmp_path / "rooms").mkdir()
    (tmp_path / "rooms/index.html").write_text(
        '<h1 id="a-b">A</h1> <a href="../start.html#gone">x</a> <img src="no.png">'
    )
    (tmp_path / "start.html").write_text(
        '<a href="rooms/#a-b">1</a> <a href="rooms/index.html#a%2Db">2</a> <a href="#top">3</a> <a href="#">4</a>'
        '<a href="https://example.org/none">5</a> <a href="mailto:x@example.org">6</a> <a href="rooms/#b">7</a>'
    )
    found = {(str(page), address) for page, address in local_links.broken_links(tmp_path)}
    assert found == {
        ("rooms/index.html", "../start.html#gone"),
        ("rooms/index.html", "no.png"),
        ("start.html", "rooms/#b"),
    }


def plain(text):
    """Without accents, in LaTeX or Unicode."""
    text = re.sub(r"\\['\"`^]|[{}]", "", text)
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def test_papers_stand_in_the_bibliography():
    entries = plain((ROOT / "docs/references.bib").read_text(encoding="utf-8")).splitlines()
    known = {
        (name, re.search(r"year = (\d{4})", entry)[1])
        for entry in entries
        for name in re.findall(r"[A-Z][\w-]+", re.search(r"author = (.*?), title", entry)[1])
    }
    ids = {match for entry in entries for match in re.findall(r"arXiv:(\d{4}\.\d{5})", entry)}
    missing = set()
    for path in sorted((ROOT / "sbridge").rglob("*.py")):
        text = re.sub(r"\n\s*(#\s*)?", " ", plain(path.read_text(encoding="utf-8")))
        cited = set(re.findall(r"([A-Z][\w-]+)(?: et al\.)? \(?((?:18|19|20)\d\d)\b", text)) - NO_PAPERS
        missing |= {(path.name, *paper) for paper in cited - known}
        missing |= {(path.name, number) for number in set(re.findall(r"arXiv:(\d{4}\.\d{5})", text)) - ids}
    assert not missing
