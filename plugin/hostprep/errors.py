"""Everything hostprep refuses, classed by what the reader can do about it.

    HostprepError
    ├── Invalid         the request, name or option is malformed: write it differently
    ├── NotAllowed      the path is outside HOSTPREP_ALLOW, or unsafe: choose another, or allow it
    │   └── Redirectable    only by name: held by a descriptor, or a mount, it is safe
    ├── NoSuchVolume    no volume of that name: create or restore it
    ├── Conflict        it would contradict what is there: use apply, another name or another path
    ├── Busy            a pass or another change still runs: try again
    ├── Unreadable      hostprep's own state cannot be read or trusted: an administrator must look
    ├── NotReady        the data directory is missing or not usable: mend the host
    ├── NoEngine        no engine answers: start it, name another, or do without
    ├── NoImage         an image does not tell its numbers: give uid and gid
    │   └── NotPulled       the engine does not have it: pull it
    ├── NoContainer     a container is not there, or its engine does not say: name another, or do without
    └── BadSetting      a setting or the installation is wrong: hostprep does not start

OSError passes through unwrapped and is put into words at the edge (the wire, the command line).
"""

from __future__ import annotations

import errno

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class HostprepError(Exception):
    """Base of the tree, never raised itself. *message* says what is wrong, *hint* what to do about it."""

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


class Redirectable(NotAllowed):
    """A path below a directory in which somebody other than root could put another directory in its place."""


class NoSuchVolume(HostprepError):
    """No volume, or no trash entry, of that name."""


class Conflict(HostprepError):
    """What was asked contradicts what exists."""


class Busy(HostprepError):
    """A pass over the tree, or another change of the same volume, is still running."""


class Unreadable(HostprepError):
    """State that cannot be read or trusted. Get must not answer: any answer makes the engine forget the volume."""


class NotReady(HostprepError):
    """The volume is known, but its directory is missing or could not be made right."""


class NoEngine(HostprepError):
    """An engine that does not answer, not in time, or with an error."""


class NoImage(HostprepError):
    """An image that is not there, cannot be looked into, or does not say which user it is for."""


class NotPulled(NoImage):
    """An image that the engine does not have."""


class NoContainer(HostprepError):
    """A container that is not there, or whose ids on this host cannot be told."""


class BadSetting(HostprepError):
    """A setting, or the machine, does not allow hostprep to start."""


def in_words(exc: BaseException) -> str:
    """One line for a person. An OSError keeps its file name; anything else its type, so that it can be found."""
    if isinstance(exc, HostprepError):
        return str(exc)
    if isinstance(exc, OSError):
        what = exc.strerror or type(exc).__name__
        return f"{exc.filename}: {what}" if exc.filename not in (None, "") else what
    return f"internal error: {type(exc).__name__}: {exc}"


def printable(text: str) -> str:
    """*text* with control characters and undecodable bytes escaped: names and options go to logs and terminals."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
