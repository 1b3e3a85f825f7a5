"""Whether hostprep itself is installed as it should be, and every volume in one line. It changes nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

from ..engine.containers import EngineInfo
from ..errors import BadSetting, HostprepError, NoEngine, printable
from ..host import fds, linux, rootless
from ..host.labels import Labels
from ..host.policy import kernel_has_selinux
from ..options import check_name
from ..settings import Settings
from ..volumes import copying
from ..volumes.driver import Driver
from .diagnose import shadowed
from .finding import Apply, Command, Finding, Verdict

_SECONDS: Final = 5.0  # for each answer of the server or of systemd
_MAX_ANSWER: Final = 1 << 16  # bytes
_NOT_A_DRIVER: Final = "what answers is not a volume driver"
_UNITS: Final = ("hostprep.socket", "hostprep.service")
_ENGINES: Final = ("docker.service", "podman.service")


def check_installation(
    settings: Settings, engine: EngineInfo | NoEngine, local: Collection[str] = ()
) -> Iterator[Finding]:
    """All checks, in the order in which a start would fail.

    Args:
        engine: how it describes itself, or why it does not.
        local: the names of its own volumes.
    """
    yield _selinux(settings)
    driver = None
    try:
        driver = Driver.open(settings, create=False)
    except BadSetting as exc:
        # A start makes the first root, and mends none: what does is the hint.
        makes = _systemd() and "makes it" in exc.hint
        remedy = Command("root", f"{_systemctl_of()} start hostprep.service") if makes else None
        yield Finding("root", Verdict.BAD, exc.message, exc.hint, remedy)
    else:
        yield Finding("root", Verdict.OK, f"{settings.root} is hostprep's, and only root has access")
    yield _socket(settings.socket)
    yield from _start_order()
    yield from _engine(engine)
    yield from _kernel()
    if driver is not None:
        yield from _volumes(driver, local)


# -- what starts, and when -----------------------------------------------------------------------------------------


def _socket(path: str) -> Finding:
    shown = printable(path)
    remedy = Command("serve", "hostprep serve")
    if _systemd():
        remedy = Command("socket", f"{_systemctl_of()} restart hostprep.socket hostprep.service")
    try:
        with socket.socket(socket.AF_UNIX) as asked:
            asked.settimeout(_SECONDS)
            asked.connect(path)
            asked.sendall(b"POST /Plugin.Activate HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
            answer = b""
            while (more := asked.recv(_MAX_ANSWER)) and len(answer) < _MAX_ANSWER:
                answer += more
        says = json.loads(answer.partition(b"\r\n\r\n")[2])
    except (OSError, ValueError) as exc:
        why = exc.strerror or "no answer in time" if isinstance(exc, OSError) else _NOT_A_DRIVER
        return Finding("socket", Verdict.BAD, f"{shown}: {why}", "hostprep's server, before the engine starts", remedy)
    if not isinstance(says, dict) or "VolumeDriver" not in (says.get("Implements") or ()):
        return Finding("socket", Verdict.BAD, f"{shown}: {_NOT_A_DRIVER}", "hostprep's server", remedy)
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o077:
        what = f"{shown}: other users than root may connect (mode 0{mode:03o})"
        return Finding("socket", Verdict.BAD, what, "0600", Command("open socket", f"chmod 0600 {shlex.quote(path)}"))
    return Finding("socket", Verdict.OK, f"{shown}: a volume driver answers, and only root may connect")


def _start_order() -> Iterator[Finding]:
    if not _systemd():
        what = "this host does not use systemd: see to it that hostprep serve starts before the engine"
        yield Finding("start order", Verdict.NOTE, what)
        return
    install = "make install-user" if rootless.inside() else "make install"
    for unit in _UNITS:
        if (state := _systemctl("is-enabled", unit)) not in ("enabled", "enabled-runtime", "alias"):
            absent = state in ("", "not-found")
            what = f"{unit} is {'not installed' if absent else state}, so it does not start at boot"
            enable = Command("disabled", f"{_systemctl_of()} enable --now {' '.join(_UNITS)}")
            remedy = Command("not installed", install) if absent else enable
            yield Finding("start order", Verdict.BAD, what, "enabled, and before the engine", remedy)
            return
    before = _systemctl("show", "--property=Before", "--value", _UNITS[0]).split()
    after = [engine for engine in _ENGINES if engine not in before and _systemctl("is-enabled", engine) == "enabled"]
    if after:
        what = f"{_UNITS[0]} may start after {' and '.join(after)}, which then waits 15 seconds for each volume"
        yield Finding("start order", Verdict.BAD, what, f"Before={' '.join(after)}", Command("late", install))
        return
    yield Finding("start order", Verdict.OK, f"{' and '.join(_UNITS)} are enabled, and start before the engine")


def _systemd() -> bool:
    """Whether systemd runs this host (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def _systemctl_of() -> str:
    """The command that asks the systemd in which hostprep runs: the host's, or the user's."""
    return "systemctl --user" if rootless.inside() else "systemctl"


def _systemctl(*arguments: str) -> str:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            [*_systemctl_of().split(), *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            timeout=_SECONDS, check=False,
        )  # fmt: skip
        return done.stdout.strip()
    return ""


# -- the host --------------------------------------------------------------------------------------------


def _engine(engine: EngineInfo | NoEngine) -> Iterator[Finding]:
    if isinstance(engine, NoEngine):
        states = _systemctl("show", "--property=LoadState,ActiveState", "--value", _ENGINES[0]).split()
        stopped = "loaded" in states and "active" not in states  # or it runs, and something else is wrong
        remedy = Command("engine", f"{_systemctl_of()} start {_ENGINES[0]}") if stopped else None
        yield Finding("engine", Verdict.WARNING, engine.message, engine.hint, remedy)
        return
    yield Finding("engine", Verdict.OK, f"version {printable(engine.version)} answers")
    if engine.rootless:
        yield Finding("engine", Verdict.NOTE, "it is rootless: the ids in its containers are not the host's")
    if engine.remap is not None:
        uid, gid = engine.remap.root
        what = f"it has userns-remap: root in its containers is {uid}:{gid} on this host, by the map {engine.remap}"
        yield Finding("engine", Verdict.NOTE, what)
    elif engine.userns:
        what = "it has userns-remap, and /etc/subuid and /etc/subgid do not tell its ids on this host"
        yield Finding("engine", Verdict.WARNING, what, "userns=NAME for each volume, or HOSTPREP_USERNS")
    if kernel_has_selinux() and not engine.confines:
        what = "SELinux is on in the kernel, but the engine does not confine its containers with it"
        wanted = '"selinux-enabled": true in /etc/docker/daemon.json'
        yield Finding("engine", Verdict.WARNING, what, wanted)


def _selinux(settings: Settings) -> Finding:
    if not kernel_has_selinux():
        what = "off in this kernel: labels are recorded, but not applied"
    else:
        what = f"on, and its policy can be asked (HOSTPREP_SELINUX={settings.selinux.value})"
    try:
        Labels.open(settings.selinux, managed=settings.managed)
    except BadSetting as exc:
        remedy = None
        if "binding" in exc.message:
            apt, dnf = "apt-get install python3-selinux", "dnf install python3-libselinux"
            remedy = Command("no binding", apt if shutil.which("apt-get") else dnf)
        return Finding("selinux", Verdict.BAD, exc.message, exc.hint, remedy)
    return Finding("selinux", Verdict.OK, what)


def _kernel() -> Iterator[Finding]:
    with fds.closing(os.open("/", fds.DIRECTORY)) as root:

        def open_beneath() -> None:
            os.close(linux.openat2(root, ".", fds.DIRECTORY, linux.RESOLVE_BENEATH))

        def mount() -> None:
            with fds.closing(linux.open_tree(root, linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC)) as tree:
                linux.mount_setattr(tree, 0, propagation=linux.MS_PRIVATE)

        without = "hostprep compares mount ids instead, and doctor cannot look into containers"
        yield _kernel_feature("openat2", "5.6", without, open_beneath)
        whose = "that others could redirect" if rootless.inside() else "below a user's home"
        without = f"a pass takes longer, and a path {whose} is refused"
        yield _kernel_feature("open_tree and mount_setattr", "5.12", without, mount)


def _kernel_feature(what: str, since: str, without: str, use: Callable[[], None]) -> Finding:
    try:
        use()
    except OSError as exc:
        why = f"new in Linux {since}" if exc.errno == errno.ENOSYS else exc.strerror
        return Finding("kernel", Verdict.NOTE, f"without {what} ({why}): {without}", f"Linux {since} or newer")
    return Finding("kernel", Verdict.OK, f"{what}, of Linux {since}")


# -- the volumes ---------------------------------------------------------------------------------------------------


def _volumes(driver: Driver, local: Collection[str]) -> Iterator[Finding]:
    for name, _ in driver.volumes():
        if name in local:
            yield shadowed(name)
            continue
        try:
            status: dict[str, Any] = driver.get(name)["Status"]
        except HostprepError as exc:
            yield Finding("volume", Verdict.BAD, f"{name}: {exc.message}", exc.hint)
            continue
        if status["uid"] is None:
            yield Finding("volume", Verdict.BAD, f"{name}: {printable('; '.join(status['warnings']))}")
            continue
        label = f" {status['label']}" if status["label"] else ""
        state = f"{name}: {status['uid']}:{status['gid']} {status['mode']}{label}"
        if status["ready"]:
            yield Finding("volume", Verdict.OK, printable(state))
        else:
            with driver.store.open(check_name(name)) as volume:
                unfinished = volume.pending() is not None and not copying.under_way(volume)
            if status["drift"] or unfinished:
                why = "; ".join(status["drift"]) or "a pass over its contents is not finished"
                remedy = Command("volume", Apply("").command(name))
                yield Finding("volume", Verdict.WARNING, printable(f"{state}: {why}"), "as declared", remedy)
            else:  # its file system takes no writes, or an engine may still be copying into it
                yield Finding("volume", Verdict.WARNING, printable(f"{state}: {'; '.join(status['warnings'])}"))
