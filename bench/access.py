"""The check of a token: a `GET` with one, and one to a server without tokens, in turn."""

from pathlib import Path
from statistics import median

from bench.figures import Figure, Task, spread
from bench.load import MODELS, Caller, expect, serving
from pfms.access.tokens import add_token

_TOKENS = 100


def measure(task: Task) -> list[Figure]:
    """Call both servers in turn, so that whatever else the machine does slows both."""
    task.folder.mkdir(exist_ok=True)
    headers = {"Authorization": f"Bearer {_token_among_many(task.folder / 'tokens.json')}"}
    seconds: dict[str, list[float]] = {"no tokens": [], "a token": []}
    with (
        serving(task.folder / "open") as unguarded,
        Caller(unguarded.url) as without,
        serving(task.folder / "guarded", tokens_file=task.folder / "tokens.json") as guarded,
        Caller(guarded.url) as with_token,
    ):
        for _ in range(task.either(2000, 200)):
            seconds["no tokens"].append(expect(200, without.get(MODELS)).seconds)
            seconds["a token"].append(expect(200, with_token.get(MODELS, headers)).seconds)
    pairs = zip(seconds["a token"], seconds["no tokens"], strict=True)
    cost = median(1000 * (one - other) for one, other in pairs)
    note = f"median of {len(seconds['a token'])} pairs, {_TOKENS} tokens in the file"
    return [
        Figure("cost of the check of a token", cost, "ms", at_most=1, note=note),
        *(figure for name, each in seconds.items() for figure in spread(f"GET, {name}", each)),
    ]


def _token_among_many(file: Path) -> str:
    return [add_token(file, f"t{n}", frozenset({"infer"})) for n in range(_TOKENS)][-1]
