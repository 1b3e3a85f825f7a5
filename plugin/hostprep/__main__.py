"""`hostprep`, and `python -m hostprep`, which is the same command from a checkout."""

from __future__ import annotations

import os
import sys

from .errors import HostprepError, in_words, printable
from .host import rootless


def main(settings_file: str = "") -> None:
    """Run the command line; an error is one line and exit 1, a wrong flag or a missing argument exit 2.

    What the environment does not say the *settings_file* says. The service has the same settings from systemd already.
    A user who has a hostprep of his own has a file of his own, too.
    """
    # For what libraries and later code make: modes that others need are set by hostprep itself.
    os.umask(0o077)
    try:
        defaults = {}
        if own := rootless.settings_file():
            settings_file, defaults = own, rootless.defaults()
            rootless.enter()
        else:
            rootless.inherit()
        if settings_file:
            from .settings import read_settings_file

            os.environ |= {**defaults, **read_settings_file(settings_file), **os.environ}
        if sys.argv[1:] == ["serve"]:
            # Without click, whose import takes its time: an engine may be waiting for the first answer.
            from .serve.server import serve
            from .settings import Settings

            serve(Settings.read(os.environ))
        else:
            from .cli.commands import run

            run(bare=not settings_file and "HOSTPREP_MANAGED" not in os.environ)
            sys.stdout.flush()
    except BrokenPipeError:  # `hostprep ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (HostprepError, OSError) as exc:
        print(f"hostprep: {printable(in_words(exc))}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
