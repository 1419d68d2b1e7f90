import numpy as np
import pytest
import torch

from tokkata.core.errors import UserError
from tokkata.eval.copies.memorisation import prompted_memorisation
from tokkata.lm.generate import generate
from tokkata.lm.transformer import TransformerConfig, TransformerLM

PROMPT_S, ADDED_S, RATE = 0.4, 0.6, 50.0


class Split:
    """Stands in for `TokenSplit`: random codes [3, T] of some clips."""

    name = "train"

    def __init__(self, lengths):
        rng = np.random.default_rng(0)
        self._codes = [rng.integers(0, 16, (3, length)) for length in lengths]
        self.num_frames = np.array(lengths)

    def codes(self, clip, start=0, num_frames=None):
        return self._codes[clip][:, start : start + num_frames]


def ask(split, continue_greedily, **more):
    return prompted_memorisation(
        continue_greedily, split, frame_rate=RATE, prompt_s=PROMPT_S, continuation_s=ADDED_S, **more
    )


def by_heart(split, num_wrong=0):
    """A model that knows all clips, but for the first tokens of each continuation."""

    def continue_greedily(clips, prompts, num_frames):
        found = []
        for clip, prompt in zip(clips, prompts, strict=True):
            codes = split._codes[clip]
            num_prompt = prompt.shape[1]
            starts = range(codes.shape[1] - num_prompt - num_frames + 1)
            start = next(s for s in starts if (codes[:, s : s + num_prompt] == prompt).all())
            codes = codes[:, start + num_prompt :][:, :num_frames].copy()
            codes[0, :num_wrong] += 1
            codes[1:] = 0  # the other codebooks do not count
            found.append(codes)
        return np.stack(found)

    return continue_greedily


def test_what_is_known_by_heart_is_told_from_what_is_not():
    split = Split([60, 80, 55, 50])
    known = ask(split, by_heart(split))
    assert (known.exact, known.partial, known.mean_share) == (1.0, 1.0, 1.0)
    assert known.clips == [0, 1, 2, 3]
    assert (known.prompt_frames, known.continuation_frames) == (20, 30)
    nearly = ask(split, by_heart(split, num_wrong=6))
    assert (nearly.exact, nearly.partial, nearly.mean_share) == (0.0, 1.0, pytest.approx(0.8))
    hardly = ask(split, by_heart(split, num_wrong=7))
    assert (hardly.exact, hardly.partial) == (0.0, 0.0)


def test_the_choice_depends_on_the_seed_and_not_on_the_batch():
    split = Split([60] * 12)
    one = ask(split, by_heart(split, 7), num_clips=5, batch_size=1, seed=1)
    many = ask(split, by_heart(split, 7), num_clips=5, batch_size=4, seed=1)
    assert one == many
    assert one.clips != ask(split, by_heart(split, 7), num_clips=5, seed=2).clips


def test_short_clips_are_passed_over_or_told():
    split = Split([49, 50, 10])
    assert ask(split, by_heart(split)).clips == [1]
    with pytest.raises(UserError, match=r"no clip of the split 'train' has the 0.4 s .* and 0.6 s"):
        ask(Split([49]), by_heart(split))


def test_codes_of_another_shape_are_refused():
    split = Split([60])
    with pytest.raises(ValueError, match=r"codes \[1, 3, 30\] expected, not \[1, 3, 29\]"):
        ask(split, lambda clips, prompts, num: np.zeros((1, 3, num - 1)))


def test_a_language_model_can_be_asked():
    """The lines that docs/copies.md shows."""
    torch.manual_seed(0)
    config = TransformerConfig(
        num_codebooks=3, codebook_size=16, frame_rate=RATE, dim=16, num_layers=1, num_heads=2
    )
    lm = TransformerLM(config).eval()

    def continue_greedily(clips, prompts, num_frames):
        prompt = torch.from_numpy(prompts)
        codes = generate(
            lm, prompt.shape[2] + num_frames, batch_size=len(clips), prompt=prompt, temperature=0.0
        )
        return codes[..., prompt.shape[2] :].numpy()

    split = Split([60, 70])
    found = ask(split, continue_greedily)
    assert len(found.shares) == 2
    assert found.exact == 0.0
    assert found == ask(split, continue_greedily)
