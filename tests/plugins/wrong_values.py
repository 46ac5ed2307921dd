"""Its result is not one-hot, but probabilities."""

import numpy as np
from common import segment

segment(onehot_of=lambda spleen: np.full((*spleen.shape, 2), 0.5))
