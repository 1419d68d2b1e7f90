"""How far the `transformers` ports of EnCodec and DAC are from the original packages, at the published sizes.

    python tests/benchmarks/parity_codecs.py [--seconds 60]

Both get the same random weights and the same made audio, so nothing is downloaded. The table counts codes
that differ, which happens where two entries of a codebook are equally near but for rounding, and gives the
largest differences of latents and of audio decoded from the same codes, over 5 s.
"""

import argparse
import tempfile
import warnings
from dataclasses import dataclass

import encodec
import torch
from encodec.modules import SEANetDecoder, SEANetEncoder
from encodec.quantization import ResidualVectorQuantizer
from rich.console import Console
from rich.table import Table

from tokkata.core.progress import hide_library_bars
from tokkata.tokenize.codec import Codec, load_codec
from tokkata.tokenize.families.codec_dac import to_hub
from tokkata.tokenize.families.codec_original import RELEASES, encodec_to_hub, wrap_dac, wrap_encodec

CLIP_S = 5


def made_audio(channels, sample_rate, seconds, seed=0):
    """Clips `[B, C, 5 s]` of decaying notes with six overtones and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    num_clips = max(1, seconds // CLIP_S)
    time = torch.arange(CLIP_S * sample_rate) / sample_rate
    clips = 0.01 * torch.randn(num_clips, channels, len(time), generator=generator)
    for clip in clips:
        for begin in range(0, 2 * CLIP_S):
            pitch = 40 + 45 * torch.rand(channels, 1, generator=generator)
            hertz = 440 * 2 ** ((pitch - 69) / 12)
            since = time - begin / 2
            for overtone in range(1, 7):
                tone = torch.sin(2 * torch.pi * overtone * hertz * since) * torch.exp(-3 * overtone * since)
                clip += torch.where(since >= 0, 0.25 / overtone * tone, 0.0)
    return clips


def fill_codebooks(model):
    """Entries of EnCodec's empty codebooks out of what its encoder gives."""
    audio = made_audio(model.channels, model.sample_rate, CLIP_S, seed=1)
    segment = model.segment_length or audio.shape[-1]
    latents = torch.cat([model.encoder(piece) for piece in audio.split(segment, dim=-1)], dim=-1)[0].T
    for layer in model.quantizer.vq.layers:
        codebook = layer._codebook
        chosen = torch.randint(len(latents), (codebook.codebook_size,))
        codebook.embed.copy_(
            latents[chosen] + 0.1 * latents.std() * torch.randn(len(chosen), latents.shape[1])
        )
        codebook.inited.fill_(1)
        latents = latents - layer.decode(layer.encode(latents.T[None]))[0].T


def build_encodec_32khz():
    """The sizes of MusicGen's EnCodec, which the package `encodec` can build but does not publish."""
    sizes = {"channels": 1, "n_filters": 64, "ratios": [8, 5, 4, 4], "true_skip": True, "causal": False}
    return encodec.EncodecModel(
        SEANetEncoder(**sizes),
        SEANetDecoder(**sizes),
        ResidualVectorQuantizer(dimension=128, n_q=4, bins=2048),
        target_bandwidths=[2.2],
        sample_rate=32000,
        channels=1,
    )


def encodec_pair(original, bandwidth_kbps) -> tuple[Codec, Codec]:
    original.eval()
    fill_codebooks(original)
    with tempfile.TemporaryDirectory() as folder:
        encodec_to_hub(original).save_pretrained(folder)
        port = load_codec(folder, bandwidth_kbps=bandwidth_kbps)
    return wrap_encodec("original", None, original, bandwidth_kbps), port


def dac_pair(original) -> tuple[Codec, Codec]:
    original.eval()
    original(torch.zeros(1, 1, 1024))  # the weight norm's hook computes the weights that to_hub copies
    with tempfile.TemporaryDirectory() as folder:
        to_hub(original).save_pretrained(folder)
        port = load_codec(folder)
    return wrap_dac("original", None, original, original.n_codebooks), port


PAIRS = {
    "EnCodec 24 kHz, 24 kbps": lambda: encodec_pair(RELEASES["encodec:24khz"].build(), 24.0),
    "EnCodec 32 kHz, 2.2 kbps": lambda: encodec_pair(build_encodec_32khz(), 2.2),
    "EnCodec 48 kHz, 24 kbps": lambda: encodec_pair(RELEASES["encodec:48khz"].build(), 24.0),
    "DAC 16 kHz": lambda: dac_pair(RELEASES["dac:16khz"].build()),
    "DAC 24 kHz": lambda: dac_pair(RELEASES["dac:24khz"].build()),
    "DAC 44.1 kHz": lambda: dac_pair(RELEASES["dac:44khz"].build()),
}


@dataclass
class Differences:
    """What two codecs make of the same clips."""

    codes: int = 0
    used: int = 0
    """Different codes that one clip has in the first codebook."""
    differing: int = 0
    frames: int = 0
    """Frames with a differing code."""
    latents: float = 0.0
    audio: float = 0.0

    def add_codes(self, original: Codec, port: Codec, audio: torch.Tensor) -> None:
        first, second = (codec.encode_segments(audio) for codec in (original, port))
        differs = first.codes != second.codes
        self.codes += differs.numel()
        self.differing += int(differs.sum())
        self.frames += int(differs.any(dim=1).sum())
        self.used = max(self.used, len(first.codes[:, 0].unique()))

    def add_signals(self, original: Codec, port: Codec, audio: torch.Tensor) -> None:
        first = original.encode_segments(audio)
        latents = [codec.encode_latents(audio) for codec in (original, port)]
        self.latents = max(self.latents, float((latents[0] - latents[1]).abs().max()))
        decoded = [codec.decode(first.codes, audio.shape[-1], first.gains) for codec in (original, port)]
        self.audio = max(self.audio, float((decoded[0] - decoded[1]).abs().max()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="audio for each codec")
    seconds = parser.parse_args().seconds
    warnings.filterwarnings("ignore", category=FutureWarning)
    hide_library_bars()
    table = Table("codec", "codes", "differing", "rate", "frames", "used of codebook 1", "|Δz|", "|Δaudio|")
    with torch.no_grad():
        for name, build in PAIRS.items():
            torch.manual_seed(0)
            original, port = build()
            found = Differences()
            clips = made_audio(original.channels, original.sample_rate, seconds)
            for clip in clips:
                found.add_codes(original, port, clip[None])
            found.add_signals(original, port, clips[:1])
            table.add_row(
                name,
                str(found.codes),
                str(found.differing),
                f"{found.differing / found.codes:.1e}",
                str(found.frames),
                str(found.used),
                f"{found.latents:.1e}",
                f"{found.audio:.1e}",
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
