"""The command that measures all tables, and the default solver against the plug-in."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
import tyro

from docs.benchmarks.__main__ import TABLES, Settings, commands, main
from docs.benchmarks.choices import Settings as Choices, scores
from sbridge.benchmarks.bridge import PAIRS
from sbridge.cli.parsing import parse
from sbridge.errors import NotConvergedError, UnknownNameError
from sbridge.evaluation.cross_validation import unfitted
from sbridge.metrics import HalfEnergyDistance


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_a_module_that_takes_these_options(name):
    module, *options = TABLES[name]
    if module == "sbridge":
        assert parse(options) is not None
        return
    found = importlib.import_module(module)
    assert callable(found.main)
    if options:
        tyro.cli(found.Settings, args=options)  # exits if it does not know them


def test_tables_are_kept_and_not_measured_twice(tmp_path, monkeypatch):
    monkeypatch.setitem(TABLES, "here", ("platform", "--terse"))
    main(Settings(tmp_path, only=("here",)))
    first, *rest = (tmp_path / "here.txt").read_text().splitlines()
    assert first == "python -m platform --terse"
    assert rest
    (tmp_path / "here.txt").write_text("kept")
    main(Settings(tmp_path, only=("here",)))
    assert (tmp_path / "here.txt").read_text() == "kept"


def test_a_table_that_fails_is_named_and_not_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(TABLES, "broken", ("platform_that_is_not_there",))
    with pytest.raises(NotConvergedError, match="the table broken ended with exit code 1"):
        main(Settings(tmp_path, only=("broken",)))
    assert not (tmp_path / "broken.txt").exists()


def test_unknown_tables_are_refused_and_snapshots_are_files_of_the_user(tmp_path):
    with pytest.raises(UnknownNameError, match="planar"):
        commands(Settings(tmp_path, only=("planr",)))
    assert "snapshots" not in commands(Settings(tmp_path))
    found = commands(Settings(tmp_path, snapshots=(Path("a.npy"), Path("b.npy"), Path("c.npy")), times=(0.0, 1.0, 2.5)))
    assert found["snapshots"][1:] == ("a.npy", "b.npy", "c.npy", "--times", "0", "1", "2.5")


def test_the_chosen_solver_stands_beside_the_plug_in_and_the_floor():
    name, found = scores(PAIRS["mixture"](2, 1.0, 0), rows=400, fresh=500, seed=0)
    assert name == "MixtureBridge"
    assert 0.0 < found["perfect draws"] < 0.3 * found["unmoved"]
    assert found["chosen"] < 0.3 * found["unmoved"]
    assert found["plug-in"] < 0.3 * found["unmoved"]


def test_choices_refuse_what_they_cannot_measure():
    with pytest.raises(UnknownNameError, match="ring"):
        Choices(pairs=("rng",))
    with pytest.raises(ValueError, match="at least two samples"):
        Choices(rows=(1,))


@pytest.mark.parametrize("module", ["gaussian_ends", "large", "planar", "snapshots"])
def test_a_solver_that_is_in_no_table_is_named(module):
    settings = importlib.import_module(f"docs.benchmarks.{module}").Settings
    ends = {"files": (), "times": ()} if module == "snapshots" else {}
    with pytest.raises(UnknownNameError, match=r"Unknown solver 'MixtureBrige'.*'MixtureBridge'"):
        settings(solvers=("MixtureBrige",), **ends)


def test_the_pool_of_the_neighbours_is_scored_as_their_mixture():
    """Three parts of the one before and one of the one after, at a quarter of the time between them."""
    data = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) + 0.02 * n for n in (30, 50, 20)]
    found = unfitted(data, (2.0, 2.5, 4.0))
    mixture = torch.cat([data[0], data[0], data[2]])  # 60 : 20 rows
    expected = HalfEnergyDistance()(mixture, data[1], torch.Generator())
    assert found["pooled ends"] == pytest.approx([expected], rel=1e-9)
    moved = mixture + data[1].mean(0) - mixture.mean(0)
    expected = HalfEnergyDistance()(moved, data[1], torch.Generator())
    assert found["pooled ends, true mean"] == pytest.approx([expected], rel=1e-5)
    assert 0.0 < found["floor (half against half)"][0] < found["copy of the one before"][0]
