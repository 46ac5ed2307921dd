"""Jobs per second, from the upload to the result, by slots: an empty fake, and the real plugin."""

from bench.figures import Figure, Task
from bench.load import executors, serving, work_through
from bench.volumes import content, phantom_3mm
from tests.conftest import nifti_bytes

_SLOTS = (1, 2, 4)  # they share the cores


def measure(task: Task) -> list[Figure]:
    """Make blocking calls with two more clients than slots, so that one always waits."""
    jobs = task.either(200, 30)
    figures = []
    volume = nifti_bytes()
    for executor in executors():
        for slots in _SLOTS:
            folder = task.folder / f"{executor}-{slots}"
            with serving(folder, "empty.py", executor=executor, jobs_per_device=slots) as server:
                work_through(server, volume, 10, slots + 2)
                rate = jobs / work_through(server, volume, jobs, slots + 2)
            name = f"{executor}, {slots} slot{'s' * (slots > 1)}"
            at_least = 20 if executor == executors()[-1] else None
            figures.append(Figure(name, rate, "/s", at_least=at_least, note=f"{jobs} jobs"))
    return figures + _real(task)


def _real(task: Task) -> list[Figure]:
    """One slot has all the cores; with more, a run computes while another reads or writes."""
    jobs = task.either(24, 4)
    volume = content(phantom_3mm().volume)
    figures = []
    for slots in _SLOTS:
        folder = task.folder / f"real-{slots}"
        with serving(
            folder, "spleenseg", executor=executors()[-1], jobs_per_device=slots
        ) as server:
            work_through(server, volume, slots, slots)
            rate = jobs / work_through(server, volume, jobs, slots + 2)
        name = f"the real plugin on a phantom, {slots} slot{'s' * (slots > 1)}"
        figures.append(Figure(name, rate, "/s", note=f"{jobs} jobs"))
    return figures
