"""Training of an adversarial model in float64: where two ways agree but for rounding, they agree to many
digits.

    python train_in_float64.py RECIPE [KEY=VALUE …]

Not for users: numbers are drawn in float64 by default, and casts to float32 are left out.
"""

import sys
from pathlib import Path
from unittest.mock import patch

import torch

from tokkata.core.recipe import load_recipe
from tokkata.gan.train import train_gan

if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    with patch.object(torch.Tensor, "float", lambda tensor: tensor.double()):
        train_gan(load_recipe(Path(sys.argv[1]), sys.argv[2:]))
