"""The one base of every error that the user can mend."""


class UserError(Exception):
    """Something the user can put right: a wrong path, a full disk, a broken input, a missing tool.

    Raise it, or a subclass, with a message that says what is wrong, where (the file or the key), and the
    way out. ``reca`` prints the message alone on stderr and exits 2; a traceback is kept for our own bugs.
    """
