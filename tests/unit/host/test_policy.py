"""The policy's library is found where distributions put it, and believed only where the kernel agrees."""

from __future__ import annotations

import types
from pathlib import Path

import pytest

from hostprep.errors import BadSetting
from hostprep.host import policy


class Library(types.ModuleType):
    """libselinux's binding, as far as it is asked before it is believed."""

    def __init__(self, *, enabled: int) -> None:
        super().__init__("selinux")
        self._enabled = enabled

    def is_selinux_enabled(self) -> int:
        return self._enabled

    def security_check_context(self, context: str) -> int:
        raise NotImplementedError


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> list[types.ModuleType]:
    """What `import selinux` finds, here and in the distribution's directories, one after the other."""
    found: list[types.ModuleType] = []

    def load(name: str = "selinux") -> types.ModuleType:
        if not found:
            raise ImportError(name)
        return found.pop(0)

    monkeypatch.setattr(policy.importlib, "import_module", load)
    monkeypatch.setattr(policy, "_distribution_loaders", lambda: [load])
    return found


def test_none(library: list[types.ModuleType]) -> None:
    """Without the library the package to install is named, for each family of distributions."""
    with pytest.raises(BadSetting, match=r"python3-selinux \(Debian, Ubuntu\) or python3-libselinux \(Fedora, RHEL\)"):
        policy.load()


def test_one_that_disagrees(library: list[types.ModuleType]) -> None:
    """A library that says SELinux is off, where the kernel has it on, is not believed."""
    library.append(Library(enabled=0))
    with pytest.raises(BadSetting, match="cannot be used"):
        policy.load()


def test_the_distributions_own(library: list[types.ModuleType]) -> None:
    """Where the first one is not believed, the distribution's own is taken."""
    right = Library(enabled=1)
    library += [Library(enabled=0), right]
    assert policy.load() is right


def test_the_kernel_is_asked() -> None:
    """SELinux is on where the kernel registers its file system, wherever that is mounted."""
    assert policy.kernel_has_selinux() == ("selinuxfs" in Path("/proc/filesystems").read_text())
