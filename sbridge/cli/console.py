"""Terminal output: results on stdout, everything else on stderr, progress bars on terminals only."""

from __future__ import annotations

import re
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sbridge.training import Numbers, State

_WIDTH = 100
# Control characters but for line ends and tabs, and marks that turn the direction of writing: names may hold them, and
# a terminal would obey.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_LONG = 20.0  # seconds; shorter runs need no estimate
_REDRAWN = 0.1  # seconds between numbers on a bar
_LOOK = 2.0  # seconds of training before the estimate


@dataclass(frozen=True)
class Console:
    """Output streams of the command line.

    Args:
        arguments: the command line without the name of the program.
        quiet: whether progress and notes are suppressed.

    Control characters, and characters that the encoding of the stream does not have, are escaped.
    """

    arguments: Sequence[str] = ()
    quiet: bool = False

    @property
    def interactive(self) -> bool:
        """Whether progress bars may be drawn: stderr is a terminal, and --quiet was not given."""
        return not self.quiet and sys.stderr.isatty()

    def say(self, text: str = "") -> None:
        """Prints a result on stdout."""
        _write(text)

    def tell(self, text: str) -> None:
        """Prints a wrapped note on stdout, unless quiet."""
        if not self.quiet:
            self.say(_wrapped(text))

    def remark(self, text: str) -> None:
        """Prints a remark on stderr, unless quiet."""
        if not self.quiet:
            _write(text, aside=True)

    def renew(self, text: str) -> None:
        """Replaces the last line on stderr, a terminal; an empty text clears it."""
        sys.stderr.write(f"\r\x1b[K{_harmless(text[:_WIDTH], sys.stderr.encoding)}")
        sys.stderr.flush()

    def complain(self, message: str, command: str = "") -> None:
        """Prints a wrapped error or warning on stderr, followed by a command on a line of its own."""
        _write(_wrapped(f"sbridge: {message}") + (f"\n  {command}" if command else ""), aside=True)


@dataclass
class Progress:
    """Training callback that draws a bar on a terminal; elsewhere it prints a line at each quarter of a long run.

    After two seconds of training, time and memory are estimated; the estimate is printed if 20 seconds or more remain.

    Args:
        console: where to draw.
        label: name of what is trained.
        length: the number of steps, or the largest number if ``open_ended``.
        open_ended: whether training may converge and end earlier.
        advice: printed with the estimate.
    """

    console: Console
    label: str
    length: int
    open_ended: bool
    advice: str
    _begun: tuple[float, int] | None = field(default=None, init=False)
    _estimated: bool = field(default=False, init=False)
    _next: float = field(default=float("inf"), init=False)
    _bar: Any = field(default=None, init=False)

    def __call__(self, state: State, info: Numbers) -> None:
        """Updates the display after a step."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = (now, state.step)
            self._open_bar(state.step)
        elif not self._estimated and now - self._begun[0] >= _LOOK:
            self._estimated = True
            self._estimate(state.step, now)
        if self._bar is not None:
            if now >= self._next:  # reading numbers at every step would hold up an accelerator
                self._next = now + _REDRAWN
                self._bar.set_postfix_str(_numbers(info), refresh=False)
            self._bar.update(state.step - self._bar.n)
        elif state.step >= self._next and state.step < self.length:
            self._next += self.length / 4
            left = duration(self._left(state.step, now))
            self.console.remark(f"{self.label}: step {state.step} of {self.length}, {_numbers(info)}, {left} left")

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()

    def _open_bar(self, step: int) -> None:
        if not self.console.interactive:
            return
        from tqdm import tqdm

        total = None if self.open_ended else self.length
        self._next = 0.0
        self._bar = tqdm(desc=self.label, total=total, initial=step, unit="step", dynamic_ncols=True, leave=False)

    def _left(self, step: int, now: float) -> float:
        begun, first = self._begun or (now, step)
        return (now - begun) / max(step - first, 1) * (self.length - step)

    def _estimate(self, step: int, now: float) -> None:
        left = self._left(step, now)
        if left < _LONG:
            return
        memory = peak_memory()
        pieces = [
            f"{self.label}: {'at most ' if self.open_ended else 'about '}{duration(left)} for {self.length} steps",
            *([f"{memory / 2**30:.2f} GiB of memory so far"] if memory else []),
            self.advice,
        ]
        text = "; ".join(pieces) + "."
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            self.console.remark(text)
            self._next = float("inf") if self.open_ended else (step * 4 // self.length + 1) * self.length / 4


@dataclass
class ScoringBar:
    """Evaluation watcher that draws a bar on a terminal, and nothing elsewhere.

    Args:
        console: where to.
    """

    console: Console
    _bar: Any = field(default=None, init=False)

    def expect(self, more: int) -> None:
        """Adds ``more`` steps to the bar."""
        if not self.console.interactive:
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(desc="scoring", total=0, unit="score", dynamic_ncols=True, leave=False)
        self._bar.total += more
        self._bar.refresh()

    def done(self, what: str) -> None:
        """Advances the bar by one step."""
        if self._bar is not None:
            self._bar.set_postfix_str(what, refresh=False)
            self._bar.update()

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def duration(seconds: float) -> str:
    """Formats a duration, rounded for reading."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def peak_memory() -> int | None:
    """Returns the peak memory of this process in bytes; ``None`` where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _numbers(info: Numbers) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in info.items())


def _write(text: str, *, aside: bool = False) -> None:
    stream = sys.stderr if aside else sys.stdout
    stream.write(_harmless(text, stream.encoding) + "\n")
    stream.flush()


def _harmless(text: str, encoding: str | None) -> str:
    """Removes control characters from ``text``, and replaces characters that the encoding lacks."""
    plain = _CONTROL.sub(lambda hit: f"\\u{ord(hit[0]):04x}", text)
    return plain.encode(encoding or "utf-8", "backslashreplace").decode(encoding or "utf-8")


def _wrapped(text: str) -> str:
    wrap = textwrap.TextWrapper(_WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(wrap.wrap(text))
