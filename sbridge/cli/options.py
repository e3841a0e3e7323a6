"""Options of references and solvers on the command line.

The options of a solver are the fields of its class, which is imported only if it is chosen.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_type_hints, runtime_checkable

from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from sbridge.cli.names import REFERENCES, SOLVERS
from sbridge.errors import InvalidInputError, SbridgeError, unknown_name

if TYPE_CHECKING:
    from sbridge.laws.scaling import AffineScaling
    from sbridge.processes import Process


_LIBRARY = (
    "sbridge.solvers",
    "sbridge.diffusion",
    "sbridge.controls",
    "sbridge.training",
    "sbridge.transport",
    "sbridge.cli.options",
)


class RefusedOption(SbridgeError):
    """Raised for an option whose value its class rejects."""


@dataclass(frozen=True)
class Automatic:
    """Automatic choice of the solver or process, with its default options."""


@dataclass(frozen=True)
class Noise:
    """Inputs from which a reference is built.

    Args:
        sigma: σ, given or chosen; ``None`` if neither.
        horizon: ``T``.
        pooled: mean and standard deviation of the pooled data, as a scaling.
    """

    sigma: float | None
    horizon: float
    pooled: Callable[[], AffineScaling]

    @property
    def level(self) -> float:
        """The noise level σ."""
        if self.sigma is None:
            raise InvalidInputError("the reference needs --sigma or --epsilon.")
        return self.sigma


@runtime_checkable
class ReferenceOptions(Protocol):
    """Options of a reference process."""

    def build(self, noise: Noise) -> tuple[Process, str]:
        """Builds the process in data units, with a sentence about choices that the user did not make (or none)."""
        ...


@dataclass(frozen=True)
class Brownian:
    """Brownian motion, dX = σ dW. Its only options are --sigma (or --epsilon) and --horizon."""

    def build(self, noise: Noise) -> tuple[Process, str]:
        """Builds the Brownian motion."""
        from sbridge.processes import BrownianMotion

        return BrownianMotion(noise.level, noise.horizon), ""


@dataclass(frozen=True)
class Reverting:
    """Ornstein-Uhlenbeck, dX = −rate (X − mean) dt + σ dW; the mean is that of the pooled data.

    Args:
        rate: reversion per unit of time.
    """

    rate: float = 1.0

    def build(self, noise: Noise) -> tuple[Process, str]:
        """Builds the Ornstein–Uhlenbeck process about the mean of the data."""
        from sbridge.processes import OrnsteinUhlenbeck

        process = OrnsteinUhlenbeck(self.rate, noise.level, noise.pooled().shift, noise.horizon)
        return process, "reverting to the mean of the pooled data"


@dataclass(frozen=True)
class Preserving:
    """Variance preserving, dX = −½β(t) (X − mean) dt + κ √β(t) dW, about the mean of the pooled data.

    Args:
        schedule: schedule of β; cosine has no further options.
        beta_min: β of the linear schedule at the start, per unit of time.
        beta_max: β of the linear schedule at the end.
        spread: stationary standard deviation κ in data units; 0 means the standard deviation of the pooled data.
    """

    schedule: Literal["linear", "cosine"] = "linear"
    beta_min: float = 0.1
    beta_max: float = 20.0
    spread: float = 0.0

    def build(self, noise: Noise) -> tuple[Process, str]:
        """Builds the variance-preserving process about the mean of the data."""
        from sbridge.processes import CosineSchedule, LinearSchedule, VariancePreserving

        _no_sigma(noise, "variance-preserving", "--reference.spread")
        linear = self.schedule == "linear"
        schedule = LinearSchedule(self.beta_min, self.beta_max) if linear else CosineSchedule()
        pooled = noise.pooled()
        spread = self.spread or float(pooled.scale)
        process = VariancePreserving(schedule, spread, noise.horizon, pooled.shift)
        return process, f"stationary standard deviation {spread:.4g} about the mean of the pooled data"


@dataclass(frozen=True)
class Exploding:
    """Variance exploding: Brownian motion with a noise level that grows geometrically from sigma-min to sigma-max.

    Args:
        sigma_min: in data units; 0 means 1 % of the standard deviation of the data.
        sigma_max: in data units; 0 means the standard deviation of the data.
    """

    sigma_min: float = 0.0
    sigma_max: float = 0.0

    def build(self, noise: Noise) -> tuple[Process, str]:
        """Builds the variance-exploding process."""
        from sbridge.processes import VarianceExploding

        _no_sigma(noise, "variance-exploding", "--reference.sigma-min and --reference.sigma-max")
        spread = float(noise.pooled().scale)
        low, high = self.sigma_min or 0.01 * spread, self.sigma_max or spread
        return VarianceExploding(low, high, noise.horizon), f"noise level {low:.4g} … {high:.4g}"


_WITH_DATA = {
    "brownian": Brownian,
    "ornstein-uhlenbeck": Reverting,
    "variance-preserving": Preserving,
    "variance-exploding": Exploding,
}
"""References whose options depend on the data."""
_FAMILIES = {
    "Coupling": {
        "independent": "sbridge.couplings:IndependentCoupling",
        "reference": "sbridge.couplings:ReferenceCoupling",
        "entropic": "sbridge.couplings:EntropicCoupling",
        "minibatch": "sbridge.couplings:MinibatchCoupling",
    },
    "HalfBridge": {
        "pinned-paths": "sbridge.solvers.half_bridges:PinnedPaths",
        "density-ratio": "sbridge.solvers.density_ratio:DensityRatio",
        "mean-matching": "sbridge.solvers.half_bridges:MeanMatching",
        "likelihood": "sbridge.solvers.half_bridges:MaximumLikelihood",
        "adjoint": "sbridge.solvers.half_bridges:AdjointHalfBridge",
    },
    "WarmStart": {
        "zero": "sbridge.solvers.control.starts:ZeroStart",
        "gaussian": "sbridge.solvers.control.starts:GaussianStart",
    },
}
"""Fields of solvers that are given by name."""
SCORE_MATCHING = "sbridge.diffusion.training:ScoreMatching"


def reference_options(name: str) -> type:
    """The class of the options of a reference: one that looks at the data, or the fields of the process itself."""
    if name == "auto":
        return Automatic
    if name in _WITH_DATA:
        return _WITH_DATA[name]
    cls = load_class(REFERENCES[name])
    hints = get_type_hints(cls)
    given = [item for item in dataclasses.fields(cls) if item.name not in ("sigma", "horizon")]
    fields = [(item.name, hints[item.name], dataclasses.field(default=item.default)) for item in given]

    def build(self: object, noise: Noise) -> tuple[Process, str]:
        """The process with these options; σ and the horizon are those of the fit."""
        sigma = {"sigma": noise.level} if "sigma" in hints else {}
        options = {item.name: getattr(self, item.name) for item in given}
        return cls(**sigma, **options, horizon=noise.horizon), ""

    space = {"build": build, "__doc__": inspect.getdoc(cls), "__module__": __name__}
    return dataclasses.make_dataclass(f"{cls.__name__}Options", fields, namespace=space, frozen=True)


def solver_class(name: str) -> type:
    """Returns the class of a solver's name."""
    return load_class(SOLVERS[name])


def load_class(place: str) -> type:
    """Returns the class at ``module:name``."""
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def constructors() -> ConstructorRegistry:
    """Tells tyro how to parse object-valued fields of solvers: families by name, time grids by number of steps."""
    registry = ConstructorRegistry()
    registry.primitive_rule(_named)
    registry.primitive_rule(_grid)
    registry.struct_rule(_dataclass)
    return registry


def _named(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Parses a class of a family by its name, with default options."""
    places = _FAMILIES.get(getattr(info.type, "__qualname__", ""))
    if places is None:
        return None
    known = {name: load_class(place) for name, place in places.items()}
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(known) + "}",
        instance_from_str=lambda words: known[words[0]](),
        is_instance=lambda value: type(value) in known.values(),
        str_from_instance=lambda value: [name for name, cls in known.items() if type(value) is cls],
        choices=tuple(known),
    )


def _grid(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    if getattr(info.type, "__qualname__", "") != "TimeGrid":
        return None
    from sbridge.diffusion import reverse_grid
    from sbridge.time import TimeGrid

    kinds = {
        "uniform": TimeGrid.uniform,
        "cosine": TimeGrid.cosine,
        "refined": TimeGrid.refined,
        "reverse": reverse_grid,
    }

    def read(word: str) -> TimeGrid:
        kind, colon, steps = word.rpartition(":")
        if colon and kind not in kinds:
            raise unknown_name("kind of grid", kind, kinds)
        return kinds[kind if colon else "uniform"](int(steps))

    def spell(grid: TimeGrid) -> str:
        kind = next((name for name in kinds if read(f"{name}:{grid.steps}") == grid), "special")
        return f"{kind}:{grid.steps}"

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{uniform,cosine,refined,reverse}:STEPS",
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: isinstance(value, TimeGrid),
        str_from_instance=lambda value: [spell(value)],
    )


def _dataclass(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Parses dataclasses of the library; their errors reach the user unchanged.

    A field that asks for a protocol is filled in as the class of its default; help comes from the section ``Args``.
    """
    cls = type(info.default) if getattr(info.type, "_is_protocol", False) else info.type
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__.startswith(_LIBRARY)):
        return None
    hints = get_type_hints(cls)
    told = _explained(cls)
    fields = []
    for item in dataclasses.fields(cls):
        made = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        default = getattr(info.default, item.name, made)
        fields.append(StructFieldSpec(item.name, hints[item.name], default, told.get(item.name)))

    def instantiate(**values: object) -> object:
        try:
            return cls(**values)
        except InvalidInputError as error:
            # tyro takes a ValueError for its own business and tells it in its own words.
            raise RefusedOption(str(error)) from error

    return StructConstructorSpec(instantiate, tuple(fields))


def _explained(cls: type) -> dict[str, str]:
    """Returns the description of each field from the ``Args`` section of the docstring."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in (inspect.getdoc(cls) or "").partition("\nArgs:\n")[2].splitlines():
        if line and not line.startswith("    "):
            break
        begun = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if begun:
            names = begun[1].split(", ")
        text = begun[2] if begun else line.strip()
        found |= {name: f"{found.get(name, '')} {text}".strip().replace("``", "") for name in names}
    return found


def _no_sigma(noise: Noise, reference: str, instead: str) -> None:
    if noise.sigma is not None:
        raise InvalidInputError(f"the {reference} reference takes no --sigma or --epsilon; use {instead}.")
