"""Its result is in the wrong place."""

import numpy as np
from common import segment

segment(affine_of=lambda affine: affine + np.array([[0, 0, 0, 5]] + [[0] * 4] * 3))
