"""Tiny corpora in the layouts of the research datasets' official archives.

Each function writes into `folder`, which becomes the corpus's `root`, and returns it.
"""

import csv
import json

import numpy as np
import soundfile

NSYNTH_NOTES = {
    "train": ["bass_synthetic_000-040-100", "guitar_acoustic_001-060-075", "guitar_acoustic_001-062-075"],
    "valid": ["keyboard_electronic_002-072-050"],
    "test": ["vocal_acoustic_003-065-127"],
}

GTZAN_CLIPS = {
    "train": ["blues.00029", "jazz.00054", "rock.00000"],
    "valid": ["blues.00000"],
    "test": ["blues.00012", "metal.00012"],
}

# id: composer, composition, movement, ensemble, and which part of the archive it lies in
MUSICNET_RECORDINGS = {
    1727: ("Schubert", "Piano Quintet in A major", "2. Andante", "Piano Quintet", "train"),
    1728: ("Schubert", "Piano Quintet in A major", "3. Scherzo: Presto", "Piano Quintet", "train"),
    1757: ("Schubert", "Piano Sonata in C minor", "1. Allegro", "Solo Piano", "train"),
    1759: ("Schubert", "Piano Sonata in C minor", "3. Menuetto", "Solo Piano", "test"),
    1788: ("Mozart", "Piano Sonata in G major", "1. Allegro", "Solo Piano", "train"),
    1805: ("Bach", "Cello Suite 5", "1. Prelude", "Solo Cello", "train"),
}

# audio_filename without suffix: composer, title, split, year
MAESTRO_PERFORMANCES = {
    "2004/one": ("Alban Berg", "Sonata Op. 1", "train", 2004),
    "2004/two": ("Alban Berg", "Sonata Op. 1", "train", 2004),
    "2018/three": ("Clara Schumann", 'Scherzo, "No. 2", in C Minor', "validation", 2018),
    "2018/four": ("Frédéric Chopin", "Ballade No. 1", "test", 2018),
}

# mp3_path without suffix: tags
MAGNATAGATUNE_CLIPS = {
    "0/ann-songs-01-morning-0-29": ("guitar", "slow"),
    "0/ann-songs-01-morning-30-59": ("guitar",),
    "c/bob-duets-02-noon-0-29": ("piano", "slow"),
    "d/cal-airs-03-night-0-29": (),
    "f/cal-airs-04-day-117-146": ("guitar", "no voice"),
}
MAGNATAGATUNE_TAGS = ("guitar", "no voice", "piano", "slow")


def write_noise(path, duration_s=0.1, sample_rate=16000, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (round(duration_s * sample_rate), channels)
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, shape), sample_rate)


def write_table(path, rows, **dialect):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), **dialect)
        writer.writeheader()
        writer.writerows(rows)


def nsynth_note(name):
    """A note's entry in the index, with all the fields of the published one."""
    instrument, pitch, velocity = name.rsplit("-", 2)
    family, source, _ = instrument.rsplit("_", 2)
    return {
        "note": 1,
        "note_str": name,
        "instrument": int(instrument[-3:]),
        "instrument_str": instrument,
        "pitch": int(pitch),
        "velocity": int(velocity),
        "sample_rate": 16000,
        "qualities": [1, 0, 0, 0, 0, 0, 1, 0, 0, 0],
        "qualities_str": ["bright", "percussive"],
        "instrument_family": 0,
        "instrument_family_str": family,
        "instrument_source": 0,
        "instrument_source_str": source,
    }


def make_nsynth(folder, notes=NSYNTH_NOTES):
    for split, names in notes.items():
        for name in names:
            write_noise(folder / f"nsynth-{split}" / "audio" / f"{name}.wav")
        index = folder / f"nsynth-{split}" / "examples.json"
        index.write_text(json.dumps({name: nsynth_note(name) for name in names}, indent=1))
    return folder


def make_gtzan(folder, clips=GTZAN_CLIPS, genres="genres", suffix=".au", flat=False):
    for split, names in clips.items():
        for name in names:
            genre = name.partition(".")[0]
            write_noise(folder / genres / ("." if flat else genre) / f"{name}{suffix}", sample_rate=22050)
        # The published lists name .au files, whatever a copy holds.
        lines = [f"{name.partition('.')[0]}/{name}.au\n" for name in names]
        (folder / f"{split}_filtered.txt").write_text("".join(lines))
    return folder


def make_musicnet(folder, recordings=MUSICNET_RECORDINGS, below="musicnet"):
    rows = []
    for number, (composer, composition, movement, ensemble, part) in recordings.items():
        write_noise(folder / below / f"{part}_data" / f"{number}.wav", sample_rate=44100)
        note = {"start_time": 441, "end_time": 2205, "instrument": 1, "note": 60}
        beats = {"start_beat": 0.0, "end_beat": 0.5, "note_value": "Eighth"}
        write_table(folder / below / f"{part}_labels" / f"{number}.csv", [note | beats])
        named = {"id": number, "composer": composer, "composition": composition, "movement": movement}
        rest = {"source": "", "transcriber": "", "catalog_name": "OP1", "seconds": 1}
        rows.append(named | {"ensemble": ensemble} | rest)
    write_table(folder / "musicnet_metadata.csv", rows)
    return folder


def make_maestro(folder, performances=MAESTRO_PERFORMANCES, below="maestro-v3.0.0", index="csv"):
    rows = []
    for number, (name, (composer, title, split, year)) in enumerate(performances.items()):
        rate = 48000 if number % 2 else 44100
        write_noise(folder / below / f"{name}.wav", sample_rate=rate, channels=2)
        (folder / below / f"{name}.midi").write_bytes(b"MThd")
        rows.append(
            {
                "canonical_composer": composer,
                "canonical_title": title,
                "split": split,
                "year": year,
                "midi_filename": f"{name}.midi",
                "audio_filename": f"{name}.wav",
                "duration": 0.1,
            }
        )
    if index == "csv":
        write_table(folder / below / "maestro-v3.0.0.csv", rows)
    else:
        columns = {name: {str(i): row[name] for i, row in enumerate(rows)} for name in rows[0]}
        (folder / below / "maestro-v3.0.0.json").write_text(json.dumps(columns))
    return folder


def make_magnatagatune(folder, clips=MAGNATAGATUNE_CLIPS, below="."):
    rows = []
    for number, (name, tags) in enumerate(clips.items()):
        write_noise(folder / below / f"{name}.mp3", duration_s=0.3)
        flags = {tag: int(tag in tags) for tag in MAGNATAGATUNE_TAGS}
        rows.append({"clip_id": number} | flags | {"mp3_path": f"{name}.mp3"})
    write_table(folder / "annotations_final.csv", rows, delimiter="\t", quoting=csv.QUOTE_ALL)
    return folder


MAKERS = {
    "nsynth": make_nsynth,
    "gtzan": make_gtzan,
    "musicnet": make_musicnet,
    "maestro": make_maestro,
    "magnatagatune": make_magnatagatune,
}
"""The function for each kind of corpus."""
