"""The section `data` of a recipe: each kind of corpus and its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from .sections import NOT_BOOL, Fraction, Integer, PositiveFloat, PositiveInt, Section, Split

SynthFamily = Literal["keys", "mallet", "organ", "pluck", "reed", "string"]


class SynthCorpus(Section):
    """Notes, phrases and chords synthesised from a seed; nothing is downloaded."""

    kind: Literal["synth"]
    num_clips: PositiveInt = 800
    """Number of clips over all splits."""
    duration_s: PositiveFloat = 2.0
    """Length of each clip in seconds."""
    sample_rate_hz: PositiveInt = 16000
    """Rate at which the clips are synthesised."""
    forms: list[Literal["note", "phrase", "chord"]] = Field(default=["note", "phrase", "chord"], min_length=1)
    """What a clip holds: one note, a short melody, or a chord; drawn with equal probability."""
    families: list[SynthFamily] = Field(default=list(get_args(SynthFamily)), min_length=1)
    """What plays: families of instruments, drawn with equal probability."""
    pitch_min: Annotated[int, Field(ge=21, le=108), NOT_BOOL] = 45
    """Lowest MIDI pitch (also the lowest root of a chord or phrase)."""
    pitch_max: Annotated[int, Field(ge=21, le=108), NOT_BOOL] = 76
    """Highest MIDI pitch of a root."""
    random_phase: bool = False
    """Let each oscillator start anywhere in its period instead of with the note: harder to predict."""
    seed: Integer = 0
    """Seed of the corpus; the same seed gives the same samples on every machine."""

    @model_validator(mode="after")
    def _check_pitches(self) -> Self:
        if self.pitch_min > self.pitch_max:
            raise ValueError(f"pitch_min {self.pitch_min} is above pitch_max {self.pitch_max}")
        return self


class _Described(Section):
    """What corpora have in common whose clips are described by columns: of a file, a dataset or a member."""

    kind: str  # stands here so that it comes first
    labels: list[str] | dict[str, Literal["int", "float", "str", "tags"]] | None = None
    """Columns that become labels: names, or names with the kind of each; null: all that hold whole numbers,
    numbers, names or lists of names in every row."""
    caption: str | None = None
    """The column that holds the caption; null: `caption`, else `text`, else `txt`, where there is one."""
    group_by: str | None = None
    """A column such as `album`: clips with the same value fall into the same split; null: each by itself."""
    valid_fraction: Fraction = 0.1
    """Share of the clips (or groups) used for validation, chosen by a stable hash; it counts only where the
    corpus itself names no clip for validation, and is then taken from those for training."""
    test_fraction: Fraction = 0.1
    """Share of the clips (or groups) held out for scoring, chosen the same way."""

    @model_validator(mode="after")
    def _check_fractions(self) -> Self:
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"valid_fraction {self.valid_fraction} and test_fraction {self.test_fraction} leave nothing"
                " to train on: together they must be below 1"
            )
        return self


class FolderCorpus(_Described):
    """Every wav, flac, ogg and mp3 file under a folder, described by `metadata.csv` or `metadata.jsonl` if
    there is one beside them: a row a file, column `file_name`; a column `split` decides the split."""

    kind: Literal["folder"]
    root: Path
    """The folder; searched recursively, never written to."""
    label_from_parent: bool = False
    """Use the name of the folder that a file lies in as its label `folder`."""
    group_by: str | None = None
    """Files that belong together fall into the same split: `folder` for those in the same folder, or a column
    of the metadata such as `album`; null: each file by itself."""
    metadata: bool = True
    """Read the metadata files; false: take no notice of them."""
    caption_from_name: bool = False
    """Take the words of a file's name as its caption where it has no other: `slow_piano-03.wav` says
    `slow piano`."""
    allow_unlisted: bool = False
    """Take files that the metadata has no row for; their names are empty, and they have no tags."""


class HubDatasetCorpus(_Described):
    """An audio dataset of the Hugging Face Hub, or one on disk that `datasets` reads: a folder written by
    `save_to_disk`, parquet or arrow files, or an AudioFolder."""

    kind: Literal["hub_dataset"]
    id: str
    """Hub id such as `owner/name`, or a local folder or file."""
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None = None
    """The commit on the Hub, 40 hexadecimal digits; needed for a hub id, so that a rerun reads the same."""
    config: str | None = None
    """The dataset's configuration (also called subset), where it has several."""
    files: list[str] | None = Field(default=None, min_length=1)
    """Patterns of the repository's files to download, such as `data/train-*`; null: all."""
    splits: dict[str, Split] | None = Field(default=None, min_length=1)
    """Which of the dataset's splits to use, and as what, such as `{full: train}`; null: all of them, by their
    usual names (`validation`, `dev` …)."""
    audio: str = "audio"
    """The column that holds the audio."""
    id_column: str | None = None
    """A column with a name for each clip that occurs once; null: `<split>/<row number>`."""


class WebDatasetCorpus(_Described):
    """Tar files in WebDataset's form: neighbours whose names are equal up to the first dot are one clip, its
    audio, and a `.json`, `.txt` or `.cls` file that describes it. Shards named `train…`, `valid…` or `test…`
    are those splits."""

    kind: Literal["webdataset"]
    root: Path
    """The folder of the tar files."""
    shards: list[str] = Field(default=["**/*.tar"], min_length=1)
    """Names or patterns below `root`, such as `train-{0000..0127}.tar`."""
    audio: str | None = None
    """What follows the first dot in the name of the audio, such as `flac` or `mix.wav`; null: the one that
    ends like an audio file."""


class SoundFontCorpus(Section):
    """Short random pieces rendered by `fluidsynth` from a General MIDI SoundFont."""

    kind: Literal["soundfont"]
    soundfont: Path = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
    """The .sf2 file (Debian: package `fluid-soundfont-gm`)."""
    num_clips: PositiveInt = 400
    """Number of pieces over all splits."""
    duration_s: PositiveFloat = 8.0
    """Length of each piece in seconds."""
    seed: Integer = 0
    """Seed of the pieces."""


class NSynthCorpus(Section):
    """NSynth: notes of four seconds with pitch, velocity and instrument."""

    kind: Literal["nsynth"]
    root: Path
    """The folder that holds `nsynth-train`, `nsynth-valid` and `nsynth-test`."""


class GtzanCorpus(Section):
    """GTZAN: clips of thirty seconds in ten genres, with the fault-filtered split."""

    kind: Literal["gtzan"]
    root: Path
    """The folder that holds `genres` (or `genres_original`) and the lists `train_filtered.txt`,
    `valid_filtered.txt` and `test_filtered.txt`."""


class MusicNetCorpus(Section):
    """MusicNet: recordings of classical music with their aligned notes."""

    kind: Literal["musicnet"]
    root: Path
    """The folder that holds `musicnet_metadata.csv` and `train_data`, or the folder `musicnet`."""
    valid_fraction: Annotated[float, Field(ge=0.0, lt=1.0), NOT_BOOL] = 0.1
    """Share of the pieces that validation takes from the official training split, chosen by a stable hash of
    composer and composition; all movements of a piece stay together."""


class MaestroCorpus(Section):
    """MAESTRO v3: piano performances with their aligned MIDI."""

    kind: Literal["maestro"]
    root: Path
    """The folder that holds `maestro-v3.0.0.csv` (or .json), or the one above it."""


class MagnaTagATuneCorpus(Section):
    """MagnaTagATune: clips of twenty-nine seconds with tags."""

    kind: Literal["magnatagatune"]
    root: Path
    """The folder that holds `annotations_final.csv` and the sixteen folders `0` to `f`."""
    top_tags: PositiveInt | None = 50
    """Keep only this many of the most frequent tags, 50 being usual; null: all 188."""


SingleCorpus = Annotated[
    SynthCorpus
    | FolderCorpus
    | HubDatasetCorpus
    | WebDatasetCorpus
    | SoundFontCorpus
    | NSynthCorpus
    | GtzanCorpus
    | MusicNetCorpus
    | MaestroCorpus
    | MagnaTagATuneCorpus,
    Field(discriminator="kind"),
]
"""Every kind but the mixture."""


class MixedCorpus(Section):
    """Several corpora as one; the ids and splits of each are kept, prefixed with its position."""

    kind: Literal["mixed"]
    corpora: list[SingleCorpus] = Field(min_length=1)
    """The corpora, in order."""


Corpus = Annotated[SingleCorpus | MixedCorpus, Field(discriminator="kind")]
