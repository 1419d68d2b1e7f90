"""Many listeners at once: `tokkata listen serve` on loopback, and how long it lets them wait.

    python tests/benchmarks/load_listening.py --listeners 200

Each listener fetches clips, waits as long as they last and a random while more, and sends the rating. At the
end every acknowledged rating is looked for in the database. Times are from the first byte of a request to the
last of its response, in this process, which shares the machine with the server.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import soundfile

from tokkata.core.recipe import check_section
from tokkata.eval.listening.build import build_test
from tokkata.eval.listening.definition import QUESTIONS, Definition
from tokkata.eval.listening.ratings import read_ratings

RATE = 48000
SYSTEMS = ("first", "second", "third")


def make_test(folder: Path, clip_s: float, num_items: int) -> Path:
    """A test of three systems with tones of `clip_s` seconds."""
    clock = np.arange(round(clip_s * RATE)) / RATE
    for k, system in enumerate(SYSTEMS):
        (folder / system).mkdir()
        for item in range(num_items):
            samples = 0.1 * np.sin(2 * np.pi * (200 + 40 * item) * clock) * np.exp(-k * clock)
            soundfile.write(folder / system / f"{item}.wav", samples, RATE)
    values = {
        "method": "acr",
        "attributes": [{"name": "quality", "question": QUESTIONS["acr"]["quality"]}],
        "systems": [{"name": system, "path": str(folder / system)} for system in SYSTEMS],
        "items_per_listener": num_items,
        "attention_items": 0,
        "loudness_lufs": -23.0,
    }
    path = folder / "test.yaml"
    build_test(path, check_section(Definition, values))
    return path


class Connection:
    """HTTP/1.1 on one connection that stays open; notes how long each kind of request took, in seconds."""

    def __init__(self, host: str, port: int, times: dict[str, list[float]]) -> None:
        self._address, self._times = (host, port), times
        self._token = ""

    async def open(self) -> None:
        """Connect, and enrol."""
        self._reader, self._writer = await asyncio.open_connection(*self._address)
        self._token = json.loads(await self.ask("enrol", {}))["token"]

    async def ask(self, path: str, body: object = None) -> bytes:
        """GET, or POST with a `body`; the body of the response, which must be 200."""
        content = b"" if body is None else json.dumps(body).encode()
        head = [
            f"{'GET' if body is None else 'POST'} /api/{path} HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {self._token}",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
        ]
        start = time.perf_counter()
        self._writer.write("\r\n".join([*head, "", ""]).encode() + content)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
        response = await self._reader.readexactly(length)
        self._times[path.split("/")[0]].append(time.perf_counter() - start)
        if not lines[0].startswith("http/1.1 200"):
            raise RuntimeError(f"{path}: {lines[0]} {response[:200]!r}")
        return response


async def listen(connection: Connection, think_s: float, acknowledged: dict[str, float], seed: int) -> None:
    """One listener's test from the beginning to the end."""
    chance = random.Random(seed)
    await asyncio.sleep(chance.uniform(0.0, think_s))
    await connection.open()
    state = json.loads(await connection.ask("check", {"answers": []}))
    while state["stage"] == "trial":
        trial = state["trial"]
        (clip,) = trial["clips"]
        await connection.ask(f"audio/{clip['id']}")
        await asyncio.sleep(clip["seconds"] + chance.uniform(0.0, think_s))
        value = float(chance.randint(1, 5))
        body = {
            "trial": trial["id"],
            "answers": [{"clip": clip["id"], "attribute": "quality", "value": value}],
            "listened_s": {clip["id"]: clip["seconds"]},
        }
        state = json.loads(await connection.ask("ratings", body))
        acknowledged[trial["id"]] = value


async def listen_all(
    address: str, num_listeners: int, think_s: float, times: dict[str, list[float]]
) -> dict[str, float]:
    """All listeners at once; the acknowledged ratings by trial."""
    host, _, port = address.removeprefix("http://").rstrip("/").partition(":")
    acknowledged: dict[str, float] = {}
    connections = [Connection(host, int(port), times) for _ in range(num_listeners)]
    await asyncio.gather(
        *(listen(each, think_s, acknowledged, seed) for seed, each in enumerate(connections))
    )
    return acknowledged


def main() -> None:
    """Run it, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listeners", type=int, default=200)
    parser.add_argument("--clip-seconds", type=float, default=2.0)
    parser.add_argument("--think-seconds", type=float, default=4.0, help="at most, at random")
    parser.add_argument("--items", type=int, default=4)
    options = parser.parse_args()
    times: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        path = make_test(Path(scratch), options.clip_seconds, options.items)
        starter = "from tokkata.cli import main; main()"
        command = [sys.executable, "-c", starter, "listen", "serve", str(path), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            address = server.stdout.readline().split()[0]
            start = time.perf_counter()
            answers = listen_all(address, options.listeners, options.think_seconds, times)
            try:
                acknowledged = asyncio.run(answers)
            finally:
                server.kill()
            seconds = time.perf_counter() - start
        stored = {rating.trial: rating.value for rating in read_ratings(path)}
    lost = sum(stored.get(trial) != value for trial, value in acknowledged.items())
    num = sum(len(each) for each in times.values())
    print(
        f"{options.listeners} listeners at once, clips of {options.clip_seconds:g} s, {seconds:.0f} s in all"
    )
    load = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"{num} requests ({num / seconds:.0f}/s), {load}")
    print(f"{len(acknowledged)} ratings acknowledged, {lost} lost")
    for kind, each in sorted(times.items()):
        p50, p95, p99, most = 1000 * np.quantile(each, [0.5, 0.95, 0.99, 1.0])
        tail = f"95% {p95:5.1f}  99% {p99:5.1f}  max {most:6.1f}"
        print(f"{kind:8} {len(each):6} requests  median {p50:5.1f} ms  {tail}")


if __name__ == "__main__":
    main()
