"""What the demo model is worth, on phantoms that its training has not seen."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from examples.phantoms import dice, make_phantom
from tests.conftest import Server

# seed, spacing in mm, orientation, tilt in degrees, shear
PHANTOMS = [
    (400_000, (3.0, 3.0, 3.0), "RAS", 0.0, 0.0),
    (400_001, (3.0, 3.0, 3.0), "LPS", 0.0, 0.0),
    (400_002, (1.5, 1.5, 5.0), "LPS", 0.0, 0.0),
    (400_003, (2.0, 2.0, 3.0), "PIR", 18.0, 0.0),
    (400_004, (2.0, 2.0, 2.0), "LAS", 0.0, 0.0),
    (400_005, (5.0, 5.0, 5.0), "RAS", 0.0, 0.0),
    (400_006, (2.5, 2.5, 2.5), "LPI", 0.0, 0.25),
    (400_007, (4.0, 1.6, 1.6), "SAR", 0.0, 0.0),
    (400_008, (2.0, 2.0, 4.0), "LPS", -25.0, 0.0),
    (400_009, (3.0, 3.0, 4.0), "RPI", 0.0, 0.0),
]


@pytest.mark.real
@pytest.mark.every
@pytest.mark.timeout(900)
def test_the_demo_model_finds_the_spleen_of_ten_unseen_phantoms(real_server: Server) -> None:
    found = []
    for seed, spacing, orientation, tilt, shear in PHANTOMS:
        phantom = make_phantom(
            seed, spacing=spacing, orientation=orientation, tilt_degrees=tilt, shear=shear
        )
        answer = real_server.infer(phantom.volume.to_bytes(), timeout=300)
        assert answer.status_code == 200, answer.text
        labels = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
        found.append(dice(np.asanyarray(labels.dataobj), np.asanyarray(phantom.truth.dataobj)))
    assert np.mean(found) >= 0.90, found
    print("Dice", [round(one, 3) for one in found], "mean", round(float(np.mean(found)), 3))
