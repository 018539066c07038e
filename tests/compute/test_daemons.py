"""Threads that a process does not wait for. How jobs run on them is in test_threads.py."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from p2pfl.compute.daemons import Daemons

HANGS = """
import threading
from p2pfl.compute.daemons import Daemons
Daemons(1).submit(threading.Event().wait)
"""


def test_what_is_submitted_is_done_in_order_and_after_the_end_nothing_more() -> None:
    threads, done = Daemons(1), list[int]()
    futures = [threads.submit(done.append, number) for number in range(5)]
    threads.shutdown()
    assert [future.result() for future in futures] == [None] * 5
    assert done == list(range(5))
    with pytest.raises(RuntimeError, match="closed"):
        threads.submit(done.append, 5)


def test_an_error_is_carried_over() -> None:
    threads = Daemons(1)
    with pytest.raises(ZeroDivisionError):
        threads.submit(divmod, 1, 0).result()
    threads.shutdown()


def test_what_has_not_begun_can_be_cancelled() -> None:
    threads, gate, done = Daemons(1), threading.Event(), list[int]()
    threads.submit(gate.wait, 20)
    later = threads.submit(done.append, 1)
    assert later.cancel()
    gate.set()
    threads.shutdown()
    assert not done


def test_a_process_ends_while_a_thread_hangs() -> None:
    subprocess.run([sys.executable, "-c", HANGS], check=True, timeout=60)
