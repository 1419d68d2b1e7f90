"""The log of training: what is derived from what it is given."""

import math

import pytest
import torch

from tokkata.core.files import read_jsonl
from tokkata.core.log import TrainingLog


def test_perplexity_stands_beside_each_codebooks_loss(tmp_path):
    log = TrainingLog(tmp_path, 2, "tokens", 0, enabled=True)
    with log:
        for loss, weight in ((1.0, 1.0), (3.0, 3.0)):
            sums = {"loss": torch.tensor(loss * weight), "codebook_0": torch.tensor(loss * weight)}
            log.add("", sums, torch.tensor(weight))
        log.write(2, 1e-3)
        log.write_validation(2, {"loss": 2.0, "codebook_0": 2.0, "codebook_11": math.nan, "codebook_x": 1.0})
    training, validation = read_jsonl(tmp_path / "train.jsonl")
    assert training["codebook_0"] == 2.5
    assert training["perplexity_0"] == pytest.approx(math.exp(2.5))
    assert {name: value for name, value in validation.items() if "perplexity" in name} == {
        "valid/perplexity_0": pytest.approx(math.exp(2.0)),
        "valid/perplexity_11": None,
    }
    assert "mfu" not in training
