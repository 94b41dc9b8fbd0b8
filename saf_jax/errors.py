"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A fault in what the user gave: a file, a folder, a setting.

    The message is one line that names the thing at fault and the way to mend it. The commands print it without a
    traceback and exit with status 2; whoever imports the package can catch it.
    """
