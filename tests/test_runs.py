"""Run folders: the same bytes however often a run is interrupted, and no folder used twice."""

import dataclasses
import errno
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch

from sbridge.controls import MLP
from sbridge.couplings import EntropicCoupling
from sbridge.errors import FileFormatError, InvalidInputError, NonFiniteError, SbridgeWarning, UnverifiedFileWarning
from sbridge.fitting import prepare
from sbridge.processes import BrownianMotion
from sbridge.runs import RUN_FORMAT, Checkpoint, History, RunFolder, Stopped, differences, train
from sbridge.runs.checkpoints import HISTORY_ROWS, StopRequest
from sbridge.solvers.imf import IMF
from sbridge.solvers.sinkhorn import SinkhornBridge
from sbridge.storage import claims, documents, files
from sbridge.storage.claims import check_vacant
from sbridge.time import TimeGrid
from sbridge.training import Optimisation, State
from sbridge.transport import Sinkhorn

CONFIG = {"format": RUN_FORMAT, "times": [0.0, 1.0], "seed": 4, "inputs": [{"name": "a", "sha256": "11"}], "threads": 1}
TINY = IMF(
    coupling=EntropicCoupling(rows=64),
    pretraining=6,
    stages=2,
    updates=5,
    refresh=4,
    pairs=64,
    network=MLP(width=8, depth=2),
    optimisation=Optimisation(batch=16, warm_up=2),
    grid=TimeGrid.uniform(4),
)
STRICT = SinkhornBridge(sinkhorn=Sinkhorn(tolerance=1e-4, batch=3, warm_batch=1))
REFERENCE = BrownianMotion(sigma=0.7)


def legs(solver, count=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    snapshots = [torch.randn(80, 2, generator=generator, dtype=dtype) + leg for leg in range(count + 1)]
    return [
        prepare(x0, x1, reference=REFERENCE, solver=solver, seed=11 + leg)
        for leg, (x0, x1) in enumerate(pairwise(snapshots))
    ]


def quiet(leg, length):
    return ()


def new_folder(path, count=1, **changes):
    with RunFolder.claimed(path) as folder:
        folder.create({**CONFIG, "times": [float(leg) for leg in range(count + 1)], **changes})
    return folder


def contents(folder):
    """What has to be equal: all files but the checkpoint, which must not be there."""
    assert not folder.checkpoint_file.exists()
    return {path.name: path.read_bytes() for path in folder.path.iterdir()}


class Cut(Exception):
    """Stands for the end of the process."""


def cut_at(step, leg=0):
    """A watcher that ends everything once ``step`` is done; it runs before the checkpoint of that step."""

    def watch(state, info):
        if state.step == step:
            raise Cut

    return lambda which, length: (watch,) if which == leg else ()


class TestResuming:
    @pytest.mark.parametrize("solver", [TINY, STRICT], ids=["imf", "sinkhorn"])
    @pytest.mark.parametrize("every", [0.0, 1e9], ids=["each step", "never"])
    def test_a_run_cut_anywhere_ends_in_the_same_bytes(self, tmp_path, solver, every, dtype):
        course = tuple(legs(solver, dtype=dtype))
        whole = new_folder(tmp_path / "whole")
        train(whole, course, (0.0, 1.0), quiet, every=every)
        steps = int(whole.histories()[0][-1]["step"])
        assert steps >= 10
        broken = new_folder(tmp_path / "broken")
        for step in sorted({1, 2, 4, 5, 6, 7, 9, steps - 1, steps}):
            with pytest.raises(Cut):
                train(broken, course, (0.0, 1.0), cut_at(step), every=every)
        train(broken, course, (0.0, 1.0), quiet, every=every)
        assert contents(broken) == contents(whole)

    def test_a_course_cut_in_and_between_its_legs(self, tmp_path, monkeypatch):
        course, times = tuple(legs(TINY, 3)), (0.0, 1.0, 2.0, 3.0)
        whole, broken = new_folder(tmp_path / "whole", 3), new_folder(tmp_path / "broken", 3)
        train(whole, course, times, quiet, every=0)
        for leg in range(3):
            for step in (1, 8, 16):
                with pytest.raises(Cut):
                    train(broken, course, times, cut_at(step, leg), every=0)
        # Cut after the last bridge was saved, before the checkpoint was taken away.
        monkeypatch.setattr(type(broken.checkpoint_file), "unlink", cut_unlink(broken.checkpoint_file))
        with pytest.raises(Cut):
            train(broken, course, times, quiet, every=0)
        assert broken.checkpoint_file.exists()
        monkeypatch.undo()
        train(broken, course, times, quiet, every=0)
        assert contents(broken) == contents(whole)
        assert {path.name for path in whole.path.glob("bridge-*.json")} == {f"bridge-{leg}.json" for leg in (1, 2, 3)}

    def test_the_course_that_is_returned_is_the_one_in_the_folder(self, tmp_path):
        folder = new_folder(tmp_path / "run", 2)
        made = train(folder, legs(TINY, 2), (0.0, 1.0, 2.0), quiet, every=1e9)
        found = folder.course()
        x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
        assert found.times == made.times == (0, 1, 2)
        for one, other in zip(found.bridges, made.bridges, strict=True):
            assert torch.equal(one.transport(x, seed=3), other.transport(x, seed=3))

    def test_the_checkpoint_matters(self, tmp_path):
        # That resuming reads the state and not only begins anew: another state leads elsewhere.
        course = legs(TINY)
        whole, broken = new_folder(tmp_path / "whole"), new_folder(tmp_path / "broken")
        train(whole, course, (0.0, 1.0), quiet, every=0)
        with pytest.raises(Cut):
            train(broken, course, (0.0, 1.0), cut_at(8), every=0)
        found = Checkpoint.read(broken.checkpoint_file, broken.checksum())
        weights = next(
            key for key in found.state if key.startswith("learners.forward.module") and key.endswith("weight")
        )
        found.state[weights] = found.state[weights] + 0.1
        found.write(broken.checkpoint_file)
        train(broken, course, (0.0, 1.0), quiet, every=0)
        assert contents(broken)["bridge.safetensors"] != contents(whole)["bridge.safetensors"]


def cut_unlink(target):
    unlink = type(target).unlink

    def patched(path, missing_ok=False):
        if path == target:
            raise Cut
        unlink(path, missing_ok=missing_ok)

    return patched


class TestStopping:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_in_a_checkpoint_of_the_step_it_came_in(self, tmp_path, number):
        def watch(state, info):
            if state.step == 9:
                os.kill(os.getpid(), number)

        course, before = legs(TINY), signal.getsignal(number)
        whole, folder = new_folder(tmp_path / "whole"), new_folder(tmp_path / "run")
        with pytest.raises(Stopped) as stop:
            train(folder, course, (0.0, 1.0), lambda leg, length: (watch,), every=1e9)
        assert (stop.value.signal, stop.value.step) == (number, 9)
        assert Checkpoint.read(folder.checkpoint_file, folder.checksum()).state["step"] == 9
        assert signal.getsignal(number) is before
        train(folder, course, (0.0, 1.0), quiet, every=1e9)
        train(whole, course, (0.0, 1.0), quiet, every=1e9)
        assert contents(folder) == contents(whole)

    def test_a_second_signal_does_not_wait(self):
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)

    def test_outside_the_main_thread_signals_are_left_alone(self):
        handlers = []

        def look():
            with StopRequest():
                handlers.append(signal.getsignal(signal.SIGINT))

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert handlers == [signal.getsignal(signal.SIGINT)]


class TestNaN:
    def test_nan_in_the_loss_names_the_last_good_checkpoint(self, tmp_path):
        def spoil(leg, length):
            def watch(state, info):
                if state.step == 7:
                    for learner in state.learners.values():
                        for weight in learner.module.parameters():
                            weight.data.fill_(float("inf"))

            return (watch,)

        folder = new_folder(tmp_path / "run")
        good = {}

        def remember(state, info):
            good.update({"step": state.step})

        with pytest.raises(NonFiniteError, match=r"at step 8\..*last good checkpoint, from step 7, .*checkpoint\.saf"):
            train(folder, legs(TINY), (0.0, 1.0), lambda leg, n: (*spoil(leg, n), remember), every=0)
        assert good == {"step": 7}

    def test_a_state_with_nan_never_replaces_a_good_checkpoint(self, tmp_path):
        def spoil(state, info):
            if state.step == 7:
                next(iter(state.learners.values())).module.network.last.bias.data.fill_(float("nan"))

        folder = new_folder(tmp_path / "run")
        with pytest.raises(NonFiniteError, match=r"holds NaN at step 7 of 16.*learning rate.*checkpoint, from step 6"):
            train(folder, legs(TINY), (0.0, 1.0), lambda leg, length: (spoil,), every=0)
        assert Checkpoint.read(folder.checkpoint_file, folder.checksum()).state["step"] == 6

    def test_without_a_checkpoint_it_says_so(self, tmp_path):
        def spoil(state, info):
            info["loss"] = float("nan")

        steep = dataclasses.replace(TINY, optimisation=Optimisation(learning_rate=1e30, clip=1e30, batch=16))
        with pytest.raises(NonFiniteError, match=r"No checkpoint was written before\."):
            train(new_folder(tmp_path / "run"), legs(steep), (0.0, 1.0), quiet, every=1e9)


class TestCheckpoint:
    def test_round_trip_without_pickle(self, tmp_path):
        state = {
            "step": 3,
            "done": True,
            "x.y": torch.randn(2, 3),
            "n": torch.tensor(4),
            "rate": 0.1 + 0.2,
            "kind": "σ",
            "state": torch.get_rng_state(),
        }
        history = [{"step": 1, "loss": 1 / 3}, {"step": 2, "loss": 1e-300}]
        Checkpoint(2, state, history, "run").write(tmp_path / "c")
        found = Checkpoint.read(tmp_path / "c", "run")
        assert (found.leg, found.history) == (2, history)
        assert found.state.keys() == state.keys()
        for key, value in state.items():
            same = (
                torch.equal(found.state[key], value) if isinstance(value, torch.Tensor) else found.state[key] == value
            )
            assert same, key
        assert b"pickle" not in (tmp_path / "c").read_bytes()

    def test_damage_is_noticed(self, tmp_path):
        Checkpoint(0, {"step": 3}, [], "run").write(tmp_path / "c")
        whole = (tmp_path / "c").read_bytes()
        (tmp_path / "c").write_bytes(whole[:-5])
        with pytest.raises(FileFormatError, match="truncated"):
            Checkpoint.read(tmp_path / "c", "run")
        files.write_tensors(tmp_path / "c", {"a": torch.zeros(2)})
        with pytest.raises(FileFormatError, match="is not a checkpoint"):
            Checkpoint.read(tmp_path / "c", "run")
        files.write_tensors(tmp_path / "c", {"document": torch.tensor([123, 1, 2], dtype=torch.uint8)})
        with pytest.raises(FileFormatError, match=r"is damaged.*delete it"):
            Checkpoint.read(tmp_path / "c", "run")

    def test_that_of_another_version_is_told_apart_from_damage(self, tmp_path):
        text = json.dumps(documents.sealed({"format": "sbridge.checkpoint/2"})).encode()
        document = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        files.write_tensors(tmp_path / "c", {"document": document})
        with pytest.raises(
            FileFormatError, match=r"another version.*'sbridge.checkpoint/2'.*'sbridge.checkpoint/4'.*del"
        ):
            Checkpoint.read(tmp_path / "c", "run")

    def test_a_flipped_bit_is_noticed(self, tmp_path):
        path, generator = tmp_path / "c", torch.Generator().manual_seed(0)
        Checkpoint(0, {"step": 3, "x": torch.randn(5, generator=generator)}, [{"step": 1, "loss": 0.5}], "run").write(
            path
        )
        content = path.read_bytes()
        for bit in torch.randint(8 * len(content), (200,), generator=generator).tolist():
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with pytest.raises(FileFormatError):
                Checkpoint.read(path, "run")

    @pytest.mark.parametrize("change", [{"seed": 5}, {"inputs": [{"name": "a", "sha256": "12"}]}, {"held_out": 0.2}])
    def test_that_of_another_run_is_refused(self, change, tmp_path):
        """Another seed, other data, other options."""
        mine, other = new_folder(tmp_path / "mine"), new_folder(tmp_path / "other", **change)
        Checkpoint(0, {"step": 3}, [], other.checksum()).write(mine.checkpoint_file)
        with pytest.raises(FileFormatError, match="belongs to a run with other settings or data"):
            train(mine, legs(TINY), (0.0, 1.0), quiet, every=1e9)


def state_at(step):
    state = State(0)
    state.step = step
    return state


class TestHistory:
    def test_short_runs_are_kept_whole(self):
        history = History(HISTORY_ROWS)
        for step in range(1, 51):
            history(state_at(step), {"loss": 1.0 / step})
        assert [row["step"] for row in history.rows] == list(range(1, 51))

    def test_long_runs_are_thinned_and_keep_the_latest_step(self):
        history = History(10 * HISTORY_ROWS - 3)
        for step in range(1, 96):
            history(state_at(step), {"loss": float(step)})
        assert [row["step"] for row in history.rows] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 95]

    def test_the_file(self, tmp_path):
        folder = new_folder(tmp_path / "run")
        histories = [[{"step": 1, "loss": 0.1}, {"step": 2, "loss": 1e-12}], []]
        folder.write_histories(histories)
        assert folder.histories() == histories
        assert json.loads(folder.history_file.read_text())["legs"] == histories
        documents.write_text(folder.history_file, "{}")
        with pytest.raises(FileFormatError, match="is not a history"):
            folder.histories()


class TestFolder:
    def test_a_folder_that_is_used_is_refused(self, tmp_path):
        new_folder(tmp_path / "run")
        with pytest.raises(InvalidInputError, match=r"holds an unfinished run\. .*--resume"):
            check_vacant(tmp_path / "run")
        documents.write_text(tmp_path / "run" / "report.json", "{}")
        with pytest.raises(
            InvalidInputError, match=r"holds another run\. Choose another --out, or delete the folder first\.$"
        ):
            new_folder(tmp_path / "run")
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.tex").touch()
        with pytest.raises(InvalidInputError, match="is not empty"):
            new_folder(tmp_path / "mine")
        with pytest.raises(InvalidInputError, match="is a file"):
            new_folder(tmp_path / "mine" / "thesis.tex")

    def test_an_empty_folder_and_what_a_kill_left_are_no_run(self, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / ".config.json.ab12.part").touch()
        new_folder(tmp_path / "run")

    def test_a_failing_disk_leaves_no_folder(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            new_folder(tmp_path / "run")
        assert list(tmp_path.iterdir()) == []

    def test_discarding_takes_only_what_is_young(self, tmp_path):
        for name in ("young", "old"):
            with RunFolder.claimed(tmp_path / name) as folder:
                folder.create(CONFIG)
                if name == "old":
                    documents.write_text(folder.path / "bridge.json", "{}")
                folder.discard()
        assert [path.name for path in tmp_path.iterdir()] == ["old"]
        assert len(list((tmp_path / "old").iterdir())) == 2

    def test_an_empty_folder_of_the_user_stays(self, tmp_path):
        (tmp_path / "run").mkdir()
        with RunFolder.claimed(tmp_path / "run") as folder:
            folder.create(CONFIG)
            folder.discard()
        assert names_in(tmp_path) == ["run"]
        assert names_in(tmp_path / "run") == []

    def test_reopening_needs_the_same_settings(self, tmp_path):
        folder = new_folder(tmp_path / "run")
        (folder.path / ".bridge.json.xy.part").touch()
        moved = {**CONFIG, "inputs": [{"name": "elsewhere/a", "sha256": "11"}], "threads": 8, "times": (0, 1.0)}
        with RunFolder.claimed(folder.path) as again:
            again.reopen(moved)
        assert [path.name for path in folder.path.iterdir()] == ["config.json"]
        for change, message in [
            ({"seed": 5}, "seed was 4, is 5"),
            ({"inputs": [{"name": "a", "sha256": "12"}]}, r'inputs\[0\]\.sha256 was "11", is "12"'),
            ({"held_out": 0.2}, r"held_out was null, is 0\.2"),
        ]:
            with (
                pytest.raises(InvalidInputError, match=f"{message}.*start a new run"),
                RunFolder.claimed(folder.path) as again,
            ):
                again.reopen({**CONFIG, **change})

    def test_what_is_no_run_folder(self, tmp_path):
        with pytest.raises(FileFormatError, match="does not exist"):
            RunFolder(tmp_path / "no").config()
        with pytest.raises(FileFormatError, match=r"has no config\.json"):
            RunFolder(tmp_path).course()
        documents.write_text(tmp_path / "config.json", '{"format": "other"}')
        with pytest.raises(FileFormatError, match=f"expected format '{RUN_FORMAT}'"):
            RunFolder(tmp_path).config()
        with pytest.raises(FileFormatError, match=r"no finished model.*--resume"):
            new_folder(tmp_path / "run").course()

    def test_a_bridge_of_another_run_is_refused(self, tmp_path):
        mine, other = new_folder(tmp_path / "mine"), new_folder(tmp_path / "other", seed=5)
        for folder in (mine, other):
            train(folder, legs(TINY), (0.0, 1.0), quiet, every=1e9)
        for name in ("bridge.json", "bridge.safetensors"):
            (other.path / name).replace(mine.path / name)
        with pytest.raises(FileFormatError, match="fitted with other settings or data"):
            mine.course()

    def test_a_config_that_was_changed_is_refused(self, tmp_path):
        folder = new_folder(tmp_path / "run")
        text = folder.config_file.read_text()
        documents.write_text(folder.config_file, text.replace("1.0", "2.0"))
        with pytest.raises(FileFormatError, match="was changed after it was saved"):
            folder.config()
        old = text.replace("sbridge.run/2", "sbridge.run/1")
        for times in ("null", "[]", "[0]", "[1, 0]", '["0", 1]', "7"):
            document = json.loads(old) | {"times": json.loads(times)}
            documents.write_text(folder.config_file, json.dumps(document))
            with pytest.raises(FileFormatError), pytest.warns(UnverifiedFileWarning):
                folder.course()

    def test_differences_are_told_by_place(self):
        old = {"a": {"b": [1, {"c": 2}]}, "versions": 1, "x": "y" * 90}
        new = {"a": {"b": [1, {"c": 3}]}, "versions": 2, "x": "y" * 91, "new": None}
        first, second = differences(old, new)
        assert first == "a.b[1].c was 2, is 3"
        assert len(second) < 140
        assert differences(old, old) == []
        assert differences([1], [1, 2], "times") == ["times was [1], is [1, 2]"]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def at_once(count, work):
    """What ``work(index)`` returns or raises in so many threads that begin together."""
    barrier = threading.Barrier(count)

    def begin(index):
        barrier.wait()
        try:
            return work(index)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


class TestClaims:
    """Locks of ``flock`` are held by open files, so threads stand for processes here."""

    def test_one_at_a_time(self, tmp_path):
        path = tmp_path / "run"
        with (
            RunFolder.claimed(path),
            pytest.raises(InvalidInputError, match="another process is using"),
            RunFolder.claimed(path),
        ):
            pass
        with RunFolder.claimed(path):
            pass
        assert names_in(tmp_path) == []

    @pytest.mark.parametrize("there", [False, True])
    def test_of_many_starts_one_writes(self, tmp_path, there):
        for start in range(20):
            path = tmp_path / f"run{start}"
            if there:
                path.mkdir()

            def begin(index, path=path):
                with RunFolder.claimed(path) as folder:
                    folder.create({**CONFIG, "seed": index})
                    time.sleep(0.002)
                    folder.write_histories([[{"step": index}]])
                    folder.tidy()
                    return index

            found = at_once(6, begin)
            (winner,) = (result for result in found if isinstance(result, int))
            others = [result for result in found if result != winner]
            assert {type(error) for error in others} == {InvalidInputError}, others
            assert RunFolder(path).config()["seed"] == winner
            assert RunFolder(path).histories() == [[{"step": winner}]]
            assert names_in(path) == ["config.json", "history.json"]

    def test_many_starts_that_all_fail_leave_nothing(self, tmp_path):
        path, entered = tmp_path / "run", []

        def fail(index):
            with RunFolder.claimed(path) as folder:
                folder.create(CONFIG)
                entered.append(index)
                folder.discard()

        for _ in range(20):
            found = at_once(6, fail)
            assert {type(error) for error in found} <= {InvalidInputError, type(None)}, found
            # The folder may stay, empty, if the one that made it was not the one that got the lock.
            assert not path.exists() or names_in(path) == []
        assert len(entered) >= 20

    def test_a_lock_on_a_folder_that_was_removed_is_no_claim(self, tmp_path, monkeypatch):
        path, lock = tmp_path / "run", claims._lock
        replaced = []

        def slow(handle, path):
            if not replaced:  # another process held the folder until now, and removed it
                path.rmdir()
                path.mkdir()
                replaced.append(path)
            lock(handle, path)

        monkeypatch.setattr(claims, "_lock", slow)
        with RunFolder.claimed(path):
            monkeypatch.undo()
            with pytest.raises(InvalidInputError, match="another process"), RunFolder.claimed(path):
                pass

    def test_a_file_system_without_locks_is_told(self, tmp_path, monkeypatch):
        def none(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("fcntl.flock", none)
        with pytest.warns(SbridgeWarning, match="has no locks"), RunFolder.claimed(tmp_path / "run") as folder:
            folder.create(CONFIG)
        assert names_in(tmp_path / "run") == ["config.json"]

    def test_parts_are_removed_below_the_folder_and_nowhere_else(self, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / ".a.1-2.part").touch()
        with RunFolder.claimed(tmp_path / "run") as folder:
            folder.create(CONFIG)
            folder.figures.mkdir()
            (folder.figures / ".history.png.1-2.part").touch()
            (folder.figures / "history.png").touch()
            (folder.path / "link").symlink_to(tmp_path / "elsewhere")
            documents.write_text(folder.checkpoint_file, "")
            folder.tidy()
        assert names_in(folder.path) == ["config.json", "figures", "link"]
        assert names_in(folder.figures) == ["history.png"]
        assert names_in(tmp_path / "elsewhere") == [".a.1-2.part"]
