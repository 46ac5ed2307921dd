"""Finding the network in a checkpoint, with stand-ins for tensors: no torch is needed."""

import time
from typing import Any

import pytest

from pfms.programs.weights_search import MAX_DEPTH, Candidate, extra_layers, find_weights, left_out


class Tensor:
    """Everything about a tensor that the search looks at."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def is_floating_point(self) -> bool:
        return True


NETWORK = {"model.0.weight": Tensor(3, 2), "model.0.bias": Tensor(3), "model.1.weight": Tensor(2)}


def weights(prefix: str = "") -> dict[Any, Any]:
    return {prefix + key: Tensor(*like.shape) for key, like in NETWORK.items()}


def placed(content: Any) -> Candidate:
    candidate = find_weights(content, NETWORK).candidate
    assert candidate is not None
    return candidate


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_model.", "net.", "model.", "module._orig_mod.model.", "ema_", "a b.ü:"],
)
@pytest.mark.parametrize("path", [(), ("state_dict",), ("checkpoint", "anything"), ("0", "ema")])
def test_weights_are_found_under_any_prefix_and_any_name(
    prefix: str, path: tuple[str, ...]
) -> None:
    content: Any = weights(prefix) | {"n_averaged": Tensor()}
    for name in reversed(path):
        content = [content, 3] if name == "0" else {"epoch": 3, name: content, 7: {0: "no name"}}

    candidate = placed(content)

    assert (candidate.fits, candidate.prefix, candidate.path) == (True, prefix, path)
    assert list(candidate.state) == list(NETWORK)
    assert "n_averaged" in left_out(content, candidate)
    assert len(left_out(content, candidate)) == 1 + sum(1 if name == "0" else 2 for name in path)


# The first one is taken, wherever it is in the file.
IN_ORDER = [
    ({"state_dict": weights()}, {"ema": weights()}),
    ({"any": {"thing": weights()}}, {"model_ema": weights()}),
    (weights("net."), weights("ema_net.")),
    (weights(), weights("net.")),
    ({"state_dict": weights()}, {"model": weights()}),
    ({"model": weights()}, {"generator": weights()}),
    ({"generator": weights()}, {"anything": weights()}),
    ({"anything": weights()}, {"deeper": {"state_dict": weights()}}),
    ({"student": weights()}, {"teacher": weights()}),
]


@pytest.mark.parametrize(("taken", "other"), IN_ORDER)
def test_if_several_fit_the_documented_order_decides(
    taken: dict[str, Any], other: dict[str, Any]
) -> None:
    alone = placed(taken)
    for content in (taken | other, other | taken):
        found = find_weights(content, NETWORK)
        assert found.candidate is not None
        assert (found.candidate.path, found.candidate.prefix) == (alone.path, alone.prefix)
        assert len(found.others) == 1


def test_what_torch_inserts_into_keys_is_ignored() -> None:
    sharded = {
        f"_fsdp_wrapped_module.model.{key.removeprefix('model.')}".replace(
            "0.", "0._checkpoint_wrapped_module."
        ): value
        for key, value in weights().items()
    }

    candidate = placed({"model": sharded})

    assert candidate.fits
    assert left_out({"model": sharded}, candidate) == []


def test_a_network_that_fits_is_preferred_to_one_of_other_shapes() -> None:
    wider = weights() | {"model.0.bias": Tensor(4)}

    assert placed({"state_dict": wider, "other": weights()}).path == ("other",)
    assert not placed({"state_dict": wider}).fits


def test_if_nothing_fits_the_candidate_with_the_most_keys_is_returned() -> None:
    partly = weights("net.")
    del partly["net.model.0.bias"]

    found = find_weights(
        {"a": {"model.0.bias": Tensor(3)}, "b": partly, "c": {"x": Tensor()}}, NETWORK
    )

    assert found.candidate is not None
    assert (found.candidate.path, found.candidate.prefix, found.candidate.fits) == (
        ("b",),
        "net.",
        False,
    )
    assert found.keys == list(partly)
    assert find_weights({"epoch": 3}, NETWORK).keys == []


def test_extra_layers_are_told_apart_from_what_is_beside_the_network() -> None:
    state = weights("net.") | {"net.model.2.weight": Tensor(), "net.loss.weight": Tensor()}

    assert extra_layers(placed(state)) == ["net.model.2.weight"]
    assert extra_layers(placed(weights() | {"model.note": "no tensor"})) == []


def deep(levels: int) -> Any:
    content: Any = weights()
    for _ in range(levels):
        content = {"state_dict": content}
    return content


def holds_itself() -> dict[str, Any]:
    content: dict[str, Any] = {"list": []}
    content["self"] = content["list"].append(content) or content
    return content


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(deep(MAX_DEPTH + 1), id="too deep"),
        pytest.param(holds_itself(), id="holds itself"),
        pytest.param({"k" * (1 << 18) + str(n): n for n in range(20)}, id="long keys"),
        pytest.param({f"{n}.model.0.bias": n for n in range(600_000)}, id="many keys"),
        pytest.param({n: {m: {} for m in range(1000)} for n in range(600)}, id="many dictionaries"),
    ],
)
def test_a_hostile_file_is_searched_quickly(content: Any) -> None:
    begun = time.process_time()
    candidate = find_weights(content, NETWORK).candidate

    assert candidate is None or not candidate.fits
    assert time.process_time() - begun < 5
