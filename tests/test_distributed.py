"""Several processes on one fit: the result is that of one process, and each does its share of the work."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import FITS, counted

import sbridge as sb
from sbridge import distributed
from sbridge.data import datasets
from sbridge.launched import launched

ROOT = Path(__file__).parents[1]
SETTINGS = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "TORCH_CPP_LOG_LEVEL": "ERROR"}
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")} | SETTINGS
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes found: see tests/ranks.py."""
    out = tmp_path_factory.mktemp("ranks")
    words = [*TORCHRUN, "2", str(ROOT / "tests" / "ranks.py"), str(out)]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [json.loads((out / f"found-{rank}.json").read_text()) for rank in (0, 1)]
    return found, [torch.load(out / f"weights-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.filterwarnings("ignore::sbridge.errors.SbridgeWarning")
@pytest.mark.parametrize("name", FITS)
def test_two_processes_learn_what_one_learns_with_half_the_work_each(name, together):
    """The batch is that of both: two times b rows against one process with 2b, to rounding in float64."""
    found, weights = together
    wanted, rows = counted(FITS[name])
    assert torch.equal(weights[0][name], weights[1][name]), "the processes agree to the bit"
    torch.testing.assert_close(weights[0][name], wanted, rtol=0, atol=1e-10)
    for one in found:
        assert one[f"{name}: rows"] <= 0.66 * rows


def test_one_process_that_stops_ends_the_run_of_all_at_the_same_step(together):
    for one in together[0]:
        assert one["stopped"] == "process 1 has seen enough (after 5 of at most 8 steps)"


def test_other_data_and_settings_are_named(together):
    for one in together[0]:
        assert "need the same data and settings" in one["other data"]
        assert "source.rows is float64 (60, 2)" in one["other data"]
        assert "float64 (59, 2)" in one["other data"]
        assert (
            "fit.solver.updates is 8 in process 0, 9 in 1; fit.seed is 0 in process 0, 1 in 1" in one["other settings"]
        )


@pytest.mark.slow
def test_a_script_that_ends_after_a_reduction_ends_well(tmp_path):
    """An interpreter that exits while threads of the group run is aborted, in about every second run."""
    script = tmp_path / "reduce.py"
    script.write_text("import torch\nfrom sbridge import distributed\ndistributed.average([torch.ones(1000)])\n")
    for _ in range(6):
        done = subprocess.run(
            [*TORCHRUN, "2", str(script)], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr


# --- without other processes


def test_a_process_alone_is_the_first_of_one(monkeypatch):
    assert (distributed.rank(), distributed.size(), launched()) == (0, 1, (0, 1))
    one = torch.ones(3)
    distributed.average([one])
    assert torch.equal(one, torch.ones(3))
    assert distributed.largest(3) == 3
    assert distributed.first_reason(None) is None
    assert distributed.from_first(lambda: 5) == 5
    with distributed.together():
        assert not distributed.sharing()
        assert distributed.share_of(5000, 1024) == slice(0, 5000)
    monkeypatch.setenv("WORLD_SIZE", "4")  # as other launchers set it
    assert launched() == (0, 1)


@pytest.mark.parametrize(
    ("rows", "block"), [(4096, 1024), (4097, 1024), (5000, 1024), (16, 1), (17, 1), (31, 1), (100, 3)]
)
@pytest.mark.parametrize("size", [2, 3, 5])
def test_shares_are_whole_blocks_that_cover_all_rows_once(rows, block, size, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: size)
    shares = []
    for rank in range(size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        with distributed.together():
            shares.append(distributed.share_of(rows, block))
            with distributed.apart():
                assert distributed.share_of(rows, block) == slice(0, rows)
    if rows < size * block:
        assert shares == [slice(0, rows)] * size
        return
    assert [row for share in shares for row in range(rows)[share]] == list(range(rows))
    assert all(share.start % block == 0 or share.start == rows for share in shares)
    assert max(share.stop - share.start for share in shares) <= -(-rows // size) + block


def test_a_description_names_every_part():
    other = sb.BridgeProblem(sb.Samples(torch.zeros(3, 2)), sb.Samples(torch.ones(3, 2)), sb.BrownianMotion(1.0))
    parts = distributed.describe({"problem": other, "solver": sb.IMF(), "seed": torch.Generator()}, "fit")
    assert parts["fit.problem.reference.sigma"].startswith("float64 ()") or "sigma" in "".join(parts)
    assert parts["fit.problem.source.rows"].startswith("float32 (3, 2) ")
    assert parts["fit.problem.source.rows"] != parts["fit.problem.target.rows"]
    assert parts["fit.solver.optimisation.learning_rate"] == "0.003"
    assert parts["fit.seed"].startswith("uint8 ")
    assert parts == distributed.describe({"problem": other, "solver": sb.IMF(), "seed": torch.Generator()}, "fit")


# --- the command line


def command(out: Path, *more: str) -> list[str]:
    steps = ["--solver.pretraining", "60", "--solver.stages", "2", "--solver.updates", "60", "--solver.pairs", "128"]
    network = ["--solver.network.least", "16", "--solver.grid", "uniform:5", "--solver.optimisation.batch", "64"]
    rest = ["--no-figures", "--held-out", "0", "--checkpoint-every", "0.2", "--out", str(out)]
    return ["-m", "sbridge", "fit", "x0.npy", "x1.npy", "--solver", "imf", *steps, *network, *rest, *more]


def children_of(number: int) -> list[int]:
    lines = subprocess.run(["ps", "-o", "pid=", "--ppid", str(number)], capture_output=True, text=True).stdout
    return [int(line) for line in lines.split()]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_run_and_another_number_of_processes_goes_on(victim, tmp_path):
    for seed, name in enumerate(("x0", "x1")):
        np.save(tmp_path / f"{name}.npy", datasets.make("two_moons", 200, seed=seed).double().numpy() + seed)
    options = {"cwd": tmp_path, "env": ENVIRONMENT, "text": True}
    subprocess.run([sys.executable, *command(tmp_path / "whole")], check=True, capture_output=True, **options)
    words = [*TORCHRUN, "2", *command(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options) as running:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "checkpoint.safetensors").exists():
            assert running.poll() is None, running.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(children_of(running.pid)[victim], signal.SIGKILL)
        told, _ = running.communicate(timeout=60)
    assert running.returncode != 0, told
    assert not (tmp_path / "run" / "report.json").exists()
    again = subprocess.run(
        [sys.executable, *command(tmp_path / "run", "--resume")], check=True, capture_output=True, **options
    )
    assert "Run folder" in again.stdout
    whole, resumed = (sb.load(tmp_path / name).forward.control for name in ("whole", "run"))
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(resumed(0.4, x), whole(0.4, x), rtol=0, atol=1e-9)


@pytest.mark.slow
def test_a_finished_run_and_other_commands_are_the_business_of_the_first_process(tmp_path):
    for name in ("x0", "x1"):
        np.save(tmp_path / f"{name}.npy", datasets.make("two_moons", 200, seed=0).numpy())
    options = {"cwd": tmp_path, "env": ENVIRONMENT, "text": True, "capture_output": True}
    for more in ([], ["--resume"]):
        done = subprocess.run([*TORCHRUN, "2", *command(tmp_path / "run", *more)], check=True, **options)
        assert done.stdout.count("already finished" if more else "Run folder: ") == 1
    sample = ["-m", "sbridge", "sample", "run", "--input", "x0.npy", "--out", "y.npy"]
    subprocess.run([*TORCHRUN, "2", *sample], check=True, **options)
    assert np.load(tmp_path / "y.npy").shape == (200, 2)
    bad = subprocess.run([*TORCHRUN, "2", *command(tmp_path / "other", "--seed", "-1")], check=False, **options)
    assert bad.returncode != 0
    assert not (tmp_path / "other").exists()
