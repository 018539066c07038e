"""Threads that nobody has to wait for."""

from __future__ import annotations

import threading

import pytest

from p2pfl.compute.daemons import Daemons


def test_calls_are_taken_in_order_and_errors_carried():
    daemons, order = Daemons(1), []
    futures = [daemons.submit(order.append, number) for number in range(20)]
    for future in futures:
        future.result(20)
    assert order == list(range(20))
    with pytest.raises(ZeroDivisionError):
        daemons.submit(lambda: 1 / 0).result(20)
    daemons.shutdown()


def test_what_was_submitted_is_done_after_the_end_and_nothing_else_is_taken():
    daemons, gate = Daemons(2), threading.Event()
    waiting = [daemons.submit(gate.wait, 20) for _ in range(6)]
    daemons.shutdown(wait=False)
    daemons.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="has been closed"):
        daemons.submit(print)
    gate.set()
    assert all(future.result(20) for future in waiting)
    daemons.shutdown()
    assert not any(thread.is_alive() for thread in daemons.threads)


def test_a_call_that_was_cancelled_before_its_turn_is_not_made():
    daemons, gate, made = Daemons(1), threading.Event(), []
    first = daemons.submit(gate.wait, 20)
    second = daemons.submit(made.append, 1)
    assert second.cancel()
    gate.set()
    first.result(20)
    daemons.shutdown()
    assert not made


def test_its_threads_do_not_keep_a_process_alive():
    daemons = Daemons(1)
    assert all(thread.daemon for thread in daemons.threads)
    daemons.shutdown()
