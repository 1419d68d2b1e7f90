"""Adversarial models that take no time, with random weights and a scale found on noise.

Shapes: B batch, D latent width of the codec, T frames.
"""

import dataclasses

import torch

from tokkata.core.conditions import Condition, Conditions
from tokkata.core.schema_gan import (
    DrumGanModel,
    GanSynthModel,
    MusikaModel,
    SpecGanModel,
    VqcpcGanModel,
    WaveGanModel,
)
from tokkata.gan.gan_model import GanConfig, GanModel
from tokkata.tokenize.codec import load_codec

PITCHES = (60, 62, 64)
NUM_TOKENS = 4
NUM_SAMPLES = 1024
RATE = 4000

_IMAGE = {"kind": "instantaneous_frequency", "window": 64, "hop": 32}
_GROWN = {"channels": [8, 8], "noise_dim": 6}
SECTIONS = {
    "wavegan": WaveGanModel(kind="wavegan", channels=2, num_layers=3, kernel=9, noise_dim=5),
    "specgan": SpecGanModel(
        kind="specgan",
        channels=2,
        num_layers=2,
        noise_dim=5,
        representation={"kind": "log_magnitude", "window": 64, "hop": 32, "griffin_lim_steps": 2},
    ),
    "gansynth": GanSynthModel(
        kind="gansynth", representation=_IMAGE | {"num_mels": _IMAGE["window"] // 2}, **_GROWN
    ),
    "drumgan": DrumGanModel(
        kind="drumgan",
        representation={"kind": "complex", "window": 64, "hop": 32},
        descriptors=["brightness", "warmth"],
        **_GROWN,
    ),
    "vqcpc_gan": VqcpcGanModel(kind="vqcpc_gan", representation=_IMAGE, **_GROWN),
    "musika": MusikaModel(
        kind="musika", coordinate_dim=6, style_dim=3, anchor_frames=10, channels=[12, 8, 8]
    ),
}
_PITCH = Condition("pitch", "label", values=PITCHES)
_CONDITIONS = {
    "gansynth": [_PITCH],
    "drumgan": [Condition(name, "number", width=2, maximum=1.0) for name in ("brightness", "warmth")],
    "vqcpc_gan": [_PITCH, Condition("tokens", "sequence", width=NUM_TOKENS)],
}
_NUM_FRAMES = NUM_SAMPLES // 32
EXAMPLES = {
    "gansynth": [{"id": f"clip {pitch}", "told": {"pitch": pitch}} for pitch in PITCHES],
    "drumgan": [{"id": f"clip {i}", "told": {"brightness": i / 4, "warmth": 1 - i / 4}} for i in range(5)],
    "vqcpc_gan": [
        {
            "id": f"clip {i}",
            "told": {"pitch": PITCHES[i], "tokens": [(i + t // 5) % NUM_TOKENS for t in range(_NUM_FRAMES)]},
        }
        for i in range(3)
    ],
}


def make_gan(kind, codec=None, examples=True):
    """A model of one kind; `codec` is that of a Musika."""
    torch.manual_seed(0)
    info = (load_codec(f"linear:{RATE}") if codec is None else codec).info
    model = GanModel(
        GanConfig(
            section=SECTIONS[kind],
            codec=dataclasses.asdict(dataclasses.replace(info, latents="latents")),
            num_frames=NUM_SAMPLES if codec is None else 21,
            conditions=Conditions(tuple(_CONDITIONS.get(kind, []))),
            examples=EXAMPLES.get(kind, []) if examples else [],
        )
    )
    model.fit(0.3 * torch.randn(8, info.latent_dim, model.config.num_frames))
    return model.eval()
