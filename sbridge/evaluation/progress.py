"""How far an evaluation has come, for who waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, runtime_checkable


@runtime_checkable
class Watcher(Protocol):
    """Is told what an evaluation does."""

    def expect(self, more: int) -> None:
        """So many scores are to come."""
        ...

    def done(self, what: str) -> None:
        """One of them is computed."""
        ...


_WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """While entered, evaluations in this thread tell ``watcher`` how far they are. Results do not depend on it."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def expect(more: int) -> None:
    """Tells the watcher, if there is one, of scores to come."""
    watcher = _WATCHER.get()
    if watcher is not None:
        watcher.expect(more)


def done(what: str) -> None:
    """Tells the watcher, if there is one, of a score that is computed."""
    watcher = _WATCHER.get()
    if watcher is not None:
        watcher.done(what)
