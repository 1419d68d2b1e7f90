"""Kernels in C++ beside this file, compiled for the machine that they run on.

They are built once, at first use, with the user's compiler (`$CXX`, else g++ or clang++), and kept in
`$XDG_CACHE_HOME/tokkata` (`~/.cache/tokkata`) under a name that tells source, compiler and instruction set.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_FLAGS = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++17"]


@functools.cache
def load_kernel(name: str) -> ctypes.CDLL | None:
    """The library of `kernels/NAME.cpp`; None, after a line that says why, where it cannot be built."""
    source = Path(__file__).parent / "kernels" / f"{name}.cpp"
    compiler = _compiler()
    if compiler is None:
        _tell(name, "there is no C++ compiler (g++ or clang++; set CXX to name another)")
        return None
    try:
        # The macros that a compiler predefines tell its version and the instruction set.
        macros = _output([*compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull])
        texts = [file.read_bytes() for file in (source, *sorted(source.parent.glob("*.h")))]
        key = hashlib.sha256(b"".join([*texts, macros, *map(str.encode, _FLAGS)])).hexdigest()
        build = [*compiler, *_FLAGS, "-x", "c++", str(source), "-o"]
        library = built_once(
            cache_folder() / f"{name}-{key[:16]}.so", lambda path: _output([*build, str(path)])
        )
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stderr", None)
        reason = output.decode(errors="replace").strip().splitlines()[:1] if output else [str(error)]
        _tell(name, f"{shlex.join(compiler)} cannot build it ({' '.join(reason)})")
        return None


def cache_folder() -> Path:
    """Where what has been compiled is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokkata"


def built_once(path: Path, build: Callable[[Path], object]) -> Path:
    """`path`; where it is not there, `build` writes it to the path that it is given, and it appears whole."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # of its own: others may build too
            built = Path(folder) / path.name
            build(built)
            built.replace(path)
    return path


def _compiler() -> list[str] | None:
    named = os.environ.get("CXX")
    if named:
        return shlex.split(named)
    found = shutil.which("g++") or shutil.which("clang++")
    return [found] if found else None


def _output(command: list[str]) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


def _tell(name: str, why: str) -> None:
    print(f"generate: without the compiled kernel '{name}', so slowly: {why}", file=sys.stderr)
