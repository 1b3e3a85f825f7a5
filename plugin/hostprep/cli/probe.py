"""hostprep probe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import click

from ..engine.archive import open_archive
from ..engine.client import Engine
from ..engine.image import Directory, ProbeResult, probe_image
from ..errors import NotPulled
from ..options import parse_image, parse_path
from ..settings import Settings
from . import output
from .shared import ENGINE_SECONDS, engine_address, json_flag, sigterm_raises
from .suggest import suggest

_COLUMNS: Final = ["DIRECTORY", "IN THE IMAGE", "MODE", "CONTENT", "VOLUME"]


@click.command()
@click.argument("image", required=False)
@click.option("--path", "paths", multiple=True, metavar="PATH", help="Directory for a volume, besides the VOLUMEs.")
@click.option("--user", metavar="USER", help="User to run as, like docker run --user, instead of the image's USER.")
@click.option("--pull", is_flag=True, help="Let the engine pull the image if it does not have it.")
@click.option("--archive", metavar="FILE", help="Read a file that docker save wrote; this needs no engine.")
@json_flag
@click.pass_obj
def probe(
    settings: Settings,
    *,
    image: str | None,
    paths: tuple[str, ...],
    user: str | None,
    pull: bool,
    archive: str | None,
    as_json: bool,
) -> None:
    """Find out which owner an image's volumes need.

    Nothing of the image is run.
    """
    if image is None and archive is None:
        raise click.UsageError("Missing argument 'IMAGE', or --archive FILE.")
    if pull and archive is not None:
        raise click.UsageError("--pull needs an engine, --archive uses none.")
    if image is not None:
        image = parse_image(image)
    paths = tuple(parse_path(path, key="at") for path in paths)
    with sigterm_raises():
        if archive is not None:
            with open_archive(archive, image) as (name, config, layers):
                found = probe_image(name, config, layers, (*config.volumes, *paths), user)
        else:
            assert image is not None  # noqa: S101  # else archive would be None, too
            found = _ask(settings, image, paths, user, pull=pull)
    if as_json:
        output.as_json(_in_json(found, user))
    else:
        show(found, user)


def _ask(settings: Settings, image: str, paths: tuple[str, ...], user: str | None, *, pull: bool) -> ProbeResult:
    """Ask an engine about *image*. If it does not have it, and *pull*, it pulls it first."""
    engine = Engine(engine_address(settings))
    try:
        return engine.probe(image, paths, user, seconds=ENGINE_SECONDS)
    except NotPulled:
        if not pull:
            raise
    with output.pull_bar(image) as update:
        engine.pull(image, update)
    return engine.probe(image, paths, user, seconds=ENGINE_SECONDS)


def show(found: ProbeResult, user: str | None) -> None:
    """Print what was found, why, and what follows."""
    image, runs_as = found.image, found.user
    output.fields(
        [
            ("image", image if image == found.config.id else f"{image} ({found.config.id[:19]})"),
            ("runs as", f"{runs_as.uid}:{runs_as.gid}"),
            ("why", runs_as.why),
            *([("groups", " ".join(map(str, runs_as.groups)))] if runs_as.groups else []),
            *(("link", link) for each in found.directories for link in each.links),
        ]
    )
    if found.directories:
        print()
        output.table(_COLUMNS, map(_row, found.directories))
        print()
    output.fields(("why", why) for each in found.directories for why in each.why[1:])
    output.fields(("note", note) for note in _notes(found, user))
    if suggestion := suggest(found, user):
        # To be pasted: none of these lines is wrapped.
        print("\n# the volume" + ("s" if len(suggestion.create) > 1 else ""))
        print("\n".join(suggestion.create))
        print(f"\n# or all with Compose\n{suggestion.compose}")
        print(f"\n# a container\n{suggestion.run}")


def _row(found: Directory) -> list[str]:
    entry, volume = found.entry, f"uid={found.uid} gid={found.gid}"
    if entry is None:
        return [found.path, "not there", "-", "-", volume]
    return [found.path, f"{entry.uid}:{entry.gid}", str(entry.mode), "yes" if entry.filled else "no", volume]


def _notes(found: ProbeResult, user: str | None) -> Iterator[str]:
    if not found.directories:
        yield "the image declares no VOLUME: name its data directory with --path"
    if user is None and any(each.switches_user for each in found.directories):
        yield "the image starts as root and is expected to switch to the owner of its data: run it without -u"
    if any(each.entry and each.entry.filled for each in found.directories):
        yield "Docker copies the files of the image, and the mode of its directory, into an empty volume"
    if any(not each.path.isprintable() for each in found.directories):
        yield "no command is shown for a path with control characters"
    if not found.config.has_program:
        yield "the image names no program: append one to the command"


def _in_json(found: ProbeResult, user: str | None) -> dict[str, Any]:
    who, suggestion = found.user, suggest(found, user)
    return {
        "image": found.image,
        "id": found.config.id,
        "user": {"spec": who.spec, "uid": who.uid, "gid": who.gid, "groups": list(who.groups), "why": who.why},
        "volumes": list(found.config.volumes),
        "directories": [
            {
                "path": each.path,
                "real": each.real,
                "links": list(each.links),
                "found": each.entry
                and {
                    "uid": each.entry.uid,
                    "gid": each.entry.gid,
                    "mode": str(each.entry.mode),
                    "content": each.entry.filled,
                },
                "options": each.owner_options,
                "drops": each.switches_user,
                "why": list(each.why),
            }
            for each in found.directories
        ],
        "notes": list(_notes(found, user)),
        "create": list(suggestion.create) if suggestion else [],
        "compose": suggestion.compose if suggestion else None,
        "run": suggestion.run if suggestion else None,
    }
