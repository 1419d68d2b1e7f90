"""The one exception whose text is meant for the user."""


class UserError(Exception):
    """A fault that the user can mend: one sentence that says what is wrong, where, and what to do.

    Commands print it without a traceback and exit with `exit_code`.
    """

    exit_code = 2
