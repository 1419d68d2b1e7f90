"""The classifier whose opinions DarkGAN is told (arXiv:2108.01216): soft labels, which say how much of each
label a clip has.

It is either an audio classifier of `transformers`, or a small convolutional network over log-mel magnitudes
that learns a label column of the corpus. Soft labels are the softmax of its logits over a temperature
(arXiv:1503.02531, eq. 1), or the sigmoid for a classifier whose clips can have several labels. A longer clip
is heard in windows, whose logits are averaged.

Shapes: B batch, N samples, M mel bands, T frames, V labels.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.audio import resample
from ...core.conditions import label_condition
from ...core.device import best_device
from ...core.errors import UserError
from ...core.files import write_json
from ...core.hub_classifier import HubClassifier, load_hub_classifier, windows_of
from ...core.job import Batch, Job, Loss, Phase, num_rows
from ...core.label import Label
from ...core.loop import train
from ...core.optimizer import adamw
from ...core.run import is_main_process
from ...core.sampler import CropSampler
from ...core.schema import Recipe
from ...core.schema_gan import DarkGanModel
from ...tokenize.store import TokenStore
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
from .prepared import ABOUT_SOFT_LABELS, SOFT_LABELS, TEACHER, write_by_clip

_WINDOW_S = 0.05  # of the spectrogram; the next power of two
_NUM_MELS = 64
_CROP_S = 4.0
_HUB_WINDOW_S = 10.0  # what most classifiers were trained on (AudioSet's clips)
_AT_ONCE = 8
_VALID_CLIPS = 256


@dataclass(frozen=True)
class TeacherConfig:
    """What decides the network; `config.json`."""

    labels: tuple[Label, ...]
    """Values of the label column, in the order of the logits."""
    sample_rate_hz: int
    window: int
    hop: int
    num_mels: int
    crop_samples: int
    """Length of what it was trained on."""
    log_mel_mean: float
    log_mel_std: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))  # which JSON has as a list


class TeacherNetwork(Listener):
    """Convolutions over a spectrogram, averaged over all of it."""

    kind = "teacher"
    config_class = TeacherConfig
    config: TeacherConfig

    def __init__(self, config: TeacherConfig) -> None:
        super().__init__()
        self.config = config
        self.log_mel = LogMel(
            config.sample_rate_hz,
            config.window,
            config.hop,
            config.num_mels,
            config.log_mel_mean,
            config.log_mel_std,
        )
        widths = (1, 16, 32, 64, 64)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()
                )
                for before, after in itertools.pairwise(widths)
            )
        )
        self.head = nn.Linear(widths[-1], len(config.labels))

    def forward(self, audio: Tensor) -> Tensor:
        """Audio `[B, N]` to logits `[B, V]`."""
        found: Tensor = self.head(self.layers(self.log_mel(audio)[:, None]).mean((2, 3)))
        return found


class Teacher(ABC):
    """Who says how much of each label a clip has."""

    labels: tuple[str, ...]
    is_multi_label: bool = False
    """Whether a clip can have several labels, so that each is a question of its own."""

    @abstractmethod
    def logits(self, audio: Tensor, sample_rate: int) -> Tensor:
        """Clips `[B, N]` to `[B, V]`."""

    def soft_labels(self, audio: Tensor, sample_rate: int, temperature: float) -> Tensor:
        """Clips `[B, N]` to shares `[B, V]`, from 0 to 1."""
        logits = self.logits(audio, sample_rate) / temperature
        return logits.sigmoid() if self.is_multi_label else logits.softmax(dim=1)


class TrainedTeacher(Teacher):
    """A network that this run has trained."""

    def __init__(self, network: TeacherNetwork, device: torch.device) -> None:
        self.labels = tuple(str(label) for label in network.config.labels)
        self._network, self._device = network.to(device), device

    @torch.no_grad()
    def logits(self, audio: Tensor, sample_rate: int) -> Tensor:
        """Clips `[B, N]` to `[B, V]`."""
        assert sample_rate == self._network.config.sample_rate_hz
        windows = windows_of(audio, self._network.config.crop_samples)
        return torch.stack([self._network(one.to(self._device)) for one in windows]).mean(dim=1).cpu()


class HubTeacher(Teacher):
    """A classifier of `transformers`."""

    def __init__(self, classifier: HubClassifier) -> None:
        self.labels, self.is_multi_label = classifier.labels, classifier.is_multi_label
        self._classifier = classifier

    def logits(self, audio: Tensor, sample_rate: int) -> Tensor:
        """Clips `[B, N]` to `[B, V]`."""
        rate = self._classifier.sample_rate
        heard = torch.from_numpy(resample(audio.numpy(), sample_rate, rate))
        windows = windows_of(heard, round(_HUB_WINDOW_S * rate))
        pieces = torch.split(windows.flatten(0, 1), _AT_ONCE)
        found = torch.cat([self._classifier.logits(piece) for piece in pieces]).cpu()
        return found.reshape(*windows.shape[:2], -1).mean(dim=1)


def loss(modules: Mapping[str, nn.Module], batch: Batch) -> Loss:
    """Of the module `teacher`; `batch["audio"]` is `[B, N]`, `batch["label"]` `[B]`."""
    logits: Tensor = modules["teacher"](batch["audio"])
    right = (logits.argmax(dim=1) == batch["label"]).float().mean()
    weight = num_rows(logits)
    return Loss(F.cross_entropy(logits, batch["label"]), weight, {"accuracy": right})


def train_teacher(recipe: Recipe, store: TokenStore) -> None:
    """Write `teacher/model/` and what belongs to its training; killed, it goes on where it was.

    Raises `UserError` for a label that clips do not have, or have one value of.
    """
    section = recipe.model
    assert isinstance(section, DarkGanModel)
    settings = section.teacher
    split, valid = store.split("train"), store.split("valid")
    values = split.column(settings.label)
    condition = label_condition(settings.label, values)
    if condition.kind != "label" or len(condition.values) < 2:
        what = "one value" if condition.kind == "label" else "tags"
        raise UserError(
            f"model.teacher.label: '{settings.label}' has {what}, and a teacher learns to tell values from"
            " each other: choose another label"
        )
    known = condition.values
    rate = store.info.sample_rate
    num_samples = min(int(split.num_frames.max()), round(_CROP_S * rate))
    window = 2 ** math.ceil(math.log2(_WINDOW_S * rate))
    examples = read_audio(split, [(clip, 0) for clip in some_clips(split, NUM_EXAMPLES)], num_samples)
    scale = scale_of(LogMel(rate, window, window // 2, _NUM_MELS), examples)
    torch.manual_seed(SEED)
    network = TeacherNetwork(
        TeacherConfig(known, rate, window, window // 2, _NUM_MELS, num_samples, scale.mean, scale.std)
    )
    config = loop_settings(recipe, settings.steps)
    sampler = CropSampler(split.num_frames, num_samples, SEED)

    def batch(step: int, rows: range) -> Batch:
        crops = [(c.clip, c.start) for c in sampler.draw(step, config.batch_size, rows)]
        labels = torch.tensor([known.index(values[clip]) for clip, _ in crops])
        return {"audio": read_audio(split, crops, num_samples), "label": labels}

    found = valid.column(settings.label) if len(valid) else []
    told = [clip for clip in some_clips(valid, _VALID_CLIPS) if found[clip] in known] if found else []
    held_out = {
        "audio": read_audio(valid, [(clip, 0) for clip in told], num_samples),
        "label": torch.tensor([known.index(found[clip]) for clip in told]),
    }
    train(
        Job(
            modules={"teacher": network},
            phases=[Phase("teacher", "teacher", adamw(network, config), loss)],
            averaged="teacher",
            batch=batch,
            validate=lambda module: scores_of(module, held_out) if told else {},
            save=lambda module, _: save(module, recipe.folder / TEACHER / "model"),
            unit="clips",
        ),
        config,
        recipe.folder / TEACHER,
    )


@torch.no_grad()
def scores_of(teacher: nn.Module, batch: Batch) -> dict[str, float]:
    """Of held-out clips: `loss`, and `accuracy`, the share that is given the right label."""
    device = next(teacher.parameters()).device
    found = loss({"teacher": teacher}, {name: tensor.to(device) for name, tensor in batch.items()})
    return {"loss": float(found.mean), "accuracy": float(found.metrics["accuracy"])}


def soft_label_names(labels: Sequence[str], what: str, taken: Collection[str]) -> list[str]:
    """What people call the conditions: the labels, or `what` and the label for bare numbers and for names
    that are `taken`, such as those of label columns."""
    return [f"{what} {label}" if label in taken or label.lstrip("-").isdigit() else label for label in labels]


def prepare_teacher(recipe: Recipe) -> None:
    """Find or train the teacher, and write its soft labels of all clips: the stage `prepare` of a DarkGAN.

    `soft_labels.safetensors` has shares `[V]` under each clip's id; `soft_labels.json` says whose they are.
    """
    section = recipe.model
    assert isinstance(section, DarkGanModel)
    settings = section.teacher
    store = TokenStore(recipe.folder / "tokens")
    folder = recipe.folder / TEACHER
    if settings.source is None:
        train_teacher(recipe, store)
    if not is_main_process():
        return
    device = best_device()
    teacher: Teacher
    about: dict[str, object]
    if settings.source is None:
        teacher = TrainedTeacher(TeacherNetwork.load(folder / "model"), device)
        about = {"label": settings.label}
    else:
        classifier = load_hub_classifier(settings.source, device=device, revision=settings.source_revision)
        teacher = HubTeacher(classifier)
        about = {"source": classifier.files.source, "version": classifier.files.version}
    found: dict[str, Tensor] = {}
    for clips in whole_clips(store):
        shares = teacher.soft_labels(clips.audio, store.info.sample_rate, settings.temperature)
        found |= dict(zip(clips.ids, shares, strict=True))
    write_by_clip(folder / SOFT_LABELS, found)
    what = settings.label if settings.source is None else "teacher"
    about |= {
        "temperature": settings.temperature,
        "is_multi_label": teacher.is_multi_label,
        "names": soft_label_names(teacher.labels, what, store.dataset.column_names),
    }
    write_json(folder / ABOUT_SOFT_LABELS, about)
