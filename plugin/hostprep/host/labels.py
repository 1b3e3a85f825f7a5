"""SELinux labels: the label of a descriptor, whether two labels are the same, and what a container may do with one.

A label is the extended attribute `security.selinux`, which libselinux reads and writes too (getfilecon(3)). Root can
keep it on a kernel without SELinux as well: `HOSTPREP_SELINUX=force` does. policy.py has the policy that is asked.
"""

from __future__ import annotations

import enum
import errno
import functools
import logging
import os
from collections.abc import Sequence
from typing import Any, Final

from ..errors import BadSetting, Invalid
from ..options import Label
from . import linux
from .policy import Kernel, Policy, container_context, kernel_has_selinux, load

log = logging.getLogger("hostprep")

# The permissions behind what a person calls read, write and search: class and permission (security_class_mapping).
_NEEDED: Final = {
    "read": (("dir", "search"), ("dir", "read"), ("file", "open"), ("file", "read")),
    "write": (("dir", "write"), ("dir", "add_name"), ("dir", "remove_name"), ("file", "create"), ("file", "write")),
    "search": (("dir", "search"),),
}
ATTRIBUTE: Final = linux.XATTR_NAME_SELINUX
UNSUPPORTED: Final = errno.ENOTSUP  # this file system keeps no labels (vfat, some NFS)


def read_label(fd: int) -> str | None:
    """The label of a descriptor, None where there is none.

    Raises:
        OSError: ENOTSUP where the file system keeps none, and what else getxattr(2) raises.
    """
    try:
        value = os.getxattr(fd, ATTRIBUTE)
    except OSError as exc:
        if exc.errno != errno.ENODATA:
            raise
        return None
    return value.rstrip(b"\0").decode("ascii", "backslashreplace")


def write_label(file: int | str, label: str) -> None:
    """Set the label of a descriptor, or of a `/proc/self/fd` path.

    Raises:
        OSError: ENOTSUP where the file system keeps none, EINVAL for one the policy does not know.
    """
    os.setxattr(file, ATTRIBUTE, label.encode("ascii") + b"\0")


class SELinux(enum.Enum):
    """HOSTPREP_SELINUX."""

    AUTO = "auto"  # follow the kernel
    REQUIRED = "required"  # refuse to start without
    FORCE = "force"  # set and compare labels as plain xattrs although this kernel has no SELinux
    OFF = "off"


class Labels:
    """The labels of this host. `Labels.open` makes it; one object serves every thread."""

    def __init__(self, policy: Policy | None, *, applied: bool) -> None:
        self._policy = policy
        self.applied = applied
        """Whether labels are set and compared at all."""
        self.default = None if policy is None else container_context(policy, "file")
        """The label of a directory that hostprep creates when none is asked for; None without a policy."""
        self._process = None if policy is None else container_context(policy, "process")
        self.canonical = functools.lru_cache(maxsize=1024)(self._canonical)
        self.unlabelled: set[int] = set()
        """Devices (st_dev) whose file system keeps no labels, as was seen: they are not asked again."""

    @classmethod
    def open(cls, setting: SELinux, *, managed: bool = False) -> Labels:
        """Find out what this kernel and *setting* ask for.

        Args:
            managed: within the managed plugin, which sees nothing of the host's policy.

        Raises:
            BadSetting: the kernel has SELinux on and its policy cannot be asked, or the setting requires what the
                kernel does not have. Labels are never silently missing.
        """
        enabled = kernel_has_selinux()
        if setting is SELinux.FORCE and enabled:
            why = "HOSTPREP_SELINUX=force is for kernels without SELinux, and this one has it on"
            raise BadSetting(why, hint="use auto")
        if setting is SELinux.REQUIRED and not enabled:
            why = "HOSTPREP_SELINUX=required, but SELinux is not enabled in this kernel"
            raise BadSetting(why, hint="boot with SELinux on, or set HOSTPREP_SELINUX=auto")
        if setting is SELinux.OFF or not enabled:
            return cls(None, applied=setting is SELinux.FORCE)
        return cls(Kernel.open() if managed else load(), applied=True)

    def check(self, label: Label) -> None:
        """Ask the policy whether it knows *label*.

        Raises:
            Invalid: it does not. Without a policy everything well formed passes.
        """
        if self._policy is None or not label.type:
            return
        try:
            self._policy.security_check_context(str(label))
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            why = f'option label: the policy of this host does not know "{label}"'
            usable = self.default or "container_file_t"
            raise Invalid(why, hint=f"usable by containers: {usable}; seinfo -t lists the types") from None

    def same(self, on_disk: str | None, wanted: str, *, type_only: bool) -> bool:
        """Whether the policy takes two labels for the same: aliases and the order of categories do not count."""
        if on_disk is None:
            return False
        if on_disk == wanted:
            return True
        one, other = self.canonical(on_disk), self.canonical(wanted)
        return _type(one) == _type(other) if type_only else one == other

    def _canonical(self, label: str) -> str:
        if self._policy is None:
            return label
        try:
            return str(self._policy.security_canonicalize_context(label)[1])
        except OSError:  # a label of another policy, kept on disk: it equals only itself
            return label

    def refusal(self, label: str) -> str:
        """What the policy does not let a container do with *label*, as a sentence; empty where nothing is missing.

        The container has the engines' own process context at the level of *label*. At any other level it would need
        `--security-opt label=level:…`.
        """
        if isinstance(self._policy, Kernel) and self.default is not None:
            if self.same(label, self.default, type_only=True):
                return ""
            return (
                f"whether the policy of this host lets a container write {label} cannot be told within the managed "
                f"plugin: usable is {self.default}"
            )
        if not self.can_tell:
            return ""
        if not (missing := " or ".join(self.missing(label, self.process(label)))):
            return ""
        return f"the policy of this host lets no container {missing} {label}: usable is {self.usable(label)}"

    @property
    def can_tell(self) -> bool:
        """Whether there is a policy that can be asked what containers may do."""
        known = self._policy is not None and not isinstance(self._policy, Kernel)
        return known and self._process is not None and self.default is not None

    def process(self, label: str) -> str:
        """The engines' own process context, at the level of *label*: containers run at one level."""
        return self.at_level_of(label, self._process or "")

    @staticmethod
    def at_level_of(label: str, context: str) -> str:
        """*context* at the level of *label*."""
        level = [range_.partition("-")[0] for range_ in label.split(":", 3)[3:]]
        return ":".join([*context.split(":", 3)[:3], *level])

    def usable(self, label: str) -> str:
        """What *label* would be with the type that the policy has for container files."""
        return self.at_level_of(label, self.default or "")

    def missing(self, label: str, process: str) -> list[str]:
        """Which of read, write and search the policy does not let *process* do with files of *label*."""
        return [access for access, needed in _NEEDED.items() if not self.allows(process, label, needed)]

    def allows(self, process: str, label: str, needed: Sequence[tuple[str, str]]) -> bool:
        """Whether the policy lets *process* do all that is *needed*, class and permission, with files of *label*."""
        policy: Any = self._policy
        for kind, permission in needed:
            wanted = policy.string_to_security_class(kind)
            decision = policy.av_decision()
            try:
                policy.security_compute_av(process, label, wanted, 0, decision)
            except OSError:  # a label that this policy does not know
                return False
            if not decision.allowed & policy.string_to_av_perm(wanted, permission):
                return False
        return True

    def found_unlabelled(self, device: int) -> None:
        """Remember that the file system of *device* keeps no labels, and say so once."""
        if self.applied and device not in self.unlabelled:
            self.unlabelled.add(device)
            where = f"{os.major(device)}:{os.minor(device)}"
            log.warning("the file system of device %s keeps no labels: none is applied there", where)


def _type(label: str) -> str:
    return [*label.split(":", 3), "", "", ""][2]
