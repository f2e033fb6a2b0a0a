from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from oat_edge.device.system import System


def test_only_the_machine_itself_is_not_recorded(tmp_path):
    assert not System().recorded and not System(Path("/here/..")).recorded
    assert System(tmp_path).recorded


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"NVIDIA Jetson Orin\0", "NVIDIA Jetson Orin"),
        (b"a\0b\0", "a\0b"),
        (b" 42\n", "42"),
        (b"", ""),
        (b"\xff\n", "�"),
    ],
)
def test_text_is_read_without_what_surrounds_it(content, text, tmp_path):
    (tmp_path / "file").write_bytes(content)
    assert System(tmp_path).read("file") == text


def test_what_cannot_be_read_is_none(tmp_path):
    (tmp_path / "folder").mkdir()
    system = System(tmp_path)
    for name in ("missing", "folder", "missing/below"):
        assert system.read(name) is None and system.number(name) is None
    assert system.glob("missing/*") == [] and system.run("uname", "-m") is None


@pytest.mark.parametrize(("text", "number"), [("5064\n", 5064.0), ("1.5", 1.5), ("x", None)])
def test_numbers(text, number, tmp_path):
    (tmp_path / "file").write_text(text)
    assert System(tmp_path).number("file") == number


def test_names_are_sorted_relative_and_follow_links(tmp_path):
    for name in ("real/b", "real/a"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "value").write_text(name)
    (tmp_path / "linked").symlink_to("real")
    names = System(tmp_path).glob("linked/*/value")
    assert names == ["linked/a/value", "linked/b/value"]
    assert System(tmp_path).read(names[0]) == "real/a"


def test_a_recorded_command_is_read_and_never_run(tmp_path):
    command = ("touch", str(tmp_path / "touched"))
    assert System(tmp_path).run(*command) is None and not (tmp_path / "touched").exists()
    (tmp_path / "commands").mkdir()
    (tmp_path / "commands/nvpmodel -q").write_text("NV Power Mode: MAXN\n0\n")
    assert System(tmp_path).run("nvpmodel", "-q") == "NV Power Mode: MAXN\n0"


def test_commands_of_this_machine():
    here, python = System(), sys.executable
    assert here.run(python, "-c", "print(' said ')") == "said"
    assert here.run(python, "-c", "print('said'); raise SystemExit(1)") is None
    assert here.run("no-such-command-anywhere") is None
    assert here.run(python, "-c", "import time; time.sleep(60)", timeout_s=0.2) is None
    # An argument is one argument, whatever it holds: no shell reads it.
    text = shlex.quote("a b; $(c)")
    assert here.run(python, "-c", "import sys; print(sys.argv[1])", text) == text
