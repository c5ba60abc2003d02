"""The kernels' library, built once from the sources at hand, and its plain C functions as Python ones."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

SOURCES = Path(__file__).resolve().parents[2] / "adapters" / "emp_kernels"
Floats = NDArray[np.float32]
# as in kernels.hpp
ENDINGS = {"gelu": 2, "gelu_tanh": 3, "clip": 4, "leaky_relu": 5, "prelu": 6, "swish": 7, "hard_swish": 8}


@functools.cache
def build(*options: str, sanitize: str = "", compiler: str = "", target: str = "emp_kernels") -> Path:
    """The folder with the built library; skips the test, with the reason, where there is no compiler."""
    for tool in ("cmake", compiler or "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed, and the kernels are built from source")
    files = sorted(path for path in SOURCES.rglob("*") if path.suffix in {".cpp", ".hpp", ".txt"})
    files.append(Path(__file__).with_name("stress.cpp"))
    digest = hashlib.sha256(f"{sanitize} {compiler} {target} {options}".encode())
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    place = Path(tempfile.gettempdir()) / f"emp-kernels-{os.getuid()}-{digest.hexdigest()[:16]}"
    chosen = [f"-DCMAKE_CXX_COMPILER={compiler}"] if compiler else []
    import fcntl

    # of several processes one builds, and the others wait for it
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            _build(place, [f"-DEMP_SANITIZE={sanitize}", "-DEMP_TESTS=ON", *chosen, *options], target)
    return place


def _build(place: Path, options: list[str], target: str) -> None:
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        subprocess.run(["cmake", "-S", str(SOURCES), "-B", scratch, *options], check=True, capture_output=True)
        done = subprocess.run(
            ["cmake", "--build", scratch, "--parallel", "2", "--target", target], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning:" not in done.stdout + done.stderr, done.stdout + done.stderr
        # under a name of its own first: what bears the right one is whole
        shutil.copytree(scratch, f"{scratch}-done")
        os.rename(f"{scratch}-done", place)


@functools.cache
def library() -> ctypes.CDLL:
    """The library with the types of its functions set."""
    found = ctypes.CDLL(str(next(build().glob("libemp_kernels.*"))))
    found.emp_kernels_isa.restype = ctypes.c_char_p
    found.emp_linear_way.restype = ctypes.c_char_p
    for name in ("emp_linear_new", "emp_conv_new", "emp_integer_new", "emp_integer_conv_new", "emp_narrow_new"):
        getattr(found, name).restype = ctypes.c_void_p
    return found


def instruction_sets() -> list[str]:
    """Those that this processor has, the best one first."""
    return [name for name in ("avx512", "avx2", "neon", "portable") if library().emp_kernels_has(name.encode())]


def integer_instruction_sets() -> list[str]:
    """The same for 8-bit weights and activations."""
    return [name for name in ("avx512", "avxvnni", "avx2", "portable") if library().emp_integer_has(name.encode())]


def pack(dense: Floats) -> tuple[NDArray[np.uint8], Floats]:
    """Mask and values of a dense array."""
    bits = dense.view(np.uint32) != 0
    return np.packbits(bits.ravel(), bitorder="little"), dense.ravel()[bits.ravel()].copy()


def _pointer(array: NDArray[Any] | None) -> Any:
    return None if array is None else array.ctypes.data_as(ctypes.c_void_p)


class Linear:
    """A packed weight [rows, columns], or the same from its transposed layout."""

    def __init__(
        self, rows: int, columns: int, mask: NDArray[np.uint8], values: Floats, *, transposed: bool = False
    ) -> None:
        self.rows, self.columns, self._kept = rows, columns, (mask, values)
        message = ctypes.create_string_buffer(500)
        self._handle = library().emp_linear_new(
            ctypes.c_int64(rows), ctypes.c_int64(columns), int(transposed), _pointer(mask),
            ctypes.c_size_t(mask.size), _pointer(values), ctypes.c_size_t(values.size), message, ctypes.c_size_t(500),
        )  # fmt: skip
        if not self._handle:
            raise ValueError(message.value.decode())

    @classmethod
    def of(cls, dense: Floats, *, transposed: bool = False) -> Linear:
        mask, values = pack(np.ascontiguousarray(dense.T) if transposed else dense)
        return cls(*dense.shape, mask, values, transposed=transposed)

    def way(self, items: int, isa: str = "") -> str:
        name: bytes = library().emp_linear_way(ctypes.c_void_p(self._handle), isa.encode(), ctypes.c_int64(items))
        return name.decode()

    def __call__(
        self, x: Floats, bias: Floats | None = None, *, relu: bool = False, isa: str = "", threads: int = 1,
        out: Floats | None = None, added: Floats | None = None, gelu: str = "",
    ) -> Floats:  # fmt: skip
        """`gelu`: "erf" or "tanh"."""
        y = np.full((len(x), self.rows), 7.0, np.float32) if out is None else out
        activation = {"": int(relu), "erf": 2, "tanh": 3}[gelu]
        done = library().emp_linear_run(
            ctypes.c_void_p(self._handle), isa.encode(), threads, _pointer(x), ctypes.c_int64(len(x)), _pointer(bias),
            _pointer(added), activation, _pointer(y),
        )  # fmt: skip
        assert done == 0, isa
        return y

    def by_heads(
        self, x: Floats, bias: Floats | None, heads: int, *, across: bool, isa: str = "", threads: int = 1
    ) -> Floats | None:
        """Of x[sequences, tokens, columns]; None where that is not done."""
        size = self.rows // heads
        order = (len(x), heads, size, x.shape[1]) if across else (len(x), heads, x.shape[1], size)
        y, given = np.full(order, 7.0, np.float32), np.array([*x.shape[:2], heads, size, int(across)], np.int64)
        done = library().emp_linear_run_heads(
            ctypes.c_void_p(self._handle),
            isa.encode(),
            threads,
            _pointer(x),
            _pointer(bias),
            _pointer(given),
            _pointer(y),
        )
        assert done in (0, 2), isa
        return None if done else y

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            library().emp_linear_free(ctypes.c_void_p(self._handle))


class Narrow:
    """A packed weight of float16, bfloat16 (as their bits) or 8-bit integers [rows, columns], with factors."""

    def __init__(self, kind: str, dense: NDArray[Any], scale: Floats, *, transposed: bool = False) -> None:
        self.rows, self._kind = len(dense), ctypes.c_char(kind.encode())
        laid = np.ascontiguousarray(dense.T) if transposed else dense
        mask, values = np.packbits(laid.ravel() != 0, bitorder="little"), laid.ravel()[laid.ravel() != 0]
        self._kept = (mask, values)
        message = ctypes.create_string_buffer(500)
        self._handle = library().emp_narrow_new(
            self._kind, ctypes.c_int64(dense.shape[0]), ctypes.c_int64(dense.shape[1]), int(transposed),
            _pointer(mask), ctypes.c_size_t(mask.size), _pointer(values), ctypes.c_size_t(values.size),
            _pointer(scale), ctypes.c_size_t(scale.size), message, ctypes.c_size_t(500),
        )  # fmt: skip
        if not self._handle:
            raise ValueError(message.value.decode())

    def __call__(
        self, x: Floats, bias: Floats | None = None, *, relu: bool = False, isa: str = "", threads: int = 1,
        out: Floats | None = None,
    ) -> Floats:  # fmt: skip
        y = np.full((len(x), self.rows), 7.0, np.float32) if out is None else out
        done = library().emp_narrow_run(
            self._kind, ctypes.c_void_p(self._handle), isa.encode(), threads, _pointer(x), ctypes.c_int64(len(x)),
            _pointer(bias), int(relu), _pointer(y),
        )  # fmt: skip
        assert done == 0, isa
        return y

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            library().emp_narrow_free(self._kind, ctypes.c_void_p(self._handle))


class Integer:
    """A packed weight of 8-bit integers [rows, columns], or the same from its transposed layout."""

    def __init__(self, dense: NDArray[np.int8], scale: Floats, *, transposed: bool = False) -> None:
        self.rows = len(dense)
        laid = np.ascontiguousarray(dense.T) if transposed else dense
        mask, values = np.packbits(laid.ravel() != 0, bitorder="little"), laid.ravel()[laid.ravel() != 0]
        self._kept = (mask, values)
        message = ctypes.create_string_buffer(500)
        self._handle = library().emp_integer_new(
            ctypes.c_int64(dense.shape[0]), ctypes.c_int64(dense.shape[1]), int(transposed), _pointer(mask),
            ctypes.c_size_t(mask.size), _pointer(values), ctypes.c_size_t(values.size), _pointer(scale),
            ctypes.c_size_t(scale.size), message, ctypes.c_size_t(500),
        )  # fmt: skip
        if not self._handle:
            raise ValueError(message.value.decode())

    def __call__(
        self, x: Floats, bias: Floats | None = None, *, relu: bool = False, isa: str = "", threads: int = 1,
        out: Floats | None = None,
    ) -> Floats:  # fmt: skip
        y = np.full((len(x), self.rows), 7.0, np.float32) if out is None else out
        done = library().emp_integer_run(
            ctypes.c_void_p(self._handle), isa.encode(), threads, _pointer(x), ctypes.c_int64(len(x)), _pointer(bias),
            int(relu), _pointer(y),
        )  # fmt: skip
        assert done == 0, isa
        return y

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            library().emp_integer_free(ctypes.c_void_p(self._handle))


class Conv:
    """A packed convolution; `dense` is [outputs, channels of a group, height, width]."""

    def __init__(
        self, dense: Floats, *, group: int = 1, stride: tuple[int, int] = (1, 1), dilation: tuple[int, int] = (1, 1),
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> None:  # fmt: skip
        mask, values = pack(dense)
        self._kept = (mask, values)
        self.outputs, channels, *kernel = dense.shape
        self.kernel, self.stride, self.dilation, self.pads = kernel, stride, dilation, pads
        geometry = np.array([self.outputs, channels, group, *kernel, *stride, *dilation, *pads], np.int64)
        message = ctypes.create_string_buffer(500)
        self._handle = library().emp_conv_new(
            _pointer(geometry), _pointer(mask), ctypes.c_size_t(mask.size), _pointer(values),
            ctypes.c_size_t(values.size), message, ctypes.c_size_t(500),
        )  # fmt: skip
        if not self._handle:
            raise ValueError(message.value.decode())

    def by_winograd(self, x: Floats, isa: str = "", *, wherever: bool = False) -> bool:
        """Whether Winograd's method does it; `wherever` it can be done so, from now on."""
        images, _, height, width = x.shape
        return bool(
            library().emp_conv_by_winograd(
                ctypes.c_void_p(self._handle), isa.encode(), ctypes.c_int64(images), ctypes.c_int64(height),
                ctypes.c_int64(width), int(wherever),
            )
        )  # fmt: skip

    def out_size(self, axis: int, size: int) -> int:
        reach = size + self.pads[axis] + self.pads[axis + 2] - self.dilation[axis] * (self.kernel[axis] - 1) - 1
        return reach // self.stride[axis] + 1

    def __call__(
        self, x: Floats, bias: Floats | None = None, *, relu: bool = False, isa: str = "", threads: int = 1,
        out: Floats | None = None, added: Floats | None = None, ending: tuple[str, float, float] | None = None,
        slope: Floats | None = None,
    ) -> Floats:  # fmt: skip
        """`ending`: an activation of ENDINGS, and its numbers; `slope`: those of a prelu."""
        y = out
        activation, low, high = (int(relu), 0.0, 0.0) if ending is None else (ENDINGS[ending[0]], *ending[1:])
        images, _, height, width = x.shape
        if y is None:
            y = np.full((images, self.outputs, self.out_size(0, height), self.out_size(1, width)), 7.0, np.float32)
        done = library().emp_conv_run(
            ctypes.c_void_p(self._handle), isa.encode(), threads, _pointer(x), ctypes.c_int64(images),
            ctypes.c_int64(height), ctypes.c_int64(width), _pointer(bias), _pointer(added), activation,
            ctypes.c_float(low), ctypes.c_float(high), _pointer(slope), _pointer(y),
        )  # fmt: skip
        assert done == 0, isa
        return y

    def pooled(
        self, x: Floats, bias: Floats | None, kernel: tuple[int, int], stride: tuple[int, int],
        pads: tuple[int, int, int, int], *, relu: bool, isa: str = "", threads: int = 1,
    ) -> Floats:  # fmt: skip
        """With a pool behind it."""
        sizes = [
            (self.out_size(i, x.shape[2 + i]) + pads[i] + pads[i + 2] - kernel[i]) // stride[i] + 1 for i in range(2)
        ]
        y = np.full((len(x), self.outputs, *sizes), 7.0, np.float32)
        done = library().emp_conv_run_pooled(
            ctypes.c_void_p(self._handle), isa.encode(), threads, _pointer(x), ctypes.c_int64(len(x)),
            ctypes.c_int64(x.shape[2]), ctypes.c_int64(x.shape[3]), _pointer(bias), int(relu),
            _pointer(np.array([*kernel, *stride, *pads], np.int64)), _pointer(y),
        )  # fmt: skip
        assert done == 0, isa
        return y

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            library().emp_conv_free(ctypes.c_void_p(self._handle))


class IntegerConv:
    """A packed convolution of 8-bit integers and one group; `dense` is [outputs, channels, height, width]."""

    def __init__(
        self, dense: NDArray[np.int8], scale: float, *, stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1), pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> None:  # fmt: skip
        mask, values = np.packbits(dense.ravel() != 0, bitorder="little"), dense.ravel()[dense.ravel() != 0]
        self._kept = (mask, values)
        self.outputs, channels, *kernel = dense.shape
        geometry = np.array([self.outputs, channels, 1, *kernel, *stride, *dilation, *pads], np.int64)
        message = ctypes.create_string_buffer(500)
        self._handle = library().emp_integer_conv_new(
            _pointer(geometry), _pointer(mask), ctypes.c_size_t(mask.size), _pointer(values),
            ctypes.c_size_t(values.size), ctypes.c_float(scale), message, ctypes.c_size_t(500),
        )  # fmt: skip
        if not self._handle:
            raise ValueError(message.value.decode())

    def __call__(
        self, x: Floats, bias: Floats | None, *, out: Floats, relu: bool = False, isa: str = "", threads: int = 1
    ) -> Floats:
        images, _, height, width = x.shape
        done = library().emp_integer_conv_run(
            ctypes.c_void_p(self._handle), isa.encode(), threads, _pointer(x), ctypes.c_int64(images),
            ctypes.c_int64(height), ctypes.c_int64(width), _pointer(bias), int(relu), _pointer(out),
        )  # fmt: skip
        assert done == 0, isa
        return out

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            library().emp_integer_conv_free(ctypes.c_void_p(self._handle))
