"""Step after step: the same logits as of the whole sequence, and nothing is touched but what is sampled.

Shapes: R rows, K codebooks, S steps, V codebook size.
"""

import pytest
import torch
from torch import Tensor

from tokkata.lm.decoders.decoder import Draft
from tokkata.lm.decoders.transformer_decoder import PlainTransformer
from tokkata.lm.sampling import Sampling
from tokkata.tests.lm.tiny_lm import (
    EVERYTHING,
    PATTERNS,
    STYLES,
    K,
    V,
    random_codes,
    shifted,
    some_of_everything,
    tiny,
)


@pytest.mark.parametrize("sizes", [[1] * 7, [7], [4, 1, 2]])
@pytest.mark.parametrize("style", STYLES)
def test_fed_in_parts_is_the_whole(style: str, sizes: list[int]) -> None:
    lm, given = tiny(EVERYTHING, **STYLES[style]), some_of_everything()
    _, inputs = shifted(lm, random_codes(3, num_frames=5))
    assert inputs.shape[2] == 7
    with torch.no_grad():
        expected = lm.logits(inputs, given)
        decoder = PlainTransformer(lm).decoder(given, 3, 7)
        found = [decoder.feed(part) for part in inputs.split(sizes, dim=2)]
    last = torch.tensor(sizes).cumsum(0) - 1
    torch.testing.assert_close(torch.stack(found, dim=2), expected[:, :, last], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_given_tokens_and_empty_places_are_left_alone(pattern: str) -> None:
    lm = tiny(pattern=pattern)
    codes = random_codes(2, num_frames=6)
    given = torch.rand(2, K, 6, generator=torch.Generator().manual_seed(0)) < 0.4
    sequence = lm.pattern.apply(codes.where(given, V), V)
    begin = torch.full((2, K, 1), V)
    tokens = torch.cat([begin, sequence], dim=2)
    to_sample = lm.pattern.apply((~given).long(), 0).bool()
    draft = Draft(tokens.clone(), to_sample, torch.rand(to_sample.shape), Sampling())
    with torch.no_grad():
        PlainTransformer(lm).decoder({}, 2, to_sample.shape[2]).run(draft, 0, to_sample.shape[2])
    assert torch.equal(draft.tokens[:, :, :1], begin)
    found = draft.tokens[:, :, 1:]
    assert torch.equal(found[~to_sample], sequence[~to_sample])
    assert bool((found[to_sample] < V).all())


def test_run_in_parts_is_run_at_once() -> None:
    lm = tiny(scale=20.0)

    def sampled(stops: list[int]) -> Tensor:
        to_sample = lm.pattern.mask(8)[None].expand(2, -1, -1)
        noise = torch.rand(2, K, 10, generator=torch.Generator().manual_seed(3))
        draft = Draft(torch.full((2, K, 11), V), to_sample, noise, Sampling(top_k=6))
        decoder = PlainTransformer(lm).decoder({}, 2, 10)
        with torch.no_grad():
            for start, stop in zip([0, *stops], [*stops, 10], strict=True):
                decoder.run(draft, start, stop)
        return draft.tokens

    assert torch.equal(sampled([]), sampled([1, 4, 9]))


def test_guidance_gives_both_halves_the_same_tokens() -> None:
    lm = tiny()
    fed: list[Tensor] = []
    decoder = PlainTransformer(lm).decoder({}, 4, 5)
    feed = decoder.feed

    def watch(tokens: Tensor) -> Tensor:
        fed.append(tokens)
        return feed(tokens)

    decoder.feed = watch  # type: ignore[method-assign]
    draft = Draft(
        torch.full((2, K, 6), V),
        torch.ones(2, K, 5, dtype=torch.bool),
        torch.rand(2, K, 5),
        Sampling(cfg_scale=2.0),
    )
    with torch.no_grad():
        decoder.run(draft, 0, 5)
    assert [tokens.shape for tokens in fed] == [(4, K, 1)] * 5
    for step, tokens in enumerate(fed):
        assert torch.equal(tokens[:2], tokens[2:])
        assert torch.equal(tokens[:2, :, 0], draft.tokens[:, :, step])
