"""Stage `eval`: generated clips, and what they should be judged against, scored and shown.

    python -m tokkata.eval.score RECIPE

Reads samples/ and the corpus; writes eval/scores.json and eval/report.html.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from ..core.card import fill_scores
from ..core.device import best_device
from ..core.errors import UserError
from ..core.files import read_jsonl, write_json
from ..core.progress import track
from ..core.recipe import dump_recipe
from ..core.run import stage_main
from ..core.schema import Recipe
from ..core.sections import Split
from ..tokenize.codec import Codec, load_codec_from_config
from ..tokenize.corpus import Clip, Corpus
from ..tokenize.fast_codec import fast
from ..tokenize.load_corpus import load_corpus
from . import report
from .copies.find import CopyScores
from .copies.of_run import copies_of_run
from .copies.pairs import CopySection
from .embedding import load_embedding
from .measure_run import NamedSet, RunMeasure
from .measured import Score
from .players import listening_rows
from .sets import ClipSet, Skipped, generated_clips, real_clips, reconstruct, split_clips, white_noise

FLOOR, RECONSTRUCTED, GENERATED, UNTRAINED, NOISE = (
    "real, other",
    "reconstructed",
    "generated",
    "untrained",
    "white noise",
)
PACKAGES = ("tokkata", "torch", "transformers", "accelerate", "numpy", "librosa")


@dataclass(frozen=True)
class ScoreRow:
    """How one set of clips compares with the reference."""

    name: str
    note: str
    """What the set is and what its score tells."""
    num_clips: int
    num_frames: int
    """Embedding frames of all clips."""
    scores: list[Score]
    """Those that the run has the material for: of each set the same, without a value where there is none."""

    def score(self, name: str) -> Score | None:
        """The score called `name`, if it was measured and has a value."""
        return next((one for one in self.scores if one.name == name and one.value is not None), None)

    def value(self, name: str) -> float | None:
        """Its value."""
        found = self.score(name)
        return None if found is None else found.value


@dataclass(frozen=True)
class EmbeddingInfo:
    """What the Fréchet distances were measured in."""

    name: str
    width: int
    sample_rate: int
    resampler: str = "soxr HQ"


@dataclass(frozen=True)
class Reference:
    """The real audio that every row is compared with."""

    split: Split
    num_clips: int
    num_frames: int
    max_duration_s: float
    """Longer files were cropped to this."""


@dataclass(frozen=True)
class Scores:
    """What `scores.json` holds."""

    rows: list[ScoreRow]
    embedding: EmbeddingInfo
    reference: Reference
    skipped: list[Skipped]
    warnings: list[str]
    versions: dict[str, str]
    copies: CopyScores | None = None
    """None where the recipe does not ask for them."""


@dataclass(frozen=True)
class Sets:
    """All audio of one evaluation, at the codec's sample rate."""

    reference: ClipSet
    scored: list[NamedSet]
    codec: Codec
    captions: dict[str, str]
    """Of real clips, by their ids."""
    skipped: list[Skipped]
    warnings: list[str]

    def has(self, name: str) -> bool:
        """Whether there is a set called `name`."""
        return any(item.name == name for item in self.scored)

    def named(self, name: str) -> ClipSet:
        """The set called `name`; there must be one."""
        return next(item.clips for item in self.scored if item.name == name)


def _load_generated(recipe: Recipe, codec: Codec, skipped: list[Skipped]) -> dict[str, ClipSet]:
    """The generated sets by name; raises `UserError` if the trained model's cannot be read."""
    samples = recipe.folder / "samples"
    sets: dict[str, ClipSet] = {}
    for name, folder in ((GENERATED, samples), (UNTRAINED, samples / "untrained")):
        if (folder / "samples.jsonl").exists():
            sets[name] = generated_clips(
                folder, codec, set_name=name, max_clips=recipe.eval.max_clips, skipped=skipped
            )
    if not sets.get(GENERATED):
        raise UserError(f"there are no generated clips in {samples}: run the stage 'generate' first")
    return sets


@dataclass(frozen=True)
class _Real:
    reference: ClipSet
    other: ClipSet
    other_note: str


def _load_real(
    recipe: Recipe, corpus: Corpus, codec: Codec, generated: ClipSet, skipped: list[Skipped]
) -> _Real:
    """The reference, and about as many real clips that are not in it as there are generated ones."""
    settings = recipe.eval
    in_reference = split_clips(corpus, settings.reference, settings.seed)
    other_split: Split = "test" if settings.reference == "valid" else "valid"
    in_other = split_clips(corpus, other_split, settings.seed)
    origin = f"Real clips of the split '{other_split}'"
    if not in_other:
        # Both halves are smaller then, but the reference stays the same for all rows.
        half = len(in_reference) // 2
        in_other, in_reference = in_reference[:half], in_reference[half:]
        origin = f"The half of the split '{settings.reference}' that is not in the reference"
    # Clips that lent generated ones their labels come first: they are reconstructed and played beside them.
    in_reference.sort(key=lambda clip: clip.id not in generated.sources)

    def read(clips: Sequence[Clip], set_name: str, max_clips: int) -> ClipSet:
        return real_clips(
            corpus,
            clips,
            codec,
            set_name=set_name,
            duration_s=recipe.generate.duration_s,
            max_clips=max_clips,
            seed=settings.seed,
            skipped=skipped,
            settings=recipe.audio,
        )

    reference = read(in_reference, "reference", settings.max_clips)
    if not len(reference):
        raise UserError(
            f"the split '{settings.reference}' of the corpus has no clip that can be read:"
            " choose another with 'eval.reference', or hold out more of the corpus"
        )
    other = read(in_other, FLOOR, min(len(reference), len(generated)))
    return _Real(reference, other, f"{origin}: how far apart real recordings are from each other.")


def load_sets(recipe: Recipe) -> Sets:
    """Read, crop, decode and synthesise all that is compared; raises `UserError` if a part is missing."""
    skipped: list[Skipped] = []
    warnings: list[str] = []
    assert recipe.codec is not None, "a recipe without a codec has no stage that generates"
    codec = fast(load_codec_from_config(recipe.codec, best_device()))
    corpus = load_corpus(recipe.data)
    generated = _load_generated(recipe, codec, skipped)
    # The distance of a set depends on its size, so the other sets are made as large as the generated one.
    real = _load_real(recipe, corpus, codec, generated[GENERATED], skipped)
    paired = real.reference.first(len(generated[GENERATED]))
    stored = "tokens" if recipe.tokenize.store == "codes" else "latents"
    scored = []
    if len(real.other):
        scored.append(NamedSet(FLOOR, real.other_note, real.other))
    else:
        warnings.append("No real clips are left beside the reference, so there is no floor to compare with.")
    scored.append(
        NamedSet(
            RECONSTRUCTED,
            f"The reference's own clips, encoded to {stored} and decoded: what the codec loses.",
            reconstruct(codec, paired, recipe.tokenize.store),
        )
    )
    prompt_s = recipe.generate.prompt_s
    prompted = (
        f" The first {prompt_s:g} s of each clip are real audio, which it continues." if prompt_s else ""
    )
    scored.append(
        NamedSet(
            GENERATED,
            f"What the trained model made.{prompted}",
            generated[GENERATED],
            is_generated=True,
        )
    )
    if generated.get(UNTRAINED):
        scored.append(
            NamedSet(
                UNTRAINED,
                f"The same model with random weights: what training has to improve on.{prompted}",
                generated[UNTRAINED],
                is_generated=True,
            )
        )
    scored.append(
        NamedSet(
            NOISE,
            "Gaussian noise as loud as the reference.",
            white_noise(paired, recipe.eval.seed),
            is_labelled=False,
        )
    )
    for name in generated:
        lost = sum(skip.set == name for skip in skipped)
        if lost:
            clips = f"{lost} clip{'s' if lost != 1 else ''}"
            warnings.append(f"{clips} of the set '{name}' could not be read and are missing from its scores.")
    captions = {clip.id: clip.caption for clip in corpus.clips() if clip.caption}
    return Sets(real.reference, scored, codec, captions, skipped, warnings)


def _score_set(item: NamedSet, run: RunMeasure) -> ScoreRow:
    scores, num_frames = run.scores(item)
    return ScoreRow(item.name, item.note, len(item.clips), num_frames, scores)


def score_sets(recipe: Recipe, sets: Sets) -> Scores:
    """Score each of `sets` against the reference; raises `UserError` if the reference is too short."""
    settings = recipe.eval
    embedding = load_embedding(settings.embedding)
    width = embedding.info.width
    run = RunMeasure(recipe, embedding, sets.codec, sets.reference, sets.captions)
    reference = run.stats
    if reference.num < 2:
        raise UserError(
            f"the reference has {reference.num} embedding frames and a covariance needs 2:"
            f" the clips of the split '{settings.reference}' are too few and too short to compare with"
        )
    rows = [_score_set(item, run) for item in track(sets.scored, "score")]
    warnings = list(sets.warnings)
    for name, num_frames in [("reference", reference.num), *((row.name, row.num_frames) for row in rows)]:
        if num_frames < 2 * width:
            warnings.append(
                f"'{name}' has {num_frames} embedding frames, fewer than twice the embedding's width"
                f" ({width}): its distances say little."
            )
    return Scores(
        rows=rows,
        embedding=EmbeddingInfo(embedding.info.name, width, embedding.info.sample_rate),
        reference=Reference(
            settings.reference, len(sets.reference), reference.num, recipe.generate.duration_s
        ),
        skipped=sets.skipped,
        warnings=warnings,
        versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    )


def score(recipe: Recipe) -> Scores:
    """The scores of a run; raises `UserError` if it has no samples or the corpus no reference."""
    return score_sets(recipe, load_sets(recipe))


IN_TABLE = ("fad", "fad-inf", "pitch-accuracy", "chroma-accuracy")
"""Scores that have columns of their own in the report; the others have a table."""


def _table_row(row: ScoreRow) -> report.TableRow:
    pitch = row.score("pitch-accuracy")
    judged = pitch.detail.get("clips") if pitch is not None else None
    intervals = {name: score.interval for name in IN_TABLE if (score := row.score(name)) is not None}
    return report.TableRow(
        name=row.name,
        note=row.note,
        num_clips=row.num_clips,
        num_frames=row.num_frames,
        fad=row.value("fad"),
        fad_infinity=row.value("fad-inf"),
        pitch_accuracy=row.value("pitch-accuracy"),
        chroma_accuracy=row.value("chroma-accuracy"),
        num_pitched=int(judged) if isinstance(judged, float) else 0,
        highlighted=row.name == GENERATED,
        intervals={name: interval for name, interval in intervals.items() if interval is not None},
        others=[score for score in row.scores if score.name not in IN_TABLE],
    )


def _read_rows(path: Path) -> list[dict[str, object]]:
    """The rows of a log that may not be there."""
    return read_jsonl(path) if path.exists() else []


def report_data(
    recipe: Recipe, sets: Sets, scores: Scores, copies: CopySection | None = None
) -> report.ReportData:
    """Gather what the report shows of a run."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    rejects = _read_rows(recipe.folder / "tokens" / "rejects.jsonl")
    return report.ReportData(
        name=recipe.name,
        reference=(
            f"{scores.reference.num_clips} real clips of the split '{scores.reference.split}',"
            f" each at most {scores.reference.max_duration_s:g} s"
        ),
        embedding=(
            f"{scores.embedding.name}, {scores.embedding.width} wide, audio resampled to"
            f" {scores.embedding.sample_rate} Hz mono with {scores.embedding.resampler}"
        ),
        rows=[_table_row(row) for row in scores.rows],
        warnings=scores.warnings,
        curves=report.read_curves(_read_rows(recipe.folder / "logs" / "train.jsonl")),
        listening=listening_rows(
            real=sets.reference,
            reconstructed=sets.named(RECONSTRUCTED),
            generated=sets.named(GENERATED),
            untrained=sets.named(UNTRAINED) if sets.has(UNTRAINED) else None,
            sample_rate=sets.codec.sample_rate,
            num_rows=recipe.eval.num_players,
            picture=recipe.eval.picture,
        ),
        picture=recipe.eval.picture,
        rejected=[
            *(report.Rejected(str(row["source"]), str(row["reason"]), "tokenize") for row in rejects),
            *(report.Rejected(skip.clip, skip.reason, f"eval, {skip.set}") for skip in scores.skipped),
        ],
        recipe=dump_recipe(recipe),
        environment={
            "Date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "System": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
            "GPU": device,
            **scores.versions,
        },
        copies=copies,
    )


def card_table(scores: Scores) -> str:
    """The scores as Markdown, for the model card."""
    rows = [_table_row(row) for row in scores.rows]
    lines = [
        f"Fréchet distance to {scores.reference.num_clips} real clips of the split '{scores.reference.split}'"
        f" in the embedding `{scores.embedding.name}` (lower is better; FAD∞ is what it would be with"
        " infinitely many clips), and the share of single notes that sound at the pitch of their label.",
        "",
        "| set | clips | FAD ↓ | FAD∞ ↓ | pitch ↑ |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.name} | {row.num_clips} | {report.number(row.fad)} | {report.number(row.fad_infinity)}"
        f" | {report.percent(row.pitch_accuracy)} |"
        for row in rows
    ]
    return "\n".join(lines)


def evaluate(recipe: Recipe) -> None:
    """The stage: score the run, write eval/scores.json and eval/report.html, and fill in the model card."""
    sets = load_sets(recipe)
    scores = score_sets(recipe, sets)
    section = None
    if recipe.eval.copies:
        copies, section = copies_of_run(recipe, sets.named(GENERATED))
        scores = replace(scores, copies=copies)
    write_json(recipe.folder / "eval" / "scores.json", asdict(scores))
    card = recipe.folder / "model" / "README.md"
    if card.exists():  # people move and delete model cards
        fill_scores(card, card_table(scores))
    data = report_data(recipe, sets, scores, section)
    path = recipe.folder / "eval" / "report.html"
    report.write_report(path, data)
    print(report.summary(data))
    print(f"Look and listen: {path}")


if __name__ == "__main__":
    stage_main("eval", evaluate)
