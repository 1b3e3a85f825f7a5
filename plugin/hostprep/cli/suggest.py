"""What probe suggests for an image, ready to paste: its volumes, a Compose file, a container."""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from dataclasses import dataclass
from typing import Final

from ..engine.image import Directory, ProbeResult
from ..options import check_name

_ID: Final = re.compile(r"(?:sha256:)?[0-9a-f]{12,64}", re.ASCII)
_NAME: Final = re.compile(r"[^a-z0-9_-]+", re.ASCII)
# What YAML reads as a string without quotes: no number, none of its words, no sign with a meaning.
_PLAIN: Final = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null)$)[A-Za-z][A-Za-z0-9_./-]*(?::/?[\w./-]+)?", re.A)


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Commands for a shell, and a file for Compose."""

    create: tuple[str, ...]
    compose: str
    run: str


def suggest(findings: ProbeResult, user: str | None) -> Suggestion | None:
    """Volumes for all directories of *findings* that can be written down, for *user* or the image's USER; or None."""
    directories = [each for each in findings.directories if each.path.isprintable()]
    if not directories or not (user or "").isprintable():
        return None
    base = _base(findings.image)
    named = dict(zip(_names(base, directories), directories, strict=True))
    create = tuple(
        shlex.join(["docker", "volume", "create", "-d", "hostprep", *_options(each), name])
        for name, each in named.items()
    )
    run = ["docker", "run", "-d", *(("-u", user) if user is not None else ())]
    for name, each in named.items():
        run += _mount(name, each.path)
    return Suggestion(create, _compose(base, findings.image, user, named), shlex.join([*run, findings.image]))


def _options(directory: Directory) -> list[str]:
    return [word for key, value in directory.owner_options.items() for word in ("-o", f"{key}={value}")]


def _mount(name: str, path: str) -> list[str]:
    if ":" not in path:
        return ["-v", f"{name}:{path}"]
    fields = ["type=volume", f"source={name}", f"target={path}"]
    # docker reads this as a line of CSV.
    return ["--mount", ",".join(f'"{f.replace(chr(34), chr(34) * 2)}"' if re.search('[",]', f) else f for f in fields)]


def _compose(base: str, image: str, user: str | None, named: dict[str, Directory]) -> str:
    lines = ["services:", f"  {_yaml(base)}:", f"    image: {_yaml(image)}"]
    if user is not None:
        lines.append(f"    user: {_quoted(user)}")
    lines.append("    volumes:")
    for name, each in named.items():
        if ":" in each.path:
            lines.append(f"      - {{ type: volume, source: {_yaml(name)}, target: {_quoted(each.path)} }}")
        else:
            lines.append(f"      - {_yaml(f'{name}:{each.path}')}")
    lines.append("volumes:")
    for name, each in named.items():
        options = ", ".join(f'{key}: "{value}"' for key, value in each.owner_options.items())
        lines += [f"  {_yaml(name)}:", "    driver: hostprep", f"    driver_opts: {{ {options} }}"]
    return "\n".join(lines)


def _yaml(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else _quoted(text)


def _quoted(text: str) -> str:
    """In double quotes, which YAML reads as JSON does. Compose reads `$$` as a dollar sign."""
    return json.dumps(text, ensure_ascii=False).replace("$", "$$")


def _base(image: str) -> str:
    """The last word of the image's name, to name volumes after it."""
    if _ID.fullmatch(image):
        return "data"
    last = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
    name = _NAME.sub("-", last.lower()).strip("-_")
    return name if len(name) > 1 else f"{name or 'my'}-data"  # docker reads a letter and a colon as a drive


def _names(base: str, directories: list[Directory]) -> list[str]:
    if len(directories) == 1:
        return [base]
    names: list[str] = []
    for each in directories:
        last = _NAME.sub("-", posixpath.basename(each.path).lower()).strip("-_") or "data"
        name, number = f"{base[:100]}-{last[:100]}", 2
        while name in names:
            name, number = f"{base[:100]}-{last[:100]}-{number}", number + 1
        names.append(check_name(name))
    return names
