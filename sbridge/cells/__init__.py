"""Questions about cells, or other individuals that are measured once: fates, ancestors, transitions between groups."""

from sbridge.cells.annotate import annotate
from sbridge.cells.fates import Fates, ancestors, fates
from sbridge.cells.groups import Groups, as_groups
from sbridge.cells.transitions import Transitions

__all__ = ["Fates", "Groups", "Transitions", "ancestors", "annotate", "as_groups", "fates"]
