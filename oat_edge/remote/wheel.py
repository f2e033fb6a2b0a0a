"""The light wheel, made from the package that is running: what a device gets installed.

It works from a checkout (an editable install) and from an installed wheel alike, and the same
code gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import oat_edge
from oat_edge import __version__
from oat_edge.errors import DependencyError

# In a checkout these lie beside the package (DESIGN, section 4).
BESIDE = ("exporters", "calib")
FIRST_DATE = (1980, 1, 1, 0, 0, 0)


def package_files() -> dict[str, Path]:
    """The package's own files by the name that they have when installed, sorted."""
    root = Path(oat_edge.__file__).parent
    found = dict(_walk(root, "oat_edge"))
    for name in BESIDE:
        spec = find_spec(f"oat_edge.{name}")
        assert spec is not None and spec.submodule_search_locations
        found |= _walk(Path(spec.submodule_search_locations[0]), f"oat_edge/{name}")
    return dict(sorted(found.items()))


def _walk(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" or path.name == "py.typed":
            yield f"{name}/{path.name}", path
        elif path.is_dir() and not path.is_symlink() and (path / "__init__.py").is_file():
            yield from _walk(path, f"{name}/{path.name}")


@cache
def code_digest() -> str:
    """Hash over the package's code: two installations with the same one do the same."""
    digest = hashlib.sha256()
    for name, path in package_files().items():
        if name.endswith(".py"):
            digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def wheel_name() -> str:
    """File name of the wheel."""
    return f"oat_edge-{__version__}-py3-none-any.whl"


def build_wheel() -> bytes:
    """The wheel's content; `DependencyError` if this package is on the path but not installed."""
    facts = f"oat_edge-{__version__}.dist-info"
    contents = {name: path.read_bytes() for name, path in package_files().items()}
    contents[f"{facts}/METADATA"] = _metadata().encode()
    contents[f"{facts}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: oat-edge ({__version__})\n"
        "Root-Is-Purelib: true\nTag: py3-none-any\n"
    ).encode()
    contents[f"{facts}/entry_points.txt"] = b"[console_scripts]\noat-edge = oat_edge.cli:main\n"
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n"
                     for name, data in contents.items())  # fmt: skip
    contents[f"{facts}/RECORD"] = f"{record}{facts}/RECORD,,\n".encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name, FIRST_DATE)
            entry.external_attr = 0o100644 << 16
            entry.create_system = 3  # Unix, wherever it is made
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def _metadata() -> str:
    """What the package needs, as the installed one says it."""
    found = list(metadata.distributions(name="oat-edge"))
    # A checkout's oat_edge.egg-info may come first on the path; it calls the same text PKG-INFO.
    for name in ("METADATA", "PKG-INFO"):
        for installed in found:
            if text := installed.read_text(name):
                return text
    raise DependencyError(
        "oat-edge is not installed here, only found on the path: pip install it, then it can be "
        "installed on devices"
    )


def env_name() -> str:
    """Folder of this version's environment on a device, below `env`."""
    return f"{__version__}-{code_digest()}"


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
