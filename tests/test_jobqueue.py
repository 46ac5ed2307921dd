from collections.abc import Iterator

from pfms.jobs.estimates import Need, estimate_starts
from pfms.jobs.queue import JobQueue, Slot


def test_the_first_job_to_arrive_is_the_first_to_run() -> None:
    queue = JobQueue(["cpu"], 1)
    for name in "abc":
        queue.add(name)
    assert queue.take() == ("a", Slot("cpu", 0))
    assert queue.take() is None, "there is one slot"
    assert queue.waiting == ["b", "c"]
    queue.release("a")
    assert queue.take() == ("b", Slot("cpu", 0))


def test_devices_fill_evenly_before_any_gets_a_second_job() -> None:
    queue = JobQueue(["cuda:0", "cuda:1"], 2)
    for name in "abcde":
        queue.add(name)
    taken = [queue.take() for _ in range(5)]
    assert taken[:4] == [
        ("a", Slot("cuda:0", 0)),
        ("b", Slot("cuda:1", 0)),
        ("c", Slot("cuda:0", 1)),
        ("d", Slot("cuda:1", 1)),
    ]
    assert taken[4] is None


def test_a_waiting_job_can_be_taken_out_and_a_running_one_cannot() -> None:
    queue = JobQueue(["cpu"], 1)
    queue.add("a")
    queue.add("b")
    queue.take()
    assert not queue.discard("a")
    assert queue.discard("b")
    assert len(queue) == 0


def test_a_job_that_is_put_back_goes_first() -> None:
    queue = JobQueue(["cpu"], 1)
    queue.add("a")
    queue.add("b")
    queue.take()
    queue.release("a")
    queue.put_back("a")
    assert queue.waiting == ["a", "b"]


def test_newly_chosen_devices_are_used_from_the_next_job_on() -> None:
    queue = JobQueue(["cuda:0"], 1)
    for name in "abc":
        queue.add(name)
    queue.take()
    queue.set_devices(["cpu"])
    assert queue.take() == ("b", Slot("cpu", 0))
    queue.release("a")
    assert queue.take() is None, "cuda:0 is no longer a slot"


# --- between owners ----------------------------------------------------------------------------


def in_order(queue: JobQueue) -> Iterator[str]:
    """Run everything that waits, one by one; each time, the order promised is the one taken."""
    while (promised := queue.waiting) and (taken := queue.take()):
        assert taken[0] == promised[0]
        assert queue.waiting == promised[1:]
        queue.release(taken[0])
        yield taken[0]


def filled(**jobs: int) -> JobQueue:
    """A queue where each owner has so many jobs: a0, a1, ... and b0, ..."""
    queue = JobQueue(["cpu"], 1)
    for owner, count in jobs.items():
        for n in range(count):
            queue.add(f"{owner}{n}", owner)
    return queue


def test_owners_take_turns_and_within_one_it_is_first_come_first_served() -> None:
    queue = filled(a=4, b=2, c=1)
    assert list(in_order(queue)) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_a_single_job_beside_a_thousand_of_another_is_next() -> None:
    queue = filled(a=1000)
    taken = queue.take()
    assert taken
    queue.add("b0", "b")
    assert queue.waiting[:2] == ["b0", "a1"]
    queue.release(taken[0])
    assert list(in_order(queue))[:2] == ["b0", "a1"]


def test_an_owner_who_comes_back_at_once_has_no_second_turn() -> None:
    queue = filled(a=3, b=1)
    order = in_order(queue)
    assert [next(order) for _ in range(2)] == ["a0", "b0"]
    queue.add("b1", "b")
    assert list(order) == ["a1", "b1", "a2"]


def test_a_job_that_is_put_back_goes_before_all_owners_and_costs_no_turn() -> None:
    queue = filled(a=2, b=2)
    taken = queue.take()
    assert taken == ("a0", Slot("cpu", 0))
    queue.release("a0")
    queue.put_back("a0", "a")
    assert list(in_order(queue)) == ["a0", "b0", "a1", "b1"]


def test_the_order_stays_the_promised_one_when_a_job_is_taken_out() -> None:
    queue = filled(a=2, b=1, c=3)
    assert queue.discard("b0")
    assert queue.discard("c1")
    assert not queue.discard("b0")
    assert len(queue) == 4
    assert list(in_order(queue)) == ["a0", "c0", "a1", "c2"]


def test_a_full_queue_has_one_place_for_an_owner_who_has_no_job_in_it() -> None:
    queue = filled(a=2)
    queue.take()  # no slot is free, and one waits
    assert not queue.reserve(1, "a")
    assert queue.reserve(1, "b")
    assert not queue.reserve(1, "b"), "while the first is being received"
    queue.unreserve("b")
    queue.add("b0", "b")
    assert not queue.reserve(1, "b"), "while the first waits"
    assert queue.reserve(1, "c")


def test_a_job_that_was_put_back_counts_as_its_owners() -> None:
    queue = filled(a=1)
    queue.take()
    queue.put_back("a0", "a")
    assert not queue.reserve(1, "a")


# --- memory ------------------------------------------------------------------------------------


def test_a_job_starts_when_the_running_ones_leave_the_memory_that_it_needs() -> None:
    queue = JobQueue(["cpu"], 3, memory=10)
    for name, memory in (("a", 6), ("b", 4), ("c", 1)):
        queue.add(name, memory=memory)
    assert [queue.take(), queue.take(), queue.take()] == [
        ("a", Slot("cpu", 0)),
        ("b", Slot("cpu", 1)),
        None,
    ]
    assert queue.memory_promised == 10
    queue.release("b")
    assert queue.take() == ("c", Slot("cpu", 1))
    assert queue.memory_promised == 7


def test_no_job_passes_one_that_waits_for_memory() -> None:
    queue = JobQueue(["cpu"], 3, memory=10)
    queue.add("small", memory=2)
    queue.take()
    queue.add("large", memory=9)
    queue.add("tiny", memory=1)
    assert queue.take() is None
    assert queue.waiting == ["large", "tiny"]
    queue.release("small")
    assert [taken and taken[0] for taken in (queue.take(), queue.take())] == ["large", "tiny"]


def test_only_the_first_job_of_an_owner_who_joins_passes_one_that_waits_for_memory() -> None:
    queue = JobQueue(["cpu"], 3, memory=10)
    queue.add("small", "a", memory=2)
    queue.take()
    queue.add("large", "a", memory=9)
    for n in range(3):
        queue.add(f"b{n}", "b", memory=1)
    assert queue.take() == ("b0", Slot("cpu", 1))
    assert queue.take() is None, "now it is the turn of a"
    assert queue.waiting == ["large", "b1", "b2"]


def test_a_job_that_is_put_back_needs_its_memory_again() -> None:
    queue = JobQueue(["cpu"], 2, memory=10)
    for name in "ab":
        queue.add(name, memory=6)
    queue.take()
    queue.put_back("a", memory=6)
    queue.release("a")
    assert queue.memory_promised == 0
    taken = queue.take()
    assert taken
    assert taken[0] == "a"
    assert queue.take() is None


def test_while_nothing_runs_a_job_starts_whatever_it_needs() -> None:
    queue = JobQueue(["cpu"], 2, memory=10)
    queue.add("a", memory=11)
    queue.add("b", memory=1)
    taken = queue.take()
    assert taken
    assert taken[0] == "a"
    assert queue.take() is None


def test_the_limit_of_the_queue_holds_while_a_slot_is_free_and_the_memory_is_not() -> None:
    queue = JobQueue(["cpu"], 2, memory=10)
    queue.add("a", memory=8)
    queue.take()
    assert queue.reserve(1), "it might start at once"
    queue.unreserve()
    queue.add("b", memory=8)
    assert not queue.reserve(1)


# --- estimates ---------------------------------------------------------------------------------


def test_starts_are_estimated_from_running_and_waiting_jobs() -> None:
    def starts(slots: int, running: list[float], waiting: list[float]) -> list[float]:
        return estimate_starts(slots, 0, map(Need, running), [Need(each) for each in waiting])

    assert starts(1, [4.0], [10.0, 10.0]) == [4.0, 14.0]
    assert starts(2, [4.0], [10.0, 1.0, 1.0]) == [0.0, 4.0, 5.0]
    assert starts(1, [], []) == []


def test_starts_are_estimated_with_the_memory_that_jobs_wait_for() -> None:
    running = [Need(4.0, memory=6), Need(5.0, memory=1)]
    waiting = [Need(10.0, memory=5), Need(1.0, memory=3), Need(1.0, memory=9)]
    assert estimate_starts(4, 10, running, waiting) == [4.0, 4.0, 14.0]
    assert estimate_starts(4, 0, running, waiting) == [0.0, 0.0, 1.0]
