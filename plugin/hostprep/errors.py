"""The errors that hostprep raises, by what the reader can do about them.

OSError is not wrapped. The front ends (the wire, the command line) put it into words.
"""

from __future__ import annotations

import errno


class HostprepError(Exception):
    """The base class, never raised itself. *message* says what is wrong, *hint* what to do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class Invalid(HostprepError):
    """The request, name or option is malformed: write it differently."""


class NotAllowed(HostprepError):
    """The path is not below HOSTPREP_ALLOW, or others than root could redirect it: choose another, or allow it."""


class NoSuchVolume(HostprepError):
    """There is no volume, or no trash entry, of that name: create it, or restore it."""


class Conflict(HostprepError):
    """The request contradicts what exists: use apply, another name or another path."""


class Busy(HostprepError):
    """A pass over the tree, or another change of the same volume, is still running: try again."""


class Unreadable(HostprepError):
    """hostprep's own state cannot be read or trusted: an administrator must look at it.

    Get must not answer then: any error makes the engine forget the volume.
    """


class NotReady(HostprepError):
    """The data directory is missing or could not be made right: repair it on the host."""


class OtherData(NotReady):
    """Another directory, or another file system, is where a volume's data was: mount its disk, or accept that."""


class NoEngine(HostprepError):
    """No engine answers, not in time, or with an error: start it, name another, or leave it out."""


class NoImage(HostprepError):
    """The image is missing, cannot be read, or does not say which user it runs as: give uid and gid."""


class NotPulled(NoImage):
    """The engine does not have the image: pull it."""


class NoContainer(HostprepError):
    """The container is missing, or its ids on this host cannot be told: name another, or leave it out."""


class BadSetting(HostprepError):
    """A setting, or the machine, does not allow hostprep to start: correct it first."""


def in_words(exc: BaseException) -> str:
    """*exc* as one line for a person: an OSError with its file name, an unforeseen error with its type."""
    if isinstance(exc, HostprepError):
        return str(exc)
    if isinstance(exc, OSError):
        what = exc.strerror or type(exc).__name__
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            what += "; hostprep purge deletes removed volumes, which hostprep ls --trash lists"
        return f"{exc.filename}: {what}" if exc.filename not in (None, "") else what
    return f"internal error: {type(exc).__name__}: {exc}"


def printable(text: str) -> str:
    """*text* with control characters and undecodable bytes escaped, for logs and terminals."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
