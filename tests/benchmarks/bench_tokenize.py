"""How fast audio becomes tokens and tokens audio, beside `transformers` and the original DAC package.

    make bench                                              (all of it)
    python tests/benchmarks/bench_tokenize.py --quick       (40 s of audio for each codec)

Codecs of the published sizes get random weights, and audio is made, so nothing is downloaded. Every
contender does a group of files before any of them does the next group, in turn first, so that what else the
machine does hits them alike. The sums over all files and the median of the groups' ratios are printed.
"""

import argparse
import importlib
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dac
import numpy as np
import soundfile
import torch
from parity_codecs import build_encodec_32khz, fill_codebooks, made_audio
from rich.console import Console
from rich.table import Table
from torch.profiler import profile

from tokkata.core.audio import load_audio, write_wav
from tokkata.core.audio_stream import open_audio
from tokkata.core.progress import hide_library_bars
from tokkata.tokenize.chunking import decode_long, encode_long
from tokkata.tokenize.codec import Codec, load_codec
from tokkata.tokenize.families.codec_dac import to_hub
from tokkata.tokenize.families.codec_original import encodec_to_hub
from tokkata.tokenize.fast_codec import fast

WINDOW_S = 20
NUM_GROUPS = 6
CONSOLE = Console(width=120)


@dataclass
class Contender:
    """One way to encode files or to decode codes."""

    name: str
    run: Callable[[list[Path]], list[Any]]
    """Does a group of files, and gives what each became."""
    precision: str = "fp32"
    seconds: list[float] = field(default_factory=list)  # one a group
    results: list[Any] = field(default_factory=list)


def race(contenders: list[Contender], groups: list[list[Path]]) -> None:
    """Let all contenders do all groups."""
    for contender in contenders:
        contender.run(groups[0][:1])  # whatever is done once, such as packing weights
    for number, group in enumerate(groups):
        first = number % len(contenders)
        for contender in contenders[first:] + contenders[:first]:
            begin = time.perf_counter()
            results = contender.run(group)
            contender.seconds.append(time.perf_counter() - begin)
            contender.results += results


def report(title: str, contenders: list[Contender], audio_s: float, columns: dict[str, Callable]) -> None:
    """Print a line a contender; ratios are to each that is not ours."""
    peers = [contender for contender in contenders if not contender.name.startswith("tokkata")]
    ratios = [f"× {peer.name} (median)" for peer in peers]
    table = Table("", "s of audio a s", *ratios, *columns, title=title)
    for contender in contenders:
        cells = [f"{audio_s / sum(contender.seconds):.2f}"]
        for peer in peers:
            each = [theirs / ours for theirs, ours in zip(peer.seconds, contender.seconds, strict=True)]
            whole = sum(peer.seconds) / sum(contender.seconds)
            cells.append(f"{whole:.2f} ({statistics.median(each):.2f})")
        table.add_row(contender.name, *cells, *(value(contender) for value in columns.values()))
    CONSOLE.print(table)


# --- codecs and audio


def make_dac(folder: Path) -> dac.DAC:
    """The original package's DAC 44.1 kHz; saved in the hub's layout too."""
    torch.manual_seed(0)
    original = dac.DAC(sample_rate=44100).eval()
    original(torch.zeros(1, 1, 1024))  # the weight norm's hook computes the weights that to_hub copies
    to_hub(original).save_pretrained(folder)
    return original


def make_encodec(folder: Path) -> None:
    """The sizes of `facebook/encodec_32khz`."""
    torch.manual_seed(0)
    original = build_encodec_32khz().eval()
    fill_codebooks(original)
    encodec_to_hub(original).save_pretrained(folder)


def make_files(folder: Path, num_files: int, total_s: float) -> list[list[Path]]:
    """Groups of wav files of 2 to 25 s, at 44.1 and 48 kHz in turn, each in a folder of its own."""
    lengths = np.geomspace(2.0, 25.0, num_files)
    lengths *= total_s / lengths.sum()
    order = np.random.default_rng(0).permutation(num_files)
    groups = []
    for number, part in enumerate(np.array_split(order, NUM_GROUPS)):
        inside = folder / f"group-{number}"
        inside.mkdir(parents=True)
        groups.append([write_made(inside / f"{i}.wav", float(lengths[i]), seed=int(i)) for i in part])
    return groups


def write_made(path: Path, duration_s: float, seed: int) -> Path:
    """A mono file of made music."""
    sample_rate = (44100, 48000)[seed % 2]
    pieces = made_audio(1, sample_rate, seconds=int(duration_s) + 5, seed=seed)
    samples = pieces.flatten()[: round(duration_s * sample_rate)]
    write_wav(path, samples[None].clamp(-1, 1).numpy(), sample_rate)
    return path


# --- encoding


def encode_by_transformers(codec: Codec, paths: list[Path]) -> list[torch.Tensor]:
    """File by file, each whole, with the model's own `encode`."""
    found = []
    for path in paths:
        samples = torch.from_numpy(load_audio(path, codec.sample_rate, codec.channels))[None]
        padded = torch.nn.functional.pad(samples, (0, -samples.shape[-1] % codec.hop_length))
        codes = codec.model.encode(padded).audio_codes
        found.append(codes.reshape(-1, codes.shape[-2], codes.shape[-1])[0])
    return found


def encode_by_original(model: dac.DAC, paths: list[Path]) -> list[None]:
    """The package's own command, with a model that is loaded already."""
    command = importlib.import_module("dac.utils.encode")
    command.load_model = lambda **_: model
    command.tqdm = lambda iterable, **_: iterable
    with tempfile.TemporaryDirectory() as out:
        for path in paths:
            command.encode(input=str(path), output=out, device="cpu")
    return [None] * len(paths)


def encode_by_tokkata(codec: Codec, paths: list[Path], window_s: float = WINDOW_S) -> list[torch.Tensor]:
    """Windows, as the stage tokenize does it."""
    found = []
    for path in paths:
        stream = open_audio(path, codec.sample_rate, codec.channels)
        frames = round(window_s * codec.frame_rate)
        found.append(encode_long(codec, stream.blocks(), stream.num_samples, frames).codes)
    return found


def changed(reference: Contender) -> Callable[[Contender], str]:
    """Share of codes that differ from the reference's."""

    def share(contender: Contender) -> str:
        if contender.results[0] is None:
            return "other codes"
        pairs = list(zip(contender.results, reference.results, strict=True))
        differing = sum(int((found != expected).sum()) for found, expected in pairs)
        total = sum(expected.numel() for _, expected in pairs)
        return f"{100 * differing / total:.4f}% ({differing} of {total})"

    return share


def bench_encode(
    title: str, plain: Codec, peers: list[Contender], groups: list[list[Path]]
) -> list[Contender]:
    window_s = WINDOW_S if plain.chunking.exact else 60  # an LSTM's codes depend on the windows
    quick, quicker = fast(plain), fast(plain, "bf16")
    ours = [
        Contender("tokkata fp32", lambda paths: encode_by_tokkata(quick, paths, window_s)),
        Contender("tokkata bf16", lambda paths: encode_by_tokkata(quicker, paths, window_s), "bf16"),
    ]
    theirs = Contender("transformers", lambda paths: encode_by_transformers(plain, paths))
    contenders = [theirs, *peers, *ours]
    race(contenders, groups)
    report(title, contenders, audio_seconds(groups), {"codes changed": changed(theirs)})
    return contenders


def window_of(codec: Codec) -> float:
    """Seconds; for a codec with an LSTM, whose codes depend on the windows, more than any file has."""
    return WINDOW_S if codec.chunking.exact else 60


def audio_seconds(groups: list[list[Path]]) -> float:
    """Length of all files."""
    return sum(soundfile.info(path).duration for path in itertools.chain(*groups))


# --- decoding


def decode_by_transformers(codec: Codec, codes: torch.Tensor) -> np.ndarray:
    """Codes `[K, T]` to audio `[C, N]` with the model's own `decode`."""
    if codec.model.config.model_type == "encodec":
        return codec.model.decode(codes[None, None], [None]).audio_values[0].numpy()
    return codec.model.decode(audio_codes=codes[None]).audio_values.reshape(codec.channels, -1).numpy()


def bench_decode(title: str, plain: Codec, groups: list[list[Path]], folder: Path) -> None:
    """Print the table of decoding what the files were encoded to, to wav files."""
    window_s = window_of(plain)
    codes = {path: encode_by_tokkata(fast(plain), [path], window_s)[0] for path in itertools.chain(*groups)}
    frames = round(window_s * plain.frame_rate)

    def by_transformers(paths: list[Path]) -> list[np.ndarray]:
        return [save(decode_by_transformers(plain, codes[path])) for path in paths]

    def by_tokkata(codec: Codec, paths: list[Path]) -> list[np.ndarray]:
        found = []
        for path in paths:
            pieces = decode_long(codec, codes[path], codec.num_samples(codes[path].shape[1]), frames)
            found.append(save(np.concatenate(list(pieces), axis=1)))
        return found

    def save(samples: np.ndarray) -> np.ndarray:
        write_wav(folder / "decoded.wav", samples, plain.sample_rate)
        return samples

    quick, quicker = fast(plain), fast(plain, "bf16")
    theirs = Contender("transformers", by_transformers)
    contenders = [
        theirs,
        Contender("tokkata fp32", lambda paths: by_tokkata(quick, paths)),
        Contender("tokkata bf16", lambda paths: by_tokkata(quicker, paths)),
    ]
    race(contenders, groups)

    def fidelity(contender: Contender) -> str:
        if contender is theirs:
            return ""
        pairs = zip(contender.results, theirs.results, strict=True)
        return f"{statistics.median(si_sdr(found, expected) for found, expected in pairs):.1f} dB"

    report(title, contenders, audio_seconds(groups), {"SI-SDR to transformers": fidelity})


def si_sdr(found: np.ndarray, expected: np.ndarray) -> float:
    """Scale-invariant signal to distortion ratio in dB."""
    length = min(found.shape[1], expected.shape[1])  # decoders with odd strides come out short
    found, expected = (x[:, :length].astype(np.float64).ravel() for x in (found, expected))
    target = (found @ expected) / (expected @ expected) * expected
    return float(10 * np.log10((target @ target) / ((found - target) @ (found - target))))


# --- memory


def bench_memory(folder: Path, work: Path, lengths_s: list[int]) -> None:
    table = Table("file", "tokkata fp32", "tokkata bf16", "transformers", title="Peak memory of one process")
    for seconds in lengths_s:
        path = write_made(work / f"long-{seconds}.wav", seconds, seed=0)
        cells = [f"{measure_peak(folder, path, precision):.2f} GB" for precision in ("fp32", "bf16")]
        # A whole file of ten minutes would take `transformers` some 30 GB.
        whole = f"{measure_peak(folder, path, 'plain'):.2f} GB" if seconds <= 30 else "not tried"
        table.add_row(f"{seconds} s", *cells, whole)
    CONSOLE.print(table)


def measure_peak(folder: Path, path: Path, precision: str) -> float:
    """Gigabytes that a process of its own takes to load the codec and encode one file."""
    command = [sys.executable, __file__, "--peak", str(folder), str(path), precision]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(told.stdout.split()[-1])


def print_peak(folder: str, path: str, precision: str) -> None:
    codec = load_codec(folder)
    if precision == "plain":
        encode_by_transformers(codec, [Path(path)])
    else:
        encode_by_tokkata(fast(codec, precision), [Path(path)])
    # Not ru_maxrss, in which a process inherits the peak of the one that started it.
    status = Path("/proc/self/status").read_text(encoding="ascii").split()
    print(int(status[status.index("VmHWM:") + 1]) * 1024 / 1e9)


# --- what limits it


def bench_limits(title: str, plain: Codec, rates: dict[str, float]) -> None:
    """How near to the machine's matrix products the encoder's convolutions run."""
    work = conv_gflop(plain)
    table = Table(
        "", "GFLOP/s reached", "matmul peak", "of peak", "share of convolutions", "threads", title=title
    )
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        reached, peak = work * rates[precision], matmul_gflops(dtype)
        share = conv_share(fast(plain, precision))
        cells = [f"{reached:.0f}", f"{peak:.0f}", f"{100 * reached / peak:.0f}%", f"{100 * share:.0f}%"]
        table.add_row(precision, *cells, str(torch.get_num_threads()))
    CONSOLE.print(table)
    CONSOLE.print(f"The encoder's convolutions are {work:.1f} GFLOP for a second of audio.\n")


def conv_gflop(codec: Codec) -> float:
    """Of the plain encoder, for a second of audio."""
    total = 0

    def count(conv: torch.nn.Module, _: Any, out: torch.Tensor) -> None:
        nonlocal total
        total += 2 * conv.weight.numel() * out.shape[-1]

    convs = [part for part in codec.model.encoder.modules() if isinstance(part, torch.nn.Conv1d)]
    handles = [conv.register_forward_hook(count) for conv in convs]
    codec.encode_latents(torch.zeros(1, 1, codec.sample_rate))
    for handle in handles:
        handle.remove()
    return total / 1e9


def matmul_gflops(dtype: torch.dtype, size: int = 1024, rounds: int = 40) -> float:
    """The best of a few rounds in which every thread multiplies matrices of its own."""
    num_threads = torch.get_num_threads()
    operands = [torch.randn(3, size, size).to(dtype) for _ in range(num_threads)]

    def multiply(matrices: torch.Tensor) -> None:
        torch.get_num_threads()
        torch.set_num_threads(1)
        for _ in range(rounds):
            torch.mm(matrices[0], matrices[1], out=matrices[2])

    best = 0.0
    for _ in range(5):
        with ThreadPoolExecutor(num_threads) as pool:
            begin = time.perf_counter()
            list(pool.map(multiply, operands))
            spent = time.perf_counter() - begin
        best = max(best, 2 * size**3 * rounds * num_threads / spent / 1e9)
    torch.set_num_threads(num_threads)
    return best


def conv_share(codec: Codec) -> float:
    """Share of one thread's time that an encoder spends in convolutions."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    audio = made_audio(1, codec.sample_rate, 5)[:1]
    codec.encode(audio)
    with profile(acc_events=True) as profiler:
        codec.encode(audio)
    torch.set_num_threads(num_threads)
    events = profiler.key_averages()
    of_convs = sum(event.self_cpu_time_total for event in events if "convolution" in event.key)
    return of_convs / sum(event.self_cpu_time_total for event in events)


# --- all of it


def bench_dac(work: Path, num_files: int, total_s: float, lengths_s: list[int]) -> None:
    original = make_dac(work / "dac")
    plain = load_codec(str(work / "dac"))
    groups = make_files(work / "files-dac", num_files, total_s)
    peer = Contender("dac encode", lambda paths: encode_by_original(original, paths))
    title = f"DAC 44.1 kHz, encoding {num_files} files of {audio_seconds(groups):.0f} s in all"
    contenders = bench_encode(title, plain, [peer], groups)
    rates = {c.precision: audio_seconds(groups) / sum(c.seconds) for c in contenders[-2:]}
    bench_limits("What limits encoding", plain, rates)
    fewer = [group[: max(1, len(group) // 10)] for group in groups[:4]]
    title = f"DAC 44.1 kHz, decoding {sum(map(len, fewer))} files of {audio_seconds(fewer):.0f} s in all"
    bench_decode(title, plain, fewer, work)
    bench_memory(work / "dac", work, lengths_s)


def bench_encodec(work: Path, num_files: int, total_s: float) -> None:
    make_encodec(work / "encodec")
    plain = load_codec(str(work / "encodec"))
    groups = make_files(work / "files-encodec", num_files, total_s)
    title = f"EnCodec 32 kHz, encoding {num_files} files of {audio_seconds(groups):.0f} s in all"
    bench_encode(title, plain, [], groups)
    fewer = [group[: max(1, len(group) // 5)] for group in groups[:4]]
    title = f"EnCodec 32 kHz, decoding {sum(map(len, fewer))} files of {audio_seconds(fewer):.0f} s in all"
    bench_decode(title, plain, fewer, work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="40 s of audio for each codec")
    parser.add_argument("--only", choices=("dac", "encodec"), help="one codec's tables")
    parser.add_argument("--peak", nargs=3, metavar=("CODEC", "FILE", "PRECISION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    hide_library_bars()
    torch.set_grad_enabled(False)
    if arguments.peak:
        print_peak(*arguments.peak)
        return
    num_files, total_s = (12, 40.0) if arguments.quick else (60, 600.0)
    work = Path(tempfile.mkdtemp())
    load = "load average of the last minute: {:.1f}"
    CONSOLE.print(f"{torch.get_num_threads()} threads; {load.format(os.getloadavg()[0])}\n")
    if arguments.only != "encodec":
        bench_dac(work, num_files, total_s, [10, 60] if arguments.quick else [10, 600])
    if arguments.only != "dac":
        bench_encodec(work, num_files, total_s)
    CONSOLE.print(load.format(os.getloadavg()[0]))
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
