"""What each adaptation gains: warm runs with all of them, without one, and without any, in turn."""

from collections import defaultdict
from contextlib import ExitStack
from statistics import median

from bench.figures import Figure, Skipped, Task
from bench.load import executors, serving
from bench.volumes import clinical, content, phantom_3mm, real_ct, there_is_a_real_ct
from pfms.plugin.adaptations import ADAPTATIONS
from tests.conftest import Server


def measure(task: Task) -> list[Figure]:
    """Seconds of a run from its start to its end, as the job's record has them."""
    if "warm" not in executors():
        raise Skipped("there is no warm executor yet")
    names = [step.name for step in ADAPTATIONS]
    ways = {"all of them": "", **{f"without {name}": name for name in names}}
    ways["none of them"] = ",".join(names)
    figures = []
    with ExitStack() as stack:
        servers = {
            way: stack.enter_context(
                serving(task.folder / way, "spleenseg", executor="warm", adaptations_off=off)
            )
            for way, off in ways.items()
        }
        for name, volume, times in _cases(task):
            seconds = defaultdict(list)
            for _ in range(times):
                for way, server in servers.items():
                    seconds[way].append(_run(server, volume))
            took = {way: median(each) for way, each in seconds.items()}
            for way, each in took.items():
                note = f"{each / took['all of them']:.2f} x, {times} times"
                figures.append(Figure(f"{name}, {way}", each, "s", note=note))
    return figures


def _cases(task: Task) -> list[tuple[str, bytes, int]]:
    cases = [("real CT", real_ct() if there_is_a_real_ct() else phantom_3mm(), task.either(5, 1))]
    if not task.quick:
        cases.append(("512x512x100", clinical(), 3))
    return [(name, content(phantom.volume), times) for name, phantom, times in cases]


def _run(server: Server, volume: bytes) -> float:
    answer = server.infer(volume, timeout=600)
    answer.raise_for_status()
    seconds: float = server.job(answer.headers["x-pfms-job"])["seconds"]
    return seconds
