"""Spectrograms of the first clips of some runs, a column each.

python tests/benchmarks/families_picture.py runs/families/* --plot docs/families.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import soundfile

from tokkata.core.files import read_jsonl


def main() -> None:
    """Draw them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument("--plot", type=Path, default=Path("families.png"))
    args = parser.parse_args()
    shape = (args.clips, len(args.runs))
    figure, axes = plt.subplots(*shape, figsize=(1.5 * shape[1], 1.6 * shape[0]), squeeze=False)
    for column, run in enumerate(args.runs):
        for row, line in enumerate(read_jsonl(run / "samples" / "samples.jsonl")[: args.clips]):
            samples, rate = soundfile.read(run / "samples" / line["file"], always_2d=True)
            axis = axes[row, column]
            axis.specgram(
                samples.mean(1), NFFT=1024, noverlap=768, Fs=rate, vmin=-140, vmax=-30, cmap="magma"
            )
            axis.set(ylim=(0, 4000), xticks=[], yticks=[])
            pitch = line["labels"].get("pitch")
            axis.set_title(
                " ".join([run.name if row == 0 else "", f"({pitch})" if pitch else ""]), fontsize=7
            )
    axes[-1, 0].set(yticks=[0, 2000, 4000], xlabel="1 s", ylabel="Hz")
    figure.tight_layout(pad=0.4)
    figure.savefig(args.plot, dpi=110)


if __name__ == "__main__":
    main()
