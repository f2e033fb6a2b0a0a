"""A watch that no process of a run is left waiting for one that is gone.

A collective of NCCL waits for a killed process for ten minutes, and the launcher of one machine
knows nothing of another's. So a thread of every process notes a sign of life each second in the
store through which the processes found each other, and looks at the others'. The first process
that has a reason to end the run notes it there; all the others follow with the same exit code.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from oat_edge.errors import DependencyError, OatEdgeError

EVERY_S = 1.0
PATIENCE_S = 20.0
"""Without a sign of life. torchrun kills the survivors 30 s after it has seen a process end."""
PATIENCE_AFTER_BREAK_S = 3.0
"""The same when a connection broke: somebody is gone, and may still say why."""
ENDED = "ended"
REMEDY = "go on with `train --resume` and the run's --out, if it has saved anything yet"
INTERRUPTED, TERMINATED = 130, 143


class LostProcess(DependencyError):
    """Another process of the run is gone."""


class Watch:
    """Signs of life of one process, and a look at those of all."""

    def __init__(self, rank: int, size: int, last_words: Callable[[str | None], None]) -> None:
        self.rank, self.size, self.last_words = rank, size, last_words
        # A connection of its own: the process group's may be busy waiting.
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = PrefixStore(f"oat-edge/{attempt}", store)
        self.patience_s = PATIENCE_S
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.store.set(f"alive/{rank}", "0")

    def start(self) -> None:
        """Begin; all processes have made theirs by now."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more.

        A thread inside a call of the store would abort the interpreter when that ends.
        """
        self._stopped.set()
        self._thread.join()

    def give_up(self, error: BaseException) -> None:
        """Note that this process ends the run. Returns if it is the first to do so.

        Otherwise the process ends here, quietly and with the code of the first one.
        """
        # From here on the end is certain, and what asks for it again would cut off the message:
        # a launcher does so as soon as one process has ended.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        code = _exit_code(error)
        if isinstance(error, LostProcess) or code == TERMINATED:
            # Likely a consequence: if a process is gone, the watch finds it and ends this one too.
            self.patience_s = PATIENCE_AFTER_BREAK_S
            self._thread.join(3 * PATIENCE_AFTER_BREAK_S)
        try:
            rank, code = self._note(code)
        except RuntimeError:
            return  # the store is gone as well: nobody else can say it
        if rank != self.rank:
            self._end(None, code)
        # The others end now, maybe with the store: that is no news any more.
        self.stop()
        time.sleep(2 * EVERY_S)  # the store may live in this process, and the others must read it

    def _note(self, code: int) -> tuple[int, int]:
        """Rank and exit code of the first process that ended the run."""
        value = self.store.compare_set(ENDED, "", json.dumps([self.rank, code]))
        rank, code = json.loads(value)
        return rank, code

    def _run(self) -> None:
        names = [f"alive/{rank}" for rank in range(self.size)]
        seen: list[tuple[bytes, float]] = [(b"", time.monotonic())] * self.size
        beat = 0
        while not self._stopped.wait(EVERY_S):
            beat += 1
            try:
                self.store.set(names[self.rank], str(beat))
                values = self.store.multi_get(names)
                ended = self._note(0) if self.store.check([ENDED]) else None
            except RuntimeError:
                if not self._stopped.is_set():
                    message = "the process that held the run together is gone, so all have stopped"
                    self._end(f"{message}: {REMEDY}", LostProcess.exit_code)
                return
            now = time.monotonic()
            if ended is not None:
                rank, code = ended
                if rank != self.rank:
                    self._end(None, code)
                return
            for rank, value in enumerate(values):
                if value != seen[rank][0]:
                    seen[rank] = (value, now)
                elif now - seen[rank][1] > self.patience_s:
                    self._lost(rank)

    def _lost(self, rank: int) -> NoReturn:
        noted_by, code = self._note(LostProcess.exit_code)
        message = (
            f"process {rank} of {self.size} is gone (killed, out of memory, or its machine or "
            f"network is down), so all have stopped: {REMEDY}"
        )
        self._end(message if noted_by == self.rank else None, code)

    def _end(self, message: str | None, code: int) -> NoReturn:
        """End the process from this thread: the main one may wait in a collective for ever."""
        self.last_words(message)
        if self.rank == 0:
            time.sleep(2 * EVERY_S)  # as in give_up
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, OatEdgeError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return 1
