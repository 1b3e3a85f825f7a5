"""Each remedy that doctor prints holds: applied, doctor is content, the container works, a restart changes nothing.

A new remedy is a row here, in test_subpaths.py or in tests/enforcing: tests/project compares them with the source. To
add one, write a function that brings it out, for a container db with the volume mongo at /data, and put @brings_out
with the remedy's code and the command over it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from testbed.engine import Engine, Hostprep, environment, wait_for
from tests.support.remedies import Row, Table, content, hold, remedy

from .client import IDS, OPTIONS
from .doctor import Doctor, Situation

pytestmark = pytest.mark.engine
MUCH = "head -c 200000 /dev/zero > /data/file; echo written"
PROGRAM = "cp /bin/busybox /data/true; /data/true"
ALL = "hostprep repair mongo"


brings_out: Table[Situation] = Table()


# -- the volume and its directory ----------------------------------------------------------------------------------


@brings_out("unknown", "docker volume create -d hostprep -o uid=184 -o gid=998 mongo", denied=False)
def unknown(here: Situation) -> None:
    here.volume()
    here.run("stop", "db")
    assert here.hostprep.command("rm", "mongo").returncode == 0
    assert here.hostprep.command("purge", "--all").returncode == 0


@brings_out("removed", "hostprep restore mongo", denied=False)
def removed(here: Situation) -> None:
    here.volume()
    assert here.hostprep.command("rm", "--force", "mongo").returncode == 0


@brings_out("retained", "docker volume create -d hostprep mongo", denied=False)
def retained(here: Situation) -> None:
    here.volume(*OPTIONS, "-o", "on_remove=retain")
    here.undo.callback(here.hostprep.command, "rm", "--retained", "mongo")
    here.undo.callback(here.run.remove_everything)
    assert here.hostprep.command("rm", "--force", "mongo").returncode == 0


@brings_out("lost", "mkdir DIRECTORY && hostprep apply mongo --accept-data && docker restart db")
def lost(here: Situation) -> None:
    here.volume().rmdir()


@brings_out("lost", "mkdir DIRECTORY && hostprep apply mongo --accept-data && docker restart db")
def lost_path(here: Situation) -> None:
    here.volume(*OPTIONS, "-o", f"path={here.allowed}/mongo").rmdir()


@brings_out("lost", "mkdir DIRECTORY && hostprep apply mongo --accept-data", denied=False)
def lost_and_stopped(here: Situation) -> None:
    data = here.volume(*OPTIONS, "-o", f"path={here.allowed}/mongo")
    here.run("stop", "db")
    data.rmdir()


@brings_out("unmounted", "mount /srv/…", denied=False)
def unmounted(here: Situation) -> None:
    disk = here.disk()
    disk.create(here.run)
    here.run.daemon("db", "mongo:/data")
    here.run("stop", "db")
    disk.umount()
    table, real = here.tmp_path / "fstab", Path("/etc/fstab")
    table.write_text(f"# disks\n{disk.file} {disk.point} ext4 loop 0 0\n")
    if not real.exists():
        real.touch()
        here.undo.callback(real.unlink)
    here.engine.run("mount", "--bind", str(table), str(real))
    here.undo.callback(here.engine.run, "umount", str(real))


# -- the mount in the container ------------------------------------------------------------------------------------


@brings_out("restart: nothing there", "docker restart db")
def nothing_at_the_mount_point(here: Situation) -> None:
    here.volume()
    pid = here.run("inspect", "-f", "{{.State.Pid}}", "db")
    here.engine.run("nsenter", "-m", "-t", pid, "--", "/bin/busybox", "umount", "/data")
    here.run("exec", "-u", "0", "db", "rmdir", "/data")


@brings_out("restart: another directory", "docker restart db")
def another_directory(here: Situation) -> None:
    place = here.volume(*OPTIONS, "-o", f"path={here.allowed}/mongo")
    place.rename(here.allowed / "old")
    place.mkdir()
    os.chown(here.allowed / "old", 5, 6)
    assert here.hostprep.command("apply", "mongo", "--accept-data").returncode == 0


@brings_out("restart: read-only", "docker restart db")
def read_only_when_it_started(here: Situation) -> None:
    disk = here.disk()
    disk.create(here.run)
    here.engine.run("mount", "-o", "remount,bind,ro", str(disk.point))
    here.run.daemon("db", "mongo:/data")
    here.engine.run("mount", "-o", "remount,bind,rw", str(disk.point))


@brings_out("restart: noexec", "docker restart db", uses=PROGRAM, denied=False)
def noexec_when_it_started(here: Situation) -> None:
    disk = here.disk()
    disk.create(here.run)
    here.engine.run("mount", "-o", "remount,bind,noexec", str(disk.point))
    here.run.daemon("db", "mongo:/data")
    here.engine.run("mount", "-o", "remount,bind,exec", str(disk.point))


MAPPED = (*OPTIONS, "-o", "host_uid=1000", "-o", "host_gid=1001")


def idmapped(here: Situation, *options: str) -> Path:
    """Have the volume mongo with the files of 1000:1001 on disk, and db with it. Returns the directory on disk."""
    here.hostprep.stop()
    here.hostprep.start(drop_ins=["user-ids.conf"])
    here.volume(*MAPPED, *options)
    return here.hostprep.root / "volumes/mongo/_data"


@brings_out("restart: other ids", "docker restart db")
def other_ids_when_it_started(here: Situation) -> None:
    idmapped(here)
    assert here.hostprep.command("apply", "mongo", "-o", "host_uid=2000").returncode == 0


# -- owner, mode, access list --------------------------------------------------------------------------------------


@brings_out("owner through a map", "hostprep apply mongo -o uid=184 -o gid=998 && docker restart db")
def owner_through_a_map(here: Situation) -> None:
    idmapped(here, "-o", "uid=5", "-o", "gid=6")


@brings_out("access list", "setfacl -m u:184:rwx,u:7:r-x,m::rwx DIRECTORY")
def access_list_through_a_map(here: Situation) -> None:
    on_disk = idmapped(here, "-o", "uid=5", "-o", "gid=6")
    assert (on_disk.stat().st_uid, on_disk.stat().st_gid) == (1000, 1001)
    # 1000 and 5 are exchanged: through the mount the entry for 184 is 184's.
    setfacl("-m", "u:184:rwx,u:7:rwx,m::r-x", on_disk)


@brings_out("owner", "hostprep apply mongo -o uid=184 -o gid=998")
def owner(here: Situation) -> None:
    here.volume("-o", "uid=5", "-o", "gid=6")


@brings_out("owner", "hostprep apply mongo -o uid=184")
def an_undeclared_group(here: Situation) -> None:
    here.volume("-o", "uid=5")


@brings_out("owner", "hostprep apply mongo -o uid=184 -o gid=998 -o mode=0700")
def owner_and_mode(here: Situation) -> None:
    here.volume("-o", "uid=5", "-o", "gid=6", "-o", "mode=0500")


@brings_out("owner", "hostprep apply mongo -o mode=0755")
def mode(here: Situation) -> None:
    here.volume(*OPTIONS, "-o", "mode=0555")


@brings_out("owner", "hostprep apply mongo -o mode=0755")
def an_undeclared_mode(here: Situation) -> None:
    here.volume().chmod(0o055)


@brings_out("owner", "hostprep apply mongo -o uid=184 -o gid=998 -o mode=0755")
def what_the_user_is_declared_no_longer(here: Situation) -> None:
    """By hand somebody gave it to the user, and closed it: the next start would give it to the declared one."""
    data = here.volume("-o", "uid=5", "-o", "gid=6")
    os.chown(data, 184, 998)
    data.chmod(0o055)


@brings_out("owner", "hostprep apply mongo")
def changed_owner(here: Situation) -> None:
    os.chown(here.volume(), 0, 0)


@brings_out(
    "owner",
    "hostprep apply mongo -o uid=184 -o gid=998 && hostprep repair mongo",
    uses="cat /data/closed",
)
def owner_of_a_path_and_of_what_is_in_it(here: Situation) -> None:
    data = here.volume("-o", "uid=5", "-o", "gid=6", "-o", f"path={here.allowed}/mongo")
    (data / "closed").touch(mode=0o600)


@brings_out("group", "hostprep apply mongo -o mode=0770")
def group(here: Situation) -> None:
    here.run.create("mongo", "-o", "uid=5", "-o", "gid=44", "-o", "mode=0750")
    here.run.daemon("db", "mongo:/data", "--group-add", "44")


@brings_out("owner", "hostprep apply mongo -o uid=184 -o gid=998", uses="cat /data/closed; touch /data/new")
def group_without_the_contents(here: Situation) -> None:
    data = here.run.create("mongo", "-o", "uid=5", "-o", "gid=44", "-o", "mode=0750")
    here.run.daemon("db", "mongo:/data", "--group-add", "44")
    Path(data, "closed").touch(mode=0o600)


@brings_out("access list", "setfacl -m u:184:rwx,m::rwx DIRECTORY")
def access_list(here: Situation) -> None:
    """The mask cuts what is the user's. Nobody else, whom it cuts, too, gets more."""
    data = here.volume("-o", "uid=5", "-o", "gid=6")
    setfacl("-m", "u:184:rwx,m::r-x", data)


@brings_out("access list", "setfacl -m u:184:rwx,u:7:r-x,g:8:r-x,g::r-x,m::rwx DIRECTORY")
def access_list_with_others(here: Situation) -> None:
    data = here.volume("-o", "uid=5", "-o", "gid=6")
    setfacl("-m", "u:184:rwx,u:7:rwx,g:8:rwx,g::rwx,u:9:r-x,m::r-x", data)


@brings_out("access list and mode", "hostprep apply mongo -o mode=0770 && setfacl -m u:184:rwx,m::rwx DIRECTORY")
def access_list_and_mode(here: Situation) -> None:
    data = here.volume("-o", "uid=5", "-o", "gid=6", "-o", "mode=0750")
    setfacl("-m", "u:184:rwx,u:7:rwx,m::r-x", data)


@brings_out("access list and mode", "hostprep apply mongo && setfacl -m u:184:rwx,m::rwx DIRECTORY")
def access_list_that_a_wide_mode_forgot(here: Situation) -> None:
    data = here.volume("-o", "uid=5", "-o", "gid=6", "-o", "mode=0770")
    setfacl("-m", "u:184:r-x", data)


@brings_out("owner", "hostprep apply mongo -o uid=184 -o gid=998", uses="cat /data/closed; touch /data/new")
def access_list_without_the_contents(here: Situation) -> None:
    data = here.volume("-o", "uid=5", "-o", "gid=6")
    setfacl("-m", "u:184:rwx,m::r-x", data)
    (data / "closed").touch(mode=0o600)


@brings_out("contents", ALL, uses="cat /data/file; rm /data/file; touch /data/file")
def contents(here: Situation) -> None:
    data = here.volume()
    (data / "file").touch(mode=0o600)


@brings_out("contents", "hostprep apply mongo -o uid=184 -o gid=998 && hostprep repair mongo", uses="cat /data/file")
def contents_of_a_group(here: Situation) -> None:
    data = here.run.create("mongo", "-o", "uid=5", "-o", "gid=44", "-o", "mode=0770")
    here.run.daemon("db", "mongo:/data", "--group-add", "44")
    Path(data, "file").touch(mode=0o600)


@brings_out("contents", ALL, uses="echo more >> /data/file")
def contents_that_may_be_read(here: Situation) -> None:
    data = here.volume()
    (data / "file").touch(mode=0o644)


@brings_out("drift", "hostprep apply mongo", denied=False)
def drift(here: Situation) -> None:
    here.volume(*OPTIONS, "-o", "mode=0750").chmod(0o755)


@brings_out("unfinished", "hostprep apply mongo", denied=False)
def unfinished(here: Situation) -> None:
    here.run.create("mongo")
    here.run.run("mongo:/data", "touch /data/file")
    here.run.daemon("db", "mongo:/data")
    mark = here.hostprep.root / "volumes/mongo/pass.json"
    mark.touch(mode=0o600)
    mark.write_text("{}")


@brings_out("unfinished repair", ALL, denied=False)
def unfinished_repair(here: Situation) -> None:
    here.volume(*OPTIONS, "-o", "recurse=never")
    mark = here.hostprep.root / "volumes/mongo/pass.json"
    mark.touch(mode=0o600)
    mark.write_text("{}")


@brings_out("foreign", ALL, denied=False)
def foreign(here: Situation) -> None:
    readable = here.volume() / "readable"
    readable.touch()
    readable.chmod(0o666)  # whatever the umask is


# -- the file system -----------------------------------------------------------------------------------------------


@brings_out("remount rw", "mount -o remount,rw /srv/…")
def read_only(here: Situation) -> None:
    disk = here.disk()
    disk.create(here.run)
    here.run.daemon("db", "mongo:/data")
    here.engine.run("mount", "-o", "remount,ro", str(disk.point))


@brings_out("remount rw", "mount -o remount,rw /srv/…")
def read_only_since_it_started(here: Situation) -> None:
    disk = here.disk()
    disk.create(here.run)
    here.engine.run("mount", "-o", "remount,ro", str(disk.point))
    here.run.daemon("db", "mongo:/data")


@brings_out("remount exec", "mount -o remount,exec /srv/…", uses=PROGRAM)
def noexec(here: Situation) -> None:
    here.disk("noexec").create(here.run)
    here.run.daemon("db", "mongo:/data")


@brings_out("remount exec", "mount -o remount,exec /srv/…", uses=PROGRAM)
def noexec_behind_a_mount_of_hostpreps(here: Situation) -> None:
    """A path that a user could replace is mounted once more, and that mount is noexec, too."""
    disk = here.disk("noexec")
    home = disk.point / "home"
    here.engine.run("sh", "-c", f"mkdir -p {home} && chown 5:6 {home}")
    here.run.create("mongo", *OPTIONS, "-o", f"path={home}/mongo")
    here.run.daemon("db", "mongo:/data")


@brings_out("more inodes", "mount -o remount,nr_inodes=80 /srv/…")
def inodes(here: Situation) -> None:
    point = here.mounted("tmpfs", "-t", "tmpfs", "-o", "nr_inodes=40", "tmpfs")
    here.volume(*OPTIONS, "-o", f"path={point}/mongo")
    here.docker("exec", "db", "sh", "-c", "for i in $(seq 100); do touch /data/$i; done 2>/dev/null || :")


@brings_out("larger tmpfs", "mount -o remount,size=2097152 /srv/…", uses=MUCH)
def space(here: Situation) -> None:
    point = here.mounted("tmpfs", "-t", "tmpfs", "-o", "size=1048576", "tmpfs")
    here.volume(*OPTIONS, "-o", f"path={point}/mongo")
    here.docker("exec", "db", "sh", "-c", "cat /dev/zero > /data/big 2>/dev/null || :")


@brings_out("purge", "hostprep purge --all", uses=MUCH)
def trash(here: Situation) -> None:
    """The root is on a small disk of its own, which the trash has filled."""
    here.hostprep.stop()
    here.undo.callback(here.hostprep.start)
    image, point = here.tmp_path / "small.img", here.engine.home / "small"
    image.touch()
    os.truncate(image, 16 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    point.mkdir(mode=0o700)
    here.undo.callback(point.rmdir)
    here.engine.run("mount", "-o", "loop", str(image), str(point))
    here.undo.callback(here.engine.run, "umount", str(point))
    small = here.undo.enter_context(Hostprep(here.engine, root=str(point)))
    small.root = point
    here.undo.callback(here.run.remove_everything)
    here.asked = Doctor(here.run, small)
    here.run.create("mongo")
    here.run.create("old")
    here.run.daemon("db", "mongo:/data")
    here.run.run("old:/data", "cat /dev/zero > /data/big 2>/dev/null || :")
    here.run("volume", "rm", "old")


def setfacl(*arguments: str | Path) -> None:
    subprocess.run(["setfacl", *arguments], check=True)


# -- the test ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "fix"), brings_out.parameters())
def test_remedy(situation: Situation, row: Row[Situation], fix: bool) -> None:  # noqa: FBT001
    """What doctor prints, or --fix does, makes doctor content and the container work; a restart changes nothing."""
    hold(situation, row, fix=fix)


# -- the installation ----------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_serve(situation: Situation, engine: Engine) -> None:
    """Where no server answers and systemd does not run, the command is the server, started by hand."""
    situation.run.create("mongo")
    situation.hostprep.stop()
    finding = remedy(situation, "serve")
    assert finding["fix"] == "hostprep serve"
    situation.undo.callback(situation.hostprep.start)
    server = engine.spawn(
        ["sh", "-euc", f"exec {finding['fix']}"], log=situation.hostprep.log,
        env={**situation.hostprep.variables(), "PATH": f"{engine.home}/bin:{environment()['PATH']}"},
    )  # fmt: skip
    situation.undo.callback(server.stop)
    wait_for(situation.hostprep.answers, "the server to answer")
    content(situation)
    assert situation.run.run("mongo:/data", "touch /data/file") == ""


@pytest.mark.thorough
def test_open_socket(situation: Situation) -> None:
    """For a socket that other users may connect to the command closes it."""
    situation.hostprep.socket.chmod(0o666)
    situation.asked.paste(remedy(situation, "open socket")["fix"])
    content(situation)
    assert situation.hostprep.answers()


@pytest.mark.thorough
def test_volume(situation: Situation) -> None:
    """For a volume that is not as declared the command makes it so, and the container goes on."""
    data = Path(situation.run.create("mongo"))
    situation.run.run("mongo:/data", "touch /data/file")  # into one that is empty, an engine may be copying
    situation.run.daemon("db", "mongo:/data")
    os.chown(data, 5, 6)
    situation.asked.paste(remedy(situation, "volume")["fix"])
    content(situation)
    situation.run("restart", "-t", "0", "db")
    content(situation)
    assert situation.run.exec("db", "echo written > /data/file; cat /data/file") == "written"


@pytest.mark.thorough
def test_volume_on_a_read_only_disk(situation: Situation) -> None:
    """A volume whose disk takes no writes is told without a command that could not make it ready."""
    disk = situation.disk()
    disk.create(situation.run)
    situation.engine.run("mount", "-o", "remount,ro", str(disk.point))
    (finding,) = [each for each in situation.asked.found()["findings"] if each["check"] == "volume"]
    assert (finding["verdict"], finding["fix"]) == ("warning", "")
    assert "takes no writes" in finding["what"]


# -- what has no command -------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_two_users(situation: Situation) -> None:
    """What would take the volume from a container of another user is not printed, but for the one that is named."""
    situation.volume("-o", "uid=5", "-o", "gid=6")
    situation.run.daemon("other", "mongo:/data", "-u", "7:8")
    bad = [each for each in situation.asked.found("mongo")["findings"] if each["verdict"] == "bad"]
    assert [(each["fix"], "--container" in each["wanted"]) for each in bad] == [("", True)] * 2
    named = situation.asked.finding("owner", "mongo", "--container", "other")["fix"]
    assert named == "hostprep apply mongo -o uid=7 -o gid=8"


@pytest.mark.thorough
def test_read_only_container(situation: Situation) -> None:
    """A container that was made with :ro is told so. A remount would not outlast its restart."""
    situation.run.create("mongo")
    situation.run.daemon("db", "mongo:/data:ro")
    finding = situation.asked.finding("mount", "mongo", "--container", "db")
    assert (finding["fix"], finding["wanted"]) == ("", "a container made without :ro")
    assert situation.asked.well("mongo")["whom"] == [f"{IDS} in container db"]


@pytest.mark.thorough
def test_hard_links(situation: Situation) -> None:
    """For what a pass leaves alone no command is printed that would go over it in vain."""
    data = situation.volume(*OPTIONS, "-o", f"path={situation.allowed}/mongo")
    (data / "one").touch(mode=0o600)
    (data / "two").hardlink_to(data / "one")
    finding = situation.asked.finding("contents", "mongo", "--container", "db")
    assert finding["fix"] == ""
    assert "several links" in finding["wanted"]
