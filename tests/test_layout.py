from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOTS = ("oat_edge", "exporters", "calib")


def packages_on_disk() -> set[str]:
    """Folders with Python files under the three roots, links skipped, by their import name."""
    found = set()
    for root in ROOTS:
        for file in (ROOT / root).rglob("*.py"):
            folder = file.parent
            between = [folder, *folder.parents][: len(folder.relative_to(ROOT).parts)]
            if not any(part.is_symlink() for part in between):
                name = ".".join(folder.relative_to(ROOT).parts)
                found.add(name if root == "oat_edge" else f"oat_edge.{name}")
    return found


def test_pyproject_lists_every_package():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(options["packages"]) == packages_on_disk()
    assert options["package-dir"] == {
        "oat_edge": "oat_edge",
        "oat_edge.exporters": "exporters",
        "oat_edge.calib": "calib",
    }


@pytest.mark.parametrize("name", ["exporters", "calib"])
def test_the_links_for_static_tools_lead_to_the_folders(name):
    link = ROOT / "oat_edge" / name
    assert link.is_symlink() and link.resolve() == ROOT / name
    assert link.readlink() == Path("..") / name


def test_the_wheel_holds_every_module_under_one_name(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    source.mkdir()
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in ROOTS:
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unwanted)
    shutil.copy(ROOT / "pyproject.toml", source)
    (source / "README.md").write_text("oat-edge\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--wheel-dir", tmp_path / "wheels", source],
        check=True,
        capture_output=True,
    )  # fmt: skip
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"oat_edge"}
    expected = {
        f"{package.replace('.', '/')}/{file.name}"
        for package in packages_on_disk()
        for file in (ROOT / package.replace(".", "/")).glob("*.py")
    }
    assert len(names) == len(set(names))
    assert {name for name in names if name.endswith(".py")} == expected
