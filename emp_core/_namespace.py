"""The only file that knows array libraries.

Arrays whose memory the host can read (NumPy, PyTorch on the CPU, JAX on the CPU, eager TensorFlow) are looked at in
place, without a copy, and take the fast NumPy road. All others (CUDA, other devices, array-api-strict, values under
``jax.jit``) are computed by their own library through the array API standard. Either way the answer goes back to the
caller's library and device.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._errors import ArgumentError

HostArray = NDArray[Any]
BFLOAT16 = np.dtype([("bfloat16", np.uint16)])  # NumPy has no bfloat16 of its own: the bits, under a name


# the few functions whose names differ between NumPy 1 and the standard (array_api_compat.numpy has them too, but takes
# longer to import than NumPy itself)
HOST = SimpleNamespace(
    bool=np.bool_,
    broadcast_to=np.broadcast_to,
    concat=np.concatenate,
    ones=np.ones,
    permute_dims=np.transpose,
    reshape=np.reshape,
)


@dataclass(frozen=True)
class Given:
    """An array as the caller gave it: its library, and its memory as NumPy sees it (None when NumPy cannot)."""

    array: Any
    xp: Any
    host: HostArray | None
    back: Callable[[HostArray], Any]  # host answer -> the caller's library and device
    traced: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(d) for d in self.array.shape)


def given(array: Any, name: str = "scores") -> Given:
    """Recognise ``array``; an ArgumentError names ``name`` when it is no real numeric array."""
    if isinstance(array, Given):
        return array
    if _of("torch", "Tensor", array):
        return _torch(array, name)
    if _of("jax", "Array", array):
        return _jax(array, name)
    if is_tensorflow(array):
        tf = sys.modules["tensorflow"]
        return Given(array, np, _real(np.asarray(array), name), lambda a: tf.convert_to_tensor(a))
    if isinstance(array, (np.ndarray, np.generic, list, tuple, int, float)) or not is_standard(array):
        return _numpy(array, name)
    xp = namespace(array)
    if not (xp.isdtype(array.dtype, "real floating") or xp.isdtype(array.dtype, ("bool", "integral"))):
        raise ArgumentError(f"{name} must be real numbers, got dtype {array.dtype}")
    device = array.device
    if type(array).__module__.startswith("cupy") and array.dtype == np.float32:
        array = keep_subnormals(xp, array)
    return Given(array, xp, None, lambda a: xp.asarray(_plain(a), device=device))


def keep_subnormals(xp: Any, array: Any) -> Any:
    """float32 as it is, or, where some are subnormal, as float64, made from the bits.

    For CuPy, whose kernels are compiled to take subnormal float32 for zeros, also where they are widened.
    """
    flat = array.reshape(-1).view(xp.uint32)  # whole numbers are left alone
    below = [
        xp.any((part & 0x7FFFFFFF) - 1 < 0x7FFFFF)  # zeros wrap around
        for part in (flat[at : at + (1 << 22)] for at in range(0, int(flat.shape[0]), 1 << 22))
    ]
    if not (below and bool(xp.any(xp.stack(below)))):
        return array
    bits = array.view(xp.uint32)
    small = (bits & 0x7FFFFF).astype(xp.float64) * 2.0**-149
    signed = xp.where((bits >> 31) != 0, -small, small)
    return xp.where((bits & 0x7F800000) != 0, array.astype(xp.float64), signed)


def is_tensorflow(array: Any) -> bool:
    """True for a TensorFlow tensor or variable: a library without the standard, but with NumPy underneath."""
    return _of("tensorflow", "Tensor", array) or _of("tensorflow", "Variable", array)


def is_standard(array: Any) -> bool:
    """True for an array of a library that follows the array API standard."""
    if isinstance(array, np.ndarray):
        return True
    import array_api_compat  # where NumPy is all there is, never

    return bool(array_api_compat.is_array_api_obj(array))


def namespace(*arrays: Any) -> Any:
    """The functions of the library that made these arrays, under their standard names."""
    if all(isinstance(a, np.ndarray) for a in arrays):
        return np
    if any(map(is_tensorflow, arrays)):
        return sys.modules["tensorflow"]
    import array_api_compat

    return array_api_compat.array_namespace(*arrays)


def to_host(array: Any) -> HostArray:
    """A small array of any library as NumPy (sums and figures, never the scores); bfloat16 as bits under a name."""
    if isinstance(array, (np.ndarray, np.generic)):
        return np.asarray(array)
    if _of("torch", "Tensor", array):
        seen = _torch(array.cpu(), "array").host
        assert seen is not None
        return seen
    if hasattr(array, "get") and type(array).__module__.startswith("cupy"):
        return np.asarray(array.get())
    try:
        seen = np.asarray(array)
        return seen.view(BFLOAT16) if seen.dtype.name == "bfloat16" else seen
    except (TypeError, RuntimeError):
        return np.from_dlpack(array)


def cast(xp: Any, array: Any, dtype: Any) -> Any:
    """``array`` in another dtype; NumPy 1 has no function for it."""
    return array.astype(dtype) if xp is np else xp.astype(array, dtype)


def is_narrow(xp: Any, dtype: Any) -> bool:
    """Whether float32 holds every value of this dtype."""
    kinds = (getattr(xp, name, None) for name in ("float32", "float16", "bfloat16"))
    return any(kind is not None and dtype == kind for kind in kinds)  # NumPy's float64 equals None


def is_long(xp: Any, dtype: Any) -> bool:
    """Whether this dtype has integers that float64 does not hold."""
    kinds = (getattr(xp, name, None) for name in ("int64", "uint64"))
    return any(kind is not None and dtype == kind for kind in kinds)


def is_traced(array: Any) -> bool:
    """True for a value under ``jax.jit``: shape known, content not."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(array, jax.core.Tracer)


def as_mask(array: Any, name: str) -> Given:
    """A boolean array, or an ArgumentError."""
    mask = given(array, name)
    if mask.host is not None:
        if mask.host.dtype != np.bool_:
            raise ArgumentError(f"{name} must be a boolean array, got dtype {mask.host.dtype}")
    elif not mask.xp.isdtype(mask.array.dtype, "bool"):
        raise ArgumentError(f"{name} must be a boolean array, got dtype {mask.array.dtype}")
    return mask


@contextlib.contextmanager
def wide(source: Given) -> Any:
    """Where float64 is off by default (JAX), on for the computations inside; elsewhere nothing."""
    if source.xp is not np and "jax" in sys.modules and source.host is None and _of("jax", "Array", source.array):
        import jax

        switch = getattr(jax, "enable_x64", None)
        if switch is None:  # where it had not moved yet
            switch = jax.experimental.enable_x64
        with switch(True):
            yield
    else:
        yield


def _of(module: str, kind: str, array: Any) -> bool:
    """``isinstance`` without importing: a library that is not loaded made no array."""
    loaded = sys.modules.get(module)
    cls = getattr(loaded, kind, None)
    return isinstance(cls, type) and isinstance(array, cls)


def _plain(a: HostArray) -> HostArray:
    return np.ascontiguousarray(a) if a.ndim else a


def _real(a: HostArray, name: str) -> HostArray:
    refuse_unreal(a.dtype, name)
    if a.dtype == BFLOAT16:  # bits under their name, from here or from a file
        return a
    if a.dtype.name == "bfloat16":
        return a.view(BFLOAT16)
    return a.astype(np.float32) if a.dtype.kind == "V" else a


def refuse_unreal(dtype: np.dtype[Any], name: str) -> None:
    """An ArgumentError for what NumPy would cast to real numbers, and lose something by it."""
    plain = dtype.kind in "fiub" and dtype.itemsize <= 8
    narrow = dtype.kind == "V" and dtype.name.startswith(("float", "bfloat"))  # ml_dtypes: bfloat16, float8 and smaller
    if not (plain or narrow or dtype == BFLOAT16):
        raise ArgumentError(f"{name} must be real numbers of at most 64 bits, got dtype {dtype}")


def refuse_masked(array: Any, name: str) -> None:
    """An ArgumentError for a masked array, whose masked entries would count as if they were not."""
    if _of("numpy.ma", "MaskedArray", array):
        raise ArgumentError(f"{name} must be a plain array, with where for what is left out, got a masked array")


def _numpy(array: Any, name: str) -> Given:
    refuse_masked(array, name)
    try:
        a = np.asarray(array)
    except (TypeError, ValueError) as e:
        raise ArgumentError(f"{name} must be an array of real numbers, got {type(array).__name__}") from e
    return Given(a, np, _real(a, name), lambda answer: answer if answer.ndim else answer[()])


def _torch(tensor: Any, name: str) -> Given:
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ArgumentError(f"{name} must be a dense tensor, got layout {tensor.layout}")
    if tensor.is_complex():
        raise ArgumentError(f"{name} must be real numbers, got dtype {tensor.dtype}")
    tensor = tensor.detach().resolve_neg()  # a view that negates has no memory of its own
    device = tensor.device
    if device.type == "meta":
        raise ArgumentError(f"{name} must hold values, got a tensor on the device meta, which has none")
    if device.type == "cpu":
        if tensor.dtype is torch.bfloat16:
            host: HostArray = tensor.view(torch.int16).numpy().view(BFLOAT16)
        elif tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
            host = tensor.float().numpy()
        else:
            host = tensor.numpy()
        return Given(tensor, np, host, lambda a: torch.from_numpy(np.array(a, copy=None)))
    if device.type == "mps":  # this device has no float64: the host computes
        host = tensor.cpu().float().numpy() if tensor.dtype.is_floating_point else tensor.cpu().numpy()
        return Given(tensor, np, host, lambda a: _narrow(torch.from_numpy(np.array(a, copy=None)), device))
    xp = namespace(tensor)
    return Given(tensor, xp, None, lambda a: torch.from_numpy(np.array(a, copy=None)).to(device))


def _narrow(tensor: Any, device: Any) -> Any:
    return (tensor.float() if tensor.is_floating_point() else tensor).to(device)


def _jax(array: Any, name: str) -> Given:
    import jax
    import jax.numpy as jnp

    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ArgumentError(f"{name} must be real numbers, got dtype {array.dtype}")
    if is_traced(array):
        return Given(array, jnp, None, jnp.asarray, traced=True)
    devices = array.devices()
    device = next(iter(devices))
    if all(d.platform == "cpu" for d in devices):
        return Given(array, np, _real(np.asarray(array), name), lambda a: jax.device_put(a, device))
    return Given(array, jnp, None, lambda a: jax.device_put(a, device))
