"""Progress of an evaluation, for displays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, runtime_checkable


@runtime_checkable
class Watcher(Protocol):
    """Receiver of the progress of an evaluation."""

    def expect(self, more: int) -> None:
        """Announces further scores."""
        ...

    def done(self, what: str) -> None:
        """Reports that one score is computed."""
        ...


_WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Reports the progress of evaluations in this thread to ``watcher``; results do not depend on it."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def expect(more: int) -> None:
    """Announces further scores to the watcher, if there is one."""
    watcher = _WATCHER.get()
    if watcher is not None:
        watcher.expect(more)


def done(what: str) -> None:
    """Reports a computed score to the watcher, if there is one."""
    watcher = _WATCHER.get()
    if watcher is not None:
        watcher.done(what)
