"""The demo: a private engine, hostprep, a volume, and a container as 184:998 that writes into it."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from types import FrameType

from testbed import images
from testbed.engine import Engine, Hostprep, Unavailable

UID, GID = "184", "998"
RUN = ("docker", "run", "--rm", "-u", f"{UID}:{GID}", "-v", "mongo:/var/lib/mongodb", "mongodb", "sh", "-c")


def main() -> int:
    """Run the demo. At the end, after an error or Ctrl-C too, everything that it started is removed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        say("a private Docker engine, in its own namespaces: no other engine is touched")
        with Engine() as engine:
            echo(*engine.dockerd.argv)
            echo("export", f"DOCKER_HOST={engine.host}")
            run(engine, "docker", "version", "--format", "dockerd {{.Server.Version}}")
            say("an image, made from busybox")
            run(engine, "docker", "import", "-", "mongodb", stdin=images.busybox())
            say("hostprep")
            with Hostprep(engine) as hostprep:
                echo(f"HOSTPREP_ROOT={hostprep.root}", *hostprep.process.argv[-4:])
                show(engine, hostprep)
        say("everything that the demo started is removed")
    except KeyboardInterrupt:
        say("interrupted; everything that the demo started is removed")
        return 130
    except (Unavailable, ChildProcessError, TimeoutError, subprocess.SubprocessError) as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 1
    return 0


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise an exception, so that everything is removed. A second Ctrl-C does not interrupt that."""
    for both in (signal.SIGINT, signal.SIGTERM):
        signal.signal(both, signal.SIG_IGN)
    raise KeyboardInterrupt


def show(engine: Engine, hostprep: Hostprep) -> None:
    """Show what a volume does."""
    say(f"a volume for a program that runs as {UID}:{GID}")
    options = ("-o", f"uid={UID}", "-o", f"gid={GID}")
    run(engine, "docker", "volume", "create", "-d", "hostprep", *options, "mongo")

    say("the program writes into it; what the container sees")
    run(engine, *RUN, "id; echo hello > /var/lib/mongodb/file; ls -la /var/lib/mongodb")

    say("what the host sees")
    data = f"{hostprep.root}/volumes/mongo/_data"
    run(engine, "ls", "-ldn", data, f"{data}/file")

    say("somebody changes the owner on the host; the next start of a container repairs it")
    run(engine, "chown", "-R", "0:0", data)
    run(engine, *RUN, "cat /var/lib/mongodb/file; echo again >> /var/lib/mongodb/file")
    run(engine, "ls", "-ldn", data, f"{data}/file")

    say("the volume is removed, and restored")
    run(engine, "docker", "volume", "rm", "mongo")
    echo("hostprep", "restore", "mongo")
    restored = hostprep.command("restore", "mongo")
    print(restored.stdout, restored.stderr, sep="", end="")
    restored.check_returncode()
    run(engine, *RUN, "cat /var/lib/mongodb/file")


def say(text: str) -> None:
    """Say what comes next."""
    print(f"\n# {text}", flush=True)


def echo(*argv: str) -> None:
    """Show a command."""
    print("$", shlex.join(argv), flush=True)


def run(engine: Engine, *argv: str, stdin: bytes = b"") -> None:
    """Show a command, run it, show what it prints."""
    echo(*argv)
    done = engine.client(*argv, stdin=stdin)
    print(done.stdout, done.stderr, sep="", end="", flush=True)
    done.check_returncode()


if __name__ == "__main__":
    sys.exit(main())
