"""Archives of images, made for the tests."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import Any

USERS = "etc/passwd"


def tar(*files: tuple[Any, ...]) -> bytes:
    """A tar of (path, contents, uid, gid, mode), of which the last three may be left out.

    The contents of a symlink are `-> target`, of a hard link `= other`, of a directory None.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        for path, contents, *more in files:
            info = tarfile.TarInfo(path)
            owner_and_mode: list[int] = [*more, *(0, 0, 0o755)[len(more) :]]
            info.uid, info.gid, info.mode = owner_and_mode
            if contents is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(contents, str):
                info.type = tarfile.SYMTYPE if contents.startswith("-> ") else tarfile.LNKTYPE
                info.linkname = contents.partition(" ")[2]
                contents = b""
            info.size = len(contents or b"")
            packed.addfile(info, io.BytesIO(contents or b""))
    return buffer.getvalue()


CONFIG = {"os": "linux", "config": {"User": "app", "Volumes": {"/data": {}}, "Cmd": ["sh"]}}
BASE = tar(
    ("etc", None), (USERS, b"app:x:5:6:::\n"), ("data", None, 5, 6, 0o750), ("data/seed", b"x", 5, 6), ("old", None)
)


def docker_save(*layers: bytes, config: Any = CONFIG, name: str | None = "mongo:7", **changed: Any) -> bytes:
    files: list[tuple[str, bytes]] = [(f"{number}/layer.tar", layer) for number, layer in enumerate(layers)]
    manifest = {
        "Config": "config.json",
        "RepoTags": [name] if name else None,
        "Layers": [path for path, _ in files],
        **changed,
    }
    files += [("config.json", json.dumps(config).encode()), ("manifest.json", json.dumps([manifest]).encode())]
    return tar(*files)


def oci(*layers: bytes, config: Any = CONFIG, name: str | None = None, nested: bool = False) -> bytes:
    files: list[tuple[str, bytes]] = []

    def blob(data: bytes, **more: Any) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        files.append((f"blobs/sha256/{digest}", data))
        return {"digest": f"sha256:{digest}", "size": len(data), **more}

    manifest = {"config": blob(json.dumps(config).encode()), "layers": [blob(layer) for layer in layers]}
    described = blob(json.dumps(manifest).encode())
    if nested:
        other = {"digest": "sha256:" + "0" * 64, "platform": {"os": "linux", "architecture": "s390x"}}
        proof = {**blob(b"{}"), "platform": {"os": "unknown", "architecture": "unknown"}}
        described = blob(json.dumps({"manifests": [proof, other, described]}).encode())
    notes = {"annotations": {"org.opencontainers.image.ref.name": name}} if name else {}
    index = json.dumps({"manifests": [{**described, **notes}]}).encode()
    return tar(*files, ("index.json", index), ("oci-layout", b"{}"))
