"""What is to be solved."""

from __future__ import annotations

from dataclasses import dataclass

from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Law, Samples, check_same_kind, check_same_space
from sbridge.processes import LinearProcess, Process, rescale
from sbridge.scaling import AffineScaling


@dataclass(frozen=True, eq=False)
class BridgeProblem:
    """The Schrödinger bridge: ``min KL(P ‖ R)`` over path laws ``P`` with ``P_0 = source`` and ``P_T = target``.

    Args:
        source: law at ``t = 0``.
        target: law at ``t = T``.
        reference: ``R``, with its horizon ``T``.

    Raises:
        InvalidInputError: if dimensions do not agree, or dtype or device of two sets of samples.
    """

    source: Law
    target: Law
    reference: Process

    def __post_init__(self) -> None:
        names = ("source", "target")
        check_same_space(self.source, self.target, names)
        if isinstance(self.source, Samples) and isinstance(self.target, Samples):
            check_same_kind(self.source.rows, self.target.rows, names)
        if self.reference.dim not in (None, self.source.dim):
            raise InvalidInputError(
                f"the reference process is made for dimension {self.reference.dim}, the data have {self.source.dim}."
            )

    @property
    def dim(self) -> int:
        """The dimension of the state."""
        return self.source.dim

    @property
    def linear_reference(self) -> LinearProcess:
        """The reference, for solvers that need closed-form transitions; UnsupportedError if it has none."""
        if not isinstance(self.reference, LinearProcess):
            raise UnsupportedError(
                f"a LinearProcess is needed as reference, such as BrownianMotion or OrnsteinUhlenbeck; "
                f"{type(self.reference).__name__} has no closed-form transition."
            )
        return self.reference

    def rescaled(self, scaling: AffineScaling) -> BridgeProblem:
        """The same problem for ``X̃ = (X − shift)/scale``, ends and reference alike."""
        return BridgeProblem(
            self.source.rescaled(scaling), self.target.rescaled(scaling), rescale(self.reference, scaling)
        )
