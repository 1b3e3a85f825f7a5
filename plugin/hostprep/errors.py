"""The errors that hostprep raises, by what the reader can do about them.

    HostprepError
    ├── Invalid         the request, name or option is malformed: write it differently
    ├── NotAllowed      the path is not below HOSTPREP_ALLOW, or not safe: choose another, or allow it
    ├── NoSuchVolume    there is no volume of that name: create it, or restore it
    ├── Conflict        it contradicts what exists: use apply, another name or another path
    ├── Busy            a pass or another change is still running: try again
    ├── Unreadable      hostprep's own state cannot be read or trusted: an administrator must look at it
    ├── NotReady        the data directory is missing or cannot be used: repair it on the host
    ├── NoEngine        no engine answers: start it, name another, or leave it out
    ├── NoImage         the image does not say its ids: give uid and gid
    │   └── NotPulled       the engine does not have the image: pull it
    ├── NoContainer     the container is missing, or the engine does not describe it: name another, or leave it out
    └── BadSetting      a setting or the installation is wrong: hostprep does not start

OSError is not wrapped. The front ends (the wire, the command line) put it into words.
"""

from __future__ import annotations

import errno

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class HostprepError(Exception):
    """The base class, never raised itself. *message* says what is wrong, *hint* what to do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class Invalid(HostprepError):
    """A malformed request, volume name or option."""


class NotAllowed(HostprepError):
    """A path that is not below an allowed prefix, or that somebody other than root could redirect."""


class NoSuchVolume(HostprepError):
    """No volume, or no trash entry, of that name."""


class Conflict(HostprepError):
    """The request contradicts what exists."""


class Busy(HostprepError):
    """A pass over the tree, or another change of the same volume, is still running."""


class Unreadable(HostprepError):
    """State that cannot be read or trusted. Get must not answer then: any error makes the engine forget the volume."""


class NotReady(HostprepError):
    """The volume exists, but its directory is missing or could not be made right."""


class NoEngine(HostprepError):
    """An engine that cannot be asked, does not answer in time, or answers with an error."""


class NoImage(HostprepError):
    """An image that is missing, cannot be read, or does not say which user its program runs as."""


class NotPulled(NoImage):
    """An image that the engine does not have."""


class NoContainer(HostprepError):
    """A container that is missing, or whose ids on this host cannot be told."""


class BadSetting(HostprepError):
    """A setting, or the machine, does not allow hostprep to start."""


def in_words(exc: BaseException) -> str:
    """*exc* as one line for a person: an OSError with its file name, an unforeseen error with its type."""
    if isinstance(exc, HostprepError):
        return str(exc)
    if isinstance(exc, OSError):
        what = exc.strerror or type(exc).__name__
        return f"{exc.filename}: {what}" if exc.filename not in (None, "") else what
    return f"internal error: {type(exc).__name__}: {exc}"


def printable(text: str) -> str:
    """*text* with control characters and undecodable bytes escaped, for logs and terminals."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
