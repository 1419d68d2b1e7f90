"""Kernels in CUDA C++ beside this file, compiled by NVRTC, which PyTorch brings, for the GPU they run on.

NVRTC and the driver are called through ctypes as their manuals say: PyTorch's own way to them is not public,
and cannot launch blocks that wait for one another. What is compiled is kept where `native.py` keeps its own.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..native import built_once, cache_folder

_MAX_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


def missing_library() -> str | None:
    """Which of the libraries cannot be loaded and why; None: none."""
    try:
        _driver(), _nvrtc()
    except OSError as error:
        return str(error)
    return None


class Kernel:
    """A kernel whose one argument is a pointer, and whose blocks all run at the same time."""

    def __init__(self, name: str, macros: Mapping[str, object], device: torch.device) -> None:
        """The function `name` of `NAME.cu`, with `macros` defined.

        Raises `RuntimeError` with the reason where it cannot be compiled.
        """
        image = machine_code(name, macros, torch.cuda.get_device_capability(device))
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        with torch.cuda.device(device):
            torch.cuda.current_stream().synchronize()  # which makes PyTorch's context the current one
            _call("cuModuleLoadData", ctypes.byref(module), image)
            _call("cuModuleGetFunction", ctypes.byref(self._function), module, name.encode())

    def launch(self, num_blocks: int, num_threads: int, shared_bytes: int, argument: Tensor) -> None:
        """Launch it on PyTorch's current stream, with the address of `argument`.

        Raises `RuntimeError` where so many blocks cannot run at the same time.
        """
        pointer = ctypes.c_void_p(argument.data_ptr())
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(pointer))
        shape = num_blocks, 1, 1, num_threads, 1, 1, shared_bytes
        with torch.cuda.device(argument.device):
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            _call("cuFuncSetAttribute", self._function, _MAX_SHARED_BYTES, shared_bytes)
            _call("cuLaunchCooperativeKernel", self._function, *shape, stream, arguments)


def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _nvrtc() -> ctypes.CDLL:
    name = f"libnvrtc.so.{(torch.version.cuda or '').split('.')[0]}"
    try:
        return ctypes.CDLL(name)
    except OSError:
        # The packages that PyTorch's wheels need lie where no linker looks.
        nvidia = importlib.util.find_spec("nvidia")
        for folder in (nvidia.submodule_search_locations or []) if nvidia else []:
            for library in Path(folder).glob(f"*/lib/{name}"):
                return ctypes.CDLL(str(library))
        raise


def _call(function: str, *arguments: object) -> None:
    driver = _driver()
    result = getattr(driver, function)(*arguments)
    if result != 0:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(result, ctypes.byref(text))
        raise RuntimeError(f"{function}: {(text.value or b'unknown').decode()}")


def machine_code(name: str, macros: Mapping[str, object], capability: tuple[int, int]) -> bytes:
    """What `NAME.cu` becomes for a GPU of a compute capability; from the cache if it has been compiled.

    Raises `RuntimeError` with the reason where it cannot be compiled.
    """
    source = Path(__file__).with_name(f"{name}.cu").read_bytes()
    options = ["--std=c++17", f"--gpu-architecture=sm_{capability[0]}{capability[1]}a"]
    options += [f"-D{macro}={value}" for macro, value in macros.items()]
    key = hashlib.sha256(b"\0".join([source, str(torch.version.cuda).encode(), *map(str.encode, options)]))
    cached = cache_folder() / f"{name}-{key.hexdigest()[:16]}.cubin"
    return built_once(cached, lambda path: path.write_bytes(_compiled(source, options))).read_bytes()


def _compiled(source: bytes, options: list[str]) -> bytes:
    nvrtc = _nvrtc()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, None, 0, None, None)
    try:
        if nvrtc.nvrtcCompileProgram(program, len(options), given) != 0:
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise RuntimeError(f"NVRTC: {log.value.decode().strip()}")
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        image = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, image)
        return image.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
