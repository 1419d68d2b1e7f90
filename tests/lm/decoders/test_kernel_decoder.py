"""Generation by the compiled step, against the model's own modules.

Shapes: B batch, K codebooks, T frames, S steps, V codebook size.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from tokkata.core.conditions import GivenConditions, select
from tokkata.core.errors import UserError
from tokkata.lm.decoders.decoder import Prepared, Weights
from tokkata.lm.decoders.kernel_decoder import PackedTransformer
from tokkata.lm.decoders.transformer_decoder import PlainTransformer, prepare_transformer
from tokkata.lm.generate import Generator
from tokkata.lm.sampling import Sampling
from tokkata.lm.transformer import TransformerLM
from tokkata.tests.lm.tiny_lm import EVERYTHING, STYLES, K, V, some_of_everything, tiny


def all_logits(prepared: Prepared, tokens: Tensor, conditions: GivenConditions, first: int) -> Tensor:
    """[R, K, V, S - first + 1]: after the first steps at once, then after each."""
    decoder = prepared.decoder(conditions, tokens.shape[0], tokens.shape[2])
    found = [decoder.feed(tokens[:, :, :first]).clone()]
    decoder.num_seen = first
    for step in range(first, tokens.shape[2]):
        found.append(decoder.feed(tokens[:, :, step : step + 1]).clone())
        decoder.num_seen = step + 1
    return torch.stack(found, dim=-1)


def compared(lm: TransformerLM, weights: Weights, first: int) -> tuple[Tensor, Tensor]:
    """Logits of the plain model and of the compiled step, on the same random tokens."""
    tokens = torch.randint(0, V + 1, (3, K, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain, packed = (
            all_logits(prepared, tokens, some_of_everything(), first)
            for prepared in (PlainTransformer(lm), PackedTransformer(lm, weights))
        )
    return plain, packed


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("first", [1, 5])
def test_float32_is_the_plain_model(style: str, first: int) -> None:
    plain, packed = compared(tiny(EVERYTHING, **STYLES[style]), "fp32", first)
    torch.testing.assert_close(packed, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("style", ["modern", "musicgen"])
@pytest.mark.parametrize(("weights", "bound"), [("bf16", 0.03), ("int8", 0.05)])
def test_narrow_weights_are_near(style: str, weights: Weights, bound: float) -> None:
    plain, packed = compared(tiny(EVERYTHING, dim=64, **STYLES[style]), weights, 3)
    error = (packed - plain).square().mean().sqrt() / plain.square().mean().sqrt()
    assert 0 < error < bound


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
def test_a_clip_does_not_depend_on_its_batch(weights: Weights) -> None:
    lm = tiny(EVERYTHING)
    generator, conditions = Generator(lm, weights=weights), some_of_everything()
    prompt = [torch.randint(0, V, (K, n), generator=torch.Generator().manual_seed(n)) for n in (3, 5, 2)]
    sampling = Sampling(cfg_scale=2.0)
    together = generator.generate(12, conditions=conditions, prompt=prompt, sampling=sampling, seed=3)
    other = generator.generate(12, conditions=conditions, prompt=prompt, sampling=sampling, seed=3)
    assert torch.equal(together, other)
    for i in range(3):
        alone = generator.generate(
            12,
            conditions=select(conditions, slice(i, i + 1)),
            prompt=[prompt[i]],
            sampling=sampling,
            seed=3,
            first_clip=i,
        )
        assert torch.equal(alone[0], together[i])


def test_weights_that_cannot_be_had_are_refused() -> None:
    wide: dict[str, Any] = {"dim": 160, "num_heads": 1}
    with pytest.raises(UserError, match="weights cannot be 'int8' for heads of width 160, above 128"):
        prepare_transformer(tiny(**wide), "int8")
    assert isinstance(prepare_transformer(tiny(**wide), "fp32"), PlainTransformer)


def test_without_a_compiler_float32_is_the_plain_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokkata.lm.decoders.transformer_decoder.load_kernel", lambda name: None)
    monkeypatch.setattr("tokkata.lm.decoders.transformer_kernel.load_kernel", lambda name: None)
    lm = tiny(EVERYTHING)
    assert isinstance(prepare_transformer(lm, "fp32"), PlainTransformer)
    plain, packed = compared(lm, "fp32", 2)
    torch.testing.assert_close(packed, plain, atol=1e-4, rtol=1e-4)
    plain, packed = compared(lm, "int8", 2)
    assert (packed - plain).square().mean().sqrt() < 0.1 * plain.square().mean().sqrt()
