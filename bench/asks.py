"""A separate program that asks a server until its stdin ends: `-m bench.asks URL PATH`.

It prints `asking`, and at the end the seconds of each GET as a JSON list. It fails at the first
answer that is not 200. What the bench itself does meanwhile makes no answer late.
"""

import json
import select
import sys

from bench.load import Caller, expect

_PAUSE_SECONDS = 0.05


def main(url: str, path: str) -> None:
    """Ask, with a pause after each answer."""
    seconds: list[float] = []
    print("asking", flush=True)
    with Caller(url) as caller:
        while not select.select([sys.stdin], [], [], _PAUSE_SECONDS)[0]:
            seconds.append(expect(200, caller.get(path)).seconds)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
