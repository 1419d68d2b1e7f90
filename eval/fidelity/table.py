"""The scores of codecs as Markdown, for the terminal and for cards."""

from __future__ import annotations

from collections.abc import Iterator

from .measure import CoderScores, Fidelity

HEAD = (
    "codec",
    "kHz",
    "kbit/s",
    "entropy, kbit/s",
    "mel distance ↓",
    "STFT distance ↓",
    "SI-SDR dB ↑",
    "FAD ↓",
    "encode ×",
    "decode ×",
)


def table(scores: Fidelity) -> str:
    """All rows, and what is to be known of them."""
    lines = [
        what(scores),
        "",
        f"| {' | '.join(HEAD)} |",
        "|---" * len(HEAD) + "|",
        *(f"| {' | '.join(_cells(row))} |" for row in scores.rows),
        "",
        f"FAD is in {scores.embedding}{_floor(scores.floor)}; × are seconds of audio a second.",
        *contents(scores),
        *scores.notes,
    ]
    if scores.rejected:
        first = scores.rejected[0]
        lines.append(f"left out: {len(scores.rejected)}; {first.name}: {first.reason}")
    return "\n".join(lines)


def what(scores: Fidelity) -> str:
    """What was coded, in a few words."""
    clips = "1 clip" if scores.num_clips == 1 else f"{scores.num_clips} clips"
    return f"{clips} of {scores.data}, {scores.duration_s:.0f} s"


def contents(scores: Fidelity) -> Iterator[str]:
    """A line on the codes or latents of each codec."""
    for row in scores.rows:
        if row.codebooks is not None and row.unused is not None:
            used = ", ".join(map(str, row.codebooks.used))
            sounding = ""
            if row.sounding_share is not None and row.sounding_efficiency is not None:
                efficiency, share = row.sounding_efficiency, row.sounding_share
                sounding = f" ({efficiency:.1%} of the {share:.1%} that are not silent)"
            yield (
                f"{row.name}: codebook efficiency {row.codebooks.efficiency:.1%} of all frames{sounding};"
                f" entries used: {used}; never used: {sum(row.unused)}"
            )
        if row.latents is not None:
            mean, std = row.latents.mean, row.latents.std
            yield (
                f"{row.name}: {row.latents.numbers_per_s:g} numbers a second; of its {len(mean)} latents,"
                f" means {min(mean):.2f} to {max(mean):.2f}, standard deviations {min(std):.2f} to"
                f" {max(std):.2f}"
            )


def _cells(row: CoderScores) -> tuple[str, ...]:
    channels = {1: "", 2: " stereo"}.get(row.channels, f" × {row.channels}")
    return (
        row.name,
        f"{row.sample_rate / 1000:g}{channels}",
        _or_dash(row.bitrate_kbps, 2),
        _or_dash(row.effective_kbps, 2),
        f"{row.mel_distance:.2f}",
        f"{row.stft_distance:.2f}",
        f"{row.si_sdr_db:.1f}",
        _or_dash(row.fad, 3),
        _speed(row.encode_speed),
        _speed(row.decode_speed),
    )


def _or_dash(value: float | None, decimals: int) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


def _speed(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _floor(value: float | None) -> str:
    return "" if value is None else f", where one half of the originals lies {value:.3f} from the other"
