"""VGGish (Hershey et al., arXiv:1609.09430): the network of the first Fréchet audio distance.

Shapes: B clips, N samples, F spectrogram frames, M = 64 mel bands, T patches of a clip, P of all, D = 128.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.released_file import ReleasedFile, released_file, sha256_of
from ..embedding import Embedding, EmbeddingInfo, check_mono
from .mel_filters import htk_mel_filters, mel_magnitudes

# Constants of the AudioSet release's vggish_params.
SAMPLE_RATE = 16000
WINDOW, HOP, FFT = 400, 160, 512  # samples: windows of 25 ms every 10 ms, filled up to 512
NUM_MELS, MIN_HZ, MAX_HZ = 64, 125.0, 7500.0
OFFSET = 0.01
PATCH = 96  # spectrogram frames: 0.96 s

GOOGLE_WINDOW, GOOGLE_HOP = 16000, 8000  # samples
GOOGLE_LEAST_PEAK = 0.1  # audio is made louder by at most 20 dB

CHANNELS = (64, 128, 256, 256, 512, 512)
HIDDEN, WIDTH = 4096, 128
PATCHES_AT_ONCE = 64

URL = "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth"


class VggishNetwork(nn.Module):
    """VGG with six convolutions and three linear layers; parameters are named as in the published file.

    There is no activation behind the last layer, and no PCA: a Gaussian does not fit what they leave.
    """

    def __init__(
        self, channels: tuple[int, ...] = CHANNELS, hidden: int = HIDDEN, width: int = WIDTH
    ) -> None:
        super().__init__()
        pooled = (0, 1, 3, 5)  # convolutions that a pooling follows
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(zip((1, *channels[:-1]), channels, strict=True)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
            if number in pooled:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.width = width
        flat = channels[-1] * (PATCH // 16) * (NUM_MELS // 16)
        self.embeddings = nn.Sequential(
            nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Log-mel patches `[P, 96, 64]` to `[P, D]`."""
        maps = self.features(patches[:, None])  # [P, channels, 6, 4]
        # The weights were trained where channels come last.
        embedded: Tensor = self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))
        return embedded


class VggishFrontEnd:
    """Audio to log-mel patches `[96, 64]`, as VGGish was trained on.

    16 kHz mono; windows of 400 samples every 160 (periodic Hann, no centring), filled up with zeros to an FFT
    of 512; magnitudes, not powers; 64 triangular HTK-mel bands, 125–7500 Hz; ln(x + 0.01); patches of 96
    windows. How the patches lie is what sets two common ways apart:

    - `vggish`, as in the torch ports: patch after patch, every 0.96 s, of audio as loud as it is;
    - `vggish-google`, as in Google's `frechet_audio_distance`: the clip is divided by its greatest sample
      (not its greatest magnitude; at most by 0.1), then a patch is taken from the beginning of each second
      that starts every 8000 samples and lies in the clip whole.
    """

    def __init__(self, google: bool, device: torch.device) -> None:
        self.google = google
        filters = htk_mel_filters(FFT // 2 + 1, NUM_MELS, MIN_HZ, MAX_HZ, SAMPLE_RATE)
        self._filters = filters.to(device, torch.float32)  # [FFT / 2 + 1, M]
        self._window = torch.hann_window(WINDOW, device=device)

    def num_patches(self, num_samples: int) -> int:
        """Patches of a clip; 0 if it is shorter than 0.975 s (`vggish-google`: 1 s)."""
        if self.google:
            return max(0, (num_samples - GOOGLE_WINDOW) // GOOGLE_HOP + 1)
        num_windows = (num_samples - WINDOW) // HOP + 1
        return max(0, num_windows // PATCH)

    def patches(self, audio: Tensor) -> Tensor:
        """Audio `[B, 1, N]` to `[B, T, 96, 64]`."""
        count = self.num_patches(audio.shape[-1])
        samples = audio[:, 0].to(self._filters)
        if not count:
            return samples.new_zeros(len(samples), 0, PATCH, NUM_MELS)
        if self.google:
            samples = samples / samples.amax(-1, keepdim=True).clamp(min=GOOGLE_LEAST_PEAK)
        step = GOOGLE_HOP // HOP if self.google else PATCH
        mels = self.log_mel(samples)
        return mels.unfold(1, PATCH, step)[:, :count].transpose(2, 3)  # Google's leaves 2 windows a second

    def log_mel(self, samples: Tensor) -> Tensor:
        """Samples `[B, N]` to log-mel `[B, F, 64]`."""
        return mel_magnitudes(samples, self._window, HOP, self._filters).add_(OFFSET).log_()


class Vggish(Embedding):
    """VGGish's 128 values a patch of 0.96 s; `VggishFrontEnd` says what is done to the audio.

    Source: S. Hershey et al., CNN Architectures for Large-Scale Audio Classification, arXiv:1609.09430; used
    for a distance by Kilgour et al., arXiv:1812.08466. The weights are those of Google's release, as
    converted by https://github.com/harritaylor/torchvggish (`URL`). It correlates weakly with what listeners
    say of music and of environmental sound; its merit is that so many published scores are in it.
    """

    def __init__(self, name: str, network: VggishNetwork, version: str, device: torch.device) -> None:
        google = name == "vggish-google"
        loudness = "divided by its greatest sample (at least 0.1)" if google else "as loud as it is"
        hop = GOOGLE_HOP if google else PATCH * HOP
        super().__init__(
            EmbeddingInfo(
                name=name,
                version=version,
                sample_rate=SAMPLE_RATE,
                width=network.width,
                frame_s=(WINDOW + (PATCH - 1) * HOP) / SAMPLE_RATE,
                hop_s=hop / SAMPLE_RATE,
                preprocessing=(
                    f"{loudness}; log-mel patches 96 x 64 (25/10 ms, 125-7500 Hz, ln(x + 0.01)) every"
                    f" {hop / SAMPLE_RATE:g} s; no PCA, no final ReLU"
                ),
                source=f"arXiv:1609.09430, {URL}",
            )
        )
        self._front_end = VggishFrontEnd(google, device)
        self._network = network.requires_grad_(False).eval().to(device)

    def frames(self, num_samples: int) -> int:
        """Patches of a clip; 0 if it is shorter than 0.975 s (`vggish-google`: 1 s)."""
        return self._front_end.num_patches(num_samples)

    @torch.no_grad()
    def embed(self, audio: Tensor) -> Tensor:
        """Audio `[B, 1, N]` to `[B, T, 128]`."""
        check_mono(audio)
        patches = self._front_end.patches(audio)
        if not patches.numel():
            return patches.new_zeros(*patches.shape[:2], self.info.width)
        embedded = [self._network(piece) for piece in torch.split(patches.flatten(0, 1), PATCHES_AT_ONCE)]
        return torch.cat(embedded).reshape(*patches.shape[:2], self.info.width)


def published_weights() -> ReleasedFile:
    """The published file; it lies where torch.hub keeps it, and its name tells the start of its hash."""
    name = URL.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    return ReleasedFile(URL, path, Path(name).stem.split("-")[1])


def load_vggish(name: str, weights: Path | None, device: torch.device) -> Vggish:
    """VGGish with the published weights, or with those of a .pth or .safetensors file.

    Raises `UserError` if the weights cannot be had, are damaged, or are of another network.
    """
    path = released_file(f"embedding {name}", published_weights()) if weights is None else weights
    if not path.is_file():
        raise UserError(f"embedding {name}: there is no file {path}; the weights are published at {URL}")
    state = _read(path)
    with torch.device("meta"):
        network = VggishNetwork()
    wanted = network.state_dict()
    faults = {
        "missing": wanted.keys() - state.keys(),
        "not expected": state.keys() - wanted.keys(),
        "of another shape": {
            key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape
        },
    }
    told = [f"{kind}: {', '.join(sorted(keys)[:3])}" for kind, keys in faults.items() if keys]
    if told:
        raise UserError(f"{path} holds no weights of VGGish; {'; '.join(told)}")
    network.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    return Vggish(name, network, sha256_of(path)[:12], device)


def _read(path: Path) -> Mapping[str, Tensor]:
    damaged = f"{path} is no file of weights, or a damaged one: delete it, and get it from {URL}"
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(damaged) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(damaged)
    return state
