"""A device without oat-edge, and one that gets it."""

from __future__ import annotations

import dataclasses
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

from oat_edge.errors import DependencyError
from oat_edge.remote import install
from oat_edge.remote.client import NotInstalledError, Session, install_command
from oat_edge.remote.fleet import bench_on
from oat_edge.remote.wheel import code_digest, env_name
from tests.remote.conftest import REQUEST, make_device, target_of

# A Python that sees none of this environment's packages.
BARE = str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


def link_packages(folder: Path, *names: str) -> None:
    """The installed packages of these names and all that they need, linked into a folder."""
    folder.mkdir()
    todo, seen = list(names), set()
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another Python or system
        for file in found.files or ():
            top = file.parts[0]
            source = Path(str(found.locate_file(top)))
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(source)
        for need in found.requires or ():
            if "extra ==" not in need:
                todo.append(re.match(r"[A-Za-z0-9._-]+", need).group())


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A device whose Python has numpy, typer, rich and ONNX Runtime, as if fetched, and no net."""
    link_packages(tmp_path / "fetched", "numpy", "typer", "rich", "onnxruntime")
    assert not list((tmp_path / "fetched").glob("*oat_edge*"))
    (tmp_path / "device").mkdir()
    yield from make_device(
        tmp_path / "device", monkeypatch,
        PYTHONPATH=str(tmp_path / "fetched"), PIP_NO_INDEX="1",
    )  # fmt: skip


def test_without_bootstrap_nothing_is_installed(bare):
    session = Session(target_of(bare).host, python=BARE)
    with pytest.raises(NotInstalledError, match=r"has no oat-edge 0\S*: add --bootstrap") as failed:
        session.open()
    assert failed.value.exit_code == 3
    assert not bare.cache.exists()


def test_bootstrap_installs_this_very_code_once_and_benches_with_it(bare, bundle, told):
    target = dataclasses.replace(target_of(bare), python=BARE)
    result = bench_on([target], bundle, REQUEST, bootstrap=True, say=told.say)
    result.check()
    assert "installing oat-edge there" in told
    env = bare.cache / "env" / env_name()
    assert (env / "ready").is_file() and (env / "pyvenv.cfg").is_file()
    assert list(env.glob("lib/python*/site-packages/oat_edge/remote/agent.py"))
    assert list(env.glob("lib/python*/site-packages/oat_edge/exporters/graph.py"))
    report = result.results[0].report
    assert len(report.rows) == 3 and report.environment.library_versions["oat-edge"]

    told.texts.clear()
    session = Session(target.host, python=BARE)
    session.open()
    assert session.hello["code_digest"] == code_digest() and "cpu" in session.hello["extras"]
    assert session.bootstrap("cpu") is False
    session.close()

    # An environment whose build was cut short does not count.
    (env / "ready").unlink()
    with pytest.raises(NotInstalledError):
        session.open()


@pytest.mark.slow
def test_a_device_without_network_says_what_it_lacks(tmp_path, monkeypatch):
    (tmp_path / "device").mkdir()
    making = make_device(tmp_path / "device", monkeypatch, PIP_NO_INDEX="1")
    device = next(making)
    session = Session(target_of(device).host, python=BARE)
    with pytest.raises(DependencyError, match="network access, or install numpy") as failed:
        session.bootstrap("cpu")
    assert "\n" not in str(failed.value)
    assert not list(device.cache.glob("env/*/ready"))
    making.close()


def test_a_python_without_venv_says_so(bare):
    """The installer's own text, run there by a Python that is made to lack a module."""
    source = Path(install.__file__).read_text()
    assert "import ensurepip" in source
    data = source.replace("import ensurepip", "import no_ensurepip").encode()
    request = b'{"wheel_size": 0, "name": "x", "device": "cpu"}'
    session = Session(target_of(bare).host, python=BARE)
    channel, answer = session._start(
        install_command(BARE), send=b"%d\n%b%b\n" % (len(data), data, request)
    )
    channel.close()
    assert re.search(r"sudo apt install python3\.\d+-venv$", answer["refused"])
    assert not list(bare.cache.glob("env/*/ready"))


def test_a_python_that_is_too_old_says_so(bare):
    """A real one, made to believe that it is JetPack 5's."""
    old = bare.folder / "python3.8"
    old.write_text(
        f"#!/bin/sh\nexec {BARE} -c 'import sys; sys.version_info = (3, 8, 10); "
        'exec(sys.argv[1])\' "$2"\n'
    )
    old.chmod(0o755)
    session = Session(target_of(bare).host, python=str(old))
    for attempt in (session.open, lambda: session.bootstrap("cpu")):
        with pytest.raises(DependencyError, match=r"is older than Python 3\.10.*--python PATH"):
            attempt()
    assert not bare.cache.exists()
