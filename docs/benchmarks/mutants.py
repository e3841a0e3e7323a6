"""Errors of one line, and whether identities and tests see them: ``python -m docs.benchmarks.mutants``.

Every mutant changes one operator, constant or transpose in a line that computes. It is run in a copy of the package: by
the identities of `sbridge verify` that execute the line, each in one setting with few samples, then by the tests and
the three files of tests that name best what is around the line or calls it. About an hour for 150 mutants;
``--only PATH`` takes some modules.
"""

from __future__ import annotations

import ast
import heapq
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import tyro

from sbridge.benchmarks.output import say
from sbridge.identities import identities, standard_settings

ROOT = Path(__file__).parents[2]
ROOMS = ("functionals", "measures", "processes", "objectives", "diffusion", "pde")
_SAMPLES, _STEPS = 400, 30
_SECONDS = 240
_MOST_TESTS = 12
_LEAST = 1e-4  # weight of a name that is followed
_SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.MatMult: ast.Mult}
_QUIET = (ast.Raise, ast.Assert, ast.AnnAssign, ast.JoinedStr, ast.Compare, ast.arguments)


@dataclass(frozen=True)
class Options:
    """Options of the run.

    Args:
        count: mutants drawn at random from all that there are.
        seed: of the draw.
        skip: how many of the draw to leave out, done in an earlier run.
        only: parts of paths of modules to mutate, such as ``functionals/action``; all of the six rooms if empty.
        known: run :data:`KNOWN` instead.
    """

    count: int = 150
    seed: int = 0
    skip: int = 0
    only: tuple[str, ...] = ()
    known: bool = False


@dataclass(frozen=True)
class Mutant:
    """One changed line.

    Args:
        path: of the module, from the root.
        line: its number.
        function: the class and function around it.
        before, after: the line.
        source: of the changed module.
    """

    path: str
    line: int
    function: tuple[str, ...]
    before: str
    after: str
    source: str = field(repr=False)


KNOWN = (
    ("functionals/action", "return 0.5 * (control_value(control, t, x) - control_value(optimal",
     "return 1.0 * (control_value(control, t, x) - control_value(optimal"),
    ("diffusion/samplers", "law.covariance * (0.5 * step_size)", "law.covariance * (1.0 * step_size)"),
    ("pde/propagator", "p[..., :-1] - self.right * p[..., 1:]", "p[..., :-1] + self.right * p[..., 1:]"),
    ("measures/ratios", "return sums[0] - sums[1]", "return sums[1] - sums[0]"),
    ("diffusion/conversions", "self.process.scale(t).T.to(x)(checked", "self.process.scale(t).to(x)(checked"),
    ("diffusion/conversions", "(x - repeat_per_row(law.offset, len(x)).to(x) + law.cov", "(x + law.cov"),
    ("diffusion/samplers", "return pinned_kernel(process, s, t).root", "return process.transition(s, t).root"),
    ("diffusion/ddpm", "/ ratio + before * noise", "/ ratio + 0.9 * before * noise"),
    ("diffusion/ddpm", "shared = self.betas / (2.0 * self.alphas)", "shared = self.betas / 2.0"),
    ("functionals/entropy", "return spread + drift_divergence", "return spread * 2.0 + drift_divergence"),
    ("objectives/score_matching", "1.0 if probes is None else 1.0 / len(probes)", "1.0"),
    ("processes/base", "return self._steady_part(x_start, x_end) - self.noise_gain_forward",
     "return self._steady_part(x_start, x_end) + self.noise_gain_forward"),
    ("functionals/quadrature", "inside = knots_from(paths, start_time)", "inside = knots_from(paths, start_time)[:-1]"),
    ("functionals/quadrature", "return 0.5, 0.5", "return 1.0, 0.0"),
)  # fmt: skip
"""Errors that stayed green in 0.1.0: module, text, replacement."""


def known() -> Iterator[Mutant]:
    """Yields :data:`KNOWN`; raises ValueError if the code has changed so that one does not apply."""
    for module, before, after in KNOWN:
        path = ROOT / "sbridge" / f"{module}.py"
        source = path.read_text(encoding="utf-8")
        if source.count(before) != 1:
            raise ValueError(f"{module} has {source.count(before)} lines with {before}; write the change anew.")
        line = source[: source.index(before)].count("\n") + 1
        place, function = str(path.relative_to(ROOT)), _around(ast.parse(source), line)
        yield Mutant(place, line, function, before, after, source.replace(before, after))


def _around(tree: ast.AST, line: int) -> tuple[str, ...]:
    """Returns the names of the class and function around a line."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)) and child.lineno <= line <= (child.end_lineno or 0):
            return (child.name, *_around(child, line))
    return ()


def mutants(path: Path) -> Iterator[Mutant]:
    """Yields every mutant of a module."""
    source = path.read_text(encoding="utf-8")
    lines, tree = source.splitlines(keepends=True), ast.parse(source)
    for node, function in _computing(tree, ()):
        for before, after in _changes(node):
            start, end = before.lineno - 1, before.end_lineno - 1  # type: ignore[operator]
            if start != end:
                continue
            text = lines[start].encode()
            changed = text[: before.col_offset] + f"({after})".encode() + text[before.end_col_offset :]
            whole = "".join([*lines[:start], changed.decode(), *lines[start + 1 :]])
            place = str(path.relative_to(ROOT))
            yield Mutant(place, start + 1, function, lines[start].strip(), changed.decode().strip(), whole)


def _computing(node: ast.AST, function: tuple[str, ...]) -> Iterator[tuple[ast.AST, tuple[str, ...]]]:
    """Yields expressions inside functions, without messages, checks of input, defaults and annotations."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _QUIET):
            continue
        inner = function
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            inner = (*function, child.name)
            if child.name in {"__post_init__", "__repr__", "refusal"} or child.name.startswith(("check", "_check")):
                continue
        if function:
            yield child, function
        yield from _computing(child, inner)


def _changes(node: ast.AST) -> Iterator[tuple[Any, str]]:
    """Yields expressions and what replaces them."""
    if isinstance(node, ast.BinOp) and type(node.op) in _SWAPS:
        yield node, ast.unparse(ast.BinOp(node.left, _SWAPS[type(node.op)](), node.right))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield node, ast.unparse(node.operand)
    elif isinstance(node, ast.Constant) and type(node.value) is float and 0.0 < node.value < 100.0:
        yield node, repr(2.0 * node.value)
    elif isinstance(node, ast.Attribute) and node.attr in {"T", "mT"}:
        yield node, ast.unparse(node.value)
    elif (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and not node.args
        and node.func.attr in {"inverse", "square", "sqrt", "exp", "log"}
    ):
        yield node, ast.unparse(node.func.value)


def executed() -> dict[tuple[str, int], list[str]]:
    """Runs every identity once, and returns which of them execute each line of the six rooms."""
    settings = [replace(one, samples=50, steps=10) for one in standard_settings(seed=1)]
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    rooms = tuple(f"{ROOT}/sbridge/{room}/" for room in ROOMS)
    for one in identities():
        seen = set[tuple[str, int]]()

        def local(frame: FrameType, event: str, _: object, seen: set[tuple[str, int]] = seen) -> Any:
            seen.add((frame.f_code.co_filename, frame.f_lineno))
            return local

        def start(frame: FrameType, event: str, _: object) -> Any:
            return local if frame.f_code.co_filename.startswith(rooms) else None

        setting = next(s for s in (settings[-1], settings[1], *settings) if one.applies(s))
        sys.settrace(start)
        try:
            one(setting)
        finally:
            sys.settrace(None)
        for name, line in seen:
            found[name[len(str(ROOT)) + 1 :], line].append(one.name)
    return found


def tests_of(mutant: Mutant) -> tuple[list[str], list[str]]:
    """Returns the tests, and the three files of tests, that name best what is around the line and what calls it.

    A name counts the less, the more files have it.
    """
    files, tests = _test_words()
    shares = {name: weight / max(sum(name in one for one in files.values()), 1) for name, weight in _near(mutant)}

    def best(count: int, words: dict[str, set[str]]) -> list[str]:
        return heapq.nlargest(count, words, lambda one: sum(shares[name] for name in words[one] & shares.keys()))

    return best(_MOST_TESTS, tests), best(3, files)


def _near(mutant: Mutant) -> Iterable[tuple[str, float]]:
    """Returns names near the line, with weights, and the attributes in it.

    The names around the line hand half of their weight to all that use them, in equal shares, and so on outwards.
    """
    _, room, stem = Path(mutant.path).with_suffix("").parts
    users, total = _users(), defaultdict[str, float](float)
    levels = 2 if mutant.function[0].lstrip("_")[0].isupper() else 1  # a class and its method, or a function
    ring = {_key(name, stem): 1.0 for name in (*mutant.function[:levels], f"{room}.{stem}")}
    while ring:
        outer = defaultdict[str, float](float)
        for name, weight in ring.items():
            total[name.split(":")[-1]] += weight
            for user in users[name]:
                outer[user] += 0.5 * weight / len(users[name])
        ring = {name: weight for name, weight in outer.items() if weight > _LEAST}
    for name in re.findall(r"\.(\w+)", mutant.before):
        total[name] += 0.5
    return total.items()


@cache
def _users() -> dict[str, set[str]]:
    """Returns which definitions use a name, in the package and the helpers of the tests; those of a module use its."""
    found: dict[str, set[str]] = defaultdict(set)

    def visit(node: ast.AST, around: str, path: Path) -> None:
        for child in ast.iter_child_nodes(node):
            inner, used = around, getattr(child, "id", None) or getattr(child, "attr", None)
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                inner = used = _key(child.name, path.stem)
            if used and around and not used.startswith("__"):
                found[_key(used, path.stem)].add(around)
            elif inner and not around:
                found[f"{path.parent.name}.{path.stem}"].add(inner)
            visit(child, inner, path)

    helpers = [one for one in (ROOT / "tests").glob("*.py") if not one.stem.startswith("test_")]
    for path in [*(ROOT / "sbridge").rglob("*.py"), *helpers]:
        visit(ast.parse(path.read_text(encoding="utf-8")), "", path)
    return found


def _key(name: str, stem: str) -> str:
    """Returns a name that is the module's own if it is private."""
    return f"{stem}:{name}" if name.startswith("_") else name


@cache
def _test_words() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Returns the words of every file of tests, with modules that it imports or is called after, and of every test."""
    files, tests = dict[str, set[str]](), dict[str, set[str]]()
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        place, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        title = path.stem.removeprefix("test_")
        modules = re.findall(r"sbridge\.(\w+\.\w+)", text) + [f"{room}.{title}" for room in ROOMS]
        files[place] = {*_words(text), *modules, title.replace("_", ".", 1)}
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                tests[f"{place}::{node.name}"] = _words(ast.unparse(node))
    return files, tests


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


_CHECK = """
import sys
from dataclasses import replace
from sbridge.identities import identities, standard_settings
names, (samples, steps) = sys.argv[3:], map(int, sys.argv[1:3])
settings = [replace(one, samples=samples, steps=steps) for one in standard_settings(seed=1)]
for one in identities():
    if one.name in names:
        setting = next(s for s in (settings[-1], settings[1], *settings) if one.applies(s))
        if not all(check.holds for check in one(setting)) and not all(c.holds for c in one(setting.again())):
            sys.exit(f"{one.name}")
"""


def killed(mutant: Mutant, home: Path, names: list[str]) -> str | None:
    """Returns what sees the mutant in the copy at ``home``: an identity, a test, or ``None``.

    Running out of time says nothing, since a loaded machine does too.
    """
    place = home / mutant.path
    kept = place.read_text(encoding="utf-8")
    place.write_text(mutant.source, encoding="utf-8")
    try:
        if names:
            found = _run([sys.executable, "-c", _CHECK, str(_SAMPLES), str(_STEPS), *names], home)
            if found is not None and found.returncode:
                return "identity: " + found.stderr.strip().splitlines()[-1][:80]
        single, files = tests_of(mutant)
        for chosen in ([single] if single else []) + [[one] for one in files]:
            found = _run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *chosen], home)
            if found is not None and found.returncode:
                return f"test: {_failed(found) or chosen[0]}"
        return None
    finally:
        place.write_text(kept, encoding="utf-8")


def _failed(found: subprocess.CompletedProcess[str]) -> str:
    """Returns the test that failed; nothing if none ran."""
    lines = found.stdout.splitlines()
    return next((line.split(" ")[1] for line in lines if line.startswith(("FAILED", "ERROR"))), "")


def _run(command: list[str], home: Path) -> subprocess.CompletedProcess[str] | None:
    """Returns ``None`` after a timeout."""
    try:
        return subprocess.run(
            command, cwd=home, env={**_environment(), "PYTHONPATH": str(home)}, capture_output=True, text=True,
            timeout=_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "Agg"}


def main(options: Options) -> None:
    """Prints one line for each mutant, survivors with the change, and the share that is seen."""
    paths = [path for room in ROOMS for path in sorted((ROOT / "sbridge" / room).glob("*.py"))]
    paths = [path for path in paths if not options.only or any(part in str(path) for part in options.only)]
    every = list(known()) if options.known else [one for path in paths for one in mutants(path)]
    drawn = every if options.known else random.Random(options.seed).sample(every, min(options.count, len(every)))
    drawn = drawn[options.skip :]
    by_line, survivors = executed(), 0
    say(f"{len(drawn)} of {len(every)} mutants")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for name in ("sbridge", "tests", "docs", "examples", "pyproject.toml", "README.md"):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, home / name, ignore=shutil.ignore_patterns("__pycache__", "generated"))
            else:
                shutil.copy(source, home / name)
        for number, mutant in enumerate(drawn, options.skip + 1):
            seen = killed(mutant, home, by_line.get((mutant.path, mutant.line), []))
            survivors += seen is None
            say(f"{number:3} {mutant.path}:{mutant.line} {seen or 'SURVIVES'}")
            if seen is None:
                say(f"      - {mutant.before}\n      + {mutant.after}")
    say(f"{len(drawn) - survivors} of {len(drawn)} mutants are seen")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
