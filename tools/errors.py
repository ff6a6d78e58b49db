"""The one exception that means: the input is at fault, not the program."""


class UserError(Exception):
    """Bad input. The command line prints the message and exits with code 2.

    The message names the file, what was expected, what was found and what to do.
    """
