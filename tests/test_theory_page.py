"""The tables of the theory page name only functions that an identity of the same row executes."""

import dataclasses
import importlib
import inspect
import re
import sys
import types
from pathlib import Path

import pytest

from sbridge.identities import identities, standard_settings

PAGE = Path(__file__).parents[1] / "docs" / "theory.md"
TABLE = {one.name: one for one in identities()}
SETTINGS = [dataclasses.replace(one, samples=100, steps=20) for one in standard_settings(seed=1)]


def rows():
    """The functions and the identities of each row that names a function."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        named = re.findall(r"\{py:(?:func|class|meth)\}`~?([\w.]+)`", line)
        if line.startswith("|") and named:
            yield named, re.findall(r"identities\.md#(\w+)", line)


def resolved(path):
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for name in parts[length:]:
            found = getattr(found, name)
        return found
    raise ImportError(path)


def codes(thing):
    """The code objects of a function, or of the methods that a class itself defines."""
    if inspect.isclass(thing):
        own = [one for name, one in vars(thing).items() if name not in {"__init__", "__post_init__", "__repr__"}]
        return set().union(*(codes(getattr(one, "__func__", None) or getattr(one, "func", one)) for one in own))
    if isinstance(thing, property):
        return codes(thing.fget)
    thing = inspect.unwrap(thing) if callable(thing) else thing
    return {thing.__code__} if isinstance(thing, types.FunctionType) else set()


def executed(name):
    """The code objects that an identity runs, in the first setting under which it applies (VP last: DDPM)."""
    one = TABLE[name]
    setting = next(s for s in (SETTINGS[1], *SETTINGS) if one.applies(s))
    seen = set()

    def profile(frame, event, _):
        if event == "call":
            seen.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        one(setting)
    finally:
        sys.setprofile(before)
    return seen


@pytest.mark.parametrize(
    ("named", "checks"), list(rows()), ids=lambda one: one[0].rpartition(".")[2] if one else "none"
)
def test_every_function_of_a_row_is_executed_by_its_identities(named, checks):
    left = set(named)
    for name in checks:
        if not left:
            break
        seen = executed(name)
        left = {path for path in left if not codes(resolved(path)) & seen}
    assert not left, f"{sorted(left)} stand beside {checks}, which do not call them"


def test_every_identity_of_the_page_exists():
    linked = set(re.findall(r"identities\.md#(\w+)", PAGE.read_text(encoding="utf-8")))
    assert linked <= set(TABLE), linked - set(TABLE)
