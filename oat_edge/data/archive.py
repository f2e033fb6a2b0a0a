"""Known members of a tar archive, or the same files unpacked, as bytes. Nothing is extracted."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path

from oat_edge.errors import InputError


def read_members(paths: Sequence[Path], members: Collection[str]) -> dict[str, bytes]:
    """Content by base name.  paths: one .tar.gz that holds `members`, or their unpacked files."""
    if len(paths) == 1:
        return _read_tar(paths[0], members)
    try:
        return {path.name: path.read_bytes() for path in paths}
    except OSError as error:
        raise InputError(f"a data file cannot be read ({error}): check its permissions") from None


def _read_tar(path: Path, members: Collection[str]) -> dict[str, bytes]:
    """Read forward through the archive and stop at the last of `members`."""
    found: dict[str, bytes] = {}
    wanted = set(members)
    try:
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if name not in wanted:
                    continue
                file = archive.extractfile(member) if member.isreg() else None
                if file is None:
                    raise InputError(f"{path}: {name} is not a plain file: fetch it again")
                content = file.read()
                if len(content) != member.size:
                    raise EOFError(f"{name} ends early")
                found[name.rpartition("/")[2]] = content
                wanted.remove(name)
                if not wanted:
                    return found
    except InputError:
        raise
    # ValueError: a header with text that cannot be decoded.
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}): fetch it again") from None
    raise InputError(f"{path} holds no {', '.join(sorted(wanted))}: fetch it again")
