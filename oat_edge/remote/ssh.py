"""A command on another machine over the system's OpenSSH: the user's own keys and config.

No text that a user gave passes through a shell: the host is checked and stands after `--`, the
remote command is written by this package, and all else is data on standard input.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import subprocess
import threading
import time
from dataclasses import dataclass

from oat_edge.errors import DependencyError, InputError
from oat_edge.remote.wire import plain

# For tests and unusual setups: the file that `ssh -F` reads instead of the user's config.
CONFIG_VARIABLE = "OAT_EDGE_SSH_CONFIG"
OPTIONS = {
    "BatchMode": "yes",  # a question could not be answered
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",  # a dead connection is noticed after 15 s
    "ServerAliveCountMax": "3",
    "ClearAllForwardings": "yes",  # those of the user's config would be taken twice
    "RemoteCommand": "none",
    "ControlMaster": "no",  # one that is there is used, none is made that others would hang on
    "LogLevel": "INFO",
}
SSH_FAILED = 255
NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
# A started agent answers within this time, or the connection counts as lost.
ANSWER_S = 300.0
# Of standard error the end is kept: a device may print without end.
MOST_SAID = 20_000

_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_USER = r"[A-Za-z0-9_][A-Za-z0-9._+-]*"
_IPV6 = r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*"
_PLAIN = re.compile(rf"(?:(?P<user>{_USER})@)?(?:(?P<name>{_NAME})|\[(?P<ipv6>{_IPV6})\])")
_URI = re.compile(rf"ssh://{_PLAIN.pattern}(?::(?P<port>[0-9]{{1,5}}))?/?")


class LostError(DependencyError):
    """The machine cannot be reached now; it may be later."""


class StoppedError(Exception):
    """The user has stopped the command."""


@dataclass(frozen=True, slots=True)
class Host:
    """A checked destination of ssh."""

    name: str
    """Host name, alias of the user's ssh config, or IP address."""
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        user = f"{self.user}@" if self.user else ""
        return f"ssh://{user}{name}:{self.port}" if self.port else f"{user}{name}"


def check_host(text: str) -> Host:
    """Read "[user@]host", "user@[ipv6]" or "ssh://user@host:port"; else `InputError`."""
    found = _PLAIN.fullmatch(text) or _URI.fullmatch(text)
    if found is None or len(text) > 300:
        raise InputError(f"host is {text!r:.80}: expected user@host or ssh://user@host:port")
    parts = found.groupdict()
    port = int(parts["port"]) if parts.get("port") else None
    if port is not None and not 0 < port < 65536:
        raise InputError(f"host is {text!r:.80}: expected a port in [1, 65535]")
    return Host(parts["name"] or parts["ipv6"], parts["user"], port)


def ssh_command(host: Host, remote: str) -> list[str]:
    """The command line that runs `remote` (text of this package) on the host."""
    command = ["ssh", "-T", "-x"]
    if config := os.environ.get(CONFIG_VARIABLE):
        command += ["-F", config]
    for name, value in OPTIONS.items():
        command += ["-o", f"{name}={value}"]
    if host.user is not None:
        command += ["-l", host.user]
    if host.port is not None:
        command += ["-p", str(host.port)]
    return [*command, "--", host.name, remote]


class Channel:
    """A running remote command.

    stopping: when it is set, waiting ends with `StoppedError`. answer_s: silence for longer is
    `LostError`.
    """

    def __init__(
        self,
        host: Host,
        remote: str,
        *,
        stopping: threading.Event,
        answer_s: float = ANSWER_S,
    ) -> None:
        self.host = host
        self._answer_s = answer_s
        self._stopping = stopping
        self._said = bytearray()
        # A socket and no pipe: writing into a broken pipe would end this program (SIGPIPE).
        self._in, stdin = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                ssh_command(host, remote),
                stdin=stdin.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                # Ctrl-C is for this program: the connection is still needed to stop the bench.
                start_new_session=True,
            )
        except FileNotFoundError:
            self._in.close()
            raise DependencyError(
                "ssh is not installed, devices are reached with it: apt install openssh-client"
            ) from None
        finally:
            stdin.close()
        assert self._process.stdout is not None
        self._out = self._process.stdout
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._in.setblocking(False)

    def send(self, data: bytes) -> None:
        """Send all of it; `OSError` if the command has ended."""
        view = memoryview(data)
        while view:
            self._wait(reading=False)
            with contextlib.suppress(BlockingIOError):
                view = view[self._in.send(view[: 1 << 16], NO_SIGNAL) :]

    def receive(self) -> bytes:
        """Some bytes, as soon as there are any; b"" if the command has ended."""
        self._wait(reading=True)
        return os.read(self._out.fileno(), 1 << 18)

    def _listen(self) -> None:
        """Take what is said on standard error, so that ssh never waits for a reader."""
        errors = self._process.stderr
        assert errors is not None
        with errors:
            while data := errors.read(1 << 16):
                self._said += data
                del self._said[:-MOST_SAID]

    def _wait(self, *, reading: bool) -> None:
        until = time.monotonic() + self._answer_s
        read = [self._out] if reading else []
        write = [] if reading else [self._in]
        while not any(select.select(read, write, [], 0.2)):
            if self._stopping.is_set():
                raise StoppedError
            if time.monotonic() > until:
                raise LostError(f"{self.host} has not answered for {self._answer_s:g} s")
        if self._stopping.is_set():
            raise StoppedError

    def ended(self) -> tuple[int, str]:
        """After the end of the output: exit code and the end of what was said on standard error."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._listener.join(timeout=2)  # not longer: a master connection may hold the pipe open
        lines = bytes(self._said).decode(errors="replace").splitlines()
        return code, "\n".join(map(plain, lines))

    def close(self) -> None:
        """End the connection; what runs there detached goes on."""
        self._in.close()
        self._out.close()
        self._process.terminate()
        self._process.wait()


REFUSALS = (
    # (what ssh says, what that means and what to do)
    ("HOST IDENTIFICATION HAS CHANGED",
     "its host key has changed: if the device was set up anew, run `ssh-keygen -R {name}`, then "
     "`ssh {host}` once by hand"),
    ("Host key verification failed", "ssh does not know its host key: run `ssh {host}` once by "
     "hand and compare the key"),
    ("Permission denied", "it accepts none of your keys: run `ssh-copy-id {host}`"),
    ("Too many authentication failures", "it accepts none of your keys: name the right one as "
     "IdentityFile in ~/.ssh/config"),
    ("Could not resolve hostname", "there is no host of this name: check the name, or use the "
     "address"),
    ("configuration option", "ssh does not take its own config: {line}"),
    ("Bad owner or permissions", "ssh does not take its own config: {line}"),
)  # fmt: skip
UNREACHABLE = re.compile(
    r"timed out|refused|No route to host|unreachable|closed by|closed\.|reset by|Broken pipe|"
    r"not responding|kex_exchange|Connection (?:to .* )?closed|Temporary failure|host is down",
    re.IGNORECASE,
)


def explain(host: Host, said: str) -> DependencyError:
    """Why ssh itself failed (exit code 255), in one line; `LostError` if it may pass."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    for sign, meaning in REFUSALS:
        for line in lines:
            if sign in line and not UNREACHABLE.search(line):
                text = meaning.format(host=host, name=host.name, line=line)
                return DependencyError(f"cannot connect to {host}: {text}")
    last = next((line for line in reversed(lines) if UNREACHABLE.search(line)), None)
    if last is not None or not lines:
        reason = last or "the connection was lost"
        return LostError(f"cannot reach {host} ({reason}): is it switched on and in the network?")
    return DependencyError(f"cannot connect to {host} ({lines[-1]}): try `ssh {host}` by hand")
