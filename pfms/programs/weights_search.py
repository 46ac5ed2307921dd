"""Finds the weights of the plugin's network in a checkpoint, by their keys, at any place in it.

Part of the program `weights_child.py`: imports nothing of pfms. The content comes from a stranger,
so the work is bounded, whatever it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 4  # of nested dictionaries
MAX_KEYS = 500_000  # looked at in total; a checkpoint with two optimizers has a few thousand
MAX_KEY_LENGTH = 1000  # characters
MAX_LIST_LENGTH = 100  # a list of networks is short; long lists are histories of the training

# If several networks in a file fit, one under the first of these names is taken.
NAMES = (
    *("state_dict", "model_state_dict", "model_state", "model", "network_weights", "network"),
    *("net", "weights", "module", "generator"),
)
AVERAGE = re.compile(r"(?<![a-z])(?:ema|swa)(?![a-z])|averag|shadow|teacher", re.IGNORECASE)
# What torch inserts into keys when a part of a network was compiled or sharded.
INSERTED = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)

Path = tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """A dictionary in the file that has keys of the network.

    Attributes:
        path: The names of the dictionaries around it, the outermost first.
        prefix: What comes before each of the network's keys.
        content: The dictionary.
        state: The tensors that were found, by the network's own keys and in its order.
        fits: Whether all were found, with the right shapes.
    """

    path: Path
    prefix: str
    content: Mapping[Any, Any]
    state: Mapping[str, Any]
    fits: bool

    @property
    def name(self) -> str:
        """`'state_dict' > 'net'`, and the prefix."""
        where = " > ".join(map(quoted, self.path)) or "the outermost dictionary"
        return f"{where} (keys with {quoted(self.prefix)})" if self.prefix else where

    @property
    def order(self) -> tuple[object, ...]:
        """Sorts the network before averages of it, then by depth, then by how usual the name is."""
        average = any(AVERAGE.search(part) for part in (*self.path, self.prefix))
        last = self.path[-1] if self.path else ""
        rank = NAMES.index(last) if last in NAMES else len(NAMES)
        return average, len(self.path), rank, len(self.prefix)


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        candidate: The best one; None if the file has no key of the network.
        others: Other candidates that fit.
        keys: The keys of the dictionary with the most tensors; empty if there are no tensors.
    """

    candidate: Candidate | None
    others: list[Candidate]
    keys: list[Any]


def find_weights(content: Any, network: Mapping[str, Any]) -> SearchResult:
    """Search a file's content for the network.

    Args:
        content: What `torch.load` gave.
        network: The tensors of the network, by key.
    """
    candidates: list[Candidate] = []
    keys: list[Any] = []
    most = 0
    for path, each in dictionaries(content):
        tensors = sum(hasattr(value, "is_floating_point") for value in each.values())
        if tensors > most:
            most, keys = tensors, list(each)
        candidates += candidates_in(each, path, network)
    fitting = sorted(
        (candidate for candidate in candidates if candidate.fits),
        key=lambda candidate: candidate.order,
    )
    if fitting:
        return SearchResult(fitting[0], fitting[1:], keys)
    return SearchResult(
        max(candidates, key=lambda candidate: len(candidate.state), default=None), [], keys
    )


def dictionaries(content: Any) -> Iterator[tuple[Path, Mapping[Any, Any]]]:
    """Each dictionary with its path, the outermost first; each once, even if it contains itself."""
    level: list[tuple[Path, Any]] = [((), content)]
    seen: set[int] = set()
    left = MAX_KEYS
    for _ in range(MAX_DEPTH + 1):
        inner: list[tuple[Path, Any]] = []
        for path, each in level:
            if id(each) in seen or len(each) > left:
                continue
            seen.add(id(each))
            left -= len(each) + 10  # an empty one costs something too
            if isinstance(each, dict):
                yield path, each
            items = each.items() if isinstance(each, dict) else enumerate(each)
            inner += [((*path, str(name)), value) for name, value in items if is_container(value)]
        level = inner


def is_container(value: Any) -> bool:
    """Whether a network may be in it."""
    return isinstance(value, dict) or (
        isinstance(value, list | tuple) and len(value) <= MAX_LIST_LENGTH
    )


def candidates_in(
    each: Mapping[Any, Any], path: Path, network: Mapping[str, Any]
) -> list[Candidate]:
    """The candidates in a dictionary that have all the keys, else the one with the most keys."""
    plain = {k: v for k, v in each.items() if isinstance(k, str) and len(k) <= MAX_KEY_LENGTH}
    best: list[Candidate] = []
    for content in (plain, {INSERTED.sub("", key): value for key, value in plain.items()}):
        if best and content.keys() == plain.keys():
            break
        counts = prefixes(content, network)
        whole = [prefix for prefix, count in counts.items() if count == len(network)]
        if whole:
            return [candidate_at(prefix, content, path, network) for prefix in whole]
        best += [
            candidate_at(prefix, content, path, network) for prefix, _ in counts.most_common(1)
        ]
    return best


def prefixes(keys: Iterable[str], network: Mapping[str, Any]) -> Counter[str]:
    """The prefixes of the network's keys, and how many keys follow each."""
    lengths = {len(key) for key in network}
    return Counter(
        key[:-length]
        for key in keys
        for length in lengths
        if length <= len(key) and key[-length:] in network
    )


def candidate_at(
    prefix: str, content: Mapping[str, Any], path: Path, network: Mapping[str, Any]
) -> Candidate:
    """The candidate with a given prefix."""
    state = {key: content[prefix + key] for key in network if prefix + key in content}
    fits = len(state) == len(network) and all(
        getattr(state[key], "shape", None) == like.shape for key, like in network.items()
    )
    return Candidate(path, prefix, content, state, fits)


def left_out(content: Any, candidate: Candidate) -> list[Any]:
    """The names of everything beside the network, the outermost first."""
    names: list[Any] = []
    for taken in candidate.path:
        items = dict(content if isinstance(content, dict) else enumerate(content))
        names += [name for name in items if str(name) != taken]
        content = next(value for name, value in items.items() if str(name) == taken)
    used = {candidate.prefix + key for key in candidate.state}
    return names + [key for key in content if key not in used and not is_used(key, used)]


def is_used(key: Any, used: set[str]) -> bool:
    """Whether a key is one of `used`, apart from what torch inserted into it."""
    return isinstance(key, str) and len(key) <= MAX_KEY_LENGTH and INSERTED.sub("", key) in used


def extra_layers(candidate: Candidate) -> list[str]:
    """The keys of tensors in the network's layers that the network itself does not have."""
    network = candidate.state
    begins = tuple({candidate.prefix + key.partition(".")[0] + "." for key in network})
    return [
        key
        for key, value in candidate.content.items()
        if key.startswith(begins)
        and key[len(candidate.prefix) :] not in network
        and hasattr(value, "is_floating_point")
    ]


def quoted(key: Any, longest: int = 100) -> str:
    """A key in quotes, shortened, since a stranger chose it."""
    if not isinstance(key, str):
        return repr(key)[:longest]
    return repr(key if len(key) <= longest else key[:longest] + "…")


def listed(keys: Iterable[Any], most: int = 3) -> str:
    """`'a', 'b', 'c' and 145 more`."""
    keys = list(keys)
    first = ", ".join(quoted(key, 40) for key in keys[:most])
    return f"{first} and {len(keys) - most} more" if len(keys) > most else first
