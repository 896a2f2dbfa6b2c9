"""Progress a person can read: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from subliminal.processes import leads

LINE_SECONDS = 10.0

Advance = Callable[[int], object]


def say(text: str) -> None:
    """One line to standard error, at once; of several processes of one training run the leader speaks."""
    if leads():
        print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Advance]:
    """Yield `advance(n)`; shows what is running, how far it is and how long is left."""
    if sys.stderr.isatty() and leads():
        from tqdm import tqdm

        with tqdm(total=total, desc=label, unit=unit, leave=False, dynamic_ncols=True) as bar:
            yield bar.update
        return
    yield Lines(label, total, unit).advance


class Lines:
    """Progress as plain lines, one every `LINE_SECONDS`, for logs and schedulers."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.started = 0, time.monotonic()
        self.shown = self.started

    def advance(self, count: int) -> None:
        """Count `count` more units as done; prints when the last line is old enough."""
        self.done += count
        now = time.monotonic()
        if now - self.shown >= LINE_SECONDS:
            self.shown = now
            say(self.line(now - self.started))

    def line(self, elapsed: float) -> str:
        """The line after `elapsed` seconds: done, total, time taken and time left."""
        left = f", {elapsed * (self.total - self.done) / self.done:.0f} s left" if self.done else ""
        return f"  {self.label}: {self.done}/{self.total} {self.unit}, {elapsed:.0f} s{left}"
