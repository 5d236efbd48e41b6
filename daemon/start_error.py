"""The error of a start that cannot succeed: trying again would not mend it."""


class StartError(Exception):
    """The daemon cannot start; the message is one line that names the setting and the limit."""
