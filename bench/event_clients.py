"""A separate program: many clients that follow jobs, `-m bench.event_clients HOST PORT JOB...`.

Prints `listening` once each has the head of its response, and at the end a JSON line: how many
streams there were, how many ended with a terminal event, and the total number of events.
"""

import asyncio
import json
import sys

_ENDED = (b'"succeeded"', b'"failed"', b'"cancelled"')


async def _follow(host: str, port: int, job: str, heads: asyncio.Semaphore) -> tuple[int, bool]:
    """Return the number of events, and whether the last one was terminal."""
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 13)
    request = f"GET /api/v1/jobs/{job}/events HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    writer.write(request.encode())
    await reader.readuntil(b"\r\n\r\n")
    heads.release()
    events, ended = 0, False
    while line := await reader.readline():
        if line.startswith(b"data:"):
            events += 1
            ended = any(b'"state": ' + state in line for state in _ENDED)
    writer.close()
    return events, ended


async def _main(host: str, port: int, jobs: list[str]) -> None:
    heads = asyncio.Semaphore(0)
    following = asyncio.gather(*(_follow(host, port, job, heads) for job in jobs))
    for _ in jobs:
        await heads.acquire()
    print("listening", flush=True)
    ends = await following
    told = {
        "streams": len(ends),
        "ended": sum(ended for _, ended in ends),
        "events": sum(events for events, _ in ends),
    }
    print(json.dumps(told), flush=True)


asyncio.run(_main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
