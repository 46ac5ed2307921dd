"""A program: writes weights of the plugin's network in every form that users have, and many that
nobody should. Needs torch and the plugin. `python make_weights.py FOLDER NAME…` makes the forms
that are named, as FOLDER/NAME.pth.
"""

import io
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import UNet
from spleenseg.models.data import ModelParams


class RunsCode:
    """What a hostile pickle looks like: opened with trust, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def weights() -> dict[str, torch.Tensor]:
    """The same each time; numbers that half precision and bfloat16 hold exactly."""
    torch.manual_seed(0)
    return {
        key: torch.randint(-64, 64, like.shape).to(like.dtype).div(64).to(like.dtype)
        for key, like in ModelParams.model.state_dict().items()
    }


def in_one_buffer(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor a view of one long tensor, as flattened optimizers leave them."""
    floating = {key: value for key, value in state.items() if value.is_floating_point()}
    buffer = torch.cat([value.flatten() for value in floating.values()])
    parts = buffer.split([value.numel() for value in floating.values()])
    views = {k: part.view(v.shape) for (k, v), part in zip(floating.items(), parts, strict=True)}
    return state | views


def bytes_of(content: Any, **options: Any) -> bytes:
    memory = io.BytesIO()
    torch.save(content, memory, **options)
    return memory.getvalue()


def accepted(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    backwards = dict(reversed(state.items()))
    return {
        "plain": state,
        "model": {"model": state, "epoch": 3},
        "state_dict": {"state_dict": state, "optimizer": {"lr": 1e-4}},
        "nested": {"state_dict": {"net": state}},
        "module": {f"module.{key}": value for key, value in state.items()},
        "lightning": {"state_dict": {f"net.{key}": value for key, value in state.items()}},
        "compiled": {f"module._orig_mod.{key}": value for key, value in state.items()},
        "half": {key: value.half() for key, value in state.items()},
        "bfloat16": {key: value.bfloat16() for key, value in state.items()},
        "float64": {key: value.double() for key, value in state.items()},
        "backwards": backwards,
        "one-buffer": in_one_buffer(state),
        "strided": {
            key: value.transpose(0, 1).contiguous().transpose(0, 1) if value.ndim > 1 else value
            for key, value in state.items()
        },
        "parameters": {
            key: torch.nn.Parameter(value) if value.is_floating_point() else value
            for key, value in state.items()
        },
    }


def refused(state: dict[str, torch.Tensor], folder: Path) -> dict[str, Any]:
    first, second = list(state)[:2]
    other = UNet(spatial_dims=3, in_channels=1, out_channels=3, channels=(8, 16), strides=(2,))
    nan = state[second].clone()
    nan[1] = float("nan")
    return {
        "another-network": torch.nn.Linear(2, 2).state_dict(),
        "another-unet": other.state_dict(),
        "missing-key": {key: value for key, value in state.items() if key != second},
        "extra-key": {**state, "model.9.weight": torch.ones(1)},
        "path-key": {**state, f"{folder}/{'x' * 5000}\n": torch.ones(1)},
        "nan": state | {second: nan},
        "too-great": state | {second: torch.full(nan.shape, 1e300, dtype=torch.float64)},
        "integers": state | {second: torch.ones(nan.shape, dtype=torch.int8)},
        "complex": state | {second: torch.ones(nan.shape, dtype=torch.complex64)},
        "sparse": state | {second: state[second].to_sparse()},
        "quantised": state
        | {second: torch.quantize_per_tensor(state[second], 0.1, 0, torch.quint8)},
        "no-data": state | {second: torch.empty(nan.shape, device="meta")},
        "a-list": state | {first: [1, 2, 3]},
        "huge-view": state | {second: torch.ones(1).expand(1 << 45)},
        "tensor": torch.ones(3),
        "no-weights": {"epoch": 3, "loss": 0.1},
        "number-keys": dict(enumerate(state.values())),
        "runs-code": {**state, "extra": RunsCode(folder / "code-was-run")},
        "whole-network": other,
    }


def main(folder: Path, names: list[str]) -> None:
    state = weights()
    for name, content in (accepted(state) | refused(state, folder)).items():
        if name in names:
            torch.save(content, folder / f"{name}.pth")
    if "legacy" in names:
        torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    if "torchscript" in names:
        torch.jit.script(torch.nn.Linear(2, 2)).save(folder / "torchscript.pth")
    if "truncated" in names:
        (folder / "truncated.pth").write_bytes(bytes_of(state)[:-1000])
    if "damaged" in names:
        damaged = bytearray(bytes_of(state))
        damaged[len(damaged) // 2] ^= 1
        (folder / "damaged.pth").write_bytes(damaged)
    if "claims-a-tebibyte" in names:  # torch asks for all of it before it reads
        legacy = bytes_of({"a": torch.ones(1000)}, _use_new_zipfile_serialization=False)
        claim = legacy.replace(b"M\xe8\x03", b"\x8a\x06" + (1 << 38).to_bytes(6, "little"))
        (folder / "claims-a-tebibyte.pth").write_bytes(claim)
    if "zip-bomb" in names:
        with zipfile.ZipFile(
            folder / "zip-bomb.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=1
        ) as archive:
            archive.writestr("archive/data.pkl", b"")
            archive.writestr("archive/data/0", bytes(1200 << 20))
    if "cuda" in names:
        torch.serialization.register_package(1, lambda storage: "cuda:0", lambda storage, at: None)
        torch.save(state, folder / "cuda.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
