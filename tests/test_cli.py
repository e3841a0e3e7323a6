"""The command line as its users meet it: what is written, what is said, exit codes, interruptions."""

import base64
import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from sbridge.cli import commands, run
from sbridge.cli.names import SOLVERS
from sbridge.controls import ScaledMLP
from sbridge.couplings import IndependentCoupling
from sbridge.data import datasets
from sbridge.data.tables import split
from sbridge.diffusion import generate
from sbridge.evaluation import evaluate, watched
from sbridge.fitting import fit
from sbridge.fitting.courses import Course, fit_course
from sbridge.processes import BrownianMotion
from sbridge.random import derive
from sbridge.runs import RunFolder
from sbridge.runs.report import SCHEMA
from sbridge.solutions import load
from sbridge.solvers.gaussian import GaussianBridge
from sbridge.solvers.imf import IMF
from sbridge.solvers.matching import MATCHING
from sbridge.solvers.sinkhorn import SinkhornBridge
from sbridge.time import TimeGrid

ROOT = Path(__file__).parents[1]
MODEL = ("bridge.json", "bridge.safetensors", "history.json", "config.json")
TINY = ["--solver", "imf", "--solver.coupling", "independent", "--solver.pairs", "256"]
TINY += ["--solver.network.least", "16", "--solver.network.most", "16"]
TINY += ["--solver.optimisation.batch", "64", "--no-figures", "--held-out", "0", "--solver.grid", "uniform:5"]


def write_snapshots(folder):
    for seed, name in enumerate(("two_moons", "eight_gaussians", "gaussian")):
        np.save(folder / f"{'abc'[seed]}.npy", datasets.make(name, 400, seed).numpy())


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with three snapshots."""
    monkeypatch.chdir(tmp_path)
    write_snapshots(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with inputs and finished runs: `run` from a to b, `course` through a, b, c."""
    folder = tmp_path_factory.mktemp("finished")
    write_snapshots(folder)
    files = [str(folder / f"{name}.npy") for name in "abc"]
    quick = ["--solver", "sinkhorn", "--sigma", "1", "--no-figures", "--held-out", "0"]
    assert run(["fit", *files[:2], "--out", str(folder / "run"), *quick]) == 0
    assert run(["fit", *files, "--times", "2", "3", "7", "--out", str(folder / "course"), *quick]) == 0
    return folder


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


DIFFUSE = ["diffuse", "a.npy", "--solver.updates", "30", "--solver.network.width", "16", "--no-figures"]
DIFFUSE += ["--solver.optimisation.batch", "64", "--solver.grid", "reverse:6"]


def test_a_diffusion_is_learned_and_generates(here, capsys):
    assert run([*DIFFUSE, "--out", "run"]) == 0
    told = capsys.readouterr().out
    assert "backward: 40 target rows, scored against 40 source rows" in told
    assert run(["sample", "run", "--direction", "backward", "--n", "50", "--out", "new.npy"]) == 0
    bridge = load(here / "run" / "bridge")
    seed = derive(0, "start", 0)
    prior = bridge.backward.start.sample(50, torch.Generator().manual_seed(seed))
    expected = generate(bridge, prior, seed=derive(derive(0, "block", 0), 0))
    assert torch.equal(torch.from_numpy(np.load("new.npy")), expected)
    assert run(["plot", "run", "--rows", "50", "--out", "figures"]) == 0


def test_a_diffusion_killed_and_resumed_ends_in_the_same_model(here):
    assert run([*DIFFUSE, "--out", "whole", "--held-out", "0"]) == 0
    arguments = [sys.executable, "-m", "sbridge", *DIFFUSE, "--out", "run", "--held-out", "0", "--resume"]
    arguments += ["--checkpoint-every", "0"]
    process = subprocess.Popen(arguments, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (here / "run" / "checkpoint.safetensors").exists():
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert run([*DIFFUSE, "--out", "run", "--held-out", "0", "--resume"]) == 0
    for name in MODEL[:3]:
        assert (here / "run" / name).read_bytes() == (here / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--reference", "variance-preservin"], "Did you mean 'variance-preserving'"),
        (["--solver.start-time", "0"], "strictly between 0 and 1"),
        (["--horizon", "-1"], "--horizon must be a positive number"),
        (["--solver.updates", "0"], "updates must be positive"),
    ],
)
def test_a_diffusion_refuses_bad_options(here, capsys, more, message):
    refused(capsys, [*DIFFUSE, "--out", "run", *more], message)


def refused(capsys, arguments, message, code=2):
    """The command fails with a short message, and leaves nothing behind."""
    before = names(".")
    assert run(arguments) == code
    told = capsys.readouterr().err
    assert message in " ".join(told.split()), told
    assert "Traceback" not in told
    assert len(told.splitlines()) <= 24
    assert names(".") == before


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def command(*arguments):
    return [sys.executable, "-m", "sbridge", *arguments]


class TestFit:
    def test_what_a_run_folder_holds(self, here, capsys):
        arguments = ["fit", "a.npy", "b.npy", "--out", "run", "--solver", "sinkhorn", "--seed", "3"]
        assert run(arguments) == 0
        out = capsys.readouterr().out
        assert names("run") == sorted([*MODEL, "figures", "report.json", "report.txt"])
        assert {"trajectories.png", "marginals.png", "history.png"} <= set(names("run/figures"))
        told = Path("run/report.txt").read_text()
        choices = told.index("chosen from the data"), told.rindex("\n\nt = ")  # which the command told before the fit
        assert told[: choices[0]] in out
        assert told[choices[1] :] in out
        assert "sigma = " in out
        assert "40 rows held out" in out
        report = json.loads(Path("run/report.json").read_text())
        check_schema(report, SCHEMA)
        (leg,) = report["legs"]
        assert leg["evaluation"]["tasks"][0]["name"] == "forward"
        assert leg["steps"] > 1
        assert [item["rows_fitted"] for item in report["inputs"]] == [360, 360]
        config = json.loads(Path("run/config.json").read_text())
        assert config["command"] == "sbridge " + " ".join(arguments)

    def test_it_is_the_fit_of_the_library_to_the_rows_that_are_kept(self, here):
        options = ["--solver", "sinkhorn", "--sigma", "0.8", "--horizon", "2", "--seed", "5", "--no-figures"]
        assert run(["fit", "a.npy", "b.npy", "--out", "run", *options]) == 0
        parts = [
            split(torch.from_numpy(np.load(name)), 0.1, derive(5, "snapshot", place), name)
            for place, name in enumerate(("a.npy", "b.npy"))
        ]
        kept = [part[0] for part in parts]
        bridge = fit(*kept, reference=BrownianMotion(0.8, horizon=2.0), solver=SinkhornBridge(), seed=5)
        x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        assert torch.equal(load("run/bridge").transport(x, seed=1), bridge.transport(x, seed=1))

    def test_epsilon_is_sigma_squared_times_the_horizon(self, here):
        same = ["--solver", "sinkhorn", "--horizon", "4", "--no-figures", "--held-out", "0"]
        assert run(["fit", "a.npy", "b.npy", "--out", "one", "--sigma", "0.5", *same]) == 0
        assert run(["fit", "a.npy", "b.npy", "--out", "two", "--epsilon", "1", *same]) == 0
        for name in ("bridge.json", "bridge.safetensors"):
            assert Path("one", name).read_bytes() == Path("two", name).read_bytes()

    def test_equal_seeds_give_equal_files_and_others_do_not(self, here):
        for out, seed in (("one", "1"), ("two", "1"), ("three", "2")):
            options = [*TINY, "--solver.pretraining", "20", "--solver.stages", "1", "--solver.updates", "20"]
            assert run(["fit", "two_moons", "gaussian", "--rows", "300", "--out", out, "--seed", seed, *options]) == 0
        same = [Path("one", name).read_bytes() == Path("two", name).read_bytes() for name in MODEL[:3]]
        other = [Path("one", name).read_bytes() == Path("three", name).read_bytes() for name in MODEL[:3]]
        assert (same, other) == ([True] * 3, [False, False, False])

    @pytest.mark.parametrize(
        ("options", "kind"),
        [
            (["--reference", "ornstein-uhlenbeck", "--reference.rate", "0.7", "--sigma", "1"], "OrnsteinUhlenbeck"),
            (["--reference", "variance-preserving", "--reference.beta-max", "3"], "VariancePreserving"),
            (["--reference=variance-exploding"], "VarianceExploding"),
        ],
    )
    def test_other_references(self, here, options, kind):
        assert run(["fit", "a.npy", "c.npy", "--out", "run", "--solver", "gaussian", "--no-figures", *options]) == 0
        assert type(load("run/bridge").reference).__name__ == kind
        assert json.loads(Path("run/config.json").read_text())["legs"][0]["reference"]["class"] == kind

    def test_a_state_cost_comes_from_a_file(self, here, capsys):
        cost = [
            "import torch, sbridge",
            "V = sbridge.costs.Quadratic(2.0 * torch.eye(2))",
            "def W(t, x): return x[:, 0]",
        ]
        Path("cost.py").write_text("\n".join(cost))
        options = ["--solver", "gaussian", "--sigma", "1", "--no-figures", "--no-evaluation", "--state-cost"]
        assert run(["fit", "a.npy", "b.npy", "--out", "run", *options, "cost.py:V"]) == 0
        assert "state cost: cost.py:V; with it the reference is OrnsteinUhlenbeck(rate=2" in capsys.readouterr().out
        assert load("run/bridge").reference.rate == pytest.approx(2.0)
        leg = json.loads(Path("run/config.json").read_text())["legs"][0]
        assert leg["state_cost"]["fields"]["end"]["fields"]["matrix"] == [[1.0, 0.0], [0.0, 1.0]]
        for place, said in (
            ("cost.py:W", "--state-cost takes a costs.Quadratic, and cost.py:W is <function W"),
            ("cost.py:U", "cost.py does not define U; it defines torch, sbridge, V, W"),
            ("none.py:V", "--state-cost takes FILE.py:NAME, and 'none.py' is not the path of a file"),
            ("cost.py", "'cost.py' is not the path of a file"),
        ):
            assert run(["fit", "a.npy", "b.npy", "--out", "other", *options, place]) == 2
            assert said in " ".join(capsys.readouterr().err.split())
            assert not Path("other").exists()

    def test_ends_may_be_soft(self, here, capsys):
        options = ["--solver", "gaussian", "--sigma", "1", "--no-figures", "--no-evaluation", "--soft-ends"]
        assert run(["fit", "a.npy", "b.npy", "--out", "run", *options, "3", "inf"]) == 0
        assert "ends that change: growth of source rows" in capsys.readouterr().out
        assert json.loads(Path("run/config.json").read_text())["soft_ends"] == ["3", "inf"]
        grown, rows = load("run/bridge").balance, torch.from_numpy(np.load("a.npy"))
        assert grown.target is None
        assert bool((grown.growth(rows) > 0).all())
        assert run(["fit", "a.npy", "b.npy", "--out", "other", *options, "-1", "2"]) == 2
        assert "--soft-ends takes two prices in nats" in " ".join(capsys.readouterr().err.split())

    def test_a_model_loads_in_a_fresh_process(self, finished):
        code = f"import sbridge; print(sbridge.load({str(finished / 'run' / 'bridge')!r}).dim)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout == "2\n"


class TestCourse:
    def test_legs_and_times(self, finished):
        course = RunFolder(finished / "course").course()
        assert course.times == (2, 3, 7)
        assert [bridge.horizon for bridge in course.bridges] == [1, 4]
        report = json.loads((finished / "course" / "report.json").read_text())
        check_schema(report, SCHEMA)
        assert [(leg["start"], leg["stop"]) for leg in report["legs"]] == [(2, 3), (3, 7)]

    def test_it_is_the_course_of_the_library(self, here):
        steps = ["--solver.pretraining", "10", "--solver.stages", "0", "--sigma", "1", "--seed", "6"]
        assert run(["fit", "a.npy", "b.npy", "c.npy", "--times", "0", "1", "3", "--out", "run", *TINY, *steps]) == 0
        solver = IMF(
            coupling=IndependentCoupling(),
            pairs=256,
            network=ScaledMLP(least=16, most=16),
            optimisation=replace(MATCHING, batch=64),
            grid=TimeGrid.uniform(5),
            pretraining=10,
            stages=0,
        )
        arrays = [np.load(f"{name}.npy") for name in "abc"]
        course = fit_course(arrays, (0, 1, 3), sigma=1.0, solver=solver, seed=6)
        x = torch.from_numpy(arrays[0][:50])
        for one, other in zip(course.bridges, RunFolder(here / "run").course().bridges, strict=True):
            assert torch.equal(one.transport(x, seed=1), other.transport(x, seed=1))

    def test_one_annotated_file(self, here, capsys):
        anndata, pandas = pytest.importorskip("anndata"), pytest.importorskip("pandas")
        rows = np.concatenate([np.load(f"{name}.npy") for name in "abc"])
        obs = pandas.DataFrame({"day": np.repeat([2, 3, 7], 400)}, index=[str(i) for i in range(1200)])
        data = anndata.AnnData(X=rows, obs=obs)
        data.obsm["X_umap"] = rows
        data.write_h5ad("cells.h5ad")
        quick = ["--solver", "sinkhorn", "--sigma", "1", "--held-out", "0"]
        read = ["--rep", "X_umap", "--time-key", "day"]
        assert run(["fit", "cells.h5ad", *read, "--out", "one", *quick]) == 0
        assert (
            run(["fit", "a.npy", "b.npy", "c.npy", "--times", "2", "3", "7", "--out", "two", *quick, "--no-figures"])
            == 0
        )
        for leg in (1, 2):
            numbers = [Path(out, f"bridge-{leg}.safetensors").read_bytes() for out in ("one", "two")]
            assert numbers[0] == numbers[1]
            documents = [json.loads(Path(out, f"bridge-{leg}.json").read_text()) for out in ("one", "two")]
            assert documents[0]["bridge"] == documents[1]["bridge"]  # not the checksums of the runs
        assert names("one/figures") == ["leg-1", "leg-2", "marginals.png", "trajectories.png"]
        self.cells_start_at_their_time(here, capsys)

    def cells_start_at_their_time(self, here, capsys):
        """The run of three days remembers how its file was read."""
        start = ["sample", "one", "--seed", "4", "--out"]
        assert run([*start, "x.npy", "--input", "cells.h5ad:3", "--time", "5"]) == 0
        assert run([*start, "y.npy", "--input", "b.npy", "--start", "3", "--time", "5"]) == 0
        assert np.array_equal(np.load("x.npy"), np.load("y.npy"))
        assert run([*start, "z.npy", "--input", "cells.h5ad:3", "--direction", "backward"]) == 0
        assert_among(np.load("z.npy"), np.load("a.npy"))
        assert run([*start, "x.h5ad", "--input", "cells.h5ad:3", "--time", "5"]) == 0
        read = pytest.importorskip("anndata").read_h5ad
        found, given = read("x.h5ad"), read("cells.h5ad")
        assert np.array_equal(found.obsm["X_umap"], np.load("x.npy"))
        assert found.obs_names.equals(given.obs_names[400:800])
        assert found.obs["day"].equals(given.obs["day"].iloc[400:800])
        assert found.obs["sbridge_row"].tolist() == list(range(400, 800))
        assert set(found.obs["sbridge_start"]) == {3.0}
        assert set(found.obs["sbridge_time"]) == {5.0}
        assert run([*start, "y.h5ad", "--n", "30"]) == 0
        drawn = read("y.h5ad")
        assert drawn.obsm["X_sbridge"].shape == (30, 2)
        assert "sbridge_row" not in drawn.obs
        capsys.readouterr()
        assert run(["evaluate", "one", "cells.h5ad:2", "cells.h5ad:3", "--max-rows", "60"]) == 0
        assert "cells.h5ad:2 at t = 2, cells.h5ad:3 at t = 3" in capsys.readouterr().out
        for options, message in [
            (["--input", "cells.h5ad", "--time", "5"], "cells of 3 times: obs['day'] is 2, 3, 7. Select"),
            (["--input", "cells.h5ad:3", "--start", "2"], "--start is 2, but the file gives time 3"),
            (["--input", "cells.h5ad:4"], "no cells at 4"),
        ]:
            refused(capsys, [*start, "no.npy", *options], message)
        refused(capsys, ["evaluate", "one", "cells.h5ad", "cells.h5ad:7"], "cells of 3 times")


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["fit", "a.npy", "nan.npy"], "nan.npy: row 3, column 1 (counted from 0) is nan. Remove or impute"),
            (["fit", "a.npy", "wide.npy"], "a.npy has 2 columns, wide.npy has 3"),
            (["fit", "a.npy", "one.npy"], "one.npy has 1 row; at least 2"),
            (["fit", "a.npy", "empty.csv"], "empty.csv is empty"),
            (["fit", "a.npy", "words.csv"], "column 'type' has 'B' in line 2"),
            (["fit", "a.npy", "short.npy"], "short.npy is not a readable .npy file"),
            (["fit", "a.npy", "objects.npy"], "holds pickled Python objects"),
            (["fit", "a.npy", "missing.npy"], "missing.npy does not exist"),
            (["fit", "a.npy", "two_mons"], "Did you mean 'two_moons'?"),
            (["fit", "a.npy"], "a bridge needs two"),
            (["fit", "a.npy", "b.npy", "c.npy"], "need --times"),
            (["fit", "a.npy", "b.npy", "--times", "3", "2"], "times must increase"),
            (["fit", "a.npy", "b.npy", "--times", "2", "3", "--horizon", "1"], "the times determine"),
            (["fit", "a.npy", "b.npy", "--sigma", "0"], "--sigma must be a positive number, got 0"),
            (["fit", "a.npy", "b.npy", "--sigma", "nan"], "--sigma must be a positive number, got nan"),
            (["fit", "a.npy", "b.npy", "--sigma", "1", "--epsilon", "1"], "Give only one of them"),
            (["fit", "a.npy", "b.npy", "--horizon", "-1"], "--horizon must be a positive number"),
            (["fit", "a.npy", "b.npy", "--held-out", "1"], "held-out fraction must lie in [0, 1)"),
            (["fit", "a.npy", "b.npy", "--held-out", "0.001"], "leaves 0 to score"),
            (["fit", "a.npy", "b.npy", "--seed", "-1"], "--seed must be an integer from 0"),
            (["fit", "a.npy", "b.npy", "--device", "cuda:77"], "device 'cuda:77' is not available; use cpu"),
            (["fit", "a.npy", "b.npy", "--solver", "sinkhron"], "Did you mean 'sinkhorn'?"),
            (["fit", "a.npy", "b.npy", "--solver", "imf", "--solver.stages", "-2"], "stages must not be negative"),
            (["fit", "a.npy", "b.npy", "--reference", "brownain"], "Did you mean 'brownian'?"),
            (["fit", "a.npy", "b.npy", "--solver", "imf", "--solver.grid", "cosin:9"], "Did you mean 'cosine'?"),
            (
                ["fit", "a.npy", "b.npy", "--reference", "variance-preserving", "--sigma", "1"],
                "takes no --sigma or --epsilon; use --reference.spread",
            ),
            (["fit", "flat.npy", "flat.npy"], "every column is constant"),
            (["fit", "stripe.npy", "stripe.npy", "--scaling", "per-coordinate"], "columns [1] are constant"),
            (["fit", "stripe.npy", "stripe.npy", "--solver", "gaussian"], "span fewer than their 2 dimensions"),
            (["fiit"], "Did you mean 'fit'?"),
            (["fit", "a.npy", "b.npy", "--sgima", "1"], "--sigma"),
            (["fit", "a.npy", "b.npy", "--sigma", "much"], "Error parsing --sigma"),
        ],
        ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
    )
    def test_input_that_cannot_be_used(self, here, capsys, arguments, message):
        rows = np.load("a.npy")
        np.save("nan.npy", np.where(np.arange(800).reshape(400, 2) == 7, np.nan, rows))
        np.save("wide.npy", np.ones((9, 3), np.float32))
        np.save("one.npy", rows[:1])
        np.save("objects.npy", np.array([{}, None]), allow_pickle=True)
        np.save("flat.npy", np.ones((50, 2), np.float32))
        np.save("stripe.npy", rows * [1, 0])
        Path("short.npy").write_bytes(Path("a.npy").read_bytes()[:-4])
        Path("empty.csv").touch()
        Path("words.csv").write_text("x,type\n1,B\n2,T\n")
        refused(capsys, [*arguments, "--out", "run"] if arguments[0] == "fit" else arguments, message)

    def test_folders_that_are_taken(self, finished, here, capsys):
        taken = str(finished / "run")
        refused(capsys, ["fit", "a.npy", "b.npy", "--out", taken], "holds another run. Choose another --out")
        refused(capsys, ["fit", "a.npy", "b.npy", "--out", "a.npy"], "is a file")
        refused(capsys, ["fit", "a.npy", "b.npy", "--out", "."], "is not empty")
        assert run(["fit", "a.npy", "b.npy", "--out", taken, "--resume"]) == 0
        assert "is already finished" in capsys.readouterr().out

    def test_resuming_with_other_settings_or_data(self, here, capsys, monkeypatch):
        options = ["--solver", "sinkhorn", "--no-figures"]
        monkeypatch.setattr("sbridge.cli.fit.evaluate", interrupted)
        assert run(["fit", "a.npy", "b.npy", "--out", "run", *options]) == 130
        assert "sbridge fit a.npy b.npy --out run --solver sinkhorn --no-figures --resume\n" in capsys.readouterr().err
        refused(capsys, ["fit", "a.npy", "b.npy", "--out", "run", *options], "--resume with the same command")
        refused(capsys, ["fit", "a.npy", "b.npy", "--out", "run", *options, "--sigma", "2", "--resume"], "sigma was")
        refused(
            capsys, ["fit", "a.npy", "b.npy", "--out", "run", *options, "--seed", "2", "--resume"], "seed was 0, is 2"
        )
        refused(capsys, ["fit", "a.npy", "c.npy", "--out", "run", *options, "--resume"], "inputs[1].sha256 was")
        monkeypatch.undo()
        os.chdir(here)
        Path("a.npy").rename("moved.npy")
        assert run(["fit", "moved.npy", "b.npy", "--out", "run", *options, "--resume"]) == 0
        assert "report.json" in names("run")

    def test_a_full_disk(self, here, capsys, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        refused(capsys, ["fit", "a.npy", "b.npy", "--out", "run", "--solver", "gaussian"], "No space left on the disk")

    def test_a_disk_that_fills_up_in_training(self, here, capsys, monkeypatch):
        write, calls = os.fsync, []

        def filling(handle):
            calls.append(handle)
            if len(calls) > 4:
                raise OSError(28, "No space left on device")
            write(handle)

        monkeypatch.setattr(os, "fsync", filling)
        arguments = ["fit", "a.npy", "b.npy", "--out", "run", *TINY, "--checkpoint-every", "0"]
        assert run(arguments) == 2
        assert "--resume continues" in " ".join(capsys.readouterr().err.split())
        assert names("run") == ["checkpoint.safetensors", "config.json"]

    def test_no_convergence_and_nan_have_an_exit_code_of_their_own(self, here, capsys):
        limited = ["--solver", "sinkhorn", "--solver.sinkhorn.max-iterations", "3"]
        assert run(["fit", "a.npy", "b.npy", "--out", "one", *limited]) == 3
        assert "Sinkhorn" in capsys.readouterr().err
        steep = [*TINY, "--solver.optimisation.learning-rate", "1e30", "--solver.optimisation.clip", "1e30"]
        assert run(["fit", "a.npy", "b.npy", "--out", "two", *steep, "--checkpoint-every", "1e9"]) == 3
        told = " ".join(capsys.readouterr().err.split())
        assert "learning rate that is too large" in told
        assert "No checkpoint was written before" in told


def interrupted(*_, **__):
    raise KeyboardInterrupt


class TestSample:
    def test_rows_of_a_file_in_blocks(self, finished, here):
        rows = datasets.make("two_moons", 20_000, 9).numpy()
        np.save("x.npy", rows)
        arguments = ["sample", str(finished / "run"), "--input", "x.npy", "--seed", "4"]
        assert run([*arguments, "--out", "y.npy"]) == 0
        found = np.load("y.npy")
        assert (found.shape, found.dtype) == (rows.shape, np.float32)
        bridge = load(finished / "run" / "bridge")
        course = Course((0.0, 1.0), (bridge,))
        block = course.interpolate(torch.from_numpy(rows[8192:16384]), 0.0, 1.0, seed=derive(4, "block", 1))
        assert np.array_equal(found[8192:16384], block.numpy())
        assert_among(found, np.load(finished / "b.npy"))

    def test_text_in_text_out(self, finished, here):
        rows = np.load("a.npy")[:30].astype(np.float64)
        np.savetxt("x.csv", rows, delimiter=",", header='"first, really",second', comments="", fmt="%.17g")
        arguments = ["sample", str(finished / "run"), "--input", "x.csv", "--time", "0.25", "--out"]
        assert run([*arguments, "y.csv"]) == 0
        assert run([*arguments, "y.npy"]) == 0
        assert Path("y.csv").read_text().splitlines()[0] == '"first, really",second'
        assert np.array_equal(np.loadtxt("y.csv", delimiter=",", skiprows=1).astype(np.float32), np.load("y.npy"))

    def test_start_rows_drawn_here(self, finished, here):
        run_folder = str(finished / "run")
        assert (
            run(["sample", run_folder, "--n", "9000", "--out", "y.npy", "--direction", "backward", "--time", "1"]) == 0
        )
        drawn = np.load("y.npy")
        assert drawn.shape == (9000, 2)
        assert_among(drawn, np.load(finished / "b.npy"))
        assert run(["sample", run_folder, "--n", "9000", "--out", "z.npy", "--direction", "backward"]) == 0
        assert_among(np.load("z.npy"), np.load(finished / "a.npy"))

    def test_through_a_course_both_ways(self, finished, here):
        folder = str(finished / "course")
        course = RunFolder(finished / "course").course()
        x = torch.from_numpy(np.load("a.npy"))
        assert run(["sample", folder, "--input", "a.npy", "--time", "5", "--out", "y.npy"]) == 0
        assert np.array_equal(np.load("y.npy"), course.interpolate(x, 2.0, 5.0, seed=derive(0, "block", 0)).numpy())
        back = ["sample", folder, "--direction", "backward"]
        assert run([*back, "--input", "c.npy", "--time", "2", "--out", "z.npy"]) == 0
        assert_among(np.load("z.npy"), np.load(finished / "a.npy"))
        assert run([*back, "--input", "b.npy", "--start", "3", "--time", "3", "--out", "same.npy"]) == 0
        assert np.array_equal(np.load("same.npy"), np.load("b.npy"))

    def test_refusals(self, finished, here, capsys):
        folder = str(finished / "course")
        Path("old.npy").touch()
        np.save("wide.npy", np.ones((9, 3), np.float32))
        Path("late.csv").write_text("x,y\n" + "1,2\n" * 10_000 + "1,oops\n")
        for options, message in [
            ([], "give --input FILE, or --n N"),
            (["--n", "0"], "--n must be positive"),
            (["--n", "5", "--input", "a.npy"], "give --input FILE, or --n N"),
            (["--n", "5", "--start", "2.5"], "samples can start at the snapshot times 2, 3, 7, not at 2.5"),
            (["--n", "5", "--time", "8"], "outside the course"),
            (["--n", "5", "--start", "7", "--time", "3"], "is backward, but --direction is forward"),
            (["--input", "wide.npy"], "wide.npy has 3 columns, but the bridge has dimension 2"),
            (["--input", "late.csv"], "'oops' in line 10002"),
        ]:
            refused(capsys, ["sample", folder, "--out", "y.npy", *options], message)
        refused(capsys, ["sample", folder, "--n", "5", "--out", "old.npy"], "exists. Choose another --out")
        refused(capsys, ["sample", folder, "--n", "5", "--out", "y.txt"], "written as .npy, .csv or .h5ad")
        refused(capsys, ["sample", folder, "--n", "5", "--out", "no/y.npy"], "folder no does not exist")
        refused(capsys, ["sample", "nowhere", "--n", "5", "--out", "y.npy"], "nowhere is not a run folder")
        assert run(["sample", folder, "--n", "5", "--out", "old.npy", "--overwrite"]) == 0
        assert np.load("old.npy").shape == (5, 2)

    def test_memory_does_not_grow_with_the_file(self, here):
        rows = np.random.default_rng(0).normal(size=(500_000, 2)).astype(np.float32)
        np.save("x.npy", rows)
        quick = ["--solver", "gaussian", "--no-figures", "--held-out", "0"]
        assert run(["fit", "a.npy", "c.npy", "--out", "run", *quick]) == 0
        code = (
            "from sbridge.cli import run\nfrom sbridge.cli.sample import Journey\n"
            "travel, used = Journey.travel, []\n"
            "def watched(journey, rows, seed):\n"
            "    status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
            "    used.append(int(status['RssAnon'].split()[0]))\n"
            "    return travel(journey, rows, seed)\n"
            "Journey.travel = watched\n"
            "assert run(['sample', 'run', '--input', 'x.npy', '--out', 'y.npy']) == 0\n"
            "print(len(used), max(used[10:]) - used[10])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
        )
        blocks, growth = (int(word) for word in done.stdout.split()[-2:])
        assert blocks == 62
        assert growth < 1500  # kB; input and output have 4000 each
        assert np.load("y.npy", mmap_mode="r").shape == rows.shape


def assert_among(found, known):
    """Every row is one of the known rows, up to the rounding of a change of units."""
    pair = torch.from_numpy(found).double(), torch.from_numpy(known).double()
    distance = torch.cdist(*pair, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    assert float(distance.max()) < 1e-5


def test_columns_are_those_of_the_fit(here, capsys):
    """By name and in order, for sample and evaluate; rows of a file with more columns are found by name."""
    g = np.random.default_rng(1)
    x, y = g.normal(size=50), g.normal(size=50)
    for name, columns in (("a", {"x": x, "y": y}), ("other", {"z": y, "y": y, "x": x}), ("renamed", {"u": x, "v": y})):
        np.savetxt(
            f"{name}.csv", np.stack([*columns.values()], 1), delimiter=",", header=",".join(columns), comments=""
        )
    quick = ["--solver", "gaussian", "--no-figures", "--held-out", "0", "--quiet"]
    assert run(["fit", "a.csv", "a.csv", "--sigma", "1", "--out", "run", *quick]) == 0
    sample = ["sample", "run", "--out", "y.csv", "--input"]
    wrong = "other.csv has the columns z, y, x, but the run was fitted on x, y. Choose them by name"
    refused(capsys, [*sample, "other.csv"], f"{wrong}, in the order of the fit: --columns x y.")
    refused(
        capsys, [*sample, "other.csv", "--columns", "y", "x"], "has the columns y, x, but the run was fitted on x, y"
    )
    refused(capsys, [*sample, "renamed.csv"], "columns u, v, but the run was fitted on x, y. Rename the columns")
    refused(
        capsys, ["evaluate", "run", "renamed.csv", "renamed.csv"], "the columns u, v, but the run was fitted on x, y"
    )
    assert run([*sample, "a.csv"]) == run([*sample[:3], "z.csv", "--input", "other.csv", "--columns", "x", "y"]) == 0
    assert Path("y.csv").read_text() == Path("z.csv").read_text()


class TestEvaluateAndPlot:
    def test_ends_and_a_time_between(self, finished, here, capsys):
        folder = str(finished / "course")
        fresh = datasets.make("two_moons", 200, 77).numpy()
        np.save("fresh.npy", fresh)
        span = ["--start", "3", "--time", "7"]
        assert run(["evaluate", folder, "b.npy", "c.npy", *span, "--out", "scores.json", "--max-rows", "150"]) == 0
        text = capsys.readouterr().out
        scores = json.loads(Path("scores.json").read_text())
        assert [task["name"] for task in scores["tasks"]] == ["forward", "backward"]
        assert scores["horizon"] == 4
        assert "perfect samples" in text
        assert run(["evaluate", folder, "b.npy", "fresh.npy", "--start", "3", "--time", "5"]) == 0
        text = capsys.readouterr().out
        assert "b.npy at t = 3, fresh.npy at t = 5; times of the bridge are measured from 3." in text
        assert "predicted at t = 2," in text
        assert "half energy" in text

    def test_refusals(self, finished, here, capsys):
        folder = str(finished / "course")
        refused(
            capsys,
            ["evaluate", folder, "a.npy", "c.npy"],
            "from 2 to 7 is not within one bridge of this run (2 → 3, 3 → 7)",
        )
        Path("scores.json").touch()
        refused(capsys, ["evaluate", folder, "a.npy", "c.npy", "--out", "scores.json"], "scores.json exists")
        refused(capsys, ["evaluate", str(here), "a.npy", "c.npy"], "is not a run folder")
        refused(capsys, ["plot", str(here)], "is not a run folder")

    def test_a_page(self, finished, here, capsys):
        for name in ("run", "course"):
            assert run(["report", str(finished / name), "--out", f"{name}.html"]) == 0
            assert capsys.readouterr().out.strip() == f"{name}.html"
        assert "t = 3 → 7" in Path("course.html").read_text(encoding="utf-8")
        refused(capsys, ["report", str(finished / "run"), "--out", "run.html"], "run.html exists")
        refused(capsys, ["report", str(here)], "is not a run folder")
        assert run(["report", str(finished / "run"), "--out", "run.html", "--overwrite"]) == 0

    def test_plot(self, finished, here, capsys):
        assert run(["plot", str(finished / "run"), "--out", "figures", "--rows", "100"]) == 0
        told = capsys.readouterr().out.split()
        assert sorted(Path(line).name for line in told) == names("figures")
        assert all(Path(line).read_bytes().startswith(b"\x89PNG") for line in told)


LONG = ["fit", "a.npy", "b.npy", *TINY, "--checkpoint-every", "0.02"]
STEPS = ["--solver.pretraining", "80", "--solver.stages", "2", "--solver.updates", "80", "--no-evaluation"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The model of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_snapshots(folder)
    line = command(*LONG, *STEPS, "--out", "whole")
    subprocess.run(line, cwd=folder, env=environment(), check=True, capture_output=True)
    return {name: (folder / "whole" / name).read_bytes() for name in MODEL[:3]}, names(folder / "whole")


@pytest.mark.usefixtures("here")
class TestProcesses:
    LINE = command(*LONG, *STEPS)

    def test_killed_while_training(self, uninterrupted):
        self.killed_after("run", 0.1)
        self.ends_as("run", uninterrupted)

    def ends_as(self, out, uninterrupted):
        """The run, resumed to its end, has the files of one that was not interrupted, byte for byte."""
        subprocess.run([*self.LINE, "--out", out, "--resume"], env=environment(), check=True, capture_output=True)
        model, listed = uninterrupted
        assert {name: Path(out, name).read_bytes() for name in model} == model
        assert names(out) == listed

    def killed_after(self, out, seconds):
        """Kills the run so many seconds after its first new checkpoint."""
        checkpoint = Path(out, "checkpoint.safetensors")
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
        process = subprocess.Popen([*self.LINE, "--out", out, "--resume"], env=environment(), stderr=-3, stdout=-3)
        with process:
            while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
                time.sleep(0.005)
            time.sleep(seconds)
            process.kill()
        assert process.returncode == -signal.SIGKILL

    @pytest.mark.slow
    def test_killed_twenty_times_at_random_moments(self, uninterrupted):
        random.seed(20)
        kills, finished = 0, 0
        while kills < 20:
            line = [*self.LINE, "--out", f"run{finished}", "--resume"]
            process = subprocess.Popen(line, env=environment(), stdout=-3, stderr=-3)
            time.sleep(random.uniform(0.2, 6.0))
            process.kill()
            kills += process.wait() == -signal.SIGKILL
            if Path(f"run{finished}", "report.json").exists():
                self.ends_as(f"run{finished}", uninterrupted)
                finished += 1
        self.ends_as(f"run{finished}", uninterrupted)

    def test_two_starts_on_one_folder(self, uninterrupted):
        self.two_starts("run", uninterrupted)

    @pytest.mark.slow
    def test_two_starts_twenty_times(self, uninterrupted):
        random.seed(21)
        for start in range(20):
            self.two_starts(f"run{start}", uninterrupted, random.uniform(0, 4), ["--resume"] * (start % 2))

    def two_starts(self, out, uninterrupted, later=0.0, more=()):
        """One process fits and leaves the files of an undisturbed run; the other exits with code 2."""
        line = [*self.LINE, "--out", out]
        first = subprocess.Popen(line, env=environment(), stdout=-3, stderr=-1, text=True)
        time.sleep(later)
        second = subprocess.Popen([*line, *more], env=environment(), stdout=-3, stderr=-1, text=True)
        told = first.communicate()[1] + second.communicate()[1]
        codes = sorted((first.returncode, second.returncode))
        if more and codes == [0, 0]:  # the second came when all was done
            assert "Traceback" not in told
        else:
            assert codes == [0, 2], told
            assert "another process is using" in told or "holds another run" in told
        model, listed = uninterrupted
        assert {name: Path(out, name).read_bytes() for name in model} == model
        assert names(out) == listed

    def test_beside_a_running_process_nothing_is_touched(self, capsys):
        plain = ["fit", "a.npy", "b.npy", "--solver", "gaussian", "--no-figures", "--out", "run"]
        Path("p.py").touch()
        with RunFolder.claimed(Path("run")) as folder:
            for begun in (False, True):
                if begun:
                    folder.create({"format": "sbridge.run/1", "times": [0.0, 1.0]})
                    Path("run", ".bridge.json.1-2.part").touch()
                before = names("run")
                for arguments in (plain, [*plain, "--resume"], ["control", "p.py", "--out", "run"]):
                    refused(capsys, arguments, "another process is using run")
                    assert names("run") == before

    def test_asked_to_stop(self, uninterrupted):
        process = subprocess.Popen([*self.LINE, "--out", "run"], env=environment(), stderr=-1, stdout=-3, text=True)
        while not Path("run", "checkpoint.safetensors").exists():
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
        assert process.returncode == 130
        assert "a checkpoint was written. To continue:" in told
        again = told.strip().splitlines()[-1].split()
        assert again == ["sbridge", *self.LINE[3:], "--out", "run", "--resume"]
        self.ends_as("run", uninterrupted)

    def test_a_pipe_sees_few_plain_lines_and_may_close(self):
        line = command(*LONG, "--solver.pretraining", "30", "--solver.stages", "0", "--out", "run")
        done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=True)
        assert "\r" not in done.stdout + done.stderr
        progress, *warned = done.stderr.split("warning: ")
        assert len(progress.splitlines()) <= 3
        assert len(warned) <= 2  # so short a fit misses both ends
        shell = f"{sys.executable} -m sbridge fit a.npy b.npy --solver gaussian --no-figures --out again | head -1"
        done = subprocess.run(["bash", "-c", shell], env=environment(), capture_output=True, text=True, check=True)
        assert "Traceback" not in done.stderr
        assert done.stdout.splitlines()[0].startswith("t = 0: a.npy, 400 × 2 float32")

    def test_a_terminal_sees_a_bar(self):
        line = command(*LONG, "--solver.pretraining", "300", "--solver.stages", "0", "--out", "run")
        leader, follower = pty.openpty()
        import fcntl
        import struct
        import termios

        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        process = subprocess.Popen(line, env=environment(), stdout=subprocess.DEVNULL, stderr=follower)
        os.close(follower)
        seen = b""
        while True:
            try:
                block = os.read(leader, 4096)
            except OSError:
                break
            if not block:
                break
            seen += block
        os.close(leader)
        assert process.wait() == 0
        assert b"training:" in seen
        assert b"/300" in seen

    def test_help_answers_without_torch(self):
        code = "import sys\nfrom sbridge.cli import run\nrun(['fit', '--help'])\nprint('torch' in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
        )
        assert done.stdout.endswith("False\n")
        for words in ("--held-out FRACTION", "default: 0.1", "data units per square root", "--solver NAME --help"):
            assert words in " ".join(done.stdout.replace("│", " ").split())


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_every_solver_can_be_asked_for(name, capsys):
    assert run(["fit", "--solver", name, "--help"]) == 0
    capsys.readouterr()
    assert name in get_args(get_type_hints(commands.Fit)["solver"])


def test_the_options_of_a_solver_stand_in_its_help(capsys):
    assert run(["fit", "--solver", "imf", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in (
        "--solver.coupling {independent,reference,entropic,minibatch}",
        "--solver.network.least INT",
        "--solver.optimisation.learning-rate FLOAT the largest rate",
        "--solver.grid {uniform,cosine,refined,reverse}:STEPS",
        "default: cosine:50",
    ):
        assert words in text


def test_half_bridges_are_given_by_name(capsys):
    assert run(["fit", "--solver", "ipf", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for direction in ("forward", "backward"):
        choices = "{None,pinned-paths,density-ratio,mean-matching,likelihood, adjoint}"
        assert f"--solver.{direction} {choices}" in text
    assert "--solver.start {None,zero,gaussian}" in text
    assert ":class:" not in text


@pytest.mark.slow
def test_demo(here):
    done = subprocess.run(command("demo"), env=environment(), capture_output=True, text=True, check=True)
    assert "Run folder: sbridge-demo" in done.stdout
    assert {"trajectories.png", "drift.png"} <= set(names("sbridge-demo/figures"))


def check_schema(value, schema, at="report"):
    """The part of JSON Schema that the package's schema uses."""
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}
    if "const" in schema:
        assert value == schema["const"], at
    if "type" in schema:
        wanted = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        assert isinstance(value, tuple(kinds[kind] if kind != "number" else (int, float) for kind in wanted)), at
    if isinstance(value, dict):
        assert set(schema.get("required", ())) <= set(value), at
        if schema.get("additionalProperties") is False or schema.get("properties"):
            assert set(value) <= set(schema["properties"]), f"{at} has keys that the schema does not explain"
        for key, item in value.items():
            if key in schema.get("properties", {}):
                check_schema(item, schema["properties"][key], f"{at}.{key}")
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            check_schema(item, schema["items"], f"{at}[{index}]")


def modules_after(*arguments, code=2):
    """The heavy modules that one command line imports, in a process of its own; and what it says."""
    script = (
        "import sys\nfrom sbridge.cli import run\n"
        f"assert run({list(arguments)!r}) == {code}\n"
        "print([name for name in ('torch', 'ot', 'pandas', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1], " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["fit", "a.npy", "no.npy", "--out", "r", "--solver", "imf"], ["no.npy does not exist"]),
        (["fit", "a.npy", "two_mons", "--out", "r", "--solver", "imf"], ["Did you mean 'two_moons'"]),
        (["fit", "a.npy", "b.npy", "--out", "r", "--solver", "imff"], ["Did you mean 'imf'"]),
        (
            ["fit", "no.npy", "nor.csv", "--out", "a.npy", "--sigma", "-1", "--seed", "-2"],
            ["5 problems", "no.npy does not", "nor.csv does not", "a.npy is a file", "--sigma must", "--seed must"],
        ),
        (
            ["fit", "a.npy", "no.npy", "--out", "r", "--sgima", "1", "--held_out=0", "--solver", "sinkhron"],
            ["3 problems", "'--sgima'. Did you mean --sigma?", "'sinkhorn'", "no.npy does not exist"],
        ),
        (["diffuse", "no.npy", "--out", "r"], ["no.npy does not exist"]),
        (
            ["sample", "nowhere", "--n", "0", "--out", "y.txt"],
            ["3 problems", "nowhere", "--n must", ".csv or .h5ad"],
        ),
        (["evaluate", "nowhere", "no.npy", "b.npy"], ["2 problems", "nowhere", "no.npy does not"]),
        (["control", "no.py", "--paths", "1"], ["2 problems", "no.py does not exist", "--paths must"]),
        (["verify", "--data", "no.csv"], ["no.csv does not exist"]),
        (["report", "nowhere", "--out", "page.txt"], ["2 problems", "nowhere", "writes an .html file"]),
    ],
    ids=lambda value: " ".join(value[:3]),
)
def test_what_words_and_files_tell_is_refused_without_torch(here, arguments, messages):
    imported, told = modules_after(*arguments)
    assert imported == "[]"
    for message in messages:
        assert message in told, told


def test_what_a_sample_does_not_import(finished, here):
    imported, _ = modules_after("sample", str(finished / "run"), "--n", "5", "--out", "y.npy", code=0)
    assert imported == "['torch']"


def test_a_report_needs_no_torch(finished, here):
    imported, _ = modules_after("report", str(finished / "run"), "--out", "page.html", code=0)
    assert imported == "[]"


class TestSpeech:
    FIT = ("fit", "a.npy", "b.npy", "--solver", "gaussian", "--no-figures", "--out")

    def test_quiet(self, here, capsys):
        assert run([*self.FIT, "run", "--quiet"]) == 0
        found = capsys.readouterr()
        assert found.err == ""
        assert found.out.startswith("Schrödinger bridge: report of the run\n")
        refused(capsys, [*self.FIT, "run", "--quiet"], "holds another run")

    def test_without_an_evaluation(self, here, capsys, monkeypatch):
        monkeypatch.setattr("sbridge.cli.fit.evaluate", interrupted)
        assert run([*self.FIT, "run", "--no-evaluation"]) == 0
        report = json.loads(Path("run/report.json").read_text())
        assert (report["legs"][0]["evaluation"], report["legs"][0]["certificate"]) == (None, None)
        assert [item["rows_held_out"] for item in report["inputs"]] == [40, 40]
        out = capsys.readouterr().out
        assert "Nothing was scored" in out
        assert "No rows were held out" not in out

    def test_names_do_not_command_the_terminal(self, here, capsys):
        hostile = "\x1b[31mred\x9b2J\u202eodd\n.npy"
        Path("a.npy").rename(hostile)
        assert run(["fit", hostile, "b.npy", *self.FIT[3:], "run", "--held-out", "0"]) == 0
        refused(capsys, ["fit", "\x1b]0;title\x07.npy", "b.npy", "--out", "two"], "\\u001b]0;title\\u0007.npy does not")
        found = capsys.readouterr()
        assert not set("\x1b\x9b\u202e\x07") & set(found.out + found.err)

    def test_a_stream_of_another_encoding(self, here):
        done = subprocess.run(
            command(*self.FIT, "run"), env=environment(PYTHONIOENCODING="ascii"), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "\\u2192" in done.stdout

    def test_a_bar_while_scoring(self, here):
        steps = []

        class Steps:
            total = 0

            def expect(self, more):
                self.total += more

            def done(self, what):
                steps.append(what)

        watcher = Steps()
        rows = [torch.from_numpy(np.load(name)) for name in ("a.npy", "b.npy")]
        bridge = fit(*rows, solver=GaussianBridge(), seed=0)
        with watched(watcher):
            evaluate(bridge, rows[0][:40], rows[1][:40], seed=0)
        assert len(steps) == watcher.total > 10
        assert steps[0].startswith("perfect")


class TestReportPage:
    def test_links_are_not_followed(self, finished, here, capsys):
        shutil.copytree(finished / "run", "run")
        secret = b"\x89PNG secret"
        Path("secret").write_bytes(secret)
        Path("run/figures").mkdir(exist_ok=True)
        Path("run/figures/own.png").write_bytes(b"\x89PNG own")
        Path("run/figures/history.png").symlink_to(here / "secret")
        assert run(["report", "run"]) == 0
        page = Path("run/report.html").read_text()
        assert base64.b64encode(b"\x89PNG own").decode() in page
        assert base64.b64encode(secret).decode() not in page
        assert "omitted from the page" in capsys.readouterr().err

    def test_no_other_file_of_a_run_is_written_over(self, finished, here, capsys):
        shutil.copytree(finished / "run", "run")
        for name in names("run"):
            if Path("run", name).is_file():
                refused(capsys, ["report", "run", "--out", f"run/{name}", "--overwrite"], "writes an .html file")
