"""The SELinux policy of this kernel, and who can be asked about it: libselinux, or the kernel itself."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final

from ..errors import BadSetting
from .fds import closing

_MAX_LABEL: Final = 4096  # bytes


def kernel_has_selinux() -> bool:
    """Whether SELinux was enabled at boot: only then does the kernel register selinuxfs.

    /proc/filesystems says so even where selinuxfs itself is not mounted, as inside a managed plugin.
    """
    return any(line.split()[-1:] == ["selinuxfs"] for line in Path("/proc/filesystems").read_text().splitlines())


def load() -> ModuleType:
    """Load libselinux's own binding, which distributions build for their own Python.

    PyPI's package `selinux` should find it from a virtual environment. On Debian and Ubuntu it answers that SELinux is
    off instead, so what is loaded must agree with the kernel before it is believed.

    Raises:
        BadSetting: there is none; the message names the package to install.
    """
    for attempt in (lambda: importlib.import_module("selinux"), *_distribution_loaders()):
        try:
            module = attempt()
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
    sites = [f"{lib}/{version}/site-packages" for lib in ("/usr/lib64", libdir)]
    places = ["/usr/lib/python3/dist-packages", *sites]

    def load_from(place: str) -> ModuleType:
        sys.modules.pop("selinux", None)
        sys.path.insert(0, place)
        try:
            return importlib.import_module("selinux")
        finally:
            sys.path.remove(place)

    return [functools.partial(load_from, place) for place in places if os.path.isdir(f"{place}/selinux")]


class Kernel:
    """The kernel itself, asked under the names of libselinux's functions: for where selinuxfs is not visible.

    A thread that writes a label to its own `fscreate` (proc_pid_attr(5)) learns whether the policy knows it, and reads
    it back in the policy's spelling. What a container may do with a label cannot be asked in this way.
    """

    # As in the lxc_contexts of every policy that has container-selinux, Debian's included.
    CONTEXTS: Final = {"file": "system_u:object_r:container_file_t:s0", "process": "system_u:system_r:container_t:s0"}
    _FSCREATE: Final = "/proc/thread-self/attr/fscreate"

    @classmethod
    def open(cls) -> Kernel:
        """Try it on the label that all volumes get.

        Raises:
            BadSetting: the kernel does not answer this process, or its policy does not know that label.
        """
        kernel, label = cls(), cls.CONTEXTS["file"]
        try:
            kernel.security_check_context(label)
        except OSError as exc:
            why = f"SELinux is on in this kernel, and {label} cannot be used: {exc.strerror}"
            hint = "install hostprep on the host instead (make install), where the policy is to be seen"
            raise BadSetting(why, hint=hint) from None
        return kernel

    def security_check_context(self, label: str) -> None:
        self.security_canonicalize_context(label)

    def security_canonicalize_context(self, label: str) -> tuple[int, str]:
        with closing(os.open(self._FSCREATE, os.O_RDWR | os.O_CLOEXEC)) as fd:
            os.pwrite(fd, label.encode("ascii"), 0)
            try:
                return 0, os.pread(fd, _MAX_LABEL, 0).rstrip(b"\0\n").decode("ascii")
            finally:
                os.pwrite(fd, b"", 0)  # or the next file that this thread makes would have it


Policy = ModuleType | Kernel
"""What a policy is asked through: libselinux's binding, or the kernel."""


def container_context(policy: Policy, wanted: str) -> str:
    """A context of lxc_contexts(5): `file`, which the engines give to container files, or `process`.

    Raises:
        BadSetting: the policy names none.
    """
    if isinstance(policy, Kernel):
        return policy.CONTEXTS[wanted]
    contexts = Path(policy.selinux_lxc_contexts_path()).read_text(encoding="utf-8")
    for line in contexts.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == wanted:
            return value.strip().strip('"')
    what = {"file": "files", "process": "processes"}[wanted]
    raise BadSetting(f"the SELinux policy names no context for container {what}", hint="look into lxc_contexts")
