"""Checks that run before torch is imported: unknown words, missing files, existing folders, bad numbers.

All problems of a command line are reported together.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from sbridge.cli import commands
from sbridge.data.specs import ENDINGS, WRITTEN, check_spec
from sbridge.errors import FileFormatError, InvalidInputError, SbridgeError, UnknownNameError, shown
from sbridge.storage.claims import check_run, check_startable

_NO_INPUT = ("--out", "--json", "--figure", "--columns", "--rep", "--time-key", "--device", "--only")
"""Options whose values are never data sets."""

Check = Callable[[], None]


def check_words(kind: type, words: Sequence[str], found: Iterable[SbridgeError] = (), *, heavy: bool) -> None:
    """Raises an error for unknown options and missing data sets, before options are parsed.

    Args:
        kind: the class of the command.
        words: the command line after the name of the command.
        found: problems that are known already.
        heavy: whether torch is imported to parse the options. If not, :func:`check` reports missing data sets later,
            together with wrong values of options.
    """
    known = _names(kind)
    written = [word.partition("=")[0] for word in words if word.startswith("--") and len(word) > 2]
    unknown = [name for name in written if "." not in name and name.replace("_", "-") not in known]
    problems = [*found, *(_unknown_option(name, known) for name in unknown)]
    if problems or heavy:
        _refuse([*problems, *_problems(partial(check_spec, spec) for spec in _data_sets(kind, words))])


def _unknown_option(name: str, known: Iterable[str]) -> UnknownNameError:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}? " if near else ""
    return UnknownNameError(f"Unknown option {shown(name)}. {hint}All options: --help.")


def check(command: commands.Command) -> None:
    """Raises InvalidInputError with all problems of a parsed command that its words and the file system show."""
    checks = _CHECKS.get(type(command))
    _refuse(_problems(checks(command)) if checks else [])


def _names(kind: type) -> set[str]:
    """Returns the options of a command that have no prefix: those of its fields, and of the fields of ``reading``."""
    found = {"--help"}
    for item in dataclasses.fields(kind):
        name = item.name.removesuffix("_options").replace("_", "-")
        if item.name == "reading":
            found |= _names(commands.Reading)
        elif item.name not in ("inputs", "folder", "file") and (kind, name) != (commands.Diffuse, "input"):
            found |= {f"--{name}", f"--no-{name}"} if isinstance(item.default, bool) else {f"--{name}"}
    return found


def _data_sets(kind: type, words: Sequence[str]) -> Iterator[str]:
    """Yields the words that can only be data sets: those before the first option, and names of data files after any."""
    fields = {item.name for item in dataclasses.fields(kind)}
    first = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    if fields & {"inputs", "input"}:
        yield from words[int("folder" in fields) : first]
    option = ""
    for word in words[first:]:
        if word.startswith("-"):
            option = word.partition("=")[0].replace("_", "-")
        elif option not in _NO_INPUT and Path(word.rpartition(":")[0] or word).suffix.lower() in ENDINGS:
            yield word


def _problems(checks: Iterable[Check]) -> list[SbridgeError]:
    """Returns the errors that the checks raise, each message once."""
    found: dict[str, SbridgeError] = {}
    for make in checks:
        try:
            make()
        except SbridgeError as error:
            found.setdefault(str(error), error)
    return list(found.values())


def _refuse(problems: Sequence[SbridgeError]) -> None:
    if len(problems) == 1:
        raise problems[0]
    if problems:
        listed = " ".join(f"({place}) {problem}" for place, problem in enumerate(problems, 1))
        raise InvalidInputError(f"{len(problems)} problems found. {listed}")


def _require(holds: bool, message: str) -> Check:  # noqa: FBT001
    def check() -> None:
        if not holds:
            raise InvalidInputError(message)

    return check


def _seed(seed: int) -> Check:
    return _require(0 <= seed < 2**63, f"--seed must be an integer from 0 to 2**63 − 1, got {seed}.")


def _new_file(option: str, path: Path | None, ending: str = "") -> Iterator[Check]:
    """Checks that a file may be written."""
    if path is None:
        return
    yield _require(not path.exists(), f"{path} exists. Choose another {option}.")
    yield _require(path.parent.is_dir(), f"the folder {path.parent} does not exist. Create it first.")
    if ending:
        yield _require(path.suffix.lower() == ending, f"{option} writes a {ending} file, got {path}.")


def _demo(command: commands.Demo) -> Iterator[Check]:
    yield partial(check_startable, command.out, resume=command.resume)
    yield _seed(command.seed)


def _of_training(command: commands.Training) -> Iterator[Check]:
    share, every, rows = command.held_out, command.checkpoint_every, command.reading.rows
    yield partial(check_startable, command.out, resume=command.resume)
    yield _seed(command.seed)
    yield _require(0 <= share < 1, f"the held-out fraction must lie in [0, 1), got {share:g}.")
    yield _require(every >= 0, f"--checkpoint-every must be a number of seconds, got {every:g}.")
    yield _require(rows >= 1, f"--rows must be positive, got {rows}.")


def _positive(sizes: dict[str, float | None]) -> Iterator[Check]:
    for name, value in sizes.items():
        if value is not None:
            yield _require(0 < value < math.inf, f"{name} must be a positive number, got {value:g}.")


def _python_name(option: str, given: str | None) -> Iterator[Check]:
    if given is not None:
        file = given.rpartition(":")[0]
        yield _require(
            Path(file).is_file() if file else False,
            f"{option} takes FILE.py:NAME, and {shown(file or given)} is not the path of a file.",
        )


def _fit(command: commands.Fit) -> Iterator[Check]:  # type: ignore[type-arg]
    yield from (partial(check_spec, spec) for spec in command.inputs)
    yield from _of_training(command)
    yield from _positive({"--horizon": command.horizon, "--sigma": command.sigma, "--epsilon": command.epsilon})
    yield from _python_name("--state-cost", command.state_cost)
    if command.soft_ends is not None:
        yield _require(
            all(price >= 0 for price in command.soft_ends),
            f"--soft-ends takes two prices in nats, 0 or more, or inf; got {command.soft_ends[0]:g} and "
            f"{command.soft_ends[1]:g}.",
        )
    twice = command.sigma is not None and command.epsilon is not None
    yield _require(
        not twice,
        "--sigma and --epsilon were both given; ε = σ² T determines one from the other. Give only one of them.",
    )


def _diffuse(command: commands.Diffuse) -> Iterator[Check]:  # type: ignore[type-arg]
    yield partial(check_spec, command.input)
    yield from _of_training(command)
    yield from _positive({"--horizon": command.horizon})


def _sample(command: commands.Sample) -> Iterator[Check]:
    n, out = command.n, command.out
    yield partial(check_run, command.folder)
    one = (command.input is None) != (n is None)
    yield _require(one, "no samples to start from: give --input FILE, or --n N to draw them.")
    yield _require(n is None or n >= 1, f"--n must be positive, got {n}.")
    if command.input is not None:
        yield partial(check_spec, command.input)
    yield _seed(command.seed)
    if out.suffix.lower() in WRITTEN:
        taken = out.is_dir() or (out.exists() and not command.overwrite)
        yield _require(not taken, f"{out} exists. Choose another --out, or add --overwrite.")
        yield _require(out.parent.is_dir(), f"the folder {out.parent} does not exist. Create it first.")
    else:
        told = f"{out} has the ending {shown(out.suffix)}; samples are written as .npy, .csv or .h5ad."
        yield partial(_refuse, [FileFormatError(told)])


def _evaluate(command: commands.Evaluate) -> Iterator[Check]:
    yield partial(check_run, command.folder)
    yield from (partial(check_spec, spec) for spec in command.inputs)
    yield from _new_file("--out", command.out)
    yield from _new_file("--figure", command.figure, ".png")
    yield _seed(command.seed)


def _cross_validate(command: commands.CrossValidate) -> Iterator[Check]:
    yield from (partial(check_spec, spec) for spec in command.inputs)
    yield from _positive({"--sigma": command.sigma})
    yield _require(command.max_rows >= 4, f"--max-rows must be at least 4, got {command.max_rows}.")
    yield from map(_seed, command.seeds)


def _plot(command: commands.Plot) -> Iterator[Check]:
    yield partial(check_run, command.folder)
    yield _require(command.rows >= 2, f"--rows must be at least 2, got {command.rows}.")
    yield _seed(command.seed)


def _report(command: commands.Report) -> Iterator[Check]:
    yield partial(check_run, command.folder)
    out = command.out or command.folder / "report.html"
    yield _require(out.suffix.lower() == ".html", f"--out writes an .html file, got {out}.")
    yield _require(command.overwrite or not out.exists(), f"{out} exists. Choose another --out, or add --overwrite.")
    yield _require(out.parent.is_dir(), f"the folder {out.parent} does not exist. Create it first.")


def _verify(command: commands.Verify) -> Iterator[Check]:  # type: ignore[type-arg]
    if command.list:
        return
    for name, value, least in (("--samples", command.samples, 100), ("--max-rows", command.max_rows, 2)):
        yield _require(value >= least, f"{name} must be at least {least}, got {value}.")
    yield _seed(command.seed)
    both = command.model is not None and command.process != "auto"
    yield _require(not both, "--model has its own noising process; omit --process.")
    yield _require(
        command.network is None or (command.data is not None and command.model is None),
        "--network needs --data, the rows on which it was trained, and no --model.",
    )
    yield from _python_name("--network", command.network)
    yield from _new_file("--json", None if command.json in (None, "-") else Path(command.json))
    if command.data is not None:
        yield partial(check_spec, command.data)
    if command.model is not None:
        yield partial(check_run, command.model)


def _control(command: commands.Control) -> Iterator[Check]:
    yield _require(command.file.is_file(), f"{command.file} does not exist.")
    yield _require(command.paths >= 2, f"--paths must be at least 2, got {command.paths}.")
    yield _seed(command.seed)
    if command.out is not None:
        yield partial(check_startable, command.out)


_CHECKS: dict[type, Callable[..., Iterator[Check]]] = {
    commands.Demo: _demo,
    commands.Fit: _fit,
    commands.Diffuse: _diffuse,
    commands.Sample: _sample,
    commands.Evaluate: _evaluate,
    commands.CrossValidate: _cross_validate,
    commands.Plot: _plot,
    commands.Report: _report,
    commands.Verify: _verify,
    commands.Control: _control,
}
