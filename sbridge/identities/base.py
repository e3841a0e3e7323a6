"""Checked identities: a statement, a computation of each side, and a verdict in standard errors."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, NonFiniteError, SbridgeError, check_known, shown
from sbridge.identities.settings import Setting
from sbridge.measures import Estimate
from sbridge.modes import standard_modes
from sbridge.storage.documents import Json

SIGMAS = 3.0
"""Number of standard errors, plus the allowance for time steps, within which an equality holds."""
APART = 10.0
"""Number of standard errors by which two sides that must differ have to differ."""


class Kind(Enum):
    """What an identity states about its left and its right side."""

    EQUALITY = "="
    """``|left − right| ≤ 3 s.e. + allowance``."""
    INEQUALITY = "≤"
    """``left ≤ right + 3 s.e.``."""
    ORDER = "order"
    """The observed order of convergence (left) equals the stated one (right) to within the allowance."""
    RESIDUAL = "0"
    """``|left| ≤ allowance``; the right side is zero."""
    DIFFERENCE = "≠"
    """``|left − right| > 10 s.e.``: the sides must differ."""


@dataclass(frozen=True)
class Outcome:
    """The numbers of one identity in one setting.

    Args:
        left: the left side.
        right: the right side.
        standard_error: of ``left − right``; 0 for deterministic routes.
        allowance: the deviation that is allowed in addition: the change of the value when the step is halved, or the
            tolerance of a residual or an order. For an equality it is measured, not chosen.
        note: a few words on the case (which score, which time).
    """

    left: float
    right: float = 0.0
    standard_error: float = 0.0
    allowance: float = 0.0
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("left", "right", "standard_error", "allowance"):
            value = getattr(self, name)
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"the {name.replace('_', ' ')} of an identity is {value}: {self.note or 'no note'}."
                )

    @classmethod
    def of(cls, left: Estimate, right: Estimate, allowance: float = 0.0, note: str = "") -> Outcome:
        """Compares two independent estimates."""
        return cls(left.value, right.value, math.hypot(left.standard_error, right.standard_error), allowance, note)

    @classmethod
    def paired(cls, gap: Tensor, right: Tensor | float, allowance: float = 0.0, note: str = "") -> Outcome:
        """Compares two means over the same draws.

        Args:
            gap: left minus right, one number per draw.
            right: the right side, one number per draw or its mean.
            allowance, note: as for the class.
        """
        value, difference = float(torch.as_tensor(right).mean()), Estimate.of(gap)
        return cls(value + difference.value, value, difference.standard_error, allowance, note)

    @classmethod
    def refined(cls, levels: Iterable[Tensor], right: float, note: str) -> Outcome:
        """Compares the mean of the finer of two levels with a number; the change between them is the allowance."""
        first, last = (Estimate.of(values) for values in levels)
        return cls(last.value, right, last.standard_error, abs(last.value - first.value), note)


@dataclass(frozen=True)
class Check:
    """An identity with its outcome in one setting.

    Args:
        identity: what was checked.
        setting: the name of the setting.
        outcome: the numbers.
        first: the numbers of a first run that missed, if the check was repeated (:func:`confirmed`).
    """

    identity: Identity
    setting: str
    outcome: Outcome
    first: Outcome | None = None

    @property
    def deviation(self) -> float:
        """``left − right``."""
        return self.outcome.left - self.outcome.right

    @property
    def standard_errors(self) -> float:
        """The difference ``(left − right)/s.e.`` in standard errors; NaN for deterministic routes."""
        return self.deviation / self.outcome.standard_error if self.outcome.standard_error > 0 else math.nan

    @property
    def holds(self) -> bool:
        """Whether the identity holds."""
        kind, o = self.identity.kind, self.outcome
        if kind is Kind.INEQUALITY:
            return self.deviation <= SIGMAS * o.standard_error + o.allowance
        if kind is Kind.DIFFERENCE:
            return abs(self.deviation) > APART * o.standard_error + o.allowance
        return abs(self.deviation) <= SIGMAS * o.standard_error + o.allowance

    def to_json(self) -> Json:
        """Returns the check as plain data."""
        i, o = self.identity, self.outcome
        return {
            "name": i.name,
            "group": i.group,
            "statement": i.statement,
            "equation": i.equation,
            "kind": i.kind.name.lower(),
            "setting": self.setting,
            "note": o.note,
            "left": o.left,
            "left_route": i.left,
            "right": o.right,
            "right_route": i.right,
            "standard_error": o.standard_error,
            "allowance": o.allowance,
            "standard_errors": None if math.isnan(self.standard_errors) else self.standard_errors,
            "holds": self.holds,
            "first": None if self.first is None else vars(self.first),
        }


GROUPS = ("equations", "action", "reversal", "generalisation", "Schrödinger")
Body = Callable[[Setting], Outcome | Iterable[Outcome]]


@dataclass(frozen=True)
class Identity:
    """A statement of the theory and the function that computes both its sides.

    Args:
        name: the name of the function.
        group: equations, action, reversal, generalisation or Schrödinger.
        statement: the statement in one line.
        equation: its source in the literature.
        kind: the kind of statement.
        left, right: how each side is computed, a few words each. The sides may share draws, but no function that
            assumes the identity.
        applies: whether the identity can be checked in a setting.
        body: computes the outcomes.
    """

    name: str
    group: str
    statement: str
    equation: str
    kind: Kind
    left: str
    right: str
    applies: Callable[[Setting], bool]
    body: Body = field(repr=False)

    def __reduce__(self) -> tuple[Callable[[str], Identity], tuple[str]]:
        """Pickles the name: an identity is a global object, and a copy in another process is the one there."""
        return named, (self.name,)

    @standard_modes()
    def __call__(self, setting: Setting) -> list[Check]:
        """Computes the checks in ``setting``, one per outcome."""
        try:
            found = self.body(setting)
        except SbridgeError as error:
            raise type(error)(f"{self.name} in {setting.name}: {error}") from error
        outcomes = [found] if isinstance(found, Outcome) else list(found)
        return [Check(self, setting.name, outcome) for outcome in outcomes]


_IDENTITIES: dict[str, Identity] = {}


def identity(
    *,
    group: str,
    statement: str,
    equation: str,
    kind: Kind,
    left: str,
    right: str = "0",
    applies: Callable[[Setting], bool] = lambda setting: True,
) -> Callable[[Body], Body]:
    """Decorator that adds a function ``setting → Outcome(s)`` to the identities that :func:`run` checks.

    Raises:
        InvalidInputError: if the name is taken, or the group is not in :data:`GROUPS`.
    """
    if group not in GROUPS:
        raise InvalidInputError(f"a group must be one of {', '.join(GROUPS)}; got {shown(group)}.")

    def enter(body: Body) -> Body:
        name = body.__name__
        if name in _IDENTITIES and _IDENTITIES[name].body.__module__ != body.__module__:
            raise InvalidInputError(f"an identity named {shown(name)} exists already; rename yours.")
        _IDENTITIES[name] = Identity(name, group, statement, equation, kind, left, right, applies, body)
        return body

    return enter


def named(name: str) -> Identity:
    """Returns the identity of this name."""
    return _IDENTITIES[name]


def identities() -> tuple[Identity, ...]:
    """Returns all identities, in the order of their groups."""
    return tuple(sorted(_IDENTITIES.values(), key=lambda one: GROUPS.index(one.group)))


def chosen(only: Iterable[str]) -> tuple[Identity, ...]:
    """Returns the identities whose name or group is among ``only``; all if it is empty.

    Raises:
        UnknownNameError: for a name that is neither.
    """
    groups = {one.group for one in identities()}
    plain = {_folded(group): group for group in groups}  # "Schroedinger" and "schrodinger" mean Schrödinger
    wanted = [plain.get(_folded(name), name) for name in only]
    check_known("identity or group", wanted, [*_IDENTITIES, *groups])
    return tuple(one for one in identities() if not wanted or one.name in wanted or one.group in wanted)


def _folded(name: str) -> str:
    """Returns a name without case, diacritics, and the ``e`` that stands for an umlaut."""
    letters = unicodedata.normalize("NFKD", name.casefold())
    return "".join(one for one in letters if not unicodedata.combining(one)).replace("oe", "o")


def confirmed(one: Identity, setting: Setting) -> list[Check]:
    """Returns the checks of ``one`` in ``setting``; failed checks are repeated, since they may fail by chance.

    A true equality deviates by more than three standard errors once in 370 checks. Such a check is repeated with four
    times as many independent draws. A second miss by chance has probability 1 in 137 000; a false statement deviates
    by twice as many standard errors as before. Deterministic checks are not repeated.
    """
    checks = one(setting)
    if all(check.holds or check.outcome.standard_error == 0.0 for check in checks):
        return checks
    again = one(setting.again())
    if [check.outcome.note for check in again] != [check.outcome.note for check in checks]:
        return checks
    return [
        check
        if check.holds or check.outcome.standard_error == 0.0
        else replace(new, setting=check.setting, first=check.outcome)
        for check, new in zip(checks, again, strict=True)
    ]


def planned(settings: Iterable[Setting], only: Iterable[str] = ()) -> list[tuple[Setting, Identity]]:
    """Returns every chosen identity in every setting that it applies to, setting after setting."""
    these = chosen(only)
    return [(setting, one) for setting in settings for one in these if one.applies(setting)]


def run(settings: Iterable[Setting], only: Iterable[str] = ()) -> Iterator[Check]:
    """Runs all :func:`planned` checks in order, each once."""
    for setting, one in planned(settings, only):
        yield from one(setting)
