"""The command line: settings as flags, and the commands, each imported only when it is asked for."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Final

import click

from ..host.process import raise_open_files
from ..settings import Settings
from .completion import complete_parameters

_FLAGS: Final = {
    "root": ("DIR", "Directory that holds the volumes."),
    "socket": ("PATH", "Socket on which serve listens."),
    "allow": ("DIRS", "Directories below which path may lie, separated by colons."),
    "scope": ("local|global", "Scope of the volumes that serve tells Docker."),
    "selinux": ("auto|required|force|off", "When to set labels."),
    "patience": ("TIME", "How long the start of a container waits for the repair of its files."),
    "trash-keep": ("TIME", "How long a removed volume can be restored."),
    "purge-for-space": ("0|1", "1: when the disk is nearly full, purge removed volumes before their time."),
    "require-marker": ("0|1", "1: refuse a root directory without hostprep.json."),
    "known-roots": ("DIR", "Directory in which the roots are remembered that this host has served."),
    "log-level": ("debug|info|warning|error", "What to log."),
    "userns": ("WHOSE", "Whose uid and gid are, where userns is not given: auto, host, or a name in /etc/subuid."),
    "docker-host": ("URL", "Engine to ask about images and to tell of options, such as unix:///run/docker.sock."),
}
_COMMANDS: Final = {
    "create": "volumes",
    "ls": "volumes",
    "status": "volumes",
    "apply": "volumes",
    "repair": "prepare",
    "rm": "volumes",
    "restore": "volumes",
    "purge": "volumes",
    "probe": "probe",
    "doctor": "doctor",
    "prepare": "prepare",
    "import": "importing",
    "serve": "commands",
}
"""The module of each command, in the order in which help shows them."""


def run(*, bare: bool) -> None:
    """Run the command line, of which pip installs nothing else: *bare*. A wrong flag exits 2, as click has it."""
    if bare:
        group.epilog = (
            "This copy of hostprep starts nothing at boot, and reads no settings file: make install, in a checkout, "
            "brings the systemd units, the settings file, the manual pages and completions (docs/install.md)."
        )
    try:
        group.main(prog_name="hostprep", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except click.Abort:
        sys.exit(130)


class _Commands(click.Group):
    """Imports the module of a command when that is asked for: ls needs nothing of what doctor imports."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = vars(importlib.import_module(f"{__package__}.{_COMMANDS[cmd_name]}"))
        found = next(each for each in module.values() if isinstance(each, click.Command) and each.name == cmd_name)
        complete_parameters(found)
        return found


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": None})
@click.version_option(package_name="hostprep", message="%(version)s")
@click.pass_context
def group(context: click.Context, /, **flags: str | None) -> None:
    """A Docker volume driver that makes the host directory ready for the container: owner, mode, SELinux label.

    All commands except serve work on the root directory itself: no server needs to run.

    Each flag is also an environment variable: HOSTPREP_ROOT for --root. The flag has priority.
    """
    environ = dict(os.environ)
    environ.update({f"HOSTPREP_{key.upper()}": value for key, value in flags.items() if value is not None})
    context.obj = settings = Settings.read(environ)
    raise_open_files()
    if context.invoked_subcommand != "serve":
        logging.basicConfig(stream=sys.stderr, format="hostprep: %(message)s")
        logging.getLogger("hostprep").setLevel(settings.log_level.upper())


@group.command()
@click.pass_obj
def serve(settings: Settings) -> None:
    """Serve the volume driver protocol until SIGTERM.

    It has to run before the engine starts. Under systemd, the units that make install brings see to that.
    """
    from ..serve import server  # help needs none of its libraries

    server.serve(settings)


for _flag, (_metavar, _help) in _FLAGS.items():
    group.params.append(click.Option([f"--{_flag}"], metavar=_metavar, help=_help))
complete_parameters(group)
