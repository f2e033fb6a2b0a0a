"""This end of a connection to a device: finds its oat-edge, asks, and connects again when lost."""

from __future__ import annotations

import json
import re
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from oat_edge import __version__
from oat_edge.errors import DependencyError, InputError
from oat_edge.remote import install
from oat_edge.remote.ssh import ANSWER_S, SSH_FAILED, Channel, Host, LostError, explain
from oat_edge.remote.wheel import build_wheel, code_digest, env_name, wheel_name
from oat_edge.remote.wire import Stream, WireError, error_from_json, pack, plain
from oat_edge.runtime.engines import Say, silent

T = TypeVar("T")

PATIENCE_S = 600.0
STOP_PATIENCE_S = 20.0
# pip on a small device, with a slow network.
INSTALL_S = 3600.0
# Shorter than what the device takes for "gone" (jobs.CLIENT_S), together with ConnectTimeout.
LONGEST_PAUSE_S = 10.0
TOO_OLD, NO_PACKAGE, NO_PROGRAM, NO_COMMAND = 96, 97, 126, 127
DEFAULT_PYTHON = "python3"

# Written so that any Python can read it, and say that it is too old.
_RECENT = f"import sys; sys.version_info < (3, 10) and sys.exit({TOO_OLD}); "
# A stray module of the folder in which ssh starts must not count as one of Python's.
_AGENT = (
    f"{_RECENT}sys.path[:] = filter(None, sys.path); from importlib.util import find_spec; "
    'all(map(find_spec, ("oat_edge", "oat_edge.remote", "oat_edge.remote.agent"))) '
    f"or sys.exit({NO_PACKAGE}); from oat_edge.remote.agent import main; main()"
)
_INSTALL = f"{_RECENT}i = sys.stdin.buffer; exec(i.read(int(i.readline()))); main()"


class NotInstalledError(DependencyError):
    """A device lacks this version of oat-edge."""


def check_python(text: str) -> str:
    """A path or name of a Python on a device; `InputError` for what no such file is called."""
    if not re.fullmatch(r"[\w./][\w./+@-]*", text):
        raise InputError(f"python is {text!r:.80}: expected a path such as /usr/bin/python3")
    return text


def agent_command(python: str) -> str:
    """What starts the agent there: in this version's own environment if that is whole."""
    env = f'"${{XDG_CACHE_HOME:-$HOME/.cache}}/oat-edge/env/{env_name()}"'
    script = (
        f"e={env}; p={shlex.quote(python)}; "
        f'if [ -f "$e/{install.MARKER}" ]; then p="$e/bin/python"; fi; '
        f'exec "$p" -c {shlex.quote(_AGENT)}'
    )
    return f"exec sh -c {shlex.quote(script)}"


def install_command(python: str) -> str:
    """What runs the text of `oat_edge.remote.install` there, sent on standard input."""
    script = f"exec {shlex.quote(python)} -c {shlex.quote(_INSTALL)}"
    return f"exec sh -c {shlex.quote(script)}"


class Session:
    """Calls to a device's agent. Every call may be repeated, so a lost connection costs none.

    patience_s: how long to try to connect again. stopping: see `Channel`; leaving: the same for
    what is done after stopping. `open` first, `close` at the end.
    """

    def __init__(
        self,
        host: Host,
        *,
        python: str | None = None,
        stopping: threading.Event | None = None,
        leaving: threading.Event | None = None,
        patience_s: float = PATIENCE_S,
        say: Say = silent,
    ) -> None:
        self.host = host
        self.hello: dict[str, Any] = {}
        self._python = check_python(DEFAULT_PYTHON if python is None else python)
        self._stopping = stopping or threading.Event()
        self._leaving = leaving or threading.Event()
        self._patience_s = patience_s
        self._say = say
        self._token = secrets.token_hex(32)
        self._channel: Channel | None = None
        self._stream = Stream(lambda: b"")

    def open(self) -> None:
        """Connect.

        Raises `NotInstalledError`, `LostError` or another `DependencyError`; it is tried once.
        """
        self.close()
        self._channel, self.hello = self._start(agent_command(self._python))
        theirs = self.hello.get("version"), self.hello.get("code_digest")
        if theirs != (__version__, code_digest()):
            raise NotInstalledError(
                f"{self.host} has oat-edge {theirs[0]}, whose code is not that of this machine's "
                f"{__version__}: add --bootstrap, which installs this one beside it"
            )
        self._ask({"verb": "client", "token": self._token}, b"")

    def bootstrap(self, device: str) -> bool:
        """Install this oat-edge there, unless it is there; whether it had to be."""
        wheel = build_wheel()
        source = Path(install.__file__).read_bytes()
        request = {
            "name": env_name(),
            "wheel_name": wheel_name(),
            "wheel_size": len(wheel),
            "code_digest": code_digest(),
            "device": device,
        }
        data = b"%d\n%b%b\n%b" % (len(source), source, json.dumps(request).encode(), wheel)

        def attempt() -> dict[str, Any]:
            command = install_command(self._python)
            channel, answer = self._start(command, send=data, answer_s=INSTALL_S)
            channel.close()
            return answer

        answer = self._patiently(attempt)
        if "refused" in answer:
            raise DependencyError(f"{self.host} cannot get oat-edge: {answer['refused']}")
        return bool(answer["made"])

    def call(self, verb: str, *, payload: bytes = b"", **fields: Any) -> tuple[Any, bytes]:
        """Ask the agent. An error that it answers with is raised here.

        A lost connection is made again and the call repeated; `LostError` when patience ends.
        """

        def attempt() -> tuple[Any, bytes]:
            if self._channel is None:
                self.open()
            return self._ask({"verb": verb, **fields}, payload)

        return self._patiently(attempt)

    @contextmanager
    def again(self) -> Iterator[Session]:
        """A connection of the same client for the time after `stopping`."""
        other = Session(
            self.host,
            python=self._python,
            stopping=self._leaving,
            patience_s=min(self._patience_s, STOP_PATIENCE_S),
            say=self._say,
        )
        other._token = self._token
        try:
            other.open()
            yield other
        finally:
            other.close()

    def close(self) -> None:
        """End the connection."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _patiently(self, attempt: Callable[[], T]) -> T:
        pause_s, until = 1.0, None
        while True:
            try:
                return attempt()
            except LostError as error:
                self.close()
                now = time.monotonic()
                if until is None:
                    until = now + self._patience_s
                    text = f"connection lost ({error}): trying again for {self._patience_s:g} s"
                    self._say(text)
                if now >= until:
                    raise LostError(
                        f"the connection to {self.host} was lost and did not come back in "
                        f"{self._patience_s:g} s: the same command finds the bench again"
                    ) from error
                # Setting it ends the pause; the next attempt then raises StoppedError.
                self._stopping.wait(min(pause_s, max(until - now, 0.0)))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _ask(self, fields: dict[str, Any], payload: bytes) -> tuple[Any, bytes]:
        assert self._channel is not None
        try:
            self._channel.send(pack(fields, payload))
            answer, data = self._stream.message()
            answer = plain(answer)
        except (EOFError, OSError, WireError) as error:
            raise self._lost(self._channel, error) from error
        if "error" in answer:
            raise error_from_json(answer["error"], str(self.host))
        return answer, data

    def _start(
        self, remote: str, *, send: bytes = b"", answer_s: float = ANSWER_S
    ) -> tuple[Channel, dict[str, Any]]:
        """Run a command of this package there, and read its greeting."""
        channel = Channel(self.host, remote, stopping=self._stopping, answer_s=answer_s)
        try:
            self._stream = Stream(channel.receive)
            channel.send(send)
            return channel, plain(self._stream.greeting())
        except (EOFError, OSError) as error:
            failure = self._failed(channel, error)
            channel.close()
            raise failure from error
        except WireError as error:
            channel.close()
            raise DependencyError(
                f"{self.host} does not answer as oat-edge does ({error}): a start-up file of its "
                "shell may print without end"
            ) from error
        except BaseException:
            channel.close()
            raise

    def _failed(self, channel: Channel, error: Exception) -> DependencyError:
        """Why a command did not even greet."""
        code, said = channel.ended()
        if code == SSH_FAILED or code < 0:
            return explain(self.host, said)
        version = f"oat-edge {__version__}"
        if code == NO_PACKAGE:
            return NotInstalledError(f"{self.host} has no {version}: add --bootstrap")
        if code == TOO_OLD:
            return DependencyError(
                f"{self._python} on {self.host} is older than Python 3.10, which oat-edge needs: "
                "install one and name it with `oat-edge devices add NAME HOST --python PATH`"
            )
        if code in (NO_COMMAND, NO_PROGRAM):
            return DependencyError(
                f"{self.host} has no {self._python}: name its Python with `oat-edge devices add "
                "NAME HOST --python PATH`"
            )
        last = (said.strip().splitlines() or [str(error) or "no message"])[-1]
        return NotInstalledError(
            f"{version} does not start on {self.host} ({last}): add --bootstrap"
        )

    def _lost(self, channel: Channel, error: Exception) -> DependencyError:
        """Why a connection that stood has ended."""
        code, said = channel.ended()
        self.close()
        if code in (0, SSH_FAILED) or code < 0:
            found = explain(self.host, said) if code == SSH_FAILED else None
            return found if isinstance(found, LostError) else LostError(f"{self.host}: {error!r}")
        last = (said.strip().splitlines() or [repr(error)])[-1]
        return LostError(f"the agent on {self.host} ended ({last})")
