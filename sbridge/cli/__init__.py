"""The command line: ``sbridge demo | fit | diffuse | sample | evaluate | plot | report | verify | control | …``.

Exit codes: 0 done; 1 an identity does not hold (verify), or an error in sbridge itself (with a traceback); 2 input,
options or files that cannot be used; 3 the method did not converge, or met NaN; 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from sbridge.cli.main import main, run

__all__ = ["main", "run"]
