from pfms.jobs.estimates import estimate_starts
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
    queue.add("a", first=True)
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


def test_starts_are_estimated_from_running_and_waiting_jobs() -> None:
    assert estimate_starts(1, [4.0], [10.0, 10.0]) == [4.0, 14.0]
    assert estimate_starts(2, [4.0], [10.0, 1.0, 1.0]) == [0.0, 4.0, 5.0]
    assert estimate_starts(1, [], []) == []
