"""An audio dataset that `datasets` reads, from the Hugging Face Hub or from disk.

`datasets` would decode audio with torchcodec. Here it never does: rows are read as Arrow has them, which is
the bytes or the path of a file, and that is decoded like every other file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ...core.audio import AudioError
from ...core.errors import UserError
from ...core.schema_corpora import HubDatasetCorpus
from ...core.sections import Split
from ..corpus import Clip, LabelTypes
from .columns import Row, describe
from .split import SPLIT_NAMES, complete_splits

# huggingface_hub has changed its HTTP library before; this is the base of all errors of the one in use.
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
_ROWS_AT_ONCE = 1000
_FILE_FORMATS = {".parquet": "parquet", ".arrow": "arrow"}


class HubDataset:
    """Every row of the wanted splits; a clip's id is `<split>/<row number>`, or what `id_column` says."""

    def __init__(self, config: HubDatasetCorpus):
        """Download the dataset if it is on the Hub and not in its cache, and read all columns but the audio.

        Raises `UserError` if there is no such dataset, column or split, or no network to get it with.
        """
        self.config = config
        self._folder, splits = _load(config)
        self._parts = _wanted(splits, config)
        for name, part in self._parts.items():
            _check_columns(part, config, name)
        self._rows: dict[str, tuple[str, int]] = {}  # id → split of the dataset, row
        self._clips, self.label_types = self._describe()

    def clips(self) -> Sequence[Clip]:
        """All clips, sorted by id."""
        return self._clips

    def audio(self, clip: Clip) -> Path | bytes:
        """The file that the audio column holds or names; raises `AudioError` if it does neither."""
        name, row = self._rows[clip.id]
        column = self._parts[name].select_columns(self.config.audio).with_format("arrow")[row].column(0)
        value = column[0].as_py() or {}
        held = value if isinstance(value, dict) else {"bytes" if isinstance(value, bytes) else "path": value}
        if held.get("bytes"):
            content: bytes = held["bytes"]
            return content
        if not held.get("path"):
            raise AudioError("the row has no audio")
        path = self._folder / str(held["path"])
        if not path.exists():
            raise AudioError("file is missing")
        return path

    def _describe(self) -> tuple[list[Clip], LabelTypes]:
        config = self.config
        rows: list[Row] = []
        given: dict[str, Split | None] = {}
        for name, part in self._parts.items():
            for number, values in enumerate(_values(part, config.audio)):
                row = Row(f"{config.id}, split {name}, row {number}", values)
                clip_id = self._clip_id(row, name, number)
                self._rows[clip_id] = (name, number)
                given[clip_id] = _our_split(name, config)
                rows.append(row)
        if not rows:
            raise UserError(f"data.id {config.id} has no row in {', '.join(self._parts)}")
        ignored = [config.id_column] if config.id_column else []
        found = describe(rows, config, ignored=ignored)
        splits = complete_splits(
            given,
            {name: group or name for name, group in zip(given, found.groups, strict=True)},
            config.valid_fraction,
            config.test_fraction,
        )
        clips = [
            Clip(
                id=name,
                split=splits[name],
                source="{} row {}".format(*self._rows[name]),
                labels=labels,
                caption=caption,
            )
            for name, labels, caption in zip(given, found.labels, found.captions, strict=True)
        ]
        return sorted(clips, key=lambda clip: clip.id), found.label_types

    def _clip_id(self, row: Row, name: str, number: int) -> str:
        column = self.config.id_column
        if column is None:
            return f"{name}/{number:08d}"
        value = row.values.get(column)
        if value is None or value == "":
            raise UserError(f"{row.place}: data.id_column '{column}' is empty")
        if str(value) in self._rows:
            other, before = self._rows[str(value)]
            raise UserError(
                f"{row.place}: data.id_column '{column}' is '{value}', as in split {other}, row {before}"
            )
        return str(value)


# --- from an id to splits


def _load(config: HubDatasetCorpus) -> tuple[Path, dict[str, datasets.Dataset]]:
    """The folder that the dataset's relative paths start from, and its splits."""
    path = Path(config.id)
    if not path.exists():
        path = _download(config)
    try:
        if path.is_file():
            if path.suffix not in _FILE_FORMATS:
                raise UserError(f"data.id {path}: a folder, or a file .parquet or .arrow, is expected")
            loaded = _prepared(_FILE_FORMATS[path.suffix], data_files=str(path))
        elif (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            loaded = datasets.load_from_disk(str(path))
        else:
            _refuse_script(path, config)
            loaded = _prepared(str(path), name=config.config)
    except DataFilesNotFoundError as error:
        raise UserError(f"data.id {config.id} holds no file that `datasets` reads") from error
    except (ValueError, OSError, DatasetGenerationError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise UserError(f"data.id {config.id} cannot be read by `datasets`: {reason}") from error
    folder = path if path.is_dir() else path.parent
    if isinstance(loaded, datasets.Dataset):
        return folder, {str(loaded.split or "train"): loaded}
    return folder, {str(name): part for name, part in loaded.items()}


class _AudioFile(datasets.Audio):  # type: ignore[misc]  # datasets has no types
    """A file of an AudioFolder, noted by its path, for which `datasets` by itself would need torchcodec."""

    def encode_example(self, value: Any) -> dict[str, Any]:
        return {"bytes": None, "path": str(value)}


def _prepared(path: str, **options: Any) -> Any:
    builder = datasets.load_dataset_builder(path, **options)
    if getattr(builder, "BASE_FEATURE", None) is datasets.Audio:
        builder.BASE_FEATURE = _AudioFile
    builder.download_and_prepare()
    return builder.as_dataset()


def _download(config: HubDatasetCorpus) -> Path:
    """The snapshot of the pinned revision, from the cache where it is whole there."""
    if config.id.startswith((".", "/", "~")) or config.id.count("/") != 1:
        raise _no_id(config)
    if config.revision is None:
        raise UserError(
            f"data.id {config.id} is no local folder, and a dataset of the Hub needs data.revision: give the"
            f" commit from https://huggingface.co/datasets/{config.id}/commits/main"
        )
    try:
        # What describes the dataset comes first: one that is built by a script need not be downloaded.
        _refuse_script(_snapshot(config, ["README.md", "*.py"]), config)
        return _snapshot(config, None if config.files is None else ["README.md", *config.files])
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise UserError(
            f"data.id {config.id} is not on the Hub, or needs a login with access to it (`hf auth login`)"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"data.id {config.id} has no revision {config.revision} on the Hub") from error
    except HFValidationError as error:
        raise UserError(
            f"data.id '{config.id}' does not exist, and is no hub id such as owner/name"
        ) from error
    except (LocalEntryNotFoundError, ConnectionError, _HTTP_ERROR) as error:
        raise UserError(
            f"data.id {config.id} is not whole in the Hub's cache at revision {config.revision}, and the Hub"
            " cannot be reached: run it once with a network, or give a local folder"
        ) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"data.id {config.id} cannot be downloaded: {reason}") from error


def _no_id(config: HubDatasetCorpus) -> UserError:
    return UserError(f"data.id '{config.id}' does not exist, and is no hub id such as owner/name")


def _snapshot(config: HubDatasetCorpus, patterns: list[str] | None) -> Path:
    return Path(
        huggingface_hub.snapshot_download(
            config.id, repo_type="dataset", revision=config.revision, allow_patterns=patterns
        )
    )


def _refuse_script(folder: Path, config: HubDatasetCorpus) -> None:
    script = f"{config.id.rstrip('/').rpartition('/')[2]}.py"
    if (folder / script).exists():
        raise UserError(
            f"data.id {config.id} is made by a program, {script}, which is not run: give a commit of the"
            " Hub's branch refs/convert/parquet, or the dataset's own archives, for which there are the kinds"
            " nsynth, gtzan, musicnet, maestro and magnatagatune"
        )


# --- splits and columns


def _our_split(name: str, config: HubDatasetCorpus) -> Split | None:
    return config.splits.get(name) if config.splits is not None else SPLIT_NAMES.get(name.lower())


def _wanted(splits: dict[str, datasets.Dataset], config: HubDatasetCorpus) -> dict[str, datasets.Dataset]:
    there = ", ".join(splits)
    for name in config.splits or {}:
        if name not in splits:
            raise UserError(f"data.splits: {config.id} has no split '{name}', it has {there}")
    if config.splits is not None:
        return {name: part for name, part in splits.items() if name in config.splits}
    for name in splits:
        if _our_split(name, config) is None:
            raise UserError(
                f"data.id {config.id} has the splits {there}: say in data.splits what '{name}' is, such as"
                f" {{{name}: train}}"
            )
    return splits


def _check_columns(part: datasets.Dataset, config: HubDatasetCorpus, split: str) -> None:
    there = ", ".join(part.column_names)
    for setting, column in (("audio", config.audio), ("id_column", config.id_column)):
        if column is not None and column not in part.column_names:
            raise UserError(f"data.{setting} '{column}' is no column of split {split}: there are {there}")
    feature = part.features[config.audio]
    dtype = getattr(feature, "dtype", "")
    holds_files = isinstance(feature, dict) and feature.keys() & {"bytes", "path"}
    if not (isinstance(feature, datasets.Audio) or holds_files or "string" in dtype or "binary" in dtype):
        raise UserError(
            f"data.audio '{config.audio}' of split {split} holds neither audio nor the names of files, but"
            f" {dtype or type(feature).__name__.lower()}: name the column that does, there are {there}"
        )


def _values(part: datasets.Dataset, audio: str) -> Iterator[dict[str, Any]]:
    """The plain columns of each row; the names of classes instead of their numbers."""
    plain = (datasets.Value, datasets.ClassLabel, datasets.List, datasets.LargeList)
    names = [name for name, kind in part.features.items() if name != audio and isinstance(kind, plain)]
    if not names:
        yield from ({} for _ in range(len(part)))
        return
    for table in part.select_columns(names).with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        columns = {name: _named(part.features[name], table[name].to_pylist()) for name in names}
        for cells in zip(*columns.values(), strict=True):
            yield dict(zip(names, cells, strict=True))


def _named(feature: Any, values: list[Any]) -> list[Any]:
    if not isinstance(feature, datasets.ClassLabel):
        return values
    # Datasets write -1 where the class is not told.
    return [feature.names[value] if value is not None and value >= 0 else None for value in values]
