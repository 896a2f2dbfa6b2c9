"""Signals that ask a process to end: held while work runs, then handed to whoever would have had them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from subliminal.stopping import SIGNALS, ending, endings_noted, held_signals
from subliminal.store import Recipe, Store


@pytest.fixture
def got() -> Iterator[list[int]]:
    """What a scheduler's own handler was given; the handlers of the process come back afterwards."""
    given: list[int] = []
    before = {number: signal.signal(number, lambda n, _: given.append(n)) for number in SIGNALS}
    yield given
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_held_signal_waits_for_a_safe_point_and_reaches_the_earlier_handler(number: int, got: list[int]) -> None:
    with held_signals() as held:
        os.kill(os.getpid(), number)
        assert held.arrived == number and got == []
        held.deliver()
        assert held.arrived is None and got == [number]
    assert got == [number], "once"
    os.kill(os.getpid(), number)
    assert got == [number, number], "the earlier handler is back"


def test_a_signal_that_found_no_safe_point_is_delivered_at_the_end(got: list[int]) -> None:
    with held_signals():
        os.kill(os.getpid(), signal.SIGUSR1)
    assert got == [signal.SIGUSR1]


def test_without_a_handler_the_process_ends_as_the_signal_would_have_ended_it(got: list[int]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with pytest.raises(SystemExit) as ended, held_signals() as held:
        os.kill(os.getpid(), signal.SIGTERM)
        held.deliver()
    assert ended.value.code == 143


def test_an_ignored_signal_stays_ignored(got: list[int]) -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    with held_signals() as held:
        os.kill(os.getpid(), signal.SIGUSR2)
        held.deliver()
    assert got == []


def test_outside_the_main_thread_nothing_is_held(got: list[int]) -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with held_signals():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


def test_what_an_engine_starts_does_not_see_the_signals_that_end_a_job() -> None:
    """SLURM signals every process of a job; the engine's own processes inherit that these signals wait."""
    from subliminal.sampling.engine import _signals_blocked

    ends = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGUSR2); print('still here')"]
    with _signals_blocked():
        inside = subprocess.run(ends, capture_output=True, text=True, check=False)
    assert (inside.returncode, inside.stdout.strip()) == (0, "still here")
    assert subprocess.run(ends, capture_output=True, check=False).returncode == -signal.SIGUSR2


def test_what_fails_in_a_job_that_is_being_ended_is_no_failure_of_the_work(got: list[int], tmp_path: Path) -> None:
    """SLURM's SIGTERM may reach an engine, or the command that requeues the job, before this process has ended."""

    def work(_: Path) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGUSR2)
        raise RuntimeError("scontrol died of signal 15")

    store, recipe = Store(tmp_path), Recipe("filter", {}, {})
    with endings_noted():
        assert not ending()
        with pytest.raises(RuntimeError, match="scontrol died"):
            store.run(recipe, work)
    assert got == [signal.SIGUSR2] and store.failure(recipe.stage, recipe.key) is None
    with pytest.raises(RuntimeError, match="scontrol died"):
        store.run(recipe, work)  # nobody requeues this process: its failure counts
    assert store.failure(recipe.stage, recipe.key) is not None
