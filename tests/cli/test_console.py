from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.cli.console import make_console, plain_table, time_left


@pytest.mark.parametrize(
    "text", ["runs/[red]x[/red]", "a[/b]", ":cat: and :bug:", "[0.5]", "x" * 500, "λ ε 한"]
)
def test_text_is_printed_as_it_is(text, capsys):
    console = make_console(stderr=False)
    console.print(text)
    table = plain_table(text, ["file"])
    table.add_row(text)
    console.print(table)
    line, title, _, cell = capsys.readouterr().out.splitlines()
    assert line == title == cell == text


@pytest.mark.parametrize("stderr", [False, True])
def test_no_line_of_a_table_ends_in_blanks(stderr, capsys):
    table = plain_table("title", ["file", "a", "b"], left=3)
    for row in (("x", "", ""), ("", "", ""), ("long", "  longer", "longest")):
        table.add_row(*row)
    make_console(stderr=stderr).print(table)
    lines = capsys.readouterr()[stderr].splitlines()
    assert lines == [line.rstrip() for line in lines] and len(lines) == 5
    assert lines[-1] == "long    longer  longest"


@given(st.floats(0, 1e6))
def test_time_left_is_never_nothing_while_there_is_some(seconds):
    value, unit, left = time_left(seconds).split()
    unit_s = {"s": 1, "min": 60}[unit]
    assert left == "left" and abs(float(value) * unit_s - seconds) <= unit_s / 2
    assert value != "0" or seconds <= 0.5


def test_a_wide_table_is_not_cut_off_where_there_is_no_terminal(capsys):
    columns = [f"λ={number / 40}" for number in range(40)]
    table = plain_table(None, columns)
    table.add_row(*["100.0 / 100.0"] * 40)
    make_console(stderr=False).print(table)
    out = capsys.readouterr().out
    assert out.count("100.0 / 100.0") == 40 and "…" not in out and len(out.splitlines()) == 2


def test_no_arguments_show_the_help(main):
    ended = main()
    assert ended.code == 0 and ended.out.startswith("Usage: oat-edge") and ended.err == ""
    for command in ("train", "export", "bench", "inspect", "doctor", "demo"):
        assert f"\n  {command} " in ended.out


def test_version(main):
    from oat_edge import __version__

    assert main("--version") == (0, f"oat-edge {__version__}\n", "")


@pytest.mark.parametrize("command", ["train", "export", "bench", "inspect", "doctor", "demo"])
def test_help_is_plain_where_there_is_no_terminal(command, main):
    ended = main(command, "--help")
    assert ended.code == 0 and not set("╭╮╰╯│\x1b") & set(ended.out)


def test_on_a_terminal_help_shows_every_default(child_environment):
    """What stands in brackets must not be taken for markup."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "oat_edge", "train", "--help"],
        stdout=follower,
        env=child_environment | {"TERM": "dumb"},
    )
    os.close(follower)
    shown = io.BytesIO()
    while True:
        try:
            shown.write(os.read(leader, 4096))
        except OSError:  # the terminal is gone
            break
    os.close(leader)
    assert process.wait() == 0
    text = re.sub(r"[\s│]", "", shown.getvalue().decode())  # lines break anywhere
    for default in ("digits", "1/K", "runs/DATA-ARCH-N;with--resumethenewest"):
        assert f"[default:({default})]" in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_greek_is_no_reason_to_fail(encoding, command, tiny_bundle, tmp_path):
    done = command("inspect", tiny_bundle.path, cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and done.stderr == "" and "w0.50-fp32.onnx" in done.stdout


def test_colours_stay_out_of_pipes(command, tmp_path):
    done = command("inspect", "nowhere", cwd=tmp_path, TERM="xterm-256color")
    assert done.returncode == 2 and "\x1b" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
