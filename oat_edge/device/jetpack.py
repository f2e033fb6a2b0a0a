"""The software of a Jetson: L4T, the JetPack that it came with, CUDA and TensorRT."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from importlib import metadata

from oat_edge.device.system import System

# First L4T version that a JetPack came with, newest first (NVIDIA's JetPack archive).
JETPACKS = (
    ((39, 3), None),  # newer than what is known here
    ((39, 2, 1), "7.2.x"),
    ((39, 2), "7.2"),
    ((39, 0), "7.2 EA"),
    ((38, 4), "7.1"),
    ((38, 2), "7.0"),
    ((36, 4, 3), "6.2.x"),
    ((36, 4), "6.1"),
    ((36, 3), "6.0"),
    ((36, 2), "6.0 DP"),
    ((35, 2), "5.1.x"),
    ((35, 0), "5.0.x"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Software:
    """Versions; None where `warnings` say why."""

    l4t: str | None
    jetpack: str | None
    cuda: str | None
    tensorrt: str | None
    warnings: tuple[str, ...]


def software(system: System) -> Software:
    """Look at what is installed. L4T_VERSION and JETPACK_VERSION overrule it on this machine.

    For containers, which need not show their host's /etc/nv_tegra_release.
    """
    looked = _Look(system)
    l4t = looked.l4t()
    return Software(
        l4t=l4t,
        jetpack=looked.jetpack(l4t),
        cuda=looked.cuda(),
        tensorrt=looked.tensorrt(),
        warnings=tuple(looked.warnings),
    )


def jetpack_of(l4t: str) -> str | None:
    """The JetPack that came with a version of L4T; None for one that is not known here."""
    version = tuple(int(part) for part in l4t.split("."))
    major = version[0]
    for first, jetpack in JETPACKS:
        if first[0] == major and version >= first:
            return jetpack
    return None


class _Look:
    """Reads fact by fact and notes what is missing."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.warnings: list[str] = []

    def _miss(self, name: str, reason: str) -> None:
        self.warnings.append(f"{name}: {reason}")

    def override(self, name: str, variable: str) -> str | None:
        """What the user's environment says, which concerns this machine only."""
        text = None if self._system.recorded else os.environ.get(variable)
        if not text:
            return None
        if not re.fullmatch(r"\d{1,4}(\.\d{1,4}){0,3}", text):
            self._miss(name, f"{variable} is '{text:.40}', expected a version such as 36.4.7")
            return None
        self.warnings.append(f"{name}: as {variable} says")
        return text

    def l4t(self) -> str | None:
        if (said := self.override("l4t", "L4T_VERSION")) is not None:
            return said
        text = self._system.read("etc/nv_tegra_release") or ""
        found = re.search(r"R(\d{1,4}) \(release\), REVISION: (\d{1,4}(?:\.\d{1,4})*)", text)
        if found:
            return f"{found.group(1)}.{found.group(2)}"
        version = self.package("nvidia-l4t-core")
        if version is not None:
            return version
        self._miss("l4t", "neither etc/nv_tegra_release nor dpkg says it (or set L4T_VERSION)")
        return None

    def jetpack(self, l4t: str | None) -> str | None:
        if (said := self.override("jetpack", "JETPACK_VERSION")) is not None:
            return said
        jetpack = None if l4t is None else jetpack_of(l4t)
        if jetpack is None:
            known = "l4t is not known" if l4t is None else f"none is known for L4T {l4t}"
            self._miss("jetpack", f"{known} (or set JETPACK_VERSION)")
        return jetpack

    def cuda(self) -> str | None:
        try:
            described = json.loads(self._system.read("usr/local/cuda/version.json") or "")
            version = described["cuda"]["version"]
        except (ValueError, LookupError, TypeError, RecursionError):
            version = None
        if isinstance(version, str) and re.fullmatch(r"\d{1,4}(\.\d{1,6})*", version):
            return version
        # Without the toolkit's own description its folder still says the version.
        folders = self._system.glob("usr/local/cuda-[0-9]*")
        versions = [folder.rpartition("-")[2] for folder in folders]
        plain = [text for text in versions if re.fullmatch(r"\d{1,4}\.\d{1,4}", text)]
        if plain:
            return max(plain, key=lambda text: [int(part) for part in text.split(".")])
        self._miss("cuda", "no toolkit in usr/local/cuda (sudo apt install nvidia-jetpack)")
        return None

    def tensorrt(self) -> str | None:
        if not self._system.recorded:
            try:
                return metadata.version("tensorrt")
            except metadata.PackageNotFoundError:
                pass
        for package in ("libnvinfer11", "libnvinfer10", "libnvinfer8"):
            if (version := self.package(package)) is not None:
                return version
        self._miss("tensorrt", "dpkg lists no libnvinfer (sudo apt install nvidia-jetpack)")
        return None

    def package(self, name: str) -> str | None:
        """Version of a Debian package without its revision, such as 10.3.0.30 or 36.4.7."""
        said = self._system.run("dpkg-query", "--show", name) or ""
        found = re.match(rf"{re.escape(name)}(?::\w+)?\t(\d{{1,6}}(?:\.\d{{1,6}})+)", said)
        return found.group(1) if found else None
