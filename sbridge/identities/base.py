"""Checked identities: a statement, two routes to its two sides, and a verdict in standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum

from sbridge.errors import InvalidInputError, NonFiniteError, SbridgeError, check_known, shown
from sbridge.identities.settings import Setting
from sbridge.storage.documents import Json

SIGMAS = 3.0
"""Number of standard errors, plus the allowance for time steps, within which an equality holds."""
APART = 10.0
"""Number of standard errors by which two things that must differ have to be apart."""


class Kind(Enum):
    """The statement of an identity about its left and its right side."""

    EQUALITY = "="
    """``|left − right| ≤ 3 s.e. + allowance``."""
    INEQUALITY = "≤"
    """``left ≤ right + 3 s.e.``."""
    ORDER = "order"
    """The observed order of convergence (left) equals the stated one (right) to within the allowance."""
    RESIDUAL = "0"
    """``|left| ≤ allowance``; the right side is zero."""
    DIFFERENCE = "≠"
    """``|left − right| > 10 s.e.``: what must *not* be equal."""


@dataclass(frozen=True)
class Outcome:
    """The numbers of one identity in one setting.

    Args:
        left: the left side.
        right: the right side.
        standard_error: of ``left − right``; 0 for deterministic routes.
        allowance: what may remain besides: the change of a chain's value when its step is halved, the tolerance of
            a residual or of an order. For an equality it is to be measured, not chosen.
        note: a few words on this setting (which score, which time).
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


@dataclass(frozen=True)
class Check:
    """An identity with its outcome in one setting.

    Args:
        identity: what was checked.
        setting: the name of the setting.
        outcome: what came out.
        first: what came out before, if the check was repeated because of it (:func:`confirmed`).
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
        name: of the function.
        group: equations, action, reversal, generalisation or Schrödinger.
        statement: in one line.
        equation: where it stands in the literature.
        kind: what is stated.
        left, right: the two routes, a few words each. They may share draws, never a function that holds the identity.
        applies: the settings that it makes sense in.
        body: computes it.
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

    def __call__(self, setting: Setting) -> list[Check]:
        """Computes its checks in ``setting``: one, or one per outcome."""
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
    right: str,
    applies: Callable[[Setting], bool] = lambda setting: True,
) -> Callable[[Body], Body]:
    """Decorator that adds a function ``setting → Outcome(s)`` to the identities that :func:`run` checks.

    Raises:
        InvalidInputError: if the name is taken, or the group is none of :data:`GROUPS`.
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


def identities() -> tuple[Identity, ...]:
    """Returns all identities, in the order of their groups."""
    return tuple(sorted(_IDENTITIES.values(), key=lambda one: GROUPS.index(one.group)))


def chosen(only: Iterable[str]) -> tuple[Identity, ...]:
    """Returns the identities whose name or group is among ``only``; all if it is empty.

    Raises:
        UnknownNameError: for a name that is neither.
    """
    wanted, groups = list(only), {one.group for one in identities()}
    check_known("identity or group", wanted, [*_IDENTITIES, *groups])
    return tuple(one for one in identities() if not wanted or one.name in wanted or one.group in wanted)


def confirmed(one: Identity, setting: Setting) -> list[Check]:
    """Returns the checks of ``one`` in ``setting``; failed checks are repeated, since they may fail by chance.

    Of true equalities one row in 370 deviates by more than three standard errors. A row that does is judged by a
    repetition with independent draws, four times as many: a second miss by chance has odds of 1 to 137 000, while what
    is false deviates by twice as many standard errors as before. Deterministic rows are not repeated.
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
