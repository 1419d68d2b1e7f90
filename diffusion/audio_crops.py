"""Training from audio, with the codec in the loop: crops of samples, which are encoded where they are needed.

A crop begins at any sample, not only where a stored frame does, and is encoded by itself: at its two ends the
encoder sees silence instead of what stands there in the clip.

Shapes: B batch, C channels, N samples, D latent width, T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.job import Batch
from ..core.sampler import CropSampler
from ..tokenize.codec import Codec, CodecInfo
from ..tokenize.families.codec_oobleck import HubOobleck
from ..tokenize.latent_coding import latent_coding
from ..tokenize.store import TokenSplit
from ..tokenize.training.audio_store import AudioStore


class AudioCrops:
    """The clips of a split as audio, in crops of `num_frames` frames of `codec`."""

    def __init__(
        self, store: AudioStore, split: TokenSplit, codec: Codec, info: CodecInfo, num_frames: int
    ) -> None:
        """`store` has the clips by the same ids; `info` says which latents `split` has.

        Raises `UserError` if a clip is missing, or the codec cannot encode crops by themselves.
        """
        self.hop_length, self._num_samples = codec.hop_length, num_frames * codec.hop_length
        found = codec.num_frames(self._num_samples)
        if found != num_frames:
            raise UserError(
                f"model.from_audio: the codec {codec.info.id} makes {found} frames of {self._num_samples}"
                f" samples, not {num_frames}, so it cannot encode crops by themselves: turn it off"
            )
        by_id = {clip.id: clip for clip in store.clips}
        self._clips = [by_id[id] for id in map(str, split.column("id")) if id in by_id]
        if len(self._clips) < len(split):
            raise UserError(
                "model.from_audio: audio/ lacks clips that tokens/ has: run the stage prepare again"
            )
        self.codec = codec
        self._store, self._latents = store, info.latents

    def sampler(self, seed: int) -> CropSampler:
        """Which crops come when, in samples."""
        return CropSampler([clip.num_samples for clip in self._clips], self._num_samples, seed)

    def read(self, clip: int, start: int) -> Tensor:
        """[C, N] from a sample on; silence after the clip's end."""
        return torch.from_numpy(self._store.crop_channels(self._clips[clip], start, self._num_samples))

    def frames_left(self, clip: int, start: int) -> int:
        """How many frames there are of a clip from a sample on."""
        num_samples = self._clips[clip].num_samples - start
        return -(-num_samples // int(self.hop_length))

    @torch.no_grad()
    def encoded(self, batch: Batch) -> Batch:
        """A batch with `latents` [B, D, T] in place of `audio` [B, C, N].

        Of a variational autoencoder's, `posterior` [B, D, T], where it is there, says which draw.
        """
        rest = {name: tensor for name, tensor in batch.items() if name not in ("audio", "posterior")}
        audio = batch["audio"]
        codec = self.codec.to(audio.device)
        if "posterior" in batch:
            assert isinstance(codec, HubOobleck), "checked: its latents have a scale"
            found = codec.encode_posterior(audio)
            latents = found.mean + found.scale * batch["posterior"]
        else:
            latents = latent_coding(codec, self._latents).encode(audio)
        return rest | {"latents": latents}
