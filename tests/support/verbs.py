"""What the tests of crashes and faults do to a host, one case a verb, and what has to hold whatever became of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hostprep.__main__ import main
from hostprep.errors import HostprepError, in_words
from hostprep.options import is_name
from hostprep.serve.wire import create_app
from hostprep.settings import Settings
from hostprep.volumes.driver import Driver
from tests.support import steps
from tests.support.host import ATTRIBUTE, Docker, Host, label, soon
from tests.support.trees import make_tree


def opened(host: Host) -> Driver:
    """The driver over the host's root, as a server that starts has it."""
    return Driver.open(Settings.read(host.environ), create=True)


def engine(driver: Driver) -> Docker:
    return Docker(create_app(driver).test_client())


@dataclass(frozen=True)
class Case:
    """One thing that is done to a host, and what was there before."""

    name: str
    do: Callable[[Host], None]
    """In a process of its own; raises SystemExit as the command line does."""
    before: Callable[[Host, Docker], None] | None = None
    """None: not even hostprep's root."""
    refused: str = ""
    """What the same thing again may say where the first had got to its end."""
    walks: bool = False
    """Whether processes of a pass are started, which takes its time."""
    kept: bool = True
    """Whether all data is still there at the end."""
    repairs: bool = False
    """Whether it only mends what every Mount looks at, and so need not outlive the power."""
    unfilled: bool = False
    """Whether there may be a volume whose data has not come yet."""

    def __str__(self) -> str:
        return self.name

    def arrange(self, host: Host) -> None:
        """Make what is there before."""
        if self.before is not None:
            self.before(host, engine(opened(host)))


def command(*arguments: str) -> Callable[[Host], None]:
    """`hostprep ARGUMENTS`, in which SRV stands for the directory of paths."""

    def do(host: Host) -> None:
        os.environ.update(host.environ)
        sys.argv = ["hostprep", *(argument.replace("SRV", str(host.srv)) for argument in arguments)]
        main()

    return do


def verb(name: str, volume: str) -> Callable[[Host], None]:
    """A verb of the protocol, as a server does it that has just started."""

    def do(host: Host) -> None:
        with errors_told():
            answer = engine(opened(host))(name, Name=volume, ID="c" * 64)
            if answer.status != 200:
                print(f"hostprep: {answer.error}", file=sys.stderr)
                raise SystemExit(1)

    return do


def start(host: Host) -> None:
    """What a server does before it listens."""
    with errors_told():
        opened(host).store.remove_leftovers()


@contextlib.contextmanager
def errors_told() -> Iterator[None]:
    """As the command line tells them."""
    try:
        yield
    except (HostprepError, OSError) as exc:
        print(f"hostprep: {in_words(exc)}", file=sys.stderr)
        raise SystemExit(1) from None


def fill(data: Path, owner: str, text: str) -> None:
    """What a container has left in its volume."""
    make_tree(
        data,
        f"file file {owner} 640 {text}",
        f"dir dir {owner} 750",
        f"file dir/file {owner} 600 more-{text}",
        f"symlink dir/link nowhere {owner}",
    )


# -- what was there before ---------------------------------------------------------------------------------------------


def volume(*options: str, name: str = "mongo", filled: bool = True) -> Callable[[Host, Docker], None]:
    """A volume, and one that nothing is done to."""

    def before(host: Host, docker: Docker) -> None:
        docker.created("other", uid="5")
        fill(host.data("other"), "5:0", "other")
        pairs = dict(option.replace("SRV", str(host.srv)).split("=", 1) for option in options)
        docker.created(name, **pairs)
        if filled and "path" not in pairs:
            fill(host.data(name), f"{pairs.get('uid', 0)}:{pairs.get('gid', 0)}", name)

    return before


def then(*steps: Callable[[Host, Docker], None]) -> Callable[[Host, Docker], None]:
    def before(host: Host, docker: Docker) -> None:
        for step in steps:
            step(host, docker)

    return before


def removed(host: Host, docker: Docker) -> None:
    assert docker.remove("mongo").status == 200


def another(host: Host, docker: Docker) -> None:
    """A volume of the same name after it, removed, too."""
    fill(docker.created("mongo", uid="184"), "184:0", "newer")
    assert docker.remove("mongo").status == 200


def removed_from_retained(host: Host, docker: Docker) -> None:
    removed(host, docker)
    opened(host).discard_retained("mongo", soon())


def given_away(host: Host, docker: Docker) -> None:
    """As copy-up and the program in the container may leave it."""
    data = host.data("mongo")
    os.chown(data, 77, 78)
    os.chmod(data, 0o2711)


def closed(host: Host, docker: Docker) -> None:
    os.chmod(host.data("mongo"), 0o500)


def strangers(host: Host, docker: Docker) -> None:
    """Files of others below a root that is right."""
    os.chown(host.data("mongo") / "dir" / "file", 77, 78)


def unlabelled(host: Host, docker: Docker) -> None:
    os.removexattr(host.data("mongo"), ATTRIBUTE)


def path(*lines: str) -> Callable[[Host, Docker], None]:
    return lambda host, docker: make_tree(host.srv, *lines)


def mounted(host: Host, docker: Docker) -> None:
    docker.mounted("mongo")


def restore_begun(host: Host, docker: Docker) -> None:
    """As a restore under another name leaves it that is killed just before its rename."""
    (entry,) = host.trash()
    record = host.root / "trash" / entry / "volume.json"
    text = record.read_text()
    record.rename(record.with_name("retained.json"))
    record.touch(0o600)
    record.write_text(text.replace('"mongo"', '"renamed"'))


def purge_begun(host: Host, docker: Docker) -> None:
    (entry,) = host.trash()
    os.rename(host.root / "trash" / entry, host.root / "trash" / f".purge-{entry}")


def leftovers(host: Host, docker: Docker) -> None:
    """What interrupted steps leave."""
    make_tree(host.root / "volumes", "dir .new-1/_data 5:5 700", "file .new-1/volume.json 0:0 600", "file .new-2")
    make_tree(host.root / "locks", "file .new-3 0:0 600")


def local_persist(host: Host, docker: Docker) -> None:
    make_tree(host.srv, "dir aa 55:66", "dir bb 55:66")
    fill(host.srv / "aa", "55:66", "aa")
    state = {"state": {name: f"{host.srv}/{name}" for name in ("aa", "bb")}}
    (host.srv / "state.json").write_text(json.dumps(state))


PRECIOUS = ("dir db 55:66 750", "file db/file 55:66 640 precious", "dir db/dir 55:66", "file db/dir/file 55:66 600 too")
ALL = ("-o", "uid=184", "-o", "gid=998", "-o", "mode=0750", "-o", "label=container_file_t")

CASES = [
    Case("create", command("create", "mongo", *ALL), volume(name="second")),
    Case("create in no root", command("create", "mongo", *ALL)),
    Case("create by path", command("create", "mongo", "-o", "path=SRV/db", "-o", "uid=184"), volume(name="second")),
    Case(
        "create by path of somebody's",
        command("create", "mongo", "-o", "path=SRV/home/db", "-o", "uid=184"),
        then(volume(name="second"), path("dir home 1000:1000")),
    ),
    Case(
        "create adopts",
        command("create", "mongo", "-o", "path=SRV/db", "-o", "recurse=mismatch", *ALL),
        then(volume(name="second"), path(*PRECIOUS)),
        walks=True,
    ),
    Case(
        "create takes up",
        command("create", "mongo", "-o", "uid=185"),
        then(volume("uid=184", "on_remove=retain"), removed),
        walks=True,
    ),
    Case("apply", command("apply", "mongo", "-o", "uid=185", "-o", "mode=0700"), volume("uid=184"), walks=True),
    Case("repair", command("repair", "mongo"), then(volume("uid=184"), strangers), walks=True, repairs=True),
    Case(
        "repair with recurse=never",
        command("repair", "mongo"),
        then(volume("uid=184", "recurse=never"), strangers),
        walks=True,
        repairs=True,
    ),
    Case("apply --no-wait", command("apply", "mongo", "--no-wait", "-o", "mode=0700"), volume("uid=184")),
    Case("apply --unset", command("apply", "mongo", "--unset", "uid"), volume("uid=184", "mode=0750")),
    Case("rm", command("rm", "mongo"), volume("uid=184")),
    Case("rm retains", command("rm", "mongo"), volume("uid=184", "on_remove=retain")),
    Case("rm by path", command("rm", "mongo"), then(path(*PRECIOUS), volume("path=SRV/db"))),
    Case(
        "rm with a mount",
        command("rm", "mongo"),
        then(
            path("dir home 1000:1000", *(line.replace(" db", " home/db", 1) for line in PRECIOUS)),
            volume("path=SRV/home/db"),
            mounted,
        ),
    ),
    Case(
        "rm --retained",
        command("rm", "--retained", "mongo"),
        then(volume("on_remove=retain"), removed),
        refused="no volume mongo",
    ),
    Case("restore", command("restore", "mongo"), then(volume("uid=184"), removed), refused="exists"),
    Case(
        "restore --as",
        command("restore", "mongo", "--as", "renamed"),
        then(volume("uid=184"), removed, another),
        refused="exists",
    ),
    Case(
        "restore what was retained",
        command("restore", "mongo"),
        then(volume("on_remove=retain"), removed_from_retained),
        refused="exists",
    ),
    Case(
        "restore after restore --as",
        command("restore", "mongo"),
        then(volume("uid=184"), removed, restore_begun),
        refused="exists",
    ),
    Case("purge", command("purge", "--all"), then(volume("uid=184"), removed, another), kept=False),
    Case("purge goes on", command("purge"), then(volume("uid=184"), removed, purge_begun), kept=False),
    Case("mount of a new mode", verb("Mount", "mongo"), then(volume("uid=184", "mode=0750"), closed), repairs=True),
    Case(
        "mount after chown",
        verb("Mount", "mongo"),
        then(volume("uid=184", "gid=998"), given_away),
        walks=True,
        repairs=True,
    ),
    Case(
        "mount after chown and chcon",
        verb("Mount", "mongo"),
        then(volume("uid=184", "label=container_file_t", "recurse=never"), given_away, unlabelled),
        repairs=True,
    ),
    Case(
        "unmount after copy-up",
        verb("Unmount", "mongo"),
        then(volume("uid=184", "mode=0750"), given_away),
        walks=True,
        repairs=True,
    ),
    Case(
        "mount with recurse=always",
        verb("Mount", "mongo"),
        then(volume("uid=184", "recurse=always"), strangers),
        walks=True,
        repairs=True,
    ),
    Case("mount learns", verb("Mount", "mongo"), volume("path=SRV/db", "uid=184"), repairs=True),
    Case(
        "mount makes a mount",
        verb("Mount", "mongo"),
        then(path("dir home 1000:1000", "dir home/db"), volume("path=SRV/home/db")),
        repairs=True,
    ),
    Case(
        "prepare",
        command("prepare", "SRV/db", *ALL),
        path(*PRECIOUS),
        walks=True,
    ),
    Case("prepare makes", command("prepare", "SRV/db", *ALL)),
    Case(
        "import --from",
        command("import", "--from", "SRV/db", "mongo", "-o", "uid=184"),
        then(volume(name="second"), path(*PRECIOUS)),
        refused="a volume mongo exists",
        walks=True,
        unfilled=True,
    ),
    Case(
        "import --local-persist",
        command("import", "--local-persist", "SRV/state.json", "-o", "uid=184"),
        local_persist,
        repairs=True,
    ),
    Case("start", start, then(volume("uid=184"), leftovers)),
    Case("start in no root", start),
]


# -- what has to hold --------------------------------------------------------------------------------------------------


def tree(top: Path, *, fine: bool) -> dict[str, list[Any]] | None:
    """What is at *top* and below, kind and contents, and if *fine* owner, mode and label too; None for nothing."""
    if not top.is_dir():
        return None
    found: dict[str, list[Any]] = {}
    for path in [top, *sorted(top.rglob("*"))]:
        st = os.lstat(path)
        text = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else ""
        shown: list[Any] = [stat.S_IFMT(st.st_mode), text]
        if fine:
            shown += [st.st_uid, st.st_gid, f"{stat.S_IMODE(st.st_mode):04o}", label(path)]
        found[str(path.relative_to(top))] = shown
    return found


def look(host: Host, *, fine: bool) -> State:
    """What is on disk, read without hostprep: volumes, what is in the trash, the oldest first, and the paths."""
    found = State(srv=tree(host.srv, fine=fine) or {})
    for directory in sorted((host.root / "volumes").glob("[!.]*")):
        if (directory / "volume.json").exists():
            found.live[directory.name] = [_options(directory / "volume.json"), tree(directory / "_data", fine=fine)]
        elif (directory / "retained.json").exists():
            found.retained[directory.name] = [
                _options(directory / "retained.json"),
                tree(directory / "_data", fine=fine),
            ]
    for directory in sorted((host.root / "trash").glob("[!.]*")):
        record = directory / "retained.json"
        record = record if record.exists() else directory / "volume.json"
        name = json.loads(record.read_text())["name"]
        found.trash.append([name, _options(record), tree(directory / "_data", fine=fine)])
    return found


def _options(record: Path) -> Any:
    return json.loads(record.read_text())["options"]


@dataclass
class State:
    """What `look` saw."""

    live: dict[str, list[Any]] = field(default_factory=dict)
    retained: dict[str, list[Any]] = field(default_factory=dict)
    trash: list[list[Any]] = field(default_factory=list)
    srv: dict[str, list[Any]] = field(default_factory=dict)

    def contents(self) -> list[str]:
        """The contents of all files, wherever they are."""
        trees = [self.srv, *(t for _, t in [*self.live.values(), *self.retained.values()]), *(e[2] for e in self.trash)]
        return sorted(entry[1] for each in trees if each for entry in each.values() if entry[1])


def is_sound(host: Host, docker: Docker, case: Case, before: State, after: State) -> None:
    """Each volume is as it was or as it was to be; all data is there, once; nothing temporary is; Get says what is so.

    After a sweep, as at each start.
    """
    now = look(host, fine=False)
    for kind in ("live", "retained", "srv"):
        found, old, new = (getattr(state, kind) for state in (now, before, after))
        for key in {*found, *old, *new}:
            if case.unfilled and kind == "live" and key in found and found[key][1] is None and key not in old:
                continue
            assert found.get(key) in (old.get(key), new.get(key)), f"{kind} {key}"
    assert all(entry in [*before.trash, *after.trash] for entry in now.trash), now.trash
    if case.kept:
        assert now.contents() == before.contents()
    assert {*os.listdir(host.root)} <= {"hostprep.json", "locks", "mounts", "trash", "volumes"}
    assert os.listdir(host.root / "locks") in ([], ["held"])
    assert all(is_name(name) for name in host.left_in_volumes()), host.left_in_volumes()
    assert {*os.listdir(host.root / "mounts")} <= {*now.live}
    assert case.name.startswith("purge") or not [entry for entry in host.trash() if entry.startswith(".")]
    assert sorted(docker.names()) == sorted(now.live)
    for name in {*before.live, *after.live, "nobody"}:
        assert docker.knows(name) is (name in now.live), name


def ready(docker: Docker) -> bool:
    """Whether every volume says that it is."""
    return all(docker.status(name)["ready"] for name in docker.names())


def goes_on(host: Host, docker: Docker) -> None:
    """Whatever the engine asks next of the volumes is answered."""
    for name in docker.names():
        assert docker.create(name).status == 200
        data = docker.mounted(name)
        assert data.is_dir()
        assert docker.unmount(name).status == 200
        assert docker.status(name)["ready"] is True, docker.status(name)
        assert docker("Path", Name=name).body["Mountpoint"] == str(data)


def run(case: Case, host: Host, at: Callable[[steps.Step], int] = lambda step: steps.GO) -> tuple[steps.Ended, str]:
    """Do it in a process of its own, stopped *at* each step; how that ended, and what it said on standard error."""

    def child(tell: Callable[[object], None]) -> None:
        said = sys.stderr = io.StringIO()
        try:
            case.do(host)
        finally:
            tell(said.getvalue())

    end = time.monotonic() + 60
    while threading.active_count() > 1 and time.monotonic() < end:  # of passes; what forks is to be alone
        time.sleep(0.001)
    ended = steps.run(child, [host.srv.parent], at)
    return ended, str(ended.told[-1]) if ended.told else ""
