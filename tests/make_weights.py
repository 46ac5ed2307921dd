"""A program that writes weights of the plugin's network in every form that users have, and in many
that nobody should have. Needs torch and the plugin. `python make_weights.py FOLDER NAME…` writes
the named forms, as FOLDER/NAME.pth.
"""

import argparse
import collections
import datetime
import importlib
import io
import os
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets import UNet
from spleenseg.models.data import ModelParams

KEY = "model.0.conv.unit0.adn.N.weight"


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


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


def of_a_class(name: str, **attributes: Any) -> Any:
    """An object as a package that is not here would pickle it."""
    module, _, kind = name.rpartition(".")
    for package in (module.partition(".")[0], module):
        sys.modules.setdefault(package, types.ModuleType(package))
    made = type(kind, (), {"__module__": module})
    setattr(sys.modules[module], kind, made)
    thing = made()
    vars(thing).update(attributes)
    return thing


class ScalarOfNumpy2:
    """Pickles as a scalar does under numpy 2."""

    def __reduce__(self) -> tuple[Any, ...]:
        def scalar(*_: Any) -> None:
            """By its name alone."""

        scalar.__module__, scalar.__qualname__ = "numpy._core.multiarray", "scalar"
        vars(importlib.import_module(scalar.__module__))["scalar"] = scalar
        return scalar, (np.dtype("f8"), b"\0" * 8)


def trained(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Checkpoints as trainers write them, with all that lies beside the weights."""
    other = {key: value + 1 for key, value in state.items()}
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    optimizer.step()
    module = torch.nn.Conv3d(1, 1, 1)
    averaged = torch.optim.swa_utils.AveragedModel(module).state_dict()
    return {
        "lightning": {
            "epoch": 599,
            "global_step": 4800,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": {**prefixed("_model.", state), "loss_function.class_weight": state[KEY]},
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 600}}}},
            "callbacks": {"ModelCheckpoint{'monitor': 'val_dice'}": {"best": torch.tensor(0.9)}},
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [],
            "hparams_name": "kwargs",
            "hyper_parameters": {
                "args": argparse.Namespace(lr=1e-4, data=Path("data")),
                "config": of_a_class("omegaconf.dictconfig.DictConfig", _content={"lr": 1}),
                "started": datetime.datetime(2026, 1, 2),
                "runs": collections.defaultdict(list, {"a": [1]}),
            },
        },
        "nnunet": {
            "network_weights": state,
            "optimizer_state": optimizer.state_dict(),
            "logging": {"mean_fg_dice": [np.float64(0.5)], "losses": np.ones(3), 7: "a number"},
            "_best_ema": np.float32(0.9),
            "numpy 2": ScalarOfNumpy2(),
            "torch": torch.torch_version.TorchVersion("2.13.0"),
        },
        "averaged": {**prefixed("module.", state), "n_averaged": averaged["n_averaged"]},
        "beside-its-average": {"ema": other, "model_ema": {"module": other}, "state_dict": state},
        "average-in-one": prefixed("net_ema.", other) | prefixed("the_network.", state),
        "only-an-average": {"checkpoint": {"model_ema": prefixed("module.", state)}},
        "deepspeed": {"module": state, "optimizer": None, "global_steps": 1},
        "gan": {"generator": state, "discriminator": module.state_dict()},
        "pair": (state, optimizer.state_dict()),
        "sharded": {
            "_fsdp_wrapped_module." + key.replace("1.sub", "1._fsdp_wrapped_module.sub"): value
            for key, value in state.items()
        },
        "handler": {"model": state, "optimizer": optimizer.state_dict()},
    }


def accepted(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    backwards = dict(reversed(state.items()))
    extras: dict[Any, Any] = {5: 5, f"{'x' * 5000}\n": torch.ones(1), "n_averaged": 3}
    return trained(state) | {
        "plain": state,
        "model": {"model": state, "epoch": 3},
        "state_dict": {"state_dict": state, "optimizer": {"lr": 1e-4}},
        "nested": {"state_dict": {"net": state}},
        "module": prefixed("module.", state),
        "net": {"state_dict": prefixed("net.", state)},
        "compiled": prefixed("module._orig_mod.", state),
        "more-keys": state | extras,
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
        "in-a-checkpoint": {"state_dict": prefixed("net.", other.state_dict()), "epoch": 3},
        "partly": {"state_dict": prefixed("net.", {k: v for k, v in state.items() if k != second})},
        "strange-class": {"state_dict": state, "hyper_parameters": of_a_class("mine.Loss")},
        "unnamed": {"a" * 5000: {f"{folder}/{'x' * 5000}\n": torch.ones(1)}},
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
