"""How far bf16 and int8 weights move a trained model's predictions.

    python tests/benchmarks/drift_of_weights.py RUN [--split valid] [--clips 8] [--frames 100]

RUN is the folder of a run whose model is a Transformer. The model is fed real clips step by step, as
generation feeds it; printed are the mean KL divergence from the predictions in float32 to those in the other
formats, in nats a token, the share of tokens with the same likeliest one, and the cross-entropy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tokkata.core.conditions import GivenConditions
from tokkata.lm.batches import TokenBatches
from tokkata.lm.decoders.decoder import Weights
from tokkata.lm.decoders.kernel_decoder import PackedTransformer
from tokkata.lm.transformer import TransformerLM
from tokkata.tokenize.store import TokenStore


def predictions(lm: TransformerLM, weights: Weights, codes: Tensor, given: GivenConditions) -> Tensor:
    """Log-probabilities [B, K, T, V] of the tokens of codes [B, K, T], each given all before it."""
    special = lm.config.special
    tokens = F.pad(lm.pattern.apply(codes, special), (1, 0), value=special)
    num_steps = tokens.shape[2] - 1
    steps = lm.pattern.steps(codes.shape[2])  # [K, T]
    with torch.inference_mode():
        decoder = PackedTransformer(lm, weights).decoder(given, codes.shape[0], num_steps)
        found = []
        for step in range(num_steps):
            found.append(decoder.feed(tokens[:, :, step : step + 1]).log_softmax(-1))
            decoder.num_seen = step + 1
        everything = torch.stack(found, dim=2)  # [B, K, S, V]
        index = steps[None, :, :, None].expand(*codes.shape, everything.shape[-1])
        return everything.gather(2, index)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--split", default="valid")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=100)
    args = parser.parse_args()
    store = TokenStore(args.run / "tokens")
    lm = TransformerLM.from_pretrained(args.run / "model")
    split = store.split(args.split)
    batches = TokenBatches(store, split, lm.config.conditions, args.frames)
    long_enough = [clip for clip in batches.known(range(len(split))) if split.num_frames[clip] >= args.frames]
    crops = [(clip, 0) for clip in long_enough[: args.clips]]
    codes = torch.stack([torch.from_numpy(split.codes(clip, 0, args.frames)) for clip, _ in crops])
    given = batches.given(crops)
    exact = predictions(lm, "fp32", codes, given)
    print(f"{codes.numel()} tokens of {len(crops)} clips")
    print("| weights | KL, nats a token | same likeliest token | cross-entropy |")
    for weights in ("fp32", "bf16", "int8"):
        found = predictions(lm, weights, codes, given)
        kl = (exact.exp() * (exact - found)).sum(-1).mean()
        same = (exact.argmax(-1) == found.argmax(-1)).float().mean()
        entropy = -found.gather(-1, codes[..., None]).mean()
        print(f"| {weights} | {kl:.2e} | {same:.2%} | {entropy:.4f} |")


if __name__ == "__main__":
    main()
