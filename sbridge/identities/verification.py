"""All chosen identities in all settings as one result: a table as text, and JSON."""

from __future__ import annotations

import math
import multiprocessing
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, shown
from sbridge.identities.base import SIGMAS, Check, Identity, Kind, confirmed, identities, planned
from sbridge.identities.own import Network, Predicts, own_setting
from sbridge.identities.settings import Setting, standard_settings
from sbridge.modes import standard_modes
from sbridge.processes import LinearProcess
from sbridge.random import Seed, as_seed
from sbridge.storage.documents import Json

FORMAT = "sbridge.verification/1"
_CHANCE = math.erfc(SIGMAS / math.sqrt(2.0))
_WIDTH = 110

Watcher = Callable[[int, int, str], None]
"""A function called with the number of finished identities, the total, and the next one."""


@dataclass(frozen=True)
class Verification:
    """The outcome of a verification.

    Args:
        checks: all checks, in the order of identities, then of settings.
        seconds: wall time of each identity, over all settings.
    """

    checks: Sequence[Check]
    seconds: dict[str, float]

    @property
    def failed(self) -> list[Check]:
        """The checks that do not hold."""
        return [check for check in self.checks if not check.holds]

    @property
    def repeated(self) -> list[Check]:
        """The checks that were repeated because the first run missed."""
        return [check for check in self.checks if check.first is not None]

    @property
    def misses_expected(self) -> float:
        """An upper bound on the expected number of checks that miss by chance in the first run."""
        judged = [check for check in self.checks if check.outcome.standard_error > 0]
        sides = {Kind.EQUALITY: 1.0, Kind.INEQUALITY: 0.5}
        return _CHANCE * sum(sides.get(check.identity.kind, 0.0) for check in judged)

    def to_json(self) -> Json:
        """Returns the result as JSON; wall times are under ``made``, all else depends on settings and seed alone."""
        return {
            "format": FORMAT,
            "holds": not self.failed,
            "rows": len(self.checks),
            "failed": len(self.failed),
            "repeated": len(self.repeated),
            "repetitions_expected": round(self.misses_expected, 3),
            "checks": [check.to_json() for check in self.checks],
            "made": {"seconds": {name: round(value, 3) for name, value in self.seconds.items()}},
        }

    def text(self) -> str:
        """Formats a block for every identity, a line for every check, and a summary."""
        blocks = []
        for one in identities():
            rows = [check for check in self.checks if check.identity is one]
            if rows:
                blocks.append(f"{_heading(one)}\n{_table(rows)}")
        return "\n\n".join([*blocks, self.summary()])

    def summary(self) -> str:
        """Describes how many checks hold, which fail, and which were repeated."""
        names = {check.identity.name for check in self.checks}
        settings = {check.setting for check in self.checks}
        counted = f"{len(self.checks)} checks of {len(names)} identities in {len(settings)} setting(s)"
        lines = [f"{counted}: {f'{len(self.failed)} FAIL' if self.failed else 'all hold'}."]
        if self.repeated:
            lines += textwrap.wrap(
                f"{len(self.repeated)} missed in the first run (chance alone: about {self.misses_expected:.1f})."
                " They were repeated with four times as many independent draws and are marked ².",
                _WIDTH,
            )
        for check in self.failed:
            lines += textwrap.wrap(f"FAILS: {_sentence(check)}", _WIDTH, subsequent_indent="  ")
        return "\n".join(lines)


@standard_modes()
def verify(
    settings: Iterable[Setting] | None = None,
    only: Iterable[str] = (),
    watch: Watcher | None = None,
    *,
    data: Tensor | np.ndarray | None = None,
    score: Network | None = None,
    process: LinearProcess | None = None,
    predicts: Predicts = Predicts.SCORE,
    seed: Seed = 0,
    workers: int = 1,
) -> Verification:
    """Checks every chosen identity in every applicable setting; failed checks are repeated (:func:`confirmed`).

    Args:
        settings: the settings to check in; by default that of ``data``, or :func:`standard_settings` without it.
        only: names of identities or groups; all if empty.
        watch: called after every identity in every setting.
        data, score, process, predicts, seed: your rows and your network, as for :func:`own_setting`.
        workers: number of processes that share the identities. With more than one, settings must be picklable, and a
            script that calls this function needs ``if __name__ == "__main__":``. Results do not depend on it, up to the
            rounding of sums.

    Raises:
        InvalidInputError: for ``settings`` and ``data`` together, a network without data, or what :func:`own_setting`
            refuses.
        UnknownNameError: for a name that is neither an identity nor a group.
        NonFiniteError: if a side is not finite, with the identity and the setting.

    Examples:
        >>> import torch
        >>> import sbridge as sb
        >>> rows = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
        >>> found = sb.verify(data=rows, score=lambda t, x: -x, only=["score_form_is_mean_field_form"])
        >>> found.failed
        []
    """
    if data is None and (score is not None or process is not None):
        raise InvalidInputError("a network and a process need the data: verify(data=rows, score=network).")
    if data is not None:
        if settings is not None:
            raise InvalidInputError("give settings or data, not both; own_setting(data, …) makes a setting of data.")
        settings = [own_setting(data, score=score, process=process, predicts=predicts, seed=seed)]
    if not isinstance(workers, int) or workers < 1:
        raise InvalidInputError(f"workers must be an integer of at least 1, got {shown(workers)}.")
    if isinstance(only, str):
        raise InvalidInputError(f"only is a list of names, such as only=[{shown(only)}].")
    plan = planned(standard_settings(seed=as_seed(seed)) if settings is None else settings, only)
    found, seconds = list[Check](), dict[str, float]()
    for done, (checks, took) in enumerate(_confirmed(plan, min(workers, len(plan)))):
        if watch is not None:
            watch(done + 1, len(plan), f"{plan[done][0].name}: {plan[done][1].name}")
        found += checks
        seconds[plan[done][1].name] = seconds.get(plan[done][1].name, 0.0) + took
    order = {one.name: place for place, one in enumerate(identities())}
    return Verification(sorted(found, key=lambda check: order[check.identity.name]), seconds)


def _confirmed(plan: Sequence[tuple[Setting, Identity]], workers: int) -> Iterator[tuple[list[Check], float]]:
    """Yields checks and wall time of each entry of the plan, in its order."""
    if workers <= 1:
        yield from (_timed(*one) for one in plan)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy threads of torch in an undefined state
    threads = max(1, torch.get_num_threads() // workers)
    settings = list(dict.fromkeys(setting for setting, _ in plan))
    with ProcessPoolExecutor(workers, context, _begin, (settings, threads)) as pool:
        yield from pool.map(_share, [settings.index(setting) for setting, _ in plan], [one for _, one in plan])


_SETTINGS = list[Setting]()
"""Of a worker process: each builds what settings cache, such as a trained network, once."""


def _begin(settings: Sequence[Setting], threads: int) -> None:
    torch.set_num_threads(threads)
    _SETTINGS[:] = settings


def _share(setting: int, one: Identity) -> tuple[list[Check], float]:
    return _timed(_SETTINGS[setting], one)


def _timed(setting: Setting, one: Identity) -> tuple[list[Check], float]:
    begun = time.perf_counter()
    return confirmed(one, setting), time.perf_counter() - begun


def listing() -> str:
    """Formats names, kinds, statements and sources of all identities, group by group."""
    lines, group = list[str](), ""
    for one in identities():
        if one.group != group:
            group = one.group
            lines += ["", group.upper()] if lines else [group.upper()]
        lines += [f"  {one.name}  [{one.kind.name.lower()}]"]
        lines += textwrap.wrap(
            f"{one.statement}. {one.equation}.", _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return "\n".join(lines)


def _heading(one: Identity) -> str:
    routes = f"left: {one.left};  right: {one.right}"
    lines = [f"{one.group} · {one.name} · {one.kind.name.lower()}"]
    for text in (f"{one.statement}  ({one.equation})", routes):
        lines += textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)


def _table(checks: Sequence[Check]) -> str:
    header = ("setting", "of", "left", "right", "s.e.", "allowance", "(l−r)/s.e.", "")
    rows = [header, *(_row(check) for check in checks)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    align = [str.ljust, str.ljust, *[str.rjust] * (len(header) - 2)]
    lines = ([place(cell, width) for place, cell, width in zip(align, row, widths, strict=True)] for row in rows)
    return "\n".join("  " + "  ".join(line) for line in lines)


def _sentence(check: Check) -> str:
    o = check.outcome
    return (
        f"{check.identity.name} in {check.setting}{f' ({o.note})' if o.note else ''}: left {_number(o.left)}, right "
        f"{_number(o.right)}, standard error {_number(o.standard_error)}, allowance {_number(o.allowance)}."
    )


def _row(check: Check) -> tuple[str, ...]:
    o = check.outcome
    error = _number(o.standard_error) if o.standard_error else "–"
    deviation = f"{check.standard_errors:.1f}" if o.standard_error else "–"
    verdict = ("holds" if check.holds else "FAILS") + ("²" if check.first is not None else "")
    allowance = _number(o.allowance) if o.allowance else "–"
    return (check.setting, o.note, _number(o.left), _number(o.right), error, allowance, deviation, verdict)


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.4g}" if abs(value) >= 1e-4 else f"{value:.1e}"
