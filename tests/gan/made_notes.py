"""A store of synthesised notes, sample by sample, and recipes that listen to them."""

import dataclasses

import numpy as np

from tokkata.core.recipe import check_recipe
from tokkata.tokenize.codec import load_codec
from tokkata.tokenize.store import TokenRow, TokenStore, TokenWriter

RATE = 8000
NUM_SAMPLES = 4000
BREATH, TONE, REST = range(3)
"""What is heard in a note, one after another."""

DECAY_PER_S = {"organ": 0.0, "pluck": 6.0}


def note(number, rng):
    """A note of one of two instruments: samples, and what is heard at each of them."""
    time = np.arange(NUM_SAMPLES) / RATE
    begin, end = 0.06 + 0.06 * rng.random(), 0.28 + 0.12 * rng.random()
    what = np.where(time < begin, BREATH, np.where(time < end, TONE, REST))
    family = list(DECAY_PER_S)[number % 2]
    frequency = (220, 277, 330)[number % 3]
    partials = range(1, 3) if family == "organ" else range(1, 9)
    tone = sum(np.sin(2 * np.pi * frequency * k * time + rng.random()) / k for k in partials)
    tone *= np.exp(-DECAY_PER_S[family] * np.maximum(0, time - begin))
    loud = np.select([what == BREATH, what == TONE], [0.4 * rng.normal(size=NUM_SAMPLES), tone], 0.0)
    hiss = 0.003 * rng.normal(size=NUM_SAMPLES)
    return (0.3 * loud + hiss).astype(np.float32), what, family


def write_notes(recipe, valid_pitch=60, **num_clips):
    """`write_notes(recipe, train=24, valid=8)`; returns what is heard at each sample, by clip.

    Labels of pitch go up from 60, in the split `valid` from `valid_pitch`.
    """
    info = dataclasses.replace(load_codec(f"linear:{RATE}").info, latents="latents")
    rng = np.random.default_rng(0)
    rows, heard = [], {}
    for split, number in num_clips.items():
        for i in range(number):
            samples, what, family = note(i, rng)
            heard[f"{split}-{i:02d}"] = what
            rows.append(
                TokenRow(
                    id=f"{split}-{i:02d}",
                    split=split,
                    codes=None,
                    num_samples=NUM_SAMPLES,
                    source=f"{split} {i}",
                    sha256="",
                    labels={
                        "pitch": (valid_pitch if split == "valid" else 60) + i % 3,
                        "instrument_family": family,
                    },
                    caption=None,
                    latents=samples[None],
                    latents_scale=None,
                )
            )
    writer = TokenWriter(recipe.folder / "tokens", info, {"pitch": int, "instrument_family": str}, 1)
    writer.write(0, rows, [])
    writer.finish()
    return heard


def store_of(recipe):
    return TokenStore(recipe.folder / "tokens")


def recipe_of(folder, model, **train):
    """A checked recipe whose run lies in `folder`."""
    image = {"kind": "instantaneous_frequency", "window": 256, "hop": 100}
    return check_recipe(
        {
            "name": "run",
            "runs_dir": str(folder),
            "data": {"kind": "synth"},
            "codec": {"kind": "linear", "sample_rate_hz": RATE},
            "tokenize": {"store": "latents"},
            "model": {"conditions": ["pitch"], "representation": image} | model,
            "train": {"steps": 2, "batch_size": 4, "crop_s": NUM_SAMPLES / RATE} | train,
        }
    )


def darkgan(folder, teacher, **train):
    return recipe_of(folder, {"kind": "darkgan", "teacher": teacher}, **train)


def vqcpc_gan(folder, encoder, **train):
    small = {"num_mels": 16, "dim": 16, "num_tokens": 8, "num_negatives": 8, "predicted_steps": 3}
    return recipe_of(folder, {"kind": "vqcpc_gan", "encoder": small | encoder}, **train)
