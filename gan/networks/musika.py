"""Musika (arXiv:2208.08706): latents of a codec along coordinates, without an end.

A clip is cut from a stream. Along the stream stand *anchors*, `anchor_frames` apart, of `coordinate_dim`
random numbers each; between two of them coordinates are interpolated linearly. The network turns coordinates
into latents, told a *style* that is the same everywhere. A clip begins anywhere between two anchors (its
*phase*), so that no frame of a clip is special. Coordinates change slowly; what is irregular from frame to
frame comes from *grains*, fresh noise for each frame, as the authors' network adds it to its layers.

The noise of a clip is one tensor `[1 + A, width]`: row 0 is the style and, after it, the number that says the
phase; row 1 + a is the coordinates of anchor a and, after them, the grains of the frames up to the next
anchor. What is left of a row is not read.

The network is convolutional, its norms look at one frame each, and no convolution pads: what a frame depends
on are the coordinates of `context_frames` to both sides, which are made along with it. So frames can be made
in any windows, in parallel or one after another, and are those of the whole clip:

    whole = generator(noise, told, 0.0)                                       # [B, D, T]
    for chunk in generate_stream(generator, [DrawnNoise(generator, seed, clip)], told, chunk_frames=256):
        ...                                                                   # [1, D, 256], without an end

The authors' network makes windows of one length apart from each other, from coordinates alike, and lets the
discriminator see two neighbours at once, so that joints become inaudible; here there are none.

Shapes: B clips, A anchors, C channels, D latent width, T frames, W windows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.conditions import Conditions, GivenConditions
from ...core.errors import UserError
from ...core.loop import step_seed
from ...core.schema_gan import MusikaModel
from .family import ConditionJudge, ConditionVector, Discriminator, Generator, Shape, Verdict

# Frames that a block of two convolutions, and a convolution alone, take from each side.
_BLOCK_MARGIN, _CONV_MARGIN = 2, 1

# Numbers of fresh noise for each frame.
_NUM_GRAINS = 4

# Windows of long clips go through the network so many at once.
_WINDOWS_AT_ONCE = 16


class AnchorNoise(Protocol):
    """The noise of one clip, of which any stretch can be asked for."""

    def rows(self, first_anchor: int, num_anchors: int) -> Tensor:
        """`[1 + num_anchors, width]`: the first row of the clip's noise and those of these anchors."""
        ...


class MusikaGenerator(Generator):
    """From coordinates to latents `[B, D, T]`."""

    has_any_length = True

    def __init__(self, section: MusikaModel, shape: Shape, conditions: Conditions) -> None:
        super().__init__()
        if shape.num_bins is not None:
            raise UserError("musika makes a codec's latents, not spectrograms: use representation latents")
        self.num_frames = shape.num_frames
        self.coordinate_dim, self.style_dim = section.coordinate_dim, section.style_dim
        self.anchor_frames = section.anchor_frames
        self.noise_width = max(
            section.style_dim + 1, section.coordinate_dim + section.anchor_frames * _NUM_GRAINS
        )
        widths = section.channels
        self.told = ConditionVector(conditions)
        style_dim = section.style_dim + self.told.dim
        place_dim = section.coordinate_dim + _NUM_GRAINS
        self.begin = nn.Conv1d(place_dim, widths[0], 3)
        self.blocks = nn.ModuleList(_Block(width, place_dim, style_dim) for width in widths)
        # To twice the channels, which become twice the frames.
        self.ups = nn.ModuleList(
            nn.Conv1d(below, 2 * above, 1) for below, above in itertools.pairwise(widths)
        )
        self.end = nn.Conv1d(widths[-1], shape.channels, 3)
        _he_initialise(self, negative_slope=0.0)

    @property
    def lowest_frames(self) -> int:
        """Frames of an image for each of the lowest resolution; windows begin at multiples of it."""
        return int(2 ** (len(self.blocks) - 1))

    @property
    def context_frames(self) -> int:
        """How far, at most, a frame's coordinates lie from it."""
        first, _ = self._spans(self.lowest_frames)[0]
        return (_CONV_MARGIN - first) * self.lowest_frames

    def noise_shape(self, num_frames: int) -> tuple[int, ...]:
        """`[1 + A, width]` of a clip of `num_frames` frames or somewhat more; see `forward`."""
        missing = max(0, num_frames - self.num_frames)
        return 1 + self._num_anchors(self.num_frames) + -(-missing // self.anchor_frames), self.noise_width

    def forward(self, noise: Tensor, told: GivenConditions, level: float) -> Tensor:
        """Latents `[B, D, T]` from noise `[B, 1 + A, width]`.

        T is that of the clips of training, and `anchor_frames` more for each anchor more: what
        `noise_shape(n)` stands for is n frames or more, of which the caller takes the first n.
        """
        more = noise.shape[1] - 1 - self._num_anchors(self.num_frames)
        return self.make(noise, told, range(0, self.num_frames + more * self.anchor_frames))

    def anchors_of(self, frames: range) -> range:
        """The anchors that frames depend on, whatever the clip's phase."""
        return range(frames.start // self.anchor_frames, self._num_anchors(frames.stop))

    def make(self, noise: Tensor, told: GivenConditions, frames: range, first_anchor: int = 0) -> Tensor:
        """Some frames of clips, `[B, D, len(frames)]`.

        Args:
            noise: `[B, 1 + A, width]`, the clips' first rows and those of the anchors `anchors_of(frames)`,
                or of more.
            told: what the clips are told.
            frames: which ones, the first a multiple of `lowest_frames`.
            first_anchor: which one row 1 of the noise is.
        """
        return self._make(noise, told, [frames.start], len(frames), first_anchor)[:, 0]

    def make_in_windows(
        self,
        noise: Tensor,
        told: GivenConditions,
        frames: range,
        window_frames: int,
        first_anchor: int = 0,
    ) -> Tensor:
        """What `make` gives, made in windows of `window_frames` frames, several at once in one batch.

        Raises `UserError` unless windows are a multiple of `lowest_frames` long.
        """
        if window_frames < 1 or window_frames % self.lowest_frames:
            raise UserError(
                f"windows of {window_frames} frames do not fit: this model needs a multiple of"
                f" {self.lowest_frames}"
            )
        starts = range(frames.start, frames.stop, window_frames)
        whole = starts[: len(frames) // window_frames]
        made = [
            self._make(noise, told, whole[i : i + _WINDOWS_AT_ONCE], window_frames, first_anchor)
            .transpose(1, 2)
            .flatten(2)
            for i in range(0, len(whole), _WINDOWS_AT_ONCE)
        ]
        if len(whole) < len(starts):
            made.append(self.make(noise, told, range(starts[-1], frames.stop), first_anchor))
        return torch.cat(made, dim=2)

    def draw_noise_window(self, seed: int, clip: int, first_anchor: int, num_anchors: int) -> Tensor:
        """Rows of the noise of clip number `clip`: `[1 + num_anchors, width]`, its first row and those of the
        anchors from `first_anchor` on.

        Each row is a function of (seed, clip, its number), so a clip has noise for any length, of which any
        stretch is drawn alone; `draw_noise_window(seed, clip, 0, noise_shape(T)[0] - 1)` is a clip's noise.
        """
        numbers = [0, *range(1 + first_anchor, 1 + first_anchor + num_anchors)]
        generators = [torch.Generator().manual_seed(step_seed(seed, clip, number)) for number in numbers]
        return torch.stack([torch.randn(self.noise_width, generator=one) for one in generators])

    def coordinates(self, noise: Tensor, twice: Tensor, first_anchor: int = 0) -> Tensor:
        """Coordinates `[B, coordinate_dim, n]` at places of the stream, given as twice their distance
        `[B, n]` int64 from anchor 0 in frames, because some lie between two frames."""
        anchors = noise[:, 1:, : self.coordinate_dim]
        before = twice // (2 * self.anchor_frames) - first_anchor
        share = (twice % (2 * self.anchor_frames)).to(noise)[..., None] / (2 * self.anchor_frames)
        clips = torch.arange(len(noise), device=noise.device)[:, None]
        # Where the share is 0 the next anchor says nothing, and need not be there.
        after = torch.where(share[..., 0] > 0, before + 1, before)
        found = torch.lerp(anchors[clips, before], anchors[clips, after], share)
        return found.transpose(1, 2)

    def grains(self, noise: Tensor, frames: Tensor, first_anchor: int = 0) -> Tensor:
        """Fresh noise `[B, 4, n]` of frames of the stream, given as their distance `[B, n]` int64 from
        anchor 0."""
        found = noise[:, 1:, self.coordinate_dim :][:, :, : self.anchor_frames * _NUM_GRAINS]
        found = found.reshape(len(noise), -1, _NUM_GRAINS)
        clips = torch.arange(len(noise), device=noise.device)[:, None]
        return found[clips, frames - first_anchor * self.anchor_frames].transpose(1, 2)

    def phase(self, noise: Tensor) -> Tensor:
        """Frames between an anchor and the clips' first frame, `[B]` int64, evenly below `anchor_frames`."""
        share: Tensor = torch.special.ndtr(noise[:, 0, self.style_dim].float())
        return (share * self.anchor_frames).long().clamp(max=self.anchor_frames - 1)

    def _num_anchors(self, num_frames: int) -> int:
        """Anchors from the first one that the first frame may depend on."""
        last = num_frames + 2 * self.context_frames + self.anchor_frames
        return last // self.anchor_frames + 2

    def _spans(self, num_frames: int) -> list[tuple[int, int]]:
        """Which frames of each resolution are needed as the input of its block, the lowest resolution first,
        for the frames from 0 to `num_frames` of the image."""
        first, stop = -_CONV_MARGIN, num_frames + _CONV_MARGIN
        spans = []
        for _ in self.blocks:
            first, stop = first - _BLOCK_MARGIN, stop + _BLOCK_MARGIN
            spans.append((first, stop))
            first, stop = first // 2, -(-stop // 2)
        return spans[::-1]

    def _make(
        self,
        noise: Tensor,
        told: GivenConditions,
        starts: Sequence[int],
        num_frames: int,
        first_anchor: int,
    ) -> Tensor:
        """Windows `[B, W, D, num_frames]` that begin at `starts`."""
        assert all(start % self.lowest_frames == 0 for start in starts)
        style = torch.cat([noise[:, 0, : self.style_dim], self.told(told, noise)], dim=1)
        style = style.repeat_interleave(len(starts), dim=0)
        windows = torch.tensor(starts).to(noise.device, non_blocking=True)  # else it waits for a GPU
        # Anchor 0 stands where the context of the first frame may begin.
        origin = self.phase(noise)[:, None] + windows + self.context_frames

        def by_window(found: Tensor) -> Tensor:
            """`[B, C, W n]` as `[B W, C, n]`."""
            found = found.reshape(len(noise), found.shape[1], len(starts), -1)
            return found.transpose(1, 2).flatten(0, 1)

        spans = self._spans(num_frames)
        step = self.lowest_frames
        first, stop = spans[0][0] - _CONV_MARGIN, spans[0][1] + _CONV_MARGIN
        begin = first * step
        frames = torch.arange(begin, stop * step, device=noise.device)
        grains = by_window(self.grains(noise, (origin[..., None] + frames).flatten(1), first_anchor))

        def place(first: int, stop: int, step: int) -> Tensor:
            """Coordinates at the middles of frames of `step` frames of the image, and grains of a variance of
            1 there."""
            middles = torch.arange(first, stop, device=noise.device) * (2 * step) + step - 1
            twice = (2 * origin[..., None] + middles).flatten(1)
            grain = grains[:, :, first * step - begin : stop * step - begin]
            grain = F.avg_pool1d(grain, step) * math.sqrt(step)
            return torch.cat([by_window(self.coordinates(noise, twice, first_anchor)), grain], dim=1)

        x = self.begin(place(first, stop, step))
        for i, (block, (first, stop)) in enumerate(zip(self.blocks, spans, strict=True)):
            if i > 0:
                step //= 2
                below = (spans[i - 1][0] + _BLOCK_MARGIN) * 2
                x = _twice_the_frames(self.ups[i - 1](x))[:, :, first - below : stop - below]
            x = block(x, place(first + 1, stop - 1, step), style)
        made: Tensor = self.end(F.silu(_normed(x)))
        return made.reshape(len(noise), len(starts), *made.shape[1:])


class DrawnNoise:
    """Noise of a clip for any length, drawn where it is asked for; an `AnchorNoise`."""

    def __init__(self, generator: MusikaGenerator, seed: int, clip: int) -> None:
        self._generator, self._seed, self._clip = generator, seed, clip

    def rows(self, first_anchor: int, num_anchors: int) -> Tensor:
        """`MusikaGenerator.draw_noise_window` of this clip."""
        return self._generator.draw_noise_window(self._seed, self._clip, first_anchor, num_anchors)


@torch.no_grad()
def generate_stream(
    generator: MusikaGenerator,
    noises: Sequence[AnchorNoise],
    told: GivenConditions,
    *,
    chunk_frames: int,
    num_frames: int | None = None,
    window_frames: int | None = None,
) -> Iterator[Tensor]:
    """Clips of any length as chunks of latents `[B, D, chunk_frames]`, the last one shorter.

    Joined they are the whole clip. A chunk needs the noise of the anchors that it touches and nothing of the
    chunks before, so memory does not grow.

    Args:
        generator: on the device where latents shall be.
        noises: of each clip.
        told: what the clips are told, for all their length.
        chunk_frames: frames of a chunk, a multiple of `generator.lowest_frames`.
        num_frames: of the clips; None: without an end.
        window_frames: windows into which a chunk is cut, to be made in parallel; None: one.

    Raises:
        UserError: for chunks or windows of a length that does not fit.
    """
    window_frames = chunk_frames if window_frames is None else window_frames
    if chunk_frames < 1 or chunk_frames % generator.lowest_frames:
        raise UserError(
            f"chunks of {chunk_frames} frames do not fit: this model needs a multiple of"
            f" {generator.lowest_frames}"
        )
    device = generator.end.weight.device
    starts = itertools.count(0, chunk_frames) if num_frames is None else range(0, num_frames, chunk_frames)
    for start in starts:
        stop = start + chunk_frames if num_frames is None else min(start + chunk_frames, num_frames)
        anchors = generator.anchors_of(range(start, stop))
        noise = torch.stack([one.rows(anchors.start, len(anchors)) for one in noises]).to(device)
        yield generator.make_in_windows(noise, told, range(start, stop), window_frames, anchors.start)


class MusikaDiscriminator(Discriminator):
    """Residual convolutions over a clip's latents, each resolution half of the one before, and one verdict on
    the whole."""

    def __init__(self, section: MusikaModel, shape: Shape, conditions: Conditions) -> None:
        super().__init__()
        widths = section.channels[::-1]
        self.begin = nn.Conv1d(shape.channels, widths[0], 3, padding=1)
        self.halves = nn.ModuleList(_Half(fine, coarse) for fine, coarse in itertools.pairwise(widths))
        self.last = nn.Conv1d(widths[-1], widths[-1], 3, padding=1)
        num_frames = shape.num_frames
        for _ in self.halves:
            num_frames = -(-num_frames // 2)
        self.score = nn.Linear(widths[-1] * num_frames, 1)
        self.of_told = ConditionJudge(conditions, section.conditioned_by)
        self.opinions = nn.Linear(widths[-1], self.of_told.dim) if self.of_told.dim else None
        _he_initialise(self, negative_slope=0.2)

    def forward(self, image: Tensor, told: GivenConditions, draws: Tensor, level: float) -> Verdict:
        """One verdict a clip, `[B]`, on latents `[B, D, T]` of the length of training."""
        x = F.leaky_relu(self.begin(image), 0.2)
        for half in self.halves:
            x = half(x)
        x = F.leaky_relu(self.last(x), 0.2)
        score = self.score(x.flatten(1))[:, 0]
        if self.opinions is None:
            return Verdict([score])
        score, heads = self.of_told.verdict(score, self.opinions(x.mean(2)), told)
        return Verdict([score], heads)


class _Block(nn.Module):
    """A residual block of two convolutions without padding: four frames fewer come out."""

    def __init__(self, width: int, place_dim: int, style_dim: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(width, width, 3)
        self.second = nn.Conv1d(width, width, 3)
        # Scales and shifts of both convolutions' outputs, of the place and of the clip.
        self.place = nn.Conv1d(place_dim, 2 * width, 1)
        self.clip = nn.Linear(style_dim, 2 * width, bias=False)

    def forward(self, x: Tensor, place: Tensor, style: Tensor) -> Tensor:
        """`[B, C, T - 4]` of x `[B, C, T]`, coordinates and grains `[B, place_dim, T - 2]` of all frames
        but the first and last, and style `[B, style_dim]`."""
        scale, shift = (self.place(place) + self.clip(style)[:, :, None]).chunk(2, dim=1)
        found = self.first(F.silu(_normed(x)))
        found = self.second(F.silu(_normed(found) * (1 + scale) + shift))
        total: Tensor = (x[:, :, _BLOCK_MARGIN:-_BLOCK_MARGIN] + found) * math.sqrt(0.5)
        return total


class _Half(nn.Module):
    """A residual block from T frames to T / 2, rounded up."""

    def __init__(self, width: int, next_width: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(width, width, 3, padding=1)
        self.second = nn.Conv1d(width, next_width, 4, stride=2, padding=1)
        self.skip = nn.Conv1d(width, next_width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, next width, T / 2]` of `[B, width, T]`."""
        x = F.pad(x, (0, x.shape[2] % 2))
        found = F.leaky_relu(self.first(x), 0.2)
        found = F.leaky_relu(self.second(found), 0.2)
        total: Tensor = (self.skip(F.avg_pool1d(x, 2)) + found) * math.sqrt(0.5)
        return total


def _he_initialise(module: nn.Module, *, negative_slope: float) -> None:
    """Let convolutions keep the variance of what a rectifier lets through (arXiv:1502.01852)."""
    for part in module.modules():
        if isinstance(part, nn.Conv1d):
            nn.init.kaiming_normal_(part.weight, a=negative_slope)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _normed(x: Tensor) -> Tensor:
    """Each frame of `[B, C, T]` divided by its root mean square."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)


def _twice_the_frames(x: Tensor) -> Tensor:
    """`[B, C, 2 T]` of `[B, 2 C, T]`: neighbouring channels become neighbouring frames."""
    return x.reshape(len(x), -1, 2, x.shape[2]).transpose(2, 3).flatten(2)
