"""Which tokens a family of language models is trained and validated on: crops, crops with what stands before
them, or consecutive chunks of recordings.

Shapes: B batch, T frames.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from ..core.conditions import Conditions, condition_coins
from ..core.errors import UserError
from ..core.job import Batch
from ..core.loop import step_seed
from ..core.packed_sampler import PackedSampler
from ..core.sampler import ConsecutiveSampler, CropSampler
from ..core.schema import Train
from ..tokenize.store import TokenSplit, TokenStore
from .batches import TokenBatches
from .language_model import LanguageModel
from .step_models.samplernn import SampleRNN
from .step_models.step_model import StepModel
from .step_models.wavenet import feature_rate

STATE = "state/"
"""How what is carried from step to step is named in a batch."""

# Validation looks at no more than this many clips and tokens, the same each time.
_VALID_CLIPS, _VALID_TOKENS = 256, 1_000_000
# Recordings of unlimited length are validated on this much of their beginning.
_VALID_S = 2.0


@dataclass(frozen=True)
class Source:
    """A token store as a model is trained on it."""

    store: TokenStore
    conditions: Conditions
    condition_dropout: float

    def batches(self, split: TokenSplit, num_frames: int) -> TokenBatches:
        """Crops of `num_frames` from `split`."""
        return TokenBatches(self.store, split, self.conditions, num_frames)


class Feed(ABC):
    """Batches of one kind."""

    def __init__(self, source: Source, config: Train) -> None:
        self.source = source
        self.config = config
        self.split = source.store.split("train")

    @abstractmethod
    def batch(self, step: int, rows: range) -> Batch:
        """Rows of the global batch of a step; a pure function."""

    def carried(self) -> Batch:
        """What is carried from step to step, as it is before the first one."""
        return {}

    @abstractmethod
    def validation(self) -> list[list[Batch]]:
        """Batches of held-out clips; those of one list follow each other and carry state.

        Clips with a label value that does not occur in training are left out.
        """

    def _valid_clips(self, batches: TokenBatches, num_frames: int) -> list[list[int]]:
        """Clips of the split `valid`, in batches."""
        split = batches.split
        known = batches.known(range(len(split)))
        per_clip = num_frames * self.source.store.info.num_codebooks
        limit = min(_VALID_CLIPS, max(1, _VALID_TOKENS // per_clip))
        chosen = np.random.default_rng(0).permutation(known)[:limit].tolist()
        size = self.config.batch_size
        return [chosen[first : first + size] for first in range(0, len(chosen), size)]


class CropFeed(Feed):
    """Crops of any places of all clips, with up to `context` frames of what stands before each.

    Those are seen, but not counted, because they see less than the whole recording lets them see. A crop that
    begins with its recording has none.
    """

    def __init__(self, source: Source, config: Train, num_frames: int, context: int, multiple: int) -> None:
        """Crops begin at multiples of `multiple` frames, where a condition that follows the clip does."""
        super().__init__(source, config)
        self._num_frames, self._context, self._multiple = num_frames, context, multiple
        self._batches = source.batches(self.split, context + num_frames)
        self._sampler = CropSampler(self.split.num_frames, num_frames, config.seed)

    def batch(self, step: int, rows: range) -> Batch:
        """`codes`, `mask`, conditions, and `counted` [B, T] where there is context."""
        config = self.config
        crops = []
        for crop in self._sampler.draw(step, config.batch_size, rows):
            start = max(0, crop.start - self._context)
            crops.append((crop.clip, start - start % self._multiple))
        # Coins for the whole global batch, of which this process takes its rows: they cannot depend on how
        # many processes there are.
        coins = torch.Generator().manual_seed(step_seed(config.seed, 2, step))
        keep = condition_coins(config.batch_size, self.source.condition_dropout, coins)
        keep = keep[rows.start : rows.stop]
        given = {name: one.hide(keep) for name, one in self._batches.given(crops).items()}
        return self._batches.collate(crops, given) | self._counted(crops)

    def _counted(self, crops: Sequence[tuple[int, int]]) -> Batch:
        if not self._context:
            return {}
        has_context = torch.arange(self._context + self._num_frames) >= self._context
        begins = torch.tensor([start == 0 for _, start in crops])
        return {"counted": has_context | begins[:, None]}

    def validation(self) -> list[list[Batch]]:
        """The beginnings of clips, as long as a crop with its context."""
        num_frames = self._context + self._num_frames
        batches = self.source.batches(self.source.store.split("valid"), num_frames)
        found = []
        for clips in self._valid_clips(batches, num_frames):
            crops = [(clip, 0) for clip in clips]
            found.append([batches.collate(crops, batches.given(crops)) | self._counted(crops)])
        return found


class PackedFeed(CropFeed):
    """Rows of short clips, which are seen each by itself, and crops of the others, one a row."""

    def __init__(self, source: Source, config: Train, num_frames: int, gap: int) -> None:
        """`gap` frames are left between two clips."""
        super().__init__(source, config, num_frames, context=0, multiple=1)
        self._gap = gap
        self._rows = PackedSampler(self.split.num_frames, num_frames, gap, config.seed)

    def batch(self, step: int, rows: range) -> Batch:
        """`codes`, `mask`, `clips` [B, T], and conditions, which have a row for each clip."""
        config, most = self.config, self._rows.most_clips
        drawn = self._rows.draw(step, config.batch_size, rows)
        crops = [[(crop.clip, crop.start) for crop in row] for row in drawn]
        # As many coins for every row as the fullest needs: they cannot depend on what the others hold.
        coins = torch.Generator().manual_seed(step_seed(config.seed, 2, step))
        keep = condition_coins(config.batch_size * most, self.source.condition_dropout, coins)
        keep = keep.view(config.batch_size, most)[rows.start : rows.stop]
        kept = torch.cat([coin[: len(row)] for coin, row in zip(keep, crops, strict=True)])
        given = self._batches.given([crop for row in crops for crop in row])
        given = {name: one.hide(kept) for name, one in given.items()}
        return self._batches.collate_packed(crops, given, self._gap)


class ChunkFeed(Feed):
    """Consecutive chunks: each row of the batch goes through one recording after another.

    Conditions are hidden for whole recordings, since the state remembers them.
    """

    def __init__(self, source: Source, config: Train, num_frames: int, lm: SampleRNN) -> None:
        super().__init__(source, config)
        slowest = lm.config.frame_sizes[0]
        # A recording goes on where the slowest tier begins a frame.
        self._num_frames = -(-num_frames // slowest) * slowest
        self._lm = lm
        self._batches = source.batches(self.split, self._num_frames)
        self._sampler = ConsecutiveSampler(self.split.num_frames, self._num_frames, config.seed)

    def carried(self) -> Batch:
        """The model's state for every row of the global batch."""
        return self._states(self.config.batch_size)

    def _states(self, batch_size: int) -> Batch:
        return {STATE + name: one for name, one in self._lm.empty_state(batch_size).items()}

    def batch(self, step: int, rows: range) -> Batch:
        """`codes`, `mask`, conditions, and `begins` [B]: which rows begin a recording."""
        chunks = self._sampler.draw(step, rows)
        crops = [(chunk.clip, chunk.start) for chunk in chunks]
        seed = self.config.seed % 2**64
        coins = [
            np.random.default_rng([seed, 2, row, chunk.recording]).random()
            for row, chunk in zip(rows, chunks, strict=True)
        ]
        keep = torch.tensor(coins) >= self.source.condition_dropout
        given = {name: one.hide(keep) for name, one in self._batches.given(crops).items()}
        begins = torch.tensor([chunk.start == 0 for chunk in chunks])
        return self._batches.collate(crops, given) | {"begins": begins}

    def validation(self) -> list[list[Batch]]:
        """The first two seconds of recordings."""
        wanted = max(1, round(_VALID_S * self.source.store.info.frame_rate))
        split = self.source.store.split("valid")
        longest = int(max(split.num_frames, default=0))
        num_chunks = max(1, -(-min(wanted, longest) // self._num_frames))
        batches = self.source.batches(split, self._num_frames)
        found = []
        for clips in self._valid_clips(batches, num_chunks * self._num_frames):
            given = batches.given([(clip, 0) for clip in clips])
            sequence = []
            for i in range(num_chunks):
                # A clip that has ended gives a chunk of padding alone.
                start = i * self._num_frames
                chunk = batches.collate([(clip, start) for clip in clips], given)
                sequence.append(chunk | {"begins": torch.full((len(clips),), i == 0)})
            sequence[0] |= self._states(len(clips))
            found.append(sequence)
        return found


def make_feed(lm: LanguageModel, source: Source, config: Train, num_frames: int) -> Feed:
    """What `lm` is trained on; raises `UserError` if its clips are to be packed and cannot be."""
    if isinstance(lm, SampleRNN):
        return ChunkFeed(source, config, num_frames, lm)
    if config.pack:
        _check_packing(lm)
        return PackedFeed(source, config, num_frames, lm.pattern.gap)
    context = lm.config.context_frames if isinstance(lm, StepModel) else None
    multiple = _frames_per_state(lm) if isinstance(lm, StepModel) else 1
    return CropFeed(source, config, num_frames, context or 0, multiple)


def _check_packing(lm: LanguageModel) -> None:
    """As the recipe's own check, for a model that begins from another and has inherited what decides it."""
    other = next((condition for condition in lm.config.conditions if condition.fuse != "sum"), None)
    if other is not None:
        raise UserError(
            f"train.pack: clips that share a row have no place each for the condition '{other.name}' to enter"
            f" by '{other.fuse}', as this model has it: turn it off"
        )
    if not lm.pattern.packs:
        raise UserError(f"train.pack: clips cannot share a row under the model's {lm.pattern}: turn it off")


def _frames_per_state(lm: LanguageModel) -> int:
    """Frames after which all conditions that follow the clip begin a state together."""
    rates = [rate for condition in lm.config.conditions if (rate := feature_rate(condition)) is not None]
    ratios = [Fraction(lm.config.frame_rate / rate).limit_denominator(1000) for rate in rates]
    return int(np.lcm.reduce([ratio.numerator for ratio in ratios])) if ratios else 1
