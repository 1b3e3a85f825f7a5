"""SELinux labels through one door: whether there is a policy, what it knows, and the label of a descriptor.

A label is read and written as the extended attribute `security.selinux`, which is what libselinux does too
(getfilecon(3)); the policy is asked through the distribution's libselinux binding. Without SELinux in the kernel root
can still keep the attribute, which is what `HOSTPREP_SELINUX=force` is for.
"""

from __future__ import annotations

import enum
import errno
import functools
import importlib
import logging
import os
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from ..errors import BadSetting, Invalid
from ..options import Label
from . import linux

log = logging.getLogger("hostprep")

# What a container has to be allowed, by what a person calls it: class and permission (security_class_mapping).
_NEEDED: Final = {
    "read": (("dir", "search"), ("dir", "read"), ("file", "open"), ("file", "read")),
    "write": (("dir", "write"), ("dir", "add_name"), ("dir", "remove_name"), ("file", "create"), ("file", "write")),
    "search": (("dir", "search"),),
}
ATTRIBUTE: Final = linux.XATTR_NAME_SELINUX
_MAX_LABEL: Final = 4096  # bytes
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
    """The labels of this host. Made by `Labels.open`; one object serves every thread."""

    def __init__(self, policy: ModuleType | _Kernel | None, *, applied: bool) -> None:
        self._policy = policy
        self.applied = applied
        """Whether labels are set and compared at all."""
        self.default = self._lxc_context("file")
        """What a directory that hostprep creates gets when no label is asked for; None without a policy."""
        self._process = self._lxc_context("process")
        self.canonical = functools.lru_cache(maxsize=1024)(self._canonical)
        self.unlabelled: set[int] = set()
        """Devices (st_dev) whose file system was seen to keep no labels: nothing is asked of them again."""

    @classmethod
    def open(cls, setting: SELinux, *, managed: bool = False) -> Labels:
        """Find out what this kernel and *setting* ask for.

        Args:
            managed: within the managed plugin, where nothing of the host's policy is to be seen.

        Raises:
            BadSetting: the kernel has SELinux on and the binding to its library cannot be used (*managed*: the kernel
                does not say what it knows), or the setting requires what the kernel does not have. Labels are never
                silently missing.
        """
        enabled = kernel_has_selinux()
        if setting is SELinux.OFF:
            return cls(None, applied=False)
        if setting is SELinux.FORCE:
            if enabled:
                raise BadSetting(
                    "HOSTPREP_SELINUX=force is for kernels without SELinux, and this one has it on",
                    hint="use auto",
                )
            return cls(None, applied=True)
        if not enabled:
            if setting is SELinux.REQUIRED:
                raise BadSetting(
                    "HOSTPREP_SELINUX=required, but SELinux is not enabled in this kernel",
                    hint="boot with SELinux on, or set HOSTPREP_SELINUX=auto",
                )
            return cls(None, applied=False)
        return cls(_Kernel.open() if managed else _policy(), applied=True)

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
            raise Invalid(
                f'option label: the policy of this host does not know "{label}"',
                hint=f"usable by containers: {self.default or 'container_file_t'}; seinfo -t lists the types",
            ) from None

    def same(self, on_disk: str | None, wanted: str, *, type_only: bool) -> bool:
        """Whether two labels mean the same: aliases and the order of categories do not count, as the policy has it."""
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
        except OSError:  # a label of another policy, kept on disk: it equals nothing but itself
            return label

    def refusal(self, label: str) -> str:
        """What the policy does not let a container do with *label*, as a sentence; empty where nothing is missing.

        Asked of the policy for the engines' own process context, at the level of *label*: at any other a container
        needs `--security-opt label=level:…`.
        """
        if isinstance(self._policy, _Kernel) and self.default is not None:
            if self.same(label, self.default, type_only=True):
                return ""
            return (
                f"whether the policy of this host lets a container write {label} cannot be told within the managed "
                f"plugin: usable is {self.default}"
            )
        if not self.can_tell:
            return ""
        missing = self.missing(label, self.process(label))
        if not missing:
            return ""
        return (
            f"the policy of this host lets no container {' or '.join(missing)} {label}: usable is {self.usable(label)}"
        )

    @property
    def can_tell(self) -> bool:
        """Whether there is a policy that can be asked what containers may do."""
        known = self._policy is not None and not isinstance(self._policy, _Kernel)
        return known and self._process is not None and self.default is not None

    def process(self, label: str) -> str:
        """The engines' own process context, at the level of *label*: containers run at one level."""
        return self.at_level_of(label, self._process or "")

    def at_level_of(self, label: str, process: str) -> str:
        """The context *process* at the level of *label*."""
        return _at_level(process, _level(label))

    def usable(self, label: str) -> str:
        """What *label* would be with the type that the policy has for container files."""
        return _at_level(self.default or "", _level(label))

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

    def _lxc_context(self, wanted: str) -> str | None:
        """A context of lxc_contexts(5): `file`, which the engines give to container files, or `process`."""
        if self._policy is None:
            return None
        if isinstance(self._policy, _Kernel):
            return self._policy.CONTEXTS[wanted]
        contexts = Path(self._policy.selinux_lxc_contexts_path()).read_text(encoding="utf-8")
        for line in contexts.splitlines():
            key, _, value = line.partition("=")
            if key.strip() == wanted:
                return value.strip().strip('"')
        what = {"file": "files", "process": "processes"}[wanted]
        raise BadSetting(f"the SELinux policy names no context for container {what}", hint="look into lxc_contexts")


class _Kernel:
    """What the kernel says of labels where selinuxfs is out of sight, in libselinux's words.

    A thread that writes a label to its own `fscreate` (proc_pid_attr(5)) learns whether the policy knows it, and reads
    it back in the policy's spelling. What a label is good for cannot be asked that way.
    """

    # As in the lxc_contexts of every policy that has container-selinux, Debian's included.
    CONTEXTS: Final = {
        "file": "system_u:object_r:container_file_t:s0",
        "process": "system_u:system_r:container_t:s0",
    }
    _FSCREATE: Final = "/proc/thread-self/attr/fscreate"

    @classmethod
    def open(cls) -> _Kernel:
        """Try it on the label that all volumes get.

        Raises:
            BadSetting: the kernel does not answer this process, or its policy does not know that label.
        """
        kernel, label = cls(), cls.CONTEXTS["file"]
        try:
            kernel.security_check_context(label)
        except OSError as exc:
            raise BadSetting(
                f"SELinux is on in this kernel, and {label} cannot be used: {exc.strerror}",
                hint="install hostprep on the host instead (make install), where the policy is to be seen",
            ) from None
        return kernel

    def security_check_context(self, label: str) -> None:
        self.security_canonicalize_context(label)

    def security_canonicalize_context(self, label: str) -> tuple[int, str]:
        fd = os.open(self._FSCREATE, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.pwrite(fd, label.encode("ascii"), 0)
            try:
                return 0, os.pread(fd, _MAX_LABEL, 0).rstrip(b"\0\n").decode("ascii")
            finally:
                os.pwrite(fd, b"", 0)  # or the next file that this thread makes would have it
        finally:
            os.close(fd)


def kernel_has_selinux() -> bool:
    """Whether SELinux was enabled at boot: only then does the kernel register selinuxfs.

    /proc/filesystems says so even where selinuxfs itself is not mounted, as inside a managed plugin.
    """
    return any(line.split()[-1:] == ["selinuxfs"] for line in Path("/proc/filesystems").read_text().splitlines())


def _level(label: str) -> list[str]:
    return [range_.partition("-")[0] for range_ in label.split(":", 3)[3:]]


def _at_level(context: str, level: list[str]) -> str:
    return ":".join([*context.split(":", 3)[:3], *level])


def _type(label: str) -> str:
    return [*label.split(":", 3), "", "", ""][2]


def _policy() -> ModuleType:
    """Load libselinux's own binding, which distributions build for their own Python.

    PyPI's package `selinux` is a shim that should find it from a virtual environment, and on Debian and Ubuntu instead
    answers that SELinux is off; so whatever is loaded must agree with the kernel before it is believed.
    """
    for load in (lambda: importlib.import_module("selinux"), *_distribution_loaders()):
        try:
            module = load()
        except (ImportError, OSError):
            continue
        if hasattr(module, "security_check_context") and module.is_selinux_enabled() == 1:
            return module
    raise BadSetting(
        "SELinux is on in this kernel, but the Python binding of its library cannot be used",
        hint="install python3-selinux (Debian, Ubuntu) or python3-libselinux (Fedora, RHEL) for the system's Python "
        f"and run hostprep with it; this is {sys.executable} {sys.version_info.major}.{sys.version_info.minor}",
    )


def _distribution_loaders() -> list[Callable[[], ModuleType]]:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    libdir = sysconfig.get_config_var("LIBDIR") or "/usr/lib"
    places = [
        "/usr/lib/python3/dist-packages",
        f"/usr/lib64/{version}/site-packages",
        f"{libdir}/{version}/site-packages",
    ]

    def load(place: str) -> ModuleType:
        sys.modules.pop("selinux", None)
        sys.path.insert(0, place)
        try:
            return importlib.import_module("selinux")
        finally:
            sys.path.remove(place)

    return [functools.partial(load, place) for place in places if os.path.isdir(f"{place}/selinux")]
