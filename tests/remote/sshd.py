"""A real SSH server on the loopback address: a "device" with a home of its own.

It runs as the current user, with its own keys, port and config, and touches nothing outside its
folder.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from getpass import getuser
from pathlib import Path

SERVER = "/usr/sbin/sshd"
INSTALL = "apt-get install openssh-server openssh-client"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@dataclass
class Sshd:
    """One server; `home` is where a device's cache and files lie."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    largest_file: int | None = None
    """Bytes after which writing a file fails there, as on a full disk."""

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def cache(self) -> Path:
        """What oat-edge keeps on the device."""
        return self.home / "cache" / "oat-edge"

    @property
    def user(self) -> str:
        return getuser()

    @property
    def host(self) -> str:
        return f"ssh://{self.user}@127.0.0.1:{self.port}"

    @property
    def client_config(self) -> Path:
        return self.folder / "ssh_config"

    def start(self) -> None:
        server = shutil.which("sshd") or SERVER
        missing = [p for p in (server, "ssh", "ssh-keygen") if shutil.which(p) is None]
        assert not missing, f"no {missing}: {INSTALL}"
        self.home.mkdir(parents=True)
        for name in ("host_key", "user_key"):
            make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name]
            subprocess.run(make, check=True)
        shutil.copy(self.folder / "user_key.pub", self.folder / "authorized_keys")
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # root's sshd gives up its rights there
        self.port = free_port()
        variables = {"HOME": self.home, "XDG_CACHE_HOME": self.home / "cache", **self.environment}
        (self.folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\n"
            f"HostKey {self.folder / 'host_key'}\nPidFile none\nUsePAM no\nStrictModes no\n"
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}\n"
            "PermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "PermitUserEnvironment no\nMaxStartups 100\n"
            f"SetEnv {' '.join(f'{name}={value}' for name, value in variables.items())}\n"
        )
        key = (self.folder / "host_key.pub").read_text()
        (self.folder / "known_hosts").write_text(f"device {key}")
        self.client_config.write_text(
            "Host *\n  HostKeyAlias device\n  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  IdentityFile {self.folder / 'user_key'}\n"
            f"  UserKnownHostsFile {self.folder / 'known_hosts'}\n"
            "  GlobalKnownHostsFile /dev/null\n"
        )
        self.run()

    def run(self) -> None:
        """Start the server process on its port."""
        log = (self.folder / "sshd.log").open("ab")
        self.process = subprocess.Popen(
            [shutil.which("sshd") or SERVER, "-D", "-e", "-f", self.folder / "sshd_config"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=self._limit,
        )  # fmt: skip
        log.close()
        until = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < until, self.log()
                time.sleep(0.02)

    def _limit(self) -> None:
        if self.largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.largest_file, self.largest_file))

    def log(self) -> str:
        return (self.folder / "sshd.log").read_text()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def jobs(self) -> list[Path]:
        """Folders of jobs that are there."""
        return sorted(path.parent for path in self.cache.glob("jobs/*/job.json"))

    def kill_jobs(self) -> None:
        """End what a failed test left running."""
        for folder in self.jobs():
            text = (folder / "alive").read_text()
            try:
                arguments = Path(f"/proc/{int(text)}/cmdline").read_bytes()
            except (OSError, ValueError):
                continue
            if str(folder).encode() in arguments:
                os.killpg(int(text), signal.SIGKILL)


class Proxy:
    """Passes a TCP connection on, until it is told to cut it.

    cut_after: bytes from the client (up) or to it (down) after which the current connection is
    cut, once. `cuts` counts; `up` and `down` are all bytes that were passed on.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self.cut_after: dict[str, int | None] = {"up": None, "down": None}
        self.passed = {"up": 0, "down": 0}
        self.cuts = self.connections = 0
        self.refuse = False
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refuse:
                client.close()
                continue
            self.connections += 1
            server = socket.create_connection(("127.0.0.1", self._target))
            self._open += [client, server]
            for source, sink, way in ((client, server, "up"), (server, client, "down")):
                threading.Thread(target=self._pass, args=(source, sink, way), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        try:
            while data := source.recv(1 << 14):
                sink.sendall(data)
                with self._lock:
                    self.passed[way] += len(data)
                    limit = self.cut_after[way]
                    reached = limit is not None and self.passed[way] >= limit
                    if reached:
                        self.cut_after[way] = None
                if reached:
                    self.cut()
        except OSError:
            pass
        for one in (source, sink):
            one.close()

    def cut(self) -> None:
        """Cut all connections that are open now, as a cable is cut."""
        with self._lock:
            self.cuts += 1
            cut, self._open = self._open, []
        for one in cut:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def close(self) -> None:
        self._listener.close()
        self.cut()
