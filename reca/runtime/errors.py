"""The base class of errors that the user can fix."""


class UserError(Exception):
    """An error that the user can fix: a wrong path, a full disk, a broken input, an absent tool.

    The message names the problem, its place (the file or the key) and a solution. ``reca`` prints the message without a
    traceback and exits with status 2.
    """
