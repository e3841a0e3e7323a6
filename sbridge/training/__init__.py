"""Training: the loop, the state of a run, and a network under training.

Nothing here depends on bridges, files or progress bars. A :class:`State` is a dataclass whose fields are everything
that a run needs to continue. One function writes them as tensors and JSON scalars, and one reads them. A checkpoint is
therefore plain data, and a resumed run ends in the same bits as an uninterrupted one.
"""

from sbridge.training.calls import shared
from sbridge.training.entries import StateDict
from sbridge.training.learner import Learner, frozen_copy
from sbridge.training.loop import Callback, Info, Numbers, Patience, StopTraining, run_loop
from sbridge.training.optimisation import Optimisation
from sbridge.training.states import Derived, State

__all__ = [
    "Callback",
    "Derived",
    "Info",
    "Learner",
    "Numbers",
    "Optimisation",
    "Patience",
    "State",
    "StateDict",
    "StopTraining",
    "frozen_copy",
    "run_loop",
    "shared",
]
