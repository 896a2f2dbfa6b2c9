"""Stopping where nothing is lost: a signal that asks a process to end waits until the work has been saved.

A scheduler signals before it takes a machine away (SIGTERM, SIGUSR1 or SIGUSR2). While signals are held, the first is
kept; the work saves at its next safe point and delivers it: to whoever handled it before (under submitit, who puts the
job back into the queue), or else the process ends as that signal would have ended it.

What fails in a job that is being ended is no failure of the work: the scheduler signals every process of the job, so an
engine, or the command that puts the job back into the queue, may end before this process does.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from subliminal.progress import say

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_ENDING = threading.Event()


def ending() -> bool:
    """Has a signal arrived, inside `endings_noted`, that ends this process."""
    return _ENDING.is_set()


@contextmanager
def endings_noted() -> Iterator[None]:
    """While the body runs, `ending` says whether a signal has reached a handler that was set before."""

    def noted(handler: Any) -> Any:
        def note(number: int, frame: Any) -> None:
            _ENDING.set()
            handler(number, frame)

        return note

    earlier = {number: signal.getsignal(number) for number in SIGNALS}
    own = {number: handler for number, handler in earlier.items() if callable(handler)}
    for number, handler in own.items():
        signal.signal(number, noted(handler))
    try:
        yield
    finally:
        for number, handler in own.items():
            signal.signal(number, handler)
        _ENDING.clear()


class HeldSignals:
    """A signal that arrived and has not been acted on yet."""

    def __init__(self) -> None:
        self.arrived: signal.Signals | None = None
        self.earlier: dict[signal.Signals, Any] = {}

    def deliver(self) -> None:
        """Act on the signal that arrived, if one did; mostly this does not return."""
        number, self.arrived = self.arrived, None
        if number is None:
            return
        handler = self.earlier[number]
        say(f"{number.name}: what is done is saved, and the same command goes on from here")
        if callable(handler):
            handler(number, None)
        elif handler != signal.SIG_IGN:
            raise SystemExit(128 + number)

    def _keep(self, number: int, _: object) -> None:
        self.arrived = self.arrived or signal.Signals(number)  # nothing else: this may interrupt anything


@contextmanager
def held_signals() -> Iterator[HeldSignals]:
    """Hold signals while the body runs; what arrived and was not delivered is delivered at its end.

    Outside the main thread nothing is held: only the main thread gets signals.
    """
    held = HeldSignals()
    if threading.current_thread() is threading.main_thread():
        held.earlier = {number: signal.signal(number, held._keep) for number in SIGNALS}
    try:
        yield held
    finally:
        for number, handler in held.earlier.items():
            signal.signal(number, handler)
    held.deliver()
