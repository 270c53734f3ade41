"""Packs a release as docs/formats.md describes it, and by nothing else of this project."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from datetime import datetime, timezone


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def pack(recipe_file):
    """The targets of the release that a recipe describes, its manifest last: {name: bytes}."""
    base = os.path.dirname(recipe_file)
    with open(recipe_file, encoding="utf-8") as file:
        recipe = json.load(file)
    targets = {}
    components = []
    for listed in recipe["components"]:
        source = os.path.join(base, listed["source"])
        mode = listed.get("mode", "0755")
        place = listed["install_path"]
        entries = list(walk(source, int(mode, 8)))
        digest = sha256(entries[0][2]) if listed["kind"] == "bin" else tree_digest(entries)
        artifact = f"{recipe['product']}/artifacts/{listed['name']}-{digest}.tar.gz"
        targets[artifact] = archive(place, entries)
        components.append(
            {
                "name": listed["name"],
                "kind": listed["kind"],
                "install_path": place,
                "mode": mode,
                "sha256": digest,
                "size_bytes": sum(len(data) for _, _, data in entries if data is not None),
                "entries": len(entries),
                "artifact": artifact,
            }
        )
    manifest = {
        "format": 1,
        "channel": "stable",
        "released": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "components": components,
    }
    for field in ["product", "version", "arch", "min_version", "release_notes", "removed", "services", "data", "migrate", "health"]:
        if field in recipe:
            manifest[field] = recipe[field]
    name = "{product}/{channel}/{arch}/{version}/release.json".format(**manifest)
    targets[name] = json.dumps(manifest).encode()
    return targets


def walk(source, mode):
    """The path within the component, the mode and the bytes of each entry; no bytes for a directory."""
    if os.path.isfile(source):
        with open(source, "rb") as file:
            yield ".", mode, file.read()
        return
    yield ".", mode, None
    for directory, names, files in os.walk(source):
        for name in names + files:
            path = os.path.join(directory, name)
            data = None
            if name in files:
                with open(path, "rb") as file:
                    data = file.read()
            yield os.path.relpath(path, source), os.stat(path).st_mode & 0o777, data


def tree_digest(entries):
    lines = []
    for path, mode, data in sorted(entries, key=lambda entry: entry[0].encode()):
        if data is None:
            lines.append(f"d {mode:o} {path}\n")
        else:
            lines.append(f"f {mode:o} {len(data)} {sha256(data)} {path}\n")
    return sha256("".join(lines).encode())


def archive(place, entries):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, mode, data in entries:
            entry = tarfile.TarInfo(place if path == "." else f"{place}/{path}")
            entry.mode = mode
            if data is None:
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
            else:
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return gzip.compress(out.getvalue())
