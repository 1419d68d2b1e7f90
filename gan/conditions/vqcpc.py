"""The encoder whose tokens VQCPC-GAN follows (arXiv:2105.01531): contrastive predictive coding
(arXiv:1807.03748) through a codebook (arXiv:2004.10120).

Each frame of a log-mel spectrogram becomes one token, from itself and the frames beside it. A recurrent
network reads the tokens' entries from left to right and predicts those some frames ahead, which it has to
tell from entries of other frames. Those are of the same clip: what a clip has in all its frames, such as its
pitch, then helps to tell nothing, so that tokens say how a sound evolves, and conditions the rest. It also
makes a step the same, whoever computes which rows of its batch.

`vector-quantize-pytorch` has the codebook, with entries that are learned by gradient, so that nothing changes
outside the optimizer.

Shapes: B batch, N samples, M mel bands, T frames, E width of a frame, n wrong frames for each right one,
V tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vector_quantize_pytorch import VectorQuantize

from ...core.device import best_device
from ...core.errors import UserError
from ...core.files import write_json
from ...core.job import Batch, Job, Loss, Phase
from ...core.loop import step_seed, train
from ...core.optimizer import adamw
from ...core.run import is_main_process
from ...core.sampler import CropSampler
from ...core.schema import Recipe
from ...core.schema_gan import VqcpcGanModel
from ...tokenize.store import TokenSplit, TokenStore
from ...tokenize.training.kmeans import start_codebooks
from ..crops import some_clips
from .listeners import (
    NUM_EXAMPLES,
    SEED,
    Listener,
    LogMel,
    loop_settings,
    read_audio,
    save,
    scale_of,
    whole_clips,
)
from .prepared import ABOUT_TOKENS, ENCODER, TOKENS_FILE, write_by_clip

_CROP_FRAMES = 64
_VALID_CLIPS = 64


@dataclass(frozen=True)
class VqcpcConfig:
    """What decides the network; `config.json`."""

    sample_rate_hz: int
    window: int
    hop: int
    """Samples a token."""
    num_mels: int
    dim: int
    num_tokens: int
    predicted_steps: int
    log_mel_mean: float
    log_mel_std: float


@dataclass(frozen=True)
class VqcpcOutput:
    """What one pass gives; the first three are scalars."""

    prediction: Tensor
    """InfoNCE (arXiv:1807.03748, eq. 4), nats a prediction."""
    accuracy: Tensor
    """Share of the wrong frames with another token than the right one that score lower; by chance 1/2."""
    commitment: Tensor
    """Mean squared distance of frames and entries; 0 in evaluation."""
    num_predictions: int
    tokens: Tensor  # [B, T] int64


class Vqcpc(Listener):
    """Encoder, codebook, and the networks that predict."""

    kind = "encoder"
    config_class = VqcpcConfig
    config: VqcpcConfig

    def __init__(self, config: VqcpcConfig) -> None:
        super().__init__()
        self.config = config
        dim, hidden = config.dim, 4 * config.dim
        self.log_mel = LogMel(
            config.sample_rate_hz,
            config.window,
            config.hop,
            config.num_mels,
            config.log_mel_mean,
            config.log_mel_std,
        )
        self.encoder = nn.Sequential(
            nn.Conv1d(config.num_mels, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv1d(hidden, hidden, 1),
            nn.SiLU(),
            nn.Conv1d(hidden, dim, 1),
        )
        # Frames that could grow would run away from their entries.
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.quantizer = VectorQuantize(
            dim, config.num_tokens, learnable_codebook=True, ema_update=False, rotation_trick=False
        )
        self.context = nn.GRU(dim, 2 * dim, batch_first=True)
        self.predictors = nn.Linear(2 * dim, config.predicted_steps * dim)

    def frames(self, audio: Tensor) -> Tensor:
        """Audio `[B, N]` to frames `[B, T, E]` before they are tokens."""
        found: Tensor = self.norm(self.encoder(self.log_mel(audio)).transpose(1, 2))
        return found

    @torch.no_grad()
    def start_codebook(self, audio: Tensor) -> None:
        """Let entries begin as the centres of the frames of audio `[B, N]`; draws from torch's generator."""
        frames = self.frames(audio).flatten(0, 1)
        self.quantizer.codebook = start_codebooks(frames, self.config.num_tokens)

    def forward(self, audio: Tensor, draws: Tensor) -> VqcpcOutput:
        """Audio `[B, N]`; `draws` `[B, T, n]`, evenly between 0 and 1, choose each frame's wrong ones."""
        entries, tokens, commitment = self.quantizer(self.frames(audio))
        num_frames = entries.shape[1]
        # Never the frame itself: 1 to T − 1 frames further on, and from the end on from the beginning.
        ahead = 1 + (draws * (num_frames - 1)).long().clamp(max=num_frames - 2)
        own = torch.arange(num_frames, device=draws.device)[:, None]
        # Each frame's own number, and those of its wrong ones.
        candidates = torch.cat([own.expand(len(entries), -1, -1), (own + ahead) % num_frames], dim=2)
        differ = tokens[:, :, None] != tokens[:, None].expand(-1, num_frames, -1).gather(2, candidates)
        steps = range(1, self.config.predicted_steps + 1)
        context, _ = self.context(entries)
        predicted = self.predictors(context).chunk(len(steps), dim=2)
        scores = torch.cat(
            [
                (one[:, : num_frames - k] @ entries.mT).gather(2, candidates[:, k:])
                for k, one in zip(steps, predicted, strict=True)
            ],
            dim=1,
        ).flatten(0, 1)
        differ = torch.cat([differ[:, k:, 1:] for k in steps], dim=1).flatten(0, 1)
        right = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        return VqcpcOutput(
            F.cross_entropy(scores, right),
            ((scores[:, :1] > scores[:, 1:]) & differ).sum() / differ.sum().clamp(min=1),
            commitment.sum(),
            len(scores),
            tokens,
        )

    @torch.no_grad()
    def tokens(self, audio: Tensor) -> Tensor:
        """Audio `[B, N]` to tokens `[B, T]`, one for each hop begun, as `ShortTime` has them."""
        tokens: Tensor = self.quantizer(self.frames(audio))[1]
        return tokens


def loss(modules: Mapping[str, nn.Module], batch: Batch) -> Loss:
    """Of the module `encoder`; `batch["audio"]` is `[B, N]`, `batch["draws"]` `[B, T, n]`."""
    out: VqcpcOutput = modules["encoder"](batch["audio"], batch["draws"])
    weight = torch.full((), float(out.num_predictions), device=out.prediction.device)
    metrics = {"prediction": out.prediction, "accuracy": out.accuracy, "commitment": out.commitment}
    return Loss(out.prediction + out.commitment, weight, metrics)


def train_encoder(recipe: Recipe, store: TokenStore) -> None:
    """Write `encoder/`, but for its tokens; killed, it goes on where it was."""
    section = recipe.model
    assert isinstance(section, VqcpcGanModel)
    settings, image = section.encoder, section.representation
    split, valid = store.split("train"), store.split("valid")
    config = loop_settings(recipe, settings.steps)
    longest = int(split.num_frames.max())
    num_frames = min(_CROP_FRAMES, -(-longest // image.hop))
    if num_frames <= settings.predicted_steps:
        raise UserError(
            f"model.encoder.predicted_steps is {settings.predicted_steps}, but the longest clip has"
            f" {num_frames} frames of model.representation.hop {image.hop}: lower one of them"
        )
    num_samples = num_frames * image.hop
    unscaled = LogMel(store.info.sample_rate, image.window, image.hop, settings.num_mels)
    examples = read_audio(split, [(clip, 0) for clip in some_clips(split, NUM_EXAMPLES)], num_samples)
    scale = scale_of(unscaled, examples)
    torch.manual_seed(SEED)
    encoder = Vqcpc(
        VqcpcConfig(
            store.info.sample_rate,
            image.window,
            image.hop,
            settings.num_mels,
            settings.dim,
            settings.num_tokens,
            settings.predicted_steps,
            scale.mean,
            scale.std,
        )
    )
    encoder.start_codebook(examples)
    sampler = CropSampler(split.num_frames, num_samples, SEED)

    def batch(step: int, rows: range) -> Batch:
        crops = [(c.clip, c.start) for c in sampler.draw(step, config.batch_size, rows)]
        draws = [_draws(num_frames, settings.num_negatives, 2, step, row) for row in rows]
        return {"audio": read_audio(split, crops, num_samples), "draws": torch.stack(draws)}

    held_out = _fixed(valid, num_samples, num_frames, settings.num_negatives) if len(valid) else None
    folder = recipe.folder / ENCODER
    train(
        Job(
            modules={"encoder": encoder},
            phases=[Phase("encoder", "encoder", adamw(encoder, config), loss)],
            averaged="encoder",
            batch=batch,
            validate=lambda module: {} if held_out is None else scores_of(module, held_out),
            save=lambda module, _: save(module, folder / "model"),
            unit="predictions",
        ),
        config,
        folder,
    )


def _draws(num_frames: int, num_negatives: int, *seeds: int) -> Tensor:
    generator = torch.Generator().manual_seed(step_seed(SEED, *seeds))
    return torch.rand(num_frames, num_negatives, generator=generator)


def _fixed(split: TokenSplit, num_samples: int, num_frames: int, num_negatives: int) -> Batch:
    clips = some_clips(split, _VALID_CLIPS)
    # From the beginning of the first to about the end of the last: beginnings alone hold no endings.
    rooms = [max(0, int(split.num_frames[clip]) - num_samples) for clip in clips]
    crops = [(clip, i * room // len(clips)) for i, (clip, room) in enumerate(zip(clips, rooms, strict=True))]
    return {
        "audio": read_audio(split, crops, num_samples),
        "draws": torch.stack([_draws(num_frames, num_negatives, 3, clip) for clip in clips]),
    }


@torch.no_grad()
def scores_of(encoder: nn.Module, batch: Batch) -> dict[str, float]:
    """Of held-out clips: `loss` and `accuracy` of predictions, and how many tokens are in use (the
    exponential of the entropy of their shares)."""
    device = next(encoder.parameters()).device
    out: VqcpcOutput = encoder(batch["audio"].to(device), batch["draws"].to(device))
    shares = out.tokens.flatten().bincount().float() / out.tokens.numel()
    used = torch.exp(-torch.special.xlogy(shares, shares).sum())
    return {"loss": float(out.prediction), "accuracy": float(out.accuracy), "tokens_used": float(used)}


def prepare_encoder(recipe: Recipe) -> None:
    """Train the encoder and write the tokens of all clips: the stage `prepare` of a VQCPC-GAN.

    `tokens.safetensors` has tokens `[T]` under each clip's id, uint8 or int16; `tokens.json` how many there
    are, and which one silence is.
    """
    store = TokenStore(recipe.folder / "tokens")
    train_encoder(recipe, store)
    if not is_main_process():
        return
    folder = recipe.folder / ENCODER
    device = best_device()
    encoder = Vqcpc.load(folder / "model").to(device)
    config = encoder.config
    kind = torch.uint8 if config.num_tokens <= 256 else torch.int16
    found: dict[str, Tensor] = {}
    for clips in whole_clips(store):
        tokens = encoder.tokens(clips.audio.to(device)).to("cpu", kind)
        found |= dict(zip(clips.ids, tokens, strict=True))
    write_by_clip(folder / TOKENS_FILE, found)
    silence = encoder.tokens(torch.zeros(1, 4 * max(config.window, config.hop), device=device))[0]
    about = {
        "num_tokens": config.num_tokens,
        "hop": config.hop,
        "silence": int(silence[len(silence) // 2]),
    }
    write_json(folder / ABOUT_TOKENS, about)
