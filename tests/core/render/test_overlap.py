"""Two threads that wait for each other: what does not overlap stops the test by its timeout, nothing is measured."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator

import pytest
import torch

from packforcing_core.render.overlap import overlapped

TIMEOUT = 300
REQUEST = contextvars.ContextVar("REQUEST", default="none")


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("packforcing")]


def counting(stop: int, seen: list) -> Iterator[int]:
    for number in range(stop):
        seen.append(number)
        yield number


def test_work_on_one_event_goes_on_while_the_next_is_made():
    second_is_being_made, first_is_worked_on = threading.Event(), threading.Event()

    def events() -> Iterator[int]:
        yield 0
        second_is_being_made.set()
        assert first_is_worked_on.wait(TIMEOUT), "the work on the first event had not begun"
        yield 1

    def work(number: int) -> str:
        if number == 0:
            assert second_is_being_made.wait(TIMEOUT), "the second event was not begun while the first was worked on"
            first_is_worked_on.set()
        return f"done {number}"

    assert list(overlapped(events(), int, work)) == [0, 1, "done 0", "done 1"]


def test_events_and_results_keep_their_order():
    mixed = [event for block in range(20) for event in (f"step {block}", block)]
    out = list(overlapped(iter(mixed), int, lambda number: ("done", number)))
    assert [event for event in out if not isinstance(event, tuple)] == mixed
    assert [event for event in out if isinstance(event, tuple)] == [("done", block) for block in range(20)]
    assert all(out.index(("done", block)) > out.index(block) for block in range(20))


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_no_more_than_ahead_pieces_of_work_wait(ahead):
    """The first piece takes until one event too many is made, which must not come, or a little while."""
    one_too_many = threading.Event()
    overran = []

    def events() -> Iterator[int]:
        yield from range(ahead + 1)
        one_too_many.set()
        yield from range(ahead + 1, 10)

    def work(number: int) -> tuple[str, int]:
        if number == 0:
            overran.append(one_too_many.wait(0.2))
        return "done", number

    out = list(overlapped(events(), int, work, ahead))
    assert overran == [False]
    assert [event for event in out if isinstance(event, tuple)] == [("done", number) for number in range(10)]


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_what_the_work_raises_is_raised_at_the_consumer(error):
    def work(number: int) -> None:
        if number == 2:
            raise error

    with pytest.raises(type(error)) as raised:
        list(overlapped(iter(range(10)), int, work))
    assert raised.value is error
    assert workers() == []


def test_after_a_failure_no_later_work_is_done():
    """A film that lacks a block must not go on with the next one."""
    second_was_made, worked = threading.Event(), []

    def events() -> Iterator[int]:
        yield 0
        yield 1
        second_was_made.set()
        yield 2

    def work(number: int) -> None:
        if number == 0:
            second_was_made.wait(TIMEOUT)
            raise ValueError("broken")
        worked.append(number)

    with pytest.raises(ValueError, match="broken"):
        list(overlapped(events(), int, work, ahead=2))
    assert worked == []


def test_what_the_events_raise_comes_after_the_work_that_was_handed_over():
    worked = []

    def events() -> Iterator[int]:
        yield from range(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(overlapped(events(), int, worked.append))
    assert worked == [0, 1, 2]
    assert workers() == []


def test_a_consumer_that_stops_leaves_no_thread_and_no_work_undone():
    made, worked = [], []
    out = overlapped(counting(100, made), int, worked.append)
    for event in out:
        if event == 5:
            break
    out.close()
    assert made == worked == [0, 1, 2, 3, 4, 5]
    assert workers() == []


def test_nothing_runs_before_the_first_event_is_asked_for():
    made = []
    overlapped(counting(3, made), int, print)
    assert made == []
    assert workers() == []


def test_the_worker_is_in_inference_mode_and_in_the_consumers_context():
    seen = []

    def work(number: int) -> None:
        seen.append((torch.is_inference_mode_enabled(), REQUEST.get(), threading.current_thread()))

    token = REQUEST.set("prompt 7")
    try:
        list(overlapped(iter([1]), int, work))
    finally:
        REQUEST.reset(token)
    [(inference, request, thread)] = seen
    assert (inference, request) == (True, "prompt 7")
    assert thread is not threading.current_thread()
