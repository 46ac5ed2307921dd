"""A separate program that times only the plugin's network over a volume's windows.

`-m bench.network_alone VOLUME WEIGHTS` prints a JSON line: seconds of the network by itself and of
the whole sliding window, how many windows there were, and a second pass in the same process.
"""

import argparse
import json
import sys
import time
from typing import Any

import torch
from monai.data.utils import list_data_collate
from monai.inferers.utils import sliding_window_inference
from spleenseg.models.data import ModelParams
from spleenseg.transforms.transforms import inferenceUse_transforms

# As the plugin's slidingWindowInference_do calls it.
_ROI = (160, 160, 160)
_BATCH = 4


def main(volume: str, weights: str) -> None:
    """Read and resample as the plugin does, then time two passes of the network."""
    network: Any = ModelParams(argparse.Namespace(device="cpu")).model
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    sample = list_data_collate([inferenceUse_transforms()({"image": volume})])
    passes = [_pass(network, sample["image"]) for _ in range(2)]
    print(json.dumps({**passes[0], "again": passes[1]["network"]}))


def _pass(network: Any, image: Any) -> dict[str, float]:
    seconds, windows = 0.0, 0

    def timed(batch: Any) -> Any:
        nonlocal seconds, windows
        started = time.perf_counter()
        result = network(batch)
        seconds += time.perf_counter() - started
        windows += len(batch)
        return result

    started = time.perf_counter()
    with torch.no_grad():
        sliding_window_inference(image, _ROI, _BATCH, timed)
    whole = time.perf_counter() - started
    return {"network": seconds, "sliding_window": whole, "windows": windows}


if __name__ == "__main__":
    main(*sys.argv[1:])
