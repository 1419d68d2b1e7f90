"""A corpus as one memory-mapped array: what codec training cuts its crops from.

`audio/samples.raw` holds all clips one after the other, int16 at the codec's rate, left and right in turns
where there are two; `audio/clips.json` says where each begins. Reading a crop costs one page of the disk
instead of a decoded file.

Shapes: C channels, N samples.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...core.audio import AudioError
from ...core.audio_stream import AS_IT_IS
from ...core.errors import UserError
from ...core.files import atomic_folder, write_jsonl
from ...core.progress import track
from ...core.schema import Audio
from ...core.sections import Split
from ..corpus import Corpus, read_clip

_SCALE = 32768.0
_NUM_EXAMPLES = 64


@dataclass(frozen=True)
class StoredClip:
    """Where one clip lies in the array."""

    id: str
    split: str
    start: int
    num_samples: int


def write_audio_store(
    folder: Path, corpus: Corpus, sample_rate: int, settings: Audio = AS_IT_IS, channels: int = 1
) -> int:
    """Write all readable clips of `corpus` at `sample_rate`; returns how many were rejected.

    Rejected clips are listed in `rejects.jsonl` with their reason. Raises `UserError` if none is left.
    """
    clips: list[StoredClip] = []
    rejects: list[dict[str, str]] = []
    start = 0
    with atomic_folder(folder) as partial:
        with (partial / "samples.raw").open("wb") as file:
            for clip in track(corpus.clips(), "prepare"):
                try:
                    samples = read_clip(corpus, clip, sample_rate, channels, settings).samples
                except AudioError as error:
                    rejects.append({"id": clip.id, "source": clip.source, "reason": str(error)})
                    continue
                pcm = np.clip(np.rint(samples * _SCALE), -_SCALE, _SCALE - 1).astype("<i2")
                file.write(pcm.T.tobytes())
                num_samples = pcm.shape[1]
                clips.append(StoredClip(clip.id, clip.split, start, num_samples))
                start += num_samples
        if not clips:
            raise UserError(
                f"none of the {len(rejects)} clips can be used, the first ({rejects[0]['source']}) because:"
                f" {rejects[0]['reason']}"
            )
        (partial / "clips.json").write_text(
            json.dumps([dataclasses.asdict(clip) for clip in clips], ensure_ascii=False), encoding="utf-8"
        )
        write_jsonl(partial / "rejects.jsonl", rejects)
    return len(rejects)


class AudioStore:
    """Reads crops of what `write_audio_store` wrote."""

    def __init__(self, folder: Path) -> None:
        rows = json.loads((folder / "clips.json").read_text(encoding="utf-8"))
        self.clips = [StoredClip(**row) for row in rows]
        flat = np.memmap(folder / "samples.raw", dtype="<i2", mode="r")
        num_samples = sum(clip.num_samples for clip in self.clips)
        if len(flat) not in (num_samples, 2 * num_samples):
            raise UserError(f"{folder / 'samples.raw'} is not as long as clips.json says: prepare it again")
        self.channels = len(flat) // num_samples
        self._samples = flat.reshape(num_samples, self.channels)

    def split(self, name: Split) -> list[StoredClip]:
        """The clips of one split."""
        return [clip for clip in self.clips if clip.split == name]

    def examples(self, num_samples: int) -> np.ndarray:
        """The beginnings `[B, C, num_samples]` of clips from all over the split `train`, float32."""
        clips = self.split("train")
        chosen = np.linspace(0, len(clips) - 1, min(len(clips), _NUM_EXAMPLES)).astype(int)
        return np.stack([self.crop_channels(clips[i], 0, num_samples) for i in chosen])

    def crop(self, clip: StoredClip, start: int, num_samples: int) -> np.ndarray:
        """Samples `[num_samples]` of a mono store, float32; as `crop_channels`."""
        assert self.channels == 1
        mono: np.ndarray = self.crop_channels(clip, start, num_samples)[0]
        return mono

    def crop_channels(self, clip: StoredClip, start: int, num_samples: int) -> np.ndarray:
        """Samples `[C, num_samples]`, float32, from `start` within the clip; zeros beyond its end."""
        stop = min(start + num_samples, clip.num_samples)
        crop = np.zeros((self.channels, num_samples), dtype=np.float32)
        found = self._samples[clip.start + start : clip.start + stop]
        crop[:, : len(found)] = found.T / np.float32(_SCALE)
        return crop
