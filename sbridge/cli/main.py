"""Runs a command line and returns an exit code."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sbridge.cli.console import Console
from sbridge.errors import DistributedError, NonFiniteError, NotConvergedError, SbridgeError, SbridgeWarning, cut
from sbridge.launched import launched

BAD_INPUT = 2
FAILED = 3
_RUNNERS = {
    "Demo": "fit.run_demo",
    "Fit": "fit.run_fit",
    "Diffuse": "fit.run_diffuse",
    "Sample": "sample.run_sample",
    "Evaluate": "score.run_evaluate",
    "CrossValidate": "score.run_cross_validate",
    "Plot": "figures.run_plot",
    "Report": "report.run_report",
    "Verify": "verify.run_verify",
    "Control": "control.run_control",
    "Benchmark": "benchmark.run_benchmark",
}
"""For each command class, the module and function that run it, imported only when needed."""
_FOLLOWERS = {"Demo": "fit.follow", "Fit": "fit.follow", "Diffuse": "fit.follow", "Control": "control.follow"}
"""The same for the processes of torchrun that share the work of the first one."""


def main() -> None:
    """Runs the console script ``sbridge``."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command line; returns the exit code. Expected errors are printed on stderr without a traceback."""
    console = Console(tuple(arguments))
    if arguments == ["--version"]:
        console.say(f"sbridge {sys.modules['sbridge'].__version__}")
        return 0
    try:
        from sbridge.cli.early import check
        from sbridge.cli.parsing import parse

        with _warnings_told(console):
            command = parse(list(arguments))
            if launched()[0] > 0:
                return _follow(command)
            console = replace(console, quiet=command.quiet)
            check(command)
            return _runner(command)(command, console)
    except SystemExit as request:  # tyro's, after --help or a typing error
        return int(request.code or 0)
    except (DistributedError, NonFiniteError, NotConvergedError) as error:
        console.complain(str(error))
        return FAILED
    except SbridgeError as error:
        console.complain(str(error))
        return BAD_INPUT
    except BrokenPipeError:
        # The reader of our output left (`sbridge … | head`). Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + getattr(signal, "SIGPIPE", 13)
    except OSError as error:
        console.complain(_told(error))
        return BAD_INPUT
    except MemoryError as error:
        console.complain(f"Out of memory ({error}). Use fewer rows or columns, smaller batches, or a larger machine.")
        return BAD_INPUT
    except KeyboardInterrupt as stop:
        number = getattr(stop, "signal", signal.SIGINT)
        console.complain(getattr(stop, "advice", "Stopped."))
        return 128 + int(number)


def _follow(command: object) -> int:
    """Takes part in the fit of process 0, as another process of torchrun; leaves every other command to it."""
    place = _FOLLOWERS.get(type(command).__name__)
    if place is None:
        return 0
    module, _, function = place.partition(".")
    try:
        return getattr(importlib.import_module(f"sbridge.cli.{module}"), function)(command)
    except SbridgeError as error:
        raise type(error)(f"process {launched()[0]}: {error}") from error


def _runner(command: object) -> Callable[[Any, Console], int]:
    """Returns the function that runs the command and returns the exit code."""
    module, _, function = _RUNNERS[type(command).__name__].partition(".")
    return getattr(importlib.import_module(f"sbridge.cli.{module}"), function)


@contextmanager
def _warnings_told(console: Console) -> Iterator[None]:
    """Prints the package's own warnings as paragraphs on stderr; other warnings as Python does."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", SbridgeWarning)
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:  # noqa: ANN401
            if issubclass(category, SbridgeWarning):
                console.complain(f"warning: {message}")
            else:
                others(message, category, *where)

        warnings.showwarning = show
        yield


def _told(error: OSError) -> str:
    """Describes an error of the operating system, with a remedy where there is one."""
    where = f" ({cut(str(error.filename))})" if error.filename else ""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return (
            f"No space left on the disk{where}. No incomplete file was kept. Free some space, then repeat the command; "
            "--resume continues a fit that had begun."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"No permission{where}: {error.strerror}. Choose a writable place with --out."
    return f"{error.strerror or error}{where}."
