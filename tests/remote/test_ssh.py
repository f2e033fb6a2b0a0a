"""Destinations, and what ssh says when it fails."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from oat_edge.bundle import Bundle, save_manifest
from oat_edge.errors import DependencyError, InputError
from oat_edge.remote.client import Session, agent_command, check_python, install_command
from oat_edge.remote.fleet import bench_on
from oat_edge.remote.ssh import (
    MOST_SAID,
    Channel,
    LostError,
    check_host,
    explain,
    ssh_command,
)
from tests.remote.conftest import REQUEST, target_of

GOOD = {
    "orin": ("orin", None, None),
    "nvidia@orin.local": ("orin.local", "nvidia", None),
    "user@192.168.1.7": ("192.168.1.7", "user", None),
    "[::1]": ("::1", None, None),
    "me@[fe80::1:2]": ("fe80::1:2", "me", None),
    "ssh://me@orin:2222": ("orin", "me", 2222),
    "ssh://[::1]:22": ("::1", None, 22),
    "ssh://orin/": ("orin", None, None),
    "my_box-2": ("my_box-2", None, None),
}
HOSTILE = (
    "", " ", "-oProxyCommand=touch canary", "--", "-v", "user@-oProxyCommand=touch canary",
    "-l@orin", "orin;touch canary", "orin && touch canary", "orin|touch canary", "$(touch canary)",
    "`touch canary`", "orin\ntouch canary", "orin\n", "user@orin touch canary", "orin\ttouch",
    "a'b", 'a"b', "%h", "%r@orin", "orin%n", "${HOME}", "~/orin", "../orin", "orin/../x", "a@b@c",
    "@orin", "user@", "orin:22", "ssh://orin:0", "ssh://orin:99999", "ssh://orin:22;id",
    "ssh://-x@orin", "ssh://orin/path", "http://orin", "[::1", "[orin]", "or\x00in", "or\x1bin",
    "örin", "orin*", "or?n", "{a,b}", "!orin", "a" * 400, ".orin",
)  # fmt: skip
HOSTILE_PATHS = (
    "", "-c", "--version", "python3;touch canary", "$(touch canary)", "`touch canary`",
    "python3 -c 1", "python3\ntouch canary", "a'b;touch canary", "~/python", "%h", "a|b", "a&b",
    "py\x00thon", '"', "*", "python3>canary", "!x", "{a}", "\\x",
)  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_destinations_are_read(text):
    host = check_host(text)
    assert (host.name, host.user, host.port) == GOOD[text]
    assert check_host(str(host)) == host


@pytest.mark.parametrize("text", HOSTILE)
def test_other_text_is_no_destination(text):
    with pytest.raises(InputError, match=r"host is .*expected"):
        check_host(text)


@pytest.mark.parametrize("text", HOSTILE_PATHS)
def test_other_text_is_no_python(text):
    with pytest.raises(InputError, match="python is "):
        check_python(text)


def test_even_unchecked_text_runs_no_command_on_the_device(device):
    """Behind the check stands the quoting: each text is one word to the shells there."""
    host = target_of(device).host
    before = sorted(device.home.rglob("*"))
    texts = [text for text in HOSTILE + HOSTILE_PATHS if text and "\x00" not in text]
    assert sum("touch canary" in text for text in texts) > 10
    for text in texts:
        for command in (agent_command(text), install_command(text)):
            words = shlex.split(shlex.split(command)[3])
            assert text in (word.removeprefix("p=").removesuffix(";") for word in words)
    for text in (text for text in texts if "touch canary" in text or text == "python3>canary"):
        channel = Channel(host, agent_command(text), stopping=threading.Event())
        while channel.receive():
            pass
        code, said = channel.ended()
        channel.close()
        assert code in (126, 127), said
    # A shell that had run one of them would have left a file in the home folder.
    assert sorted(device.home.rglob("*")) == before


def test_hostile_names_of_files_and_settings_are_data(device, bundle):
    files, artifacts = ("$(touch canary).onnx", "-rf;touch canary|x.onnx", "a'b\"c\n.onnx"), []
    source = bundle.path / "w1.00-fp32.onnx"
    (first, *_) = (one for one in bundle.artifacts if one.file == source.name)
    for file in files:
        shutil.copy(source, bundle.path / file)
        artifacts.append(dataclasses.replace(first, file=file))
    save_manifest(dataclasses.replace(bundle, artifacts=(*bundle.artifacts, *artifacts)))
    hostile = Bundle.open(bundle.path)
    request = dataclasses.replace(REQUEST, width="$(touch canary)", lam="`touch canary`")
    (one,) = bench_on([target_of(device)], hostile, request).results
    assert isinstance(one.error, InputError) and "canary" in str(one.error)
    (there,) = device.cache.glob("bundles/*/$(touch canary).onnx")
    assert there.read_bytes() == source.read_bytes()
    assert not list(device.home.rglob("canary*"))


def test_a_path_of_a_python_may_have_any_letters():
    for text in ("python3", "/usr/bin/python3.12", "/home/zoë/env/bin/python", "./env/bin/python"):
        assert check_python(text) == text


def test_the_command_line_asks_nothing_and_ends_its_options(monkeypatch):
    monkeypatch.delenv("OAT_EDGE_SSH_CONFIG", raising=False)
    command = ssh_command(check_host("ssh://me@orin:2222"), "x")
    assert command[0] == "ssh" and command[-3:] == ["--", "orin", "x"]
    assert "BatchMode=yes" in command and command[command.index("-l") + 1] == "me"
    assert command[command.index("-p") + 1] == "2222" and "-F" not in command
    monkeypatch.setenv("OAT_EDGE_SSH_CONFIG", "my config")
    command = ssh_command(check_host("orin"), "x")
    assert command[command.index("-F") + 1] == "my config" and "-l" not in command


@pytest.mark.parametrize("shell", ["sh", "bash", "dash"])
def test_the_remote_commands_are_read_by_every_shell(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    command = agent_command("/no/such python")
    assert shlex.split(command)[:3] == ["exec", "sh", "-c"]
    done = subprocess.run(
        [shell, "-c", command], capture_output=True, text=True,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 127 and "/no/such python" in done.stderr


@pytest.mark.parametrize(
    ("said", "part", "passes"),
    [
        ("No ED25519 host key is known for orin.\r\nHost key verification failed.",
         "run `ssh me@orin` once by hand", False),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\r\nHost key verification failed.",
         "ssh-keygen -R orin", False),
        ("me@orin: Permission denied (publickey,password).", "ssh-copy-id me@orin", False),
        ("ssh: Could not resolve hostname orin: Name or service not known", "no host of this name",
         False),
        ("/x/config: line 3: Bad configuration option: nonsense", "its own config: /x/config: l",
         False),
        ("ssh: connect to host orin port 22: Connection refused", "Connection refused", True),
        ("ssh: connect to host orin port 22: Connection timed out", "switched on", True),
        ("ssh: connect to host orin port 22: No route to host", "No route to host", True),
        ("ssh: Could not resolve hostname orin: Temporary failure in name resolution",
         "Temporary failure", True),
        ("Timeout, server orin not responding.", "not responding", True),
        ("client_loop: send disconnect: Broken pipe", "Broken pipe", True),
        ("Connection closed by 10.0.0.1 port 22", "closed by", True),
        ("", "connection was lost", True),
        ("something new", "(something new)", False),
    ],
)  # fmt: skip
def test_what_ssh_says_becomes_one_line_with_a_remedy(said, part, passes):
    error = explain(check_host("me@orin"), said)
    assert part in str(error) and "\n" not in str(error) and "orin" in str(error)
    assert isinstance(error, LostError) == passes and error.exit_code == 3


def failure(device, **changes):
    host = changes.pop("host", target_of(device).host)
    session = Session(host, python=changes.pop("python", sys.executable))
    with pytest.raises(DependencyError) as failed:
        session.open()
    text = str(failed.value)
    assert "\n" not in text and len(text) < 400
    return text


def test_real_refusals_are_told_apart(device, tmp_path):
    assert "has no /no/such: " in failure(device, python="/no/such")
    closed = check_host("ssh://x@127.0.0.1:1")
    assert "Connection refused" in failure(device, host=closed)
    unknown = check_host("ssh://x@no-such-host.invalid:22")
    assert "no-such-host.invalid" in failure(device, host=unknown)
    (device.folder / "authorized_keys").write_text("")
    assert "ssh-copy-id" in failure(device)
    other = tmp_path / "other"
    make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)]
    subprocess.run(make, check=True)
    key = Path(f"{other}.pub").read_text()
    (device.folder / "known_hosts").write_text(f"device {key}")
    assert "ssh-keygen -R" in failure(device)
    (device.folder / "known_hosts").write_text("")
    assert "once by hand" in failure(device)


def test_what_a_start_up_file_prints_is_skipped(device):
    """A login shell's chatter comes before the agent's greeting."""
    talker = device.folder / "talker"
    talker.write_text(
        f'#!/bin/sh\necho welcome; printf "to the jungle > "\nexec {sys.executable} "$@"\n'
    )
    talker.chmod(0o755)
    session = Session(target_of(device).host, python=str(talker))
    session.open()
    assert session.call("have", sizes={})[0] == {"missing": {}}
    session.close()


def test_what_prints_without_end_is_no_agent(device):
    talker = device.folder / "talker"
    talker.write_text("#!/bin/sh\nexec yes\n")
    talker.chmod(0o755)
    assert "does not answer as oat-edge" in failure(device, python=str(talker))


def test_what_is_said_without_end_is_kept_in_part_and_shown_as_it_is(device):
    """A device that floods standard error, with escapes: its end is what counts."""
    talker = device.folder / "talker"
    talker.write_text(
        "#!/bin/sh\n"
        "head -c 3000000 /dev/zero | tr '\\0' 'x' >&2\n"
        "printf 'a\\033]52;c;aWQ=\\007 \\033[2Jz' >&2\nexit 5\n"
    )
    talker.chmod(0o755)
    channel = Channel(
        target_of(device).host, agent_command(str(talker)), stopping=threading.Event()
    )
    while channel.receive():
        pass
    code, said = channel.ended()
    assert code == 5 and len(said) <= MOST_SAID and said.isprintable()
    assert said.endswith("z") and len(channel._said) <= MOST_SAID
    channel.close()
