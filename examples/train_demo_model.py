#!/usr/bin/env python
"""Train the demo weights: the plugin's network, on phantoms, on a CPU, in a quarter of an hour.

The plugin's own inference transforms prepare the phantoms, so the network is trained on exactly the
grid and intensities that it will see in use. The weights know phantoms, not patients.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.transforms import Compose, SpatialPadd
from monai.utils import set_determinism
from spleenseg.models.data import ModelParams
from spleenseg.transforms import transforms

# As a plain file this script has its own folder on the path, under pytest the repository's.
try:
    from examples.phantoms import covering_shape, dice, make_phantom, random_grid
except ImportError:
    from phantoms import covering_shape, dice, make_phantom, random_grid  # type: ignore[import-not-found, no-redef]

PATCH = 64
"""Edge of a training patch, voxels: 96 x 96 x 128 mm."""

PATCHES_A_STEP = 4
WINDOW = (160, 160, 160)
"""The plugin's sliding window, voxels."""

UNSEEN = 100_000
"""Seeds from here on are patients that the training never uses."""


def keep_memory() -> None:
    """Tell glibc to keep freed memory: otherwise half of a CPU step is page faults."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return  # not glibc: slower, but just as right
    for option, value in ((-1, -1), (-4, 0), (-2, 1 << 28)):  # TRIM_THRESHOLD, MMAP_MAX, TOP_PAD
        libc.mallopt(option, value)


def write_phantom(folder: Path, seed: int) -> dict[str, str]:
    """Write a phantom on its own grid: some are oblique, sheared, cropped or without a spleen."""
    rng = np.random.default_rng([seed, 3])
    spacing, orientation = random_grid(seed)
    x, y, z = covering_shape(spacing, orientation)
    part = rng.uniform(0.75, 1.15)
    phantom = make_phantom(
        seed,
        (round(x * part), round(y * part), round(z * part)),
        spacing,
        orientation,
        tilt_degrees=rng.uniform(-15, 15) if seed % 2 else 0.0,
        shear=rng.uniform(-0.2, 0.2) if seed % 4 == 1 else 0.0,
        spleen=seed % 10 != 9,
        noise_hu=rng.uniform(5, 20),
    )
    paths = {key: str(folder / f"{key}-{seed}.nii.gz") for key in ("image", "label")}
    nib.save(phantom.volume, paths["image"])
    nib.save(phantom.truth, paths["label"])
    return paths


def as_the_plugin_sees(paths: dict[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Load a phantom with the plugin's inference transforms, in their order.

    Returns:
        Image, 0 to 1, and label, 0 or 1: both (1, x, y, z), RAS, 1.5 x 1.5 x 2 mm.
    """
    load = Compose(
        [
            transforms.f_LoadImaged(),
            transforms.f_EnsureChannelFirstd(),
            transforms.f_Orientationd(),
            transforms.f_Spaceingd(),
            transforms.f_ScaleIntensityRanged(),
            transforms.f_CropForegroundd(),
            SpatialPadd(keys=["image", "label"], spatial_size=(PATCH,) * 3),
        ]
    )
    loaded: dict[str, Any] = load(paths)
    return loaded["image"].as_tensor().half(), loaded["label"].as_tensor().to(torch.uint8)


def patch(
    volume: tuple[torch.Tensor, torch.Tensor], spleen: bool, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut one patch, around a voxel of the spleen if wanted and possible, otherwise anywhere."""
    image, label = volume
    room = np.array(label.shape[1:]) - PATCH
    start = rng.integers(0, room + 1)
    inside = torch.nonzero(label[0]) if spleen else torch.empty(0)
    if len(inside):
        centre = inside[rng.integers(len(inside))].numpy()
        start = np.clip(centre - rng.integers(PATCH // 4, 3 * PATCH // 4, 3), 0, room)
    cut = (slice(None), *(slice(at, at + PATCH) for at in start))
    contrast, brightness = rng.uniform(0.92, 1.08), rng.uniform(-0.03, 0.03)
    return (image[cut].float() * contrast + brightness).clamp(0, 1), label[cut]


def train(folder: Path, count: int, steps: int, seed: int) -> torch.nn.Module:
    """Train the plugin's network, from weights drawn by the seed.

    Args:
        folder: where phantoms may be written.
        count: phantoms to train on.
        steps: of four patches each.
        seed: of the weights, the phantoms and the patches.
    """
    set_determinism(seed)
    rng = np.random.default_rng(seed)
    volumes = [as_the_plugin_sees(write_phantom(folder, seed + n)) for n in range(count)]

    network: torch.nn.Module = ModelParams.model
    for module in network.modules():  # it was built at import, before there was a seed
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    # The low end of the cycle matters: before it, batch norm's averages lag behind the weights.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)

    network.train()
    began = time.monotonic()
    mean = 0.0
    for step in range(1, steps + 1):
        chosen = rng.choice(count, PATCHES_A_STEP, replace=count < PATCHES_A_STEP)
        pairs = [patch(volumes[n], i % 2 == 0, rng) for i, n in enumerate(chosen)]
        images, labels = (torch.stack(part) for part in zip(*pairs, strict=True))
        optimizer.zero_grad()
        loss = loss_of(network(images), labels)
        loss.backward()
        optimizer.step()
        schedule.step()
        mean = 0.95 * mean + 0.05 * loss.item() if step > 1 else loss.item()
        if step % 20 == 0 or step == steps:
            passed = time.monotonic() - began
            left = passed / step * (steps - step)
            print(f"step {step}/{steps}  loss {mean:.3f}  {passed:.0f} s, {left:.0f} s left")
    return network


def in_half_precision(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict, its floats rounded to half precision."""
    return {
        name: value.half() if value.is_floating_point() else value
        for name, value in network.state_dict().items()
    }


def evaluate(network: torch.nn.Module, folder: Path, seed: int) -> float:
    """Dice on one unseen phantom, with the plugin's sliding window, on the plugin's grid."""
    image, label = as_the_plugin_sees(write_phantom(folder, seed))
    network.eval()
    with torch.no_grad():
        scores = sliding_window_inference(image[None].float(), WINDOW, 4, network)
    assert isinstance(scores, torch.Tensor)
    return dice(scores.argmax(1)[0].numpy(), label[0].numpy())


def main() -> None:
    """Train, save, and say how well the saved weights do."""
    parser = argparse.ArgumentParser(
        description="Train the demo weights on phantoms and save them as a state dict in half "
        "precision. They know phantoms, not patients: never use them clinically.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("demo_model.pth"))
    parser.add_argument("--steps", type=int, default=2000, help="of four patches of 64^3 voxels")
    parser.add_argument("--phantoms", type=int, default=48, help="how many to train on")
    parser.add_argument("--seed", type=int, default=0, help="of weights, phantoms and patches")
    args = parser.parse_args()

    keep_memory()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network = train(folder, args.phantoms, args.steps, args.seed)
        weights = in_half_precision(network)
        torch.save(weights, args.out)
        print(f"{args.out}: {len(weights)} tensors, {args.out.stat().st_size / 1e6:.1f} MB")
        network.load_state_dict(weights)  # what is judged is what was saved
        for seed in (UNSEEN, UNSEEN + 1):
            print(f"unseen phantom {seed}: Dice {evaluate(network, folder, seed):.3f}")


if __name__ == "__main__":
    main()
