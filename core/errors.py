"""The one exception whose text is meant for the user."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


class UserError(Exception):
    """A fault that the user can mend: one sentence that says what is wrong, where, and what to do.

    Commands print it without a traceback and exit with `exit_code`.
    """

    exit_code = 2
    leaves_threads = False
    """Threads of a library wait for what will not come, so the process has to end without them."""

    def end_process(self) -> NoReturn:
        """Print the sentence and exit."""
        print(self, file=sys.stderr, flush=True)
        if self.leaves_threads:
            os._exit(self.exit_code)
        raise SystemExit(self.exit_code) from None
