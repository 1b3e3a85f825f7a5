"""Who may do what: users of the host, names and paths that are to lead elsewhere, records that were tampered with.

docs/threat-model.md says who is trusted with what, and names these.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pty
import re
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hostprep.options import KNOWN, Name
from hostprep.volumes.declaration import Declaration
from hostprep.volumes.record import Record, rfc3339
from tests.support.archives import BASE, docker_save, tar
from tests.support.fixtures import Command
from tests.support.host import PYTHON, REPOSITORY, Docker, Host, Server, eventually, mode, mounted, owner
from tests.support.unixhttp import raw

pytestmark = pytest.mark.root

SOMEBODY: Final = 12345
AS_SOMEBODY: Final = f"import os, socket; os.setgroups([]); os.setgid({SOMEBODY}); os.setuid({SOMEBODY}); "


@pytest.fixture
def open_above(host: Host) -> Iterator[Host]:
    """A host on which everybody may go as far as to hostprep's root, and to its socket."""
    closed = [each for each in (host.root.parent, *host.root.parent.parents) if each.stat().st_mode & 0o011 != 0o011]
    before = {each: stat.S_IMODE(each.stat().st_mode) for each in [*closed, host.socket.parent]}
    for each in before:
        each.chmod(0o755)
    yield host
    for each, bits in before.items():
        each.chmod(bits)


def as_somebody(code: str) -> str:
    """What a user of the host, who is in no group of root's, prints."""
    argv = [PYTHON, "-I", "-c", AS_SOMEBODY + code]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1].partition(":")[0]


class TestHostUsers:
    def test_the_socket(self, open_above: Host) -> None:
        """A user of the host cannot connect to the socket; root can."""
        open_above.serve()
        connect = f"s = socket.socket(1); s.connect({str(open_above.socket)!r}); print('connected')"
        assert as_somebody("pass; print('runs')") == "runs"
        assert as_somebody(connect) == "PermissionError"
        assert raw(open_above.socket, b"POST /Plugin.Activate HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    def test_the_sockets_unit(self) -> None:
        """Under systemd, too, the socket is root's alone."""
        unit = (REPOSITORY / "systemd/hostprep.socket").read_text().splitlines()
        assert "SocketMode=0600" in unit
        assert not any(line.startswith(("SocketUser=", "SocketGroup=")) for line in unit)  # root, by default

    def test_the_root_directory(self, open_above: Host) -> None:
        """Whatever owner and mode a volume has, a user of the host reaches neither it nor a record nor the trash."""
        host = open_above
        assert host.run("create", "mongo", "-o", f"uid={SOMEBODY}", "-o", "mode=0777").code == 0
        assert host.run("create", "gone").code == 0
        assert host.run("rm", "gone").code == 0
        parts = [host.root / part for part in ("volumes", "trash", "locks", "mounts")]
        paths = [*parts, host.record("mongo"), host.data("mongo")]
        assert as_somebody(f"print(os.stat({str(host.root)!r}).st_uid)") == "0"
        for path in [*paths, host.root / "trash" / host.trash()[0]]:
            assert path.exists()
            assert as_somebody(f"os.stat({str(path)!r}); print('seen')") == "PermissionError"
        assert as_somebody(f"os.mkdir({str(host.root / 'new')!r}); print('made')") == "PermissionError"

    def test_what_hostprep_writes(self, host: Host) -> None:
        """Every file that hostprep makes for itself is root's, 0600, whatever umask it was started with."""
        argv = [PYTHON, "-c", "import os; os.umask(0); from hostprep.__main__ import main; main()", "create", "mongo"]
        subprocess.run(argv, cwd=REPOSITORY, env=host.process_environ(), check=True, capture_output=True)
        for top, _, files in os.walk(host.root):
            for file in files:
                assert (owner(Path(top, file)), mode(Path(top, file))) == ((0, 0), "0600")
        assert (owner(host.root), mode(host.root)) == ((0, 0), "0700")


# -- path ----------------------------------------------------------------------------------------------------


class TestPaths:
    @pytest.mark.usefixtures("read_only_machine")
    @pytest.mark.parametrize(
        "trick",
        [
            "{srv}/../victim",
            "{srv}/./../victim",
            "{srv}/db/../../victim",
            "{srv}/..",
            "{srv}",
            "{srv}/",
            "{srv}/.",
            "{srv}//",
            "/{srv}/db",
            "//{srv}/db",
            "{srv}/db/",
            "{srv}//db",
            "{srv}/db/.",
            "{srv}\0/../victim",
            "{srv}/db\0",
            "srv/db",
            "./db",
            "~/db",
            "$HOME/db",
            "",
            ".",
            "/",
            "{above}/victim",
            "{srv}x",
            "{srv}x/db",
            "{srv}/to-victim",
            "{srv}/to-victim/inner",
            "{srv}/to-above/victim",
            "{srv}/to-root{above}/victim",
            "{srv}/to-proc",
            "{srv}/to-proc/victim",
            "{srv}/dangling",
            "{srv}/a-file",
            "{srv}/a-file/db",
            "{srv}/a-fifo",
            "{srv}/missing/db",
            "/proc/self/root{above}/victim",
            "/proc/self/cwd/db",
            "/proc/1/root{srv}/db",
            "/proc/self/fd/0",
            "/dev/shm/db",
            "/etc/db",
            "/root/db",
            "{root}/volumes/mongo/_data",
            "{root}",
            "{srv}/" + "x/" * 3000 + "x",
            "{srv}/" + "x" * 256,
            "{srv}/\udc80",
            "unix:{srv}/db",
            "file://{srv}/db",
        ],
        ids=lambda trick: trick[:40].encode("unicode_escape", "surrogatepass").decode(),
    )
    def test_tricks(self, docker: Docker, host: Host, trick: str) -> None:
        """No spelling, link or file leads a path out of its prefix: refused, and nothing is made or changed."""
        above, victim = host.srv.parent, host.srv.parent / "victim"
        (victim / "inner").mkdir(parents=True)
        for name, target in [("to-victim", "../victim"), ("to-above", ".."), ("to-root", "/"), ("dangling", "none")]:
            (host.srv / name).symlink_to(target)
        (host.srv / "to-proc").symlink_to(f"/proc/self/root{above}")
        (host.srv / "a-file").touch()
        os.mkfifo(host.srv / "a-fifo")
        (host.srv.parent / "srvx").mkdir()
        before = self.everything(above)

        path = trick.format(srv=host.srv, above=above, root=host.root)
        answer = docker.create("mongo", path=path, uid="184", gid="998", mode="0777", recurse="always")

        assert answer.status in (400, 403) or (answer.status == 500 and "does not exist" in answer.error)
        assert answer.error.isprintable()
        assert docker.names() == []
        assert self.everything(above) == before

    @staticmethod
    def everything(top: Path) -> dict[str, tuple[int, ...]]:
        """Owner, mode and inode of all there is, but for hostprep's own."""
        found: dict[str, tuple[int, ...]] = {}
        for directory, directories, files in os.walk(top):
            if Path(directory) == top:
                directories[:] = [each for each in directories if each != "root"]
            for name in (*directories, *files):
                st_ = os.lstat(os.path.join(directory, name))
                found[os.path.join(directory, name)] = (st_.st_uid, st_.st_gid, st_.st_mode, st_.st_ino)
        return found

    @pytest.mark.parametrize("component", ["db", "above", "srv"])
    @pytest.mark.parametrize("moment", ["create", "mount"])
    def test_swapped_after_create(self, docker: Docker, host: Host, component: str, moment: str) -> None:
        """A component that became a link after Create leads no Mount, no Unmount and no Create elsewhere."""
        victim = host.srv.parent / "victim"
        (victim / "above" / "db").mkdir(parents=True)
        (victim / "db").mkdir()
        (host.srv / "above").mkdir()
        path = host.srv / "above" / "db"
        options = {"path": str(path), "uid": "184", "mode": "0777", "recurse": "always"}
        docker.created("mongo", **options)
        swapped = {"db": path, "above": path.parent, "srv": host.srv}[component]
        swapped.rename(swapped.with_name(swapped.name + ".away"))
        swapped.symlink_to({"db": victim / "db", "above": victim / "above", "srv": victim}[component])
        before = self.everything(victim)

        if moment == "mount":
            answer = docker.mount("mongo")
            assert answer.status in (403, 500)
            assert "symlink" in answer.error
            assert "Mountpoint" not in answer.body
        docker.unmount("mongo")
        docker.create("mongo", **options)
        docker.create("other", **{**options, "path": f"{path}2"})

        assert self.everything(victim) == before
        assert docker.status("mongo")["ready"] is False

    def test_a_prefix_that_became_a_link(self, host: Host) -> None:
        """A user who makes a prefix in his home a link gets no other home allowed, and stops nobody else's volumes."""
        home, victim = host.srv.parent / "anna", host.srv.parent / "bert"
        (victim / "precious").mkdir(parents=True)
        home.mkdir()
        (home / "data").symlink_to(victim)
        for path in (home, home / "data", victim):
            os.chown(path, SOMEBODY, SOMEBODY, follow_symlinks=False)
        server = host.serve(HOSTPREP_ALLOW=f"{home}/data:{host.srv}")
        said = f"HOSTPREP_ALLOW: no path below {home}/data can be used: {home}/data is a symlink"
        eventually(lambda: said in server.log, "the log says so")
        before = self.everything(victim)
        for path in (home / "data" / "precious", home / "data" / "new", victim / "precious", victim / "new"):
            answer = server("Create", Name="mongo", Opts={"path": str(path), "uid": "184", "recurse": "always"})
            assert answer.status == 403, answer
        assert self.everything(victim) == before
        assert server("Create", Name="mongo", Opts={"path": f"{host.srv}/db"}).status == 200

    def test_what_root_has_mounted(self, docker: Docker, host: Host) -> None:
        """A bind mount below a prefix is root's word, and is followed; one inside of the volume is not gone into."""
        elsewhere, inside = host.srv.parent / "elsewhere", host.srv.parent / "inside"
        for each in (elsewhere / "sub", inside):
            each.mkdir(parents=True)
        (inside / "file").touch()
        (host.srv / "db").mkdir()
        with mounted("--bind", str(elsewhere), str(host.srv / "db")):
            with mounted("--bind", str(inside), str(host.srv / "db" / "sub")):
                docker.created("mongo", path=f"{host.srv}/db", uid="184", recurse="always")
                assert docker.mount("mongo").status == 200
            assert docker.remove("mongo").status == 200
        assert owner(elsewhere) == (184, 0)
        assert owner(inside) == owner(inside / "file") == (0, 0)

    def test_a_mount_in_somebodys_own_namespace(self, docker: Docker, host: Host) -> None:
        """What a user mounts in a namespace of his own is not seen, and leads nobody elsewhere."""
        victim = host.srv.parent / "victim"
        victim.mkdir()
        (host.srv / "db").mkdir()
        script = f"mount --bind {victim} {host.srv}/db && echo mounted && read _"
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            assert process.stdout.readline() == "mounted\n"
            docker.created("mongo", path=f"{host.srv}/db", uid="184")
            assert docker.mount("mongo").status == 200
            process.communicate("\n", timeout=60)
        assert owner(victim) == (0, 0)
        assert owner(host.srv / "db") == (184, 0)


# -- names ---------------------------------------------------------------------------------------------------

NAMES: Final = [
    "..", ".", "../victim", "a/../../victim", "/etc", "a/b", "a\0b", "-rf", "--help", ".new-1", "hostprep.json/../x",
    "x" * 256, "a b", "a\nb", "é", "", "~", "*", "%2e%2e", "..\\x", "_", "\u202ea", "/paths",
]  # fmt: skip


class TestNames:
    @pytest.mark.usefixtures("read_only_machine")
    @pytest.mark.parametrize("name", NAMES, ids=ascii)
    def test_as_paths(self, docker: Docker, hostprep: Command, host: Host, name: str) -> None:
        """No name leads out of its directory, by any verb or command, and none is taken for an option."""
        docker.created("mongo")
        before = TestPaths.everything(host.root)
        for verb in ("Create", "Remove", "Mount", "Path"):
            answer = docker(verb, Name=name, ID="x")
            assert answer.status == 400, verb
            assert answer.error.isprintable()
        assert docker("Unmount", Name=name).status in (200, 400)
        if name and "\0" not in name:
            for command in (["create"], ["rm"], ["rm", "--retained"], ["status"], ["apply"], ["restore"]):
                done = hostprep(*command, "--", name)
                assert done.code == 1, command
                assert len(done.err.splitlines()) == 1
                assert done.err.strip().isprintable()
            assert hostprep("restore", "mongo", "--as", name).code == 1
        assert TestPaths.everything(host.root) == before

    @pytest.mark.usefixtures("read_only_machine")
    @pytest.mark.parametrize("entry", ["..", "../volumes/mongo", "/etc", "", ".purge-x", "20261124T043012Z-0", "x\n"])
    def test_trash_ids_as_paths(self, docker: Docker, hostprep: Command, host: Host, entry: str) -> None:
        """No id of the trash leads out of it, neither what is purged nor what is restored."""
        docker.created("mongo")
        before = TestPaths.everything(host.root)
        assert hostprep("purge", "--", entry).code == 1
        assert hostprep("restore", "mongo", "--as", "new", "--id", entry).code == 1
        assert TestPaths.everything(host.root) == before


# -- what a terminal shows -----------------------------------------------------------------------------------

NASTY: Final = "\x1b]0;owned\x07\x1b[2J\r\n\u202egpj.exe\u2028\x9b31m[red]\\u0041\x7f\b"


class TestTerminals:
    @pytest.fixture
    def nasty(self, host: Host, docker: Docker) -> Host:
        """A host with that text wherever somebody could have brought it in."""
        path = host.srv / NASTY
        path.mkdir()
        docker.created("bypath", path=str(path), uid="184", recurse="mismatch")
        docker.created("kept", on_remove="retain")
        docker.remove("kept")
        record = Record(
            Name("noted"), Declaration({"uid": "184"}), rfc3339(), entries_left_alone=(f"{NASTY}: is a device node",)
        )
        docker.created("noted")
        host.record("noted").write_bytes(record.to_json())
        docker.created("damaged")
        host.record("damaged").write_text(json.dumps({"name": NASTY, NASTY: NASTY}))
        docker.created("labelled")
        os.setxattr(host.data("labelled"), "security.selinux", b"\x1b[2Ja:b:c:s0\0")
        (host.root / "volumes" / NASTY).mkdir()
        (host.root / "trash" / f"20261124T043012Z-{NASTY}").mkdir()
        return host

    COMMANDS: Final = [
        ["ls"],
        ["ls", "--trash"],
        ["ls", "--retained"],
        ["ls", "--json"],
        ["status", "bypath"],
        ["status", "noted"],
        ["status", "damaged"],
        ["status", "labelled"],
        ["status", "--json", "noted"],
        ["status", NASTY],
        ["create", "x", "-o", NASTY],
        ["create", "x", "-o", f"{NASTY}=1"],
        ["create", "x", "-o", f"label={NASTY}"],
        ["create", "x", "-o", f"path=/{NASTY}"],
        ["apply", "noted", "--unset", NASTY],
        ["restore", NASTY],
        ["purge", NASTY],
        ["prepare", f"/none/{NASTY}"],
        ["prepare", "/tmp/x", "-o", f"{NASTY}=1"],
        ["doctor"],
        ["doctor", "noted"],
        ["doctor", NASTY],
        ["probe", NASTY],
        ["probe", "--archive", f"/none/{NASTY}"],
        ["import", "--local-persist", f"/none/{NASTY}"],
        ["import", "--from", f"/none/{NASTY}", "x"],
        ["--root", f"/none/{NASTY}", "ls"],
        ["--patience", NASTY, "ls"],
        ["--allow", f"/etc/{NASTY}", "ls"],
    ]

    @pytest.mark.parametrize("arguments", COMMANDS, ids=lambda a: " ".join(a).encode("unicode_escape").decode()[:40])
    def test_commands(self, nasty: Host, arguments: list[str]) -> None:
        """Whatever text is on disk, in options or in names, a terminal is shown it escaped, by every command."""
        ours, theirs = pty.openpty()
        environ = nasty.process_environ({"TERM": "xterm", "COLUMNS": "400", "NO_COLOR": "1", "LC_ALL": "C.UTF-8"})
        argv = [PYTHON, "-m", "hostprep", *arguments]
        process = subprocess.Popen(argv, cwd=REPOSITORY, env=environ, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the command has ended
            while got := os.read(ours, 65536):
                shown += got
        os.close(ours)
        assert process.wait(60) in (0, 1)
        text = shown.decode()
        # rich's own: bold and colours, and those with which it draws a bar and takes it away.
        text = re.sub(r"\x1b\[([0-9;]*m|\?25[lh]|2K|1A)|\r(?!\n)", "", text)
        assert all(line.isprintable() for line in text.replace("\r\n", "\n").split("\n")), text
        assert "Traceback" not in text

    def test_the_log(self, nasty: Host) -> None:
        """Nor does it forge a line of the server's log: one a request, all printable."""
        server = nasty.serve(HOSTPREP_LOG_LEVEL="debug")
        before = len(server.log.splitlines())
        asked: list[tuple[str, dict[str, Any]]] = [
            ("Create", {"Name": NASTY}),
            ("Create", {"Name": "x", "Opts": {NASTY: NASTY}}),
            ("Create", {"Name": "x", "Opts": {"path": f"/{NASTY}"}}),
            ("Mount", {"Name": "damaged", "ID": NASTY}),
            ("Mount", {"Name": "bypath", "ID": NASTY}),
            ("Remove", {"Name": NASTY}),
            ("Unmount", {"Name": NASTY}),
            ("List", {}),
        ]
        for verb, body in asked:
            assert server(verb, **body).error.isprintable()
        server.ask(f"/{'%1b%0a%c2%9b'}", b"{}")
        assert server.terminate() == 0
        lines = server.log.split("\n")
        assert all(line.isprintable() for line in lines), lines
        assert all(line.startswith("hostprep: ") for line in lines if line), lines
        assert len(lines) - before > len(asked)


# -- a record that was tampered with -------------------------------------------------------------------------

TEXT: Final = st.text(max_size=20) | st.sampled_from(
    [
        "mongo",
        "../x",
        "{victim}",
        "{srv}",
        "0",
        "184",
        "4294967295",
        "0777",
        "never",
        "delete",
        "retain",
        "none",
        "a:b:c:s0",
    ]
)
JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
FIELDS: Final = (
    "name", "options", "created_at", "made", "taken_up", "left_alone", "narrowed", "pinned", "imported", "resolved",
    "data",
)  # fmt: skip
VICTIM: Final = st.sampled_from(["{victim}", "{srv}/db", "{srv}/link", "{srv}/../victim", "{root}/volumes/other/_data"])
OPTIONS: Final = st.dictionaries(st.sampled_from(KNOWN), TEXT | VICTIM | JSON, max_size=3)
CHANGES: Final = st.dictionaries(st.sampled_from(FIELDS), JSON | OPTIONS | st.booleans(), min_size=1, max_size=3)


@pytest.mark.usefixtures("read_only_machine")
@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_a_record(docker: Docker, host: Host, field: str) -> None:
    """Whatever a field of volume.json says, Get says no untrue no, and nothing but the volume is touched."""
    victim, link = host.srv.parent / "victim", host.srv / "link"
    victim.mkdir()
    link.symlink_to(victim)
    docker.created("other")
    docker.created("mongo", uid="184")
    good = json.loads(host.record("mongo").read_text())
    del good["data"]  # with it, a record with a path would be damaged whatever else it says
    places = {"victim": str(victim), "srv": str(host.srv), "root": str(host.root)}
    before = (TestPaths.everything(victim), owner(victim), TestPaths.everything(host.volume("other")))

    @settings(deadline=None, database=None, derandomize=True, max_examples=60, suppress_health_check=list(HealthCheck))
    @given(value=JSON | OPTIONS | st.booleans(), more=CHANGES)
    @example(value={"path": "{victim}"}, more={"made": True})
    @example(value={"path": "{srv}/link", "recurse": "always", "uid": "5"}, more={"pinned": True})
    @example(value={"path": "{root}/volumes/other/_data"}, more={"made": True})
    def tampered(value: Any, more: dict[str, Any]) -> None:
        changed = {**good, **more, field: value}
        text = json.dumps(changed)
        for key, place in places.items():
            text = text.replace("{" + key + "}", place)
        host.record("mongo").write_text(text)

        known, answer = docker.knows("mongo"), docker.mount("mongo")
        listed = {volume["Name"]: volume.get("Mountpoint") for volume in docker.listed()}

        assert known is not False  # which would have the engine forget it
        assert listed.keys() == {"mongo", "other"}
        assert (listed["mongo"] is None) == (known is None)
        if answer.status == 200:
            assert known
            place = answer.body["Mountpoint"]
            assert place in (str(host.data("mongo")), f"{host.srv}/db", f"{host.root}/mounts/mongo")
        docker.unmount("mongo")
        assert (TestPaths.everything(victim), owner(victim), TestPaths.everything(host.volume("other"))) == before

    tampered()
    assert {each.name for each in host.volume("mongo").iterdir()} <= {"volume.json", "_data", "pass.json"}


@pytest.mark.parametrize(
    "how",
    [
        lambda path: path.chmod(0o644),
        lambda path: os.chown(path, SOMEBODY, SOMEBODY),
        lambda path: os.link(path, path.parent.parent.parent / "another-name"),
        lambda path: (path.rename(path.with_name("x")), path.symlink_to("x")),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), os.mkfifo(path, 0o600)),
        lambda path: path.write_text(path.read_text() + " " * 70_000),
    ],
    ids=["readable", "another's", "two names", "a link", "a directory", "a fifo", "too long"],
)
def test_a_record_that_others_could_have_written(docker: Docker, host: Host, how: Callable[[Path], object]) -> None:
    """A record that is not a file of root's alone is not believed, whatever it says: Get is not answered."""
    docker.created("mongo", uid="184")
    how(host.record("mongo"))
    assert docker.knows("mongo") is None
    assert docker.mount("mongo").status == 500
    assert docker.listed() == [{"Name": "mongo"}]


# -- images --------------------------------------------------------------------------------------------------

LOOP: Final = tar(("etc", None), ("etc/passwd", "-> passwd"), ("data", "-> data"), ("a", "-> b"), ("b", "-> a"))
HOSTILE: Final = {
    "a link that leads round": docker_save(LOOP),
    "links that lead out": docker_save(tar(("data", "-> ../../../../etc"), ("etc/passwd", "-> /proc/self/environ"))),
    "a hard link to what is not there": docker_save(tar(("data", "= ../../etc/shadow"))),
    "paths that lead out": docker_save(tar(("../../../etc/passwd", b"root:x:0:0:::\n"), ("/etc/shadow", b"x"))),
    "a terminal's sequences": docker_save(BASE, config={"config": {"User": NASTY, "Volumes": {f"/{NASTY}": {}}}}),
    "a manifest that names itself": docker_save(BASE, Config="manifest.json", Layers=["manifest.json"]),
    "layers that lead out": docker_save(BASE, Layers=["../../../etc/passwd", "/etc/passwd"]),
    "an index that names itself": tar(("index.json", b'{"manifests": [{"digest": "../index.json"}]}')),
    "an index in itself": tar(("blobs/x/i", b'{"manifests": [{"digest": "x:i"}]}'), ("index.json", "= blobs/x/i")),
    "very many volumes": docker_save(BASE, config={"config": {"Volumes": {f"/{n}": {} for n in range(10_000)}}}),
    "very many layers": docker_save(*[b""] * 600),
    "numbers nobody can be": docker_save(tar(("data", None, 2**40, -1))),
    "deep JSON": tar(("manifest.json", b"[" * 100_000)),
    "no end": docker_save(BASE)[:3000],
}


@pytest.mark.parametrize("which", HOSTILE)
def test_hostile_images(hostprep: Command, host: Host, tmp_path: Path, which: str) -> None:
    """An image can have probe say nonsense or refuse, in printable lines: it makes and reads nothing of the host."""
    (tmp_path / "image.tar").write_bytes(HOSTILE[which])
    before = TestPaths.everything(tmp_path)
    done = hostprep("probe", "--archive", str(tmp_path / "image.tar"), "--path", "/data", "--path", "/a")
    assert done.code in (0, 1)
    assert all(line.isprintable() for line in (done.out + done.err).split("\n"))
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) == (1 if done.code else 0)
    assert "root:" not in done.out
    assert TestPaths.everything(tmp_path) == before


def test_an_image_that_unpacks_to_very_much(host: Host, tmp_path: Path) -> None:
    """A bomb of a gibibyte in a few kilobytes, twice compressed, is gone through in little memory or refused."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb") as layer:
        header = tar(("data/zeros", b""))[:512]
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        info.size = 1 << 30
        layer.write(info.tobuf())
        for _ in range(1 << 8):
            layer.write(bytes(1 << 22))
        layer.write(bytes(1024))
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(docker_save(BASE, buffer.getvalue())))
    assert (tmp_path / "bomb.tar.gz").stat().st_size < 1 << 20
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20)); "
        f"sys.argv = ['hostprep', 'probe', '--archive', {str(tmp_path / 'bomb.tar.gz')!r}]; "
        "from hostprep.__main__ import main; main()"
    )
    argv = [PYTHON, "-c", code]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert "Error" not in done.stderr
    assert done.returncode == 1 or "runs as:" in done.stdout


@pytest.fixture(params=["disk", "bind"])
def harmless_root(request: pytest.FixtureRequest, host: Host) -> Iterator[Path]:
    """hostprep's root, mounted nosuid and nodev: a disk of its own, or the directory bound on itself."""
    host.root.mkdir(mode=0o700)
    root = str(host.root)
    commands = [["-t", "tmpfs", "-o", "nosuid,nodev,mode=0700", "tmpfs", root]]
    if request.param == "bind":
        commands = [["--bind", root, root], ["-o", "remount,bind,nosuid,nodev", root]]
    for arguments in commands:
        subprocess.run(["mount", *arguments], check=True)
    yield host.root
    subprocess.run(["umount", host.root], check=True)


def test_a_root_without_setuid_and_devices(harmless_root: Path, docker: Docker, hostprep: Command) -> None:
    """On a root that is mounted nosuid,nodev everything works; what is left there gives nobody rights on the host."""
    made = docker.created("mongo", uid="184", gid="998", mode="06755", recurse="always")
    program = made / "id"
    shutil.copy(shutil.which("id") or "", program)
    os.mknod(made / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    docker.mounted("mongo")
    assert (owner(made), mode(made), owner(program)) == ((184, 998), "6755", (184, 998))
    status = docker.status("mongo")
    assert (status["ready"], status["drift"], status["warnings"]) == (True, [], [])
    findings = hostprep("doctor", "mongo", "--json").json["findings"]
    assert {each["verdict"] for each in findings} <= {"ok", "note"}

    program.chmod(0o6755)
    with open(program, "rb") as file:
        argv = [f"/proc/self/fd/{file.fileno()}", "-u"]
        ran = subprocess.run(argv, pass_fds=[file.fileno()], user=SOMEBODY, capture_output=True, text=True, check=False)
    assert ran.stdout == f"{SOMEBODY}\n"
    with pytest.raises(PermissionError):
        os.close(os.open(made / "null", os.O_RDONLY))

    assert docker.remove("mongo").status == 200
    assert hostprep("restore", "mongo").code == 0
    assert mode(program) == "6755"
    assert docker.remove("mongo").status == 200
    assert hostprep("purge", "--all").code == 0
    assert os.listdir(harmless_root / "trash") == []


def test_the_socket_of_another_plugin(host: Host) -> None:
    """Where another plugin answers, hostprep neither takes its place nor its socket."""
    other: Server = host.serve(HOSTPREP_ROOT=str(host.root.with_name("another")))
    before = host.socket.stat().st_ino
    done = host.run("serve")
    assert (done.code, "already answers" in done.err) == (1, True)
    assert host.socket.stat().st_ino == before
    assert other.answers()
