"""The one exception that means: the input is at fault, not the program."""


class UserError(Exception):
    """Bad input. The message names the file, what was expected, what was found and what to do.

    The command line prints it and exits with code 2."""
