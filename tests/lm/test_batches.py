"""Crops with their conditions, from a store with labels, tags and features.

Shapes: B batch, K codebooks, T frames, L states of a feature, E their width.
"""

import dataclasses

import numpy as np
import pytest
import torch

from tokkata.core.conditions import Condition, Conditions
from tokkata.core.errors import UserError
from tokkata.core.schema_conditions import ModelCondition
from tokkata.lm.batches import TokenBatches
from tokkata.tests.lm.tiny_lm import some_of_everything
from tokkata.tokenize.features.clip_conditions import conditions_of, from_batch, to_batch
from tokkata.tokenize.features.feature import FeatureInfo

K, NUM_CLIPS = 2, 3
LENGTHS = [12, 5, 9]


class Split:
    """Stands in for `TokenSplit`: frame t of clip i is 10 i + t, and so are its chroma, at twice the rate."""

    num_frames = np.array(LENGTHS)
    num_samples = 320 * num_frames

    def __len__(self):
        return NUM_CLIPS

    def column(self, name):
        return {"pitch": [60, 64, 60], "mood": [("wild", "calm"), (), ("calm", "odd")], "bpm": [1.5, 2.0, 3]}[
            name
        ]

    def codes(self, clip, start, num_frames):
        frames = np.arange(LENGTHS[clip])[start : start + num_frames] + 10 * clip
        return np.stack([frames] * K)

    def feature(self, name, clip, start=0, length=None):
        stop = None if length is None else start + length
        if name == "text":
            return np.full((clip, 6), clip, dtype=np.float16)  # the first clip has no caption
        states = np.arange(2 * LENGTHS[clip])[start:stop] / 2 + 10 * clip
        return np.repeat(states[:, None], 3, axis=1).astype(np.float16)


@dataclasses.dataclass
class Info:
    frame_rate: float = 50.0
    num_codebooks: int = K
    sample_rate: int = 16000
    latent_dim: int = 0


class Store:
    """Stands in for `TokenStore`."""

    def __init__(self):
        self.info = Info()
        self.features = {
            "text": FeatureInfo("text", "text", 6, None, "float16", {}),
            "chroma": FeatureInfo("chroma", "melody", 3, 100.0, "float16", {}),
        }


MOOD = Condition("mood", "tags", values=("calm", "wild"))


def wanted(*found):
    return [ModelCondition.model_validate(one) for one in found]


def batches(*found, num_frames=4):
    conditions = conditions_of(Store(), Split(), wanted(*found))
    return TokenBatches(Store(), Split(), conditions, num_frames)


def test_conditions_are_those_of_the_store():
    text = Store().features["text"].to_json()
    found = conditions_of(
        Store(), Split(), wanted("pitch", {"name": "text", "fuse": "cross", "length": 7}, "mood")
    )
    assert found == Conditions(
        (
            Condition("pitch", "label", values=(60, 64)),
            Condition("text", "sequence", "cross", width=6, length=7, feature=text),
            Condition("mood", "tags", values=("calm", "odd", "wild")),
        )
    )


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"name": "pitch", "length": 3}, "condition 'pitch' is a label and has no length"),
        ("bpm", "label 'bpm' has fractions"),
        ({"name": "text", "maximum": 3}, "condition 'text' is a number: it is no feature"),
    ],
)
def test_conditions_that_cannot_be(condition, message):
    with pytest.raises(UserError, match=message):
        conditions_of(Store(), Split(), wanted(condition))


def test_crops_are_padded_and_masked():
    crops = [(0, 8), (1, 0), (2, 7)]
    found = batches()
    batch = found.collate(crops, found.given(crops))
    assert batch.keys() == {"codes", "mask"}
    assert batch["codes"].dtype == torch.int64
    assert batch["codes"][:, 0].tolist() == [[8, 9, 10, 11], [10, 11, 12, 13], [27, 28, 0, 0]]
    assert torch.equal(batch["codes"][:, 0], batch["codes"][:, 1])
    assert batch["mask"].tolist() == [[True] * 4, [True] * 4, [True, True, False, False]]


def test_clips_share_rows_with_a_gap_between():
    rows = [[(1, 0), (2, 5)], [(0, 1)]]
    found = batches("pitch", num_frames=12)
    batch = found.collate_packed(rows, found.given([crop for row in rows for crop in row]), gap=2)
    assert batch["codes"][:, 0].tolist() == [
        [10, 11, 12, 13, 14, 0, 0, 25, 26, 27, 28, 0],
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0],
    ]
    assert batch["mask"].tolist() == [
        [True] * 5 + [False] * 2 + [True] * 4 + [False],
        [True] * 11 + [False],
    ]
    assert batch["clips"].tolist() == [[0] * 7 + [1] * 5, [2] * 12]
    assert batch["values/pitch"].tolist() == [[2], [1], [1]]


def test_labels_belong_to_their_clips():
    given = batches("pitch", "mood").given([(2, 0), (1, 0), (0, 3)])
    assert given["pitch"].values.tolist() == [[1], [2], [1]]
    assert given["mood"].values.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]
    assert given["mood"].mask.all()


def test_a_feature_that_follows_time_is_cropped_with_the_codes():
    given = batches("chroma").given([(0, 8), (2, 7)])["chroma"]
    assert given.values[0, :, 0].tolist() == [8, 8.5, 9, 9.5, 10, 10.5, 11, 11.5]
    assert given.values[1, :, 0].tolist() == [27, 27.5, 28, 28.5, 0, 0, 0, 0]  # and there it ends
    assert given.mask.sum(1).tolist() == [8, 4]
    assert given.values.dtype == torch.float32


def test_numbers_are_those_of_the_crop_and_the_clip():
    found = batches("seconds_start", "seconds_total", {"name": "bpm", "maximum": 2.5})
    assert found.conditions["seconds_total"].maximum == 0.24  # 12 frames of a fiftieth
    given = found.given([(0, 8), (2, 5)])
    assert given["seconds_start"].values.tolist() == [[pytest.approx(0.16)], [pytest.approx(0.1)]]
    assert given["seconds_total"].values.tolist() == [[pytest.approx(0.24)], [pytest.approx(0.18)]]
    assert given["bpm"].values.tolist() == [[1.5], [2.5]]  # 3 is beyond the scale
    assert found.labels(1) == {"seconds_start": 0, "seconds_total": 0.1, "bpm": 2.0}


def test_other_features_are_whole_and_may_be_missing():
    given = batches("text").given([(0, 0), (2, 5), (1, 0)])["text"]
    assert given.mask.tolist() == [[False, False], [True, True], [True, False]]
    assert given.values[:, :, 0].tolist() == [[0, 0], [2, 2], [1, 0]]


def test_tags_that_training_has_not_met_are_passed_over():
    found = TokenBatches(Store(), Split(), Conditions((MOOD,)), 4)
    assert found.given([(0, 0), (2, 0)])["mood"].values.tolist() == [[1, 1], [1, 0]]
    assert found.labels(2) == {"mood": ("calm",)}
    assert found.known(range(NUM_CLIPS)) == [0, 1, 2]
    pitch = Conditions((Condition("pitch", "label", values=(60,)),))
    assert TokenBatches(Store(), Split(), pitch, 4).known(range(NUM_CLIPS)) == [0, 2]


def test_conditions_travel_in_flat_batches():
    given = some_of_everything()
    batch = to_batch(given)
    assert all(isinstance(tensor, torch.Tensor) for tensor in batch.values())
    back = from_batch(batch | {"codes": torch.zeros(1)})
    assert back.keys() == given.keys()
    for name, one in given.items():
        assert torch.equal(back[name].values, one.values)
        assert torch.equal(back[name].mask, one.mask)


def test_how_many_states_a_crop_has():
    found = batches("pitch", "text", "chroma", {"name": "mood"})
    assert found.num_states(4) == {"text": 1, "chroma": 8}  # texts of 0, 1 and 2 states
    assert found.num_states(3) == {"text": 1, "chroma": 6}
    fixed = batches({"name": "text", "length": 7}, {"name": "chroma", "length": 5})
    assert fixed.num_states(4) == {"text": 7, "chroma": 5}


def test_no_clips_are_told_nothing():
    assert batches("pitch").given([]) == {}
