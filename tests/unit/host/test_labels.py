"""SELinux labels: the settings, the attribute, and what the policy is asked."""

from __future__ import annotations

import errno
import os
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostprep.errors import BadSetting, Invalid
from hostprep.host import labels as module
from hostprep.host.fds import closing
from hostprep.host.labels import Labels, SELinux, read_label, write_label
from hostprep.options import Label
from tests.support.host import LABEL, mounted


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A kernel that has SELinux on, without a library to go with it."""
    monkeypatch.setattr(module, "kernel_has_selinux", lambda: True)
    monkeypatch.setattr(module, "load", no_library)
    yield monkeypatch


def no_library() -> types.ModuleType:
    raise BadSetting("no library", hint="install one")


class Policy(types.ModuleType):
    """libselinux's binding, as far as hostprep asks it, with a policy of two types."""

    def __init__(self, contexts: Path) -> None:
        super().__init__("selinux")
        self._contexts = contexts

    def security_check_context(self, context: str) -> int:
        if context.split(":")[2] not in ("container_file_t", "svirt_sandbox_file_t", "etc_t"):
            raise OSError(errno.EINVAL, "Invalid argument")
        return 0

    def security_canonicalize_context(self, context: str) -> tuple[int, str]:
        self.security_check_context(context)
        return 0, context.replace("svirt_sandbox_file_t", "container_file_t").replace("c2,c1", "c1,c2")

    def selinux_lxc_contexts_path(self) -> str:
        return str(self._contexts)


@pytest.fixture
def policy(kernel: pytest.MonkeyPatch, tmp_path: Path) -> Labels:
    """Labels of a host with a policy."""
    (tmp_path / "lxc_contexts").write_text(f'process = "x"\nfile = "{LABEL}"\ncontent = "y"\n')
    kernel.setattr(module, "load", lambda: Policy(tmp_path / "lxc_contexts"))
    return Labels.open(SELinux.AUTO)


class TestSettings:
    @pytest.mark.parametrize(
        ("setting", "applied"), [(SELinux.AUTO, False), (SELinux.OFF, False), (SELinux.FORCE, True)]
    )
    def test_without_selinux(self, monkeypatch: pytest.MonkeyPatch, setting: SELinux, applied: bool) -> None:  # noqa: FBT001
        """In a kernel without SELinux only force sets labels, and nothing has a default."""
        monkeypatch.setattr(module, "kernel_has_selinux", lambda: False)
        labels = Labels.open(setting)
        assert (labels.applied, labels.default) == (applied, None)

    def test_required(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """required refuses a kernel without SELinux."""
        monkeypatch.setattr(module, "kernel_has_selinux", lambda: False)
        with pytest.raises(BadSetting, match="HOSTPREP_SELINUX=required, but SELinux is not enabled"):
            Labels.open(SELinux.REQUIRED)

    @pytest.mark.parametrize("setting", [SELinux.AUTO, SELinux.REQUIRED])
    @pytest.mark.usefixtures("kernel")
    def test_without_the_library(self, setting: SELinux) -> None:
        """With SELinux on and no library, hostprep refuses to start."""
        with pytest.raises(BadSetting, match="no library"):
            Labels.open(setting)

    @pytest.mark.usefixtures("kernel")
    def test_force(self) -> None:
        """force is for kernels without SELinux only."""
        with pytest.raises(BadSetting, match="HOSTPREP_SELINUX=force"):
            Labels.open(SELinux.FORCE)

    @pytest.mark.usefixtures("kernel")
    def test_off(self) -> None:
        """off needs no library."""
        assert not Labels.open(SELinux.OFF).applied


class TestPolicy:
    def test_the_default(self, policy: Labels) -> None:
        """What hostprep makes gets the policy's own label for container files."""
        assert policy.default == LABEL

    def test_a_policy_without_one(self, policy: Labels, tmp_path: Path) -> None:
        """A policy that names no label for container files stops the start."""
        (tmp_path / "lxc_contexts").write_text("process = x\n")
        with pytest.raises(BadSetting, match="no context for container files"):
            Labels.open(SELinux.AUTO)

    def test_a_label_that_the_policy_does_not_know(self, policy: Labels) -> None:
        """A label that the policy does not know is refused, with one that containers can use."""
        with pytest.raises(Invalid, match=rf'does not know "system_u:object_r:colour_t:s0".*{LABEL}'):
            policy.check(Label.parse("colour_t"))
        policy.check(Label.parse("etc_t"))
        policy.check(Label.parse("none"))

    @pytest.mark.parametrize(
        ("on_disk", "wanted", "type_only", "same"),
        [
            (LABEL, LABEL, False, True),
            (LABEL.replace("container", "svirt_sandbox"), LABEL, False, True),
            (LABEL + ":c2,c1", LABEL + ":c1,c2", False, True),
            (LABEL + ":c1,c2", LABEL, False, False),
            (LABEL + ":c1,c2", LABEL, True, True),
            (LABEL.replace("container_file_t", "etc_t"), LABEL, True, False),
            ("a:label:of:another policy", LABEL, False, False),
            ("a:label:of:another policy", "a:label:of:another policy", False, True),
            (None, LABEL, True, False),
        ],
        ids=["equal", "alias", "order", "categories", "type-only", "other-type", "unknown", "unknown-equal", "none"],
    )
    def test_equality(self, policy: Labels, on_disk: str | None, wanted: str, type_only: bool, same: bool) -> None:  # noqa: FBT001
        """Two labels are the same where the policy says so: aliases and the order of categories do not count."""
        assert policy.same(on_disk, wanted, type_only=type_only) is same


@pytest.mark.root
class TestAttribute:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        """A label is kept as the kernel's own attribute, with its final zero byte."""
        with closing(os.open(tmp_path, os.O_RDONLY)) as fd:
            assert read_label(fd) is None
            write_label(fd, LABEL)
            assert read_label(fd) == LABEL
        assert os.getxattr(tmp_path, "security.selinux") == LABEL.encode() + b"\0"

    def test_a_label_of_any_bytes(self, tmp_path: Path) -> None:
        """What somebody else wrote there is readable text."""
        os.setxattr(tmp_path, "security.selinux", b"\xff\n\x1b")
        with closing(os.open(tmp_path, os.O_RDONLY)) as fd:
            assert isinstance(read_label(fd), str)

    def test_a_file_system_without(self, tmp_path: Path) -> None:
        """A file system that keeps none says so."""
        with mounted("-t", "ramfs", "none", str(tmp_path)), closing(os.open(tmp_path, os.O_RDONLY)) as fd:
            with pytest.raises(OSError, match="not supported") as caught:
                write_label(fd, LABEL)
            assert caught.value.errno == module.UNSUPPORTED
