"""A kernel for a GPU, compiled for fibers on a CPU (`emulated_gpu.h`)."""

import ctypes
import hashlib
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tokkata.lm.decoders.gpu import resident_step
from tokkata.lm.decoders.native import built_once

HEADER = Path(__file__).with_name("emulated_gpu.h")
SOURCES = Path(resident_step.__file__).parent
FOLDER = Path(tempfile.gettempdir()) / "tokkata-emulated"
ENTRY = """
extern "C" int run(const Step* step, int num_blocks, int num_threads, int shared_bytes, unsigned seed) {
  static const Step* given;
  given = step;
  if ((int)sizeof(Shared) > shared_bytes) return 2;
  return emulate(+[] { resident_step(given); }, num_blocks, num_threads, shared_bytes, seed);
}
"""


class EmulatedKernel:
    """As `nvrtc.Kernel`; each launch has another order of events."""

    def __init__(self, name: str, macros: Mapping[str, object], device: torch.device) -> None:
        text = HEADER.read_text() + (SOURCES / f"{name}.cu").read_text() + ENTRY
        options = [f"-D{macro}={value}" for macro, value in macros.items()]
        key = hashlib.sha256("\0".join([text, *options]).encode()).hexdigest()[:32]
        checks = ["-fsanitize=alignment,bounds", "-fno-sanitize-recover=all"]
        command = ["g++", "-O1", "-std=c++17", "-w", *checks, "-shared", "-fPIC", *options, "-x", "c++", "-"]
        library = built_once(
            FOLDER / f"{key}.so",
            lambda path: subprocess.run([*command, "-o", str(path)], input=text, text=True, check=True),
        )
        self._library = ctypes.CDLL(str(library))
        self._seed = 0

    def launch(self, num_blocks: int, num_threads: int, shared_bytes: int, argument: Tensor) -> None:
        self._seed += 1
        pointer = ctypes.c_void_p(argument.data_ptr())
        result = self._library.run(pointer, num_blocks, num_threads, shared_bytes, self._seed)
        assert result != 1, "the blocks wait for what does not come"
        assert result != 2, "the kernel's `Shared` is larger than `num_shared_bytes`"
