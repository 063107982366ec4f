"""Notices dead ranks: if a node vanishes silently, the other ranks end with a message that names it.

A collective waits for a silent rank until its timeout, and TCP for a quarter of an hour. So a thread of each rank
sends a heartbeat every few seconds (a slow batch or a long end of an epoch does not count as silence); the first rank
reads them and tells all others who is gone. A rank that fails sends its reason, before the others see only a closed
connection.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from torch.distributed import Store, TCPStore

from pirl_plugin.validation import ConfigError

T = TypeVar("T")
BEATS = 30  # heartbeats within the time that a rank may be silent
DONE = -1  # the last beat of a rank that ended normally
FOLLOWS = re.compile(r"[Cc]onnection|NCCL|remote process|socket", re.ASCII)  # in errors that another rank's end causes
CONNECT = datetime.timedelta(seconds=60)


class Liveness:
    """Sends this rank's heartbeats and ends the process if another rank is gone; use as a context manager.

    Args:
        store: this process's own connection to the store that all ranks share.
        rank, world_size: of this process.
        processes: ranks per node.
        silence: seconds without a heartbeat after which a rank counts as gone.
    """

    def __init__(self, store: Store, rank: int, world_size: int, processes: int, silence: float) -> None:
        self.store, self.rank, self.world_size, self.processes = store, rank, world_size, processes
        self.silence, self.interval = silence, silence / BEATS
        self.stay = max(2 * self.interval, 1.0)  # seconds in which others usually read what was set
        self.longest_stay = 6 * self.stay  # for others whose machines are busy
        self.hosts: list[str] = []
        self.ended = threading.Event()
        self.lock = threading.Lock()  # a store's connection handles one request at a time
        others = range(1, world_size) if rank == 0 else [0]  # the ranks that this rank listens to
        self.heard = {other: (0, time.monotonic()) for other in others}  # last beat, and when it arrived
        self.contact = time.monotonic()
        self.told = ""  # the verdict, once it was read: the first rank may end then
        self.unanswered = False  # whether the last timed request is still waiting

    def __enter__(self) -> Liveness:
        self.store.set(f"host/{self.rank}", socket.gethostname())
        self.hosts = [self.store.get(f"host/{number}").decode() for number in range(self.world_size)]
        self.store.set(f"beat/{self.rank}", "0")
        self.store.wait([f"beat/{number}" for number in range(self.world_size)])
        self.contact = time.monotonic()
        for work in (self._beat, self._watch):  # two: a request to a dead machine never returns
            threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.ended.is_set():
            return
        self.ended.set()
        self._within(2 * self.interval, lambda: self.store.set(f"beat/{self.rank}", str(DONE)))
        if self.rank == 0:  # it hosts the store, and the others must be able to read this
            deadline = time.monotonic() + self.stay
            while time.monotonic() < deadline and not self._over():
                self._within(self.interval, self._hear)
                time.sleep(self.interval / 10)

    def name(self, rank: int) -> str:
        """Name of a rank with its node and machine."""
        return f"rank {rank} (node {rank // self.processes}, {self.hosts[rank]})"

    # Saying and hearing ----------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        number = 0
        while not self.ended.wait(self.interval):
            number += 1
            try:
                with self.lock:
                    self.store.set(f"beat/{self.rank}", str(number))
                    self._hear()
                    verdict = self._verdict()
            except RuntimeError:  # the connection is closed and the first rank gone: see _judge
                return
            if self._over():
                return
            if verdict and not self.ended.wait(self.stay):  # else the main thread ends this rank with its reason
                self._end(verdict)

    def _hear(self) -> None:
        beats = [int(beat) for beat in self.store.multi_get([f"beat/{other}" for other in self.heard])]
        now = self.contact = time.monotonic()
        for other, beat in zip(list(self.heard), beats, strict=True):
            if beat != self.heard[other][0]:
                self.heard[other] = (beat, now)

    def _over(self) -> bool:
        """Whether all ranks that this one listens to are done: each finishes the rest of the run alone."""
        return all(beat == DONE for beat, _ in self.heard.values())

    def _verdict(self) -> str:
        if self.told or not self.store.check(["verdict"]):
            return self.told
        self.told = self.store.get("verdict").decode()
        with contextlib.suppress(RuntimeError):  # the first rank is gone; its verdict is what counts
            self.store.set(f"read/{self.rank}", "")
        return self.told

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self.ended.wait(self.interval):
            now = time.monotonic()
            if now - looked > 3 * self.interval:  # this process itself was suspended
                self.contact = now
                self.heard = {other: (beat, now) for other, (beat, _) in self.heard.items()}
            looked = now
            self._judge(now)

    def _judge(self, now: float) -> None:
        if self._over():
            return
        if now - self.contact > self.silence:
            self._end(self._unheard(now))
        silent = [other for other, (beat, when) in self.heard.items() if beat != DONE and now - when > self.silence]
        if silent:
            seconds = now - self.heard[silent[0]][1]
            names = ", ".join(self.name(other) for other in silent)
            verdict = f"Nothing was heard from {names} for {seconds:.0f} s: dead or hanging."
            if self.rank == 0:
                self._tell(verdict)
            if not self.ended.is_set():
                self._end(verdict)

    def _unheard(self, now: float) -> str:
        return f"Nothing was heard from {self.name(0)} for {now - self.contact:.0f} s: its machine is gone."

    # The end ---------------------------------------------------------------------------------------------------------

    def _tell(self, verdict: str) -> None:
        """Tell all ranks."""

        def say() -> None:
            if not self._verdict():
                self.store.set("verdict", verdict)
                self.store.set(f"read/{self.rank}", "")

        self._within(2 * self.interval, say)

    def _within(self, seconds: float, work: Callable[[], T]) -> T | None:
        """The result of a store operation that may not return; None if it fails or takes too long."""
        results: list[T] = []

        def attempt() -> None:
            with contextlib.suppress(RuntimeError), self.lock:
                results.append(work())

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(seconds)
        self.unanswered = thread.is_alive()
        return results[0] if results else None

    def failed(self, error: Exception) -> Exception:
        """Tell the others that this rank ends with an error, unless another rank's error caused it.

        Returns:
            what to raise: the error, or the message of the rank that caused it.
        """
        self.ended.set()  # for the threads
        first = " ".join(str(error).split())[:500] or type(error).__name__
        if isinstance(error, RuntimeError) and FOLLOWS.search(first):
            for _ in range(4):  # a closed connection is noticed before the reason can be read
                verdict = self.told or self._within(self.interval, self._verdict)
                if verdict:
                    return ConfigError(self._in_words(verdict))
                time.sleep(self.interval)
            if verdict is None and not self._over():  # the first rank is gone and could tell nobody
                if self.unanswered:  # another rank that listens to it noticed a moment earlier
                    time.sleep(max(0.0, self.contact + self.silence - time.monotonic()))
                    return ConfigError(self._in_words(self._unheard(time.monotonic())))
                return ConfigError(self._in_words(f"{self.name(0).capitalize()} ended without giving a reason."))
        self._tell(f"{self.name(self.rank).capitalize()} ended with {type(error).__name__}: {first}")
        self._stay()
        return error

    def _stay(self) -> None:
        """Keep the store (on the first rank) until the others that are alive have read it."""
        if self.rank != 0:
            return
        began = time.monotonic()
        alive = [other for other, (beat, when) in self.heard.items() if beat != DONE and began - when <= self.silence]
        read = [f"read/{other}" for other in alive]
        while time.monotonic() - began < self.longest_stay:
            if not read or self._within(self.interval, lambda: self.store.check(read)):
                return
            time.sleep(self.interval / 10)

    @staticmethod
    def _in_words(verdict: str) -> str:
        return f"{verdict} The same command resumes from the last checkpoint."

    def _end(self, verdict: str) -> None:
        self.ended.set()  # anything that the other thread finds from now on follows from this
        sentence = self._in_words(verdict)
        logging.error(sentence)
        print(f"Error: {sentence}", file=sys.stderr, flush=True)
        self._stay()
        os._exit(1)  # the main thread may be in a collective that never returns


@contextlib.contextmanager
def watched(met_at: Store, host: str, rank: int, world_size: int, processes: int, silence: float) -> Iterator[Liveness]:
    """Runs `Liveness` in every rank while a run on several nodes trains.

    Args:
        met_at: the process group's store; used once, to publish the address of the first rank's heartbeat store.
        host: the first rank's host, as the other nodes reach it.
        silence: seconds.
    """
    keeper = None
    if rank == 0:
        keeper = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=CONNECT)
        met_at.set("liveness", json.dumps([host, keeper.port]))
    host, port = json.loads(met_at.get("liveness"))
    try:
        store = TCPStore(host, port, is_master=False, timeout=CONNECT)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise RuntimeError(
            f"Rank {rank} cannot reach port {port} of {host}, which receives the ranks' heartbeats ({reason}); open "
            f"the nodes' ports to each other, or set TRAINER.PIRL_TRAIN_STEP.silence_seconds=0 to turn this off."
        ) from error
    with Liveness(store, rank, world_size, processes, silence) as liveness:
        try:
            yield liveness
        except Exception as error:
            ends_with = liveness.failed(error)
            if ends_with is error:
                raise
            raise ends_with from error
    del keeper
