from __future__ import annotations

import base64
import csv
import hashlib
import io
import subprocess
import sys
import zipfile

import oat_edge
from oat_edge.remote.wheel import build_wheel, code_digest, package_files, wheel_name
from tests.test_layout import packages_on_disk


def test_the_wheel_holds_every_module_under_one_name():
    archive = zipfile.ZipFile(io.BytesIO(build_wheel()))
    names = [name for name in archive.namelist() if ".dist-info/" not in name]
    modules = {name.rpartition("/")[0].replace("/", ".") for name in names if name.endswith(".py")}
    assert modules == packages_on_disk()
    assert "oat_edge/exporters/graph.py" in names and "oat_edge/py.typed" in names
    assert len(names) == len(set(names)) and not any("__pycache__" in name for name in names)


def test_the_same_code_gives_the_same_bytes():
    assert build_wheel() == build_wheel()


def test_the_record_is_right():
    archive = zipfile.ZipFile(io.BytesIO(build_wheel()))
    (record,) = (name for name in archive.namelist() if name.endswith("/RECORD"))
    rows = list(csv.reader(io.StringIO(archive.read(record).decode())))
    assert {row[0] for row in rows} == set(archive.namelist())
    for name, digest, size in rows:
        if name != record:
            data = archive.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
            assert digest == f"sha256={expected.decode()}" and int(size) == len(data)


def test_pip_installs_it_and_the_installed_package_has_the_same_digest_and_wheel(tmp_path):
    (tmp_path / wheel_name()).write_bytes(build_wheel())
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index",
         "--target", tmp_path / "site", tmp_path / wheel_name()],
        check=True, capture_output=True,
    )  # fmt: skip
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import oat_edge, hashlib; "
        "from oat_edge.remote.wheel import build_wheel, code_digest; "
        "print(oat_edge.__file__, code_digest(), hashlib.sha256(build_wheel()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    where, digest, wheel = done.stdout.split()
    assert where.startswith(str(tmp_path)) and digest == code_digest()
    assert wheel == hashlib.sha256(build_wheel()).hexdigest()


def test_a_checkouts_egg_info_is_not_taken_for_the_installed_package(tmp_path, monkeypatch):
    """It lies where `pip install -e` was run, and comes first on the path there."""
    expected = build_wheel()
    (tmp_path / "oat_edge.egg-info").mkdir()
    (tmp_path / "oat_edge.egg-info/PKG-INFO").write_text("Metadata-Version: 2.1\nName: oat-edge\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert build_wheel() == expected
    archive = zipfile.ZipFile(io.BytesIO(expected))
    text = archive.read(f"oat_edge-{oat_edge.__version__}.dist-info/METADATA").decode()
    assert "\nVersion: " in text and "Requires-Dist: numpy" in text


def test_the_digest_is_over_all_code():
    files = package_files()
    assert len(files) > 100 and f"oat_edge/{oat_edge.__name__}.py" not in files
    assert "oat_edge/calib/__init__.py" in files and "oat_edge/cli/devices.py" in files
