"""The headers of tensors, read by position: their types, their shapes, and where their numbers lie."""

from __future__ import annotations

import struct

from emp_onnx.errors import ModelError
from emp_onnx.files.graph import Place, Run, Tensor
from emp_onnx.files.source import Source
from emp_onnx.files.wire import FIXED32, FIXED64, LENGTH, VARINT, Wire, WireError

__all__ = ["CONTENTS", "DTYPES", "Headers", "signed"]

RANK = 64  # NumPy's own limit

# data_type -> name here, bytes of one number, field that holds it when it is not in raw_data
DTYPES: dict[int, tuple[str, int, int]] = {
    1: ("float32", 4, 4), 2: ("uint8", 1, 5), 3: ("int8", 1, 5), 4: ("uint16", 2, 5), 5: ("int16", 2, 5),
    6: ("int32", 4, 5), 7: ("int64", 8, 7), 8: ("string", 0, 6), 9: ("bool", 1, 5), 10: ("float16", 2, 5),
    11: ("float64", 8, 10), 12: ("uint32", 4, 11), 13: ("uint64", 8, 11), 14: ("complex64", 8, 4),
    15: ("complex128", 16, 10), 16: ("bfloat16", 2, 5), 17: ("float8e4m3fn", 1, 5), 18: ("float8e4m3fnuz", 1, 5),
    19: ("float8e5m2", 1, 5), 20: ("float8e5m2fnuz", 1, 5), 21: ("uint4", 0, 5), 22: ("int4", 0, 5),
    23: ("float4e2m1", 0, 5), 24: ("float8e8m0", 1, 5), 25: ("uint2", 0, 5), 26: ("int2", 0, 5),
}  # fmt: skip
NUMBERS = {4: FIXED32, 5: VARINT, 7: VARINT, 10: FIXED64, 11: VARINT}
# what a tensor is made of besides its header: the numbers, and where they are kept
CONTENTS = frozenset({4, 5, 6, 7, 9, 10, 11, 13, 14})


class Headers:
    """Reads the headers of a model's tensors, and gives each an address of its own.

    Attributes:
        wire: the model's fields.
        all: every tensor read so far.
    """

    def __init__(self, source: Source) -> None:
        self.wire = Wire(source)
        self.all: list[Tensor] = []
        self._keys: dict[str, int] = {}

    def sparse(self, start: int, stop: int, path: str, name: str | None = None) -> Tensor:
        """The header of a sparse tensor, with those of its values and indices."""
        values, indices, mine, dims = None, None, 0, list[int]()
        for number, kind, at, _, end in self.wire.fields(start, stop):
            if number == 3:
                self._dims(dims, kind, at, end)
            elif kind == LENGTH and number == 1:
                values, mine = self.tensor(at, end, path, name), len(self.all) - 1
            elif kind == LENGTH and number == 2:
                indices = self.tensor(at, end, path, f"indices of {name or ''}")
        if values is None or indices is None:
            return Tensor("", "", tuple(dims), "sparse")
        # the address is that of the whole; its values get one of their own
        part = values._replace(key=self.key(f"{path}values of {values.name}"))
        self.all[mine] = part
        place = Place(0, LENGTH, (), (), None, (start, stop))
        whole = Tensor(values.name, values.dtype, tuple(dims), "sparse", values.key, place, (part, indices))
        self.all.append(whole)
        return whole

    def tensor(self, start: int, stop: int, path: str, name: str | None = None) -> Tensor:
        """The header of a tensor; `path` is what its address begins with, `name` another name than its own."""
        dims: list[int] = []
        dtype, own, far, runs, entries = 0, "", False, dict[int, list[Run]](), dict[str, str]()
        places: dict[str, tuple[int, int]] = {}
        raw: tuple[int, int] | None = None
        segment = False
        for number, kind, at, _, end in self.wire.fields(start, stop):
            if number == 1:
                self._dims(dims, kind, at, end)
            elif number == 2 and kind == VARINT:
                dtype = at
            elif number == 8 and kind == LENGTH:
                own = self.wire.text(at, end)
            elif number == 9 and kind == LENGTH:
                raw = at, end
            elif number in NUMBERS:
                _add(runs.setdefault(number, []), NUMBERS[number], kind, at, end)
            elif number == 13 and kind == LENGTH:
                key, value, places_at = self.located(at, end)
                entries[key], places[key] = value, places_at
            elif number == 14 and kind == VARINT:
                far = at == 1
            elif number == 3 and kind == LENGTH:
                segment = True
        kind_name, width, typed = DTYPES.get(dtype, (f"type {dtype}" if dtype else "undefined", 0, 0))
        storage = "segment" if segment else "external" if far else "raw" if raw else "typed"
        if storage == "raw" and raw:
            found: tuple[Run, ...] = (Run(raw[0], raw[1] - raw[0], 1, 1),)
        else:
            found = tuple(runs.get(typed, ())) if storage == "typed" else ()
        external = tuple(entries.items()) if far else ()
        place = Place(width, NUMBERS.get(typed, LENGTH), found, external, places.get("location"), (start, stop))
        key = self.key(path + (own if name is None else name))
        tensor = Tensor(own if name is None else name, kind_name, tuple(dims), storage, key, place)
        self.all.append(tensor)
        return tensor

    def key(self, key: str) -> str:
        """An address that nothing else has."""
        seen = self._keys.get(key, 0) + 1
        self._keys[key] = seen
        return key if seen == 1 else f"{key}#{seen}"

    def _dims(self, dims: list[int], kind: int, at: int, end: int) -> None:
        if kind == VARINT:
            dims.append(signed(at))
        elif kind == LENGTH and end - at <= 10 * RANK:
            dims.extend(map(signed, self.wire.numbers(at, end)))
        if len(dims) > RANK:
            raise ModelError(f"a tensor must have at most {RANK} dimensions, got more")

    def located(self, start: int, stop: int) -> tuple[str, str, tuple[int, int]]:
        """A key, its value, and where that is written."""
        key, value, place = "", "", (0, 0)
        for number, kind, at, _, end in self.wire.fields(start, stop):
            if kind == LENGTH and number == 1:
                key = self.wire.text(at, end)
            elif kind == LENGTH and number == 2:
                value, place = self.wire.text(at, end), (at, end)
        return key, value, place

    def whole(self, start: int, stop: int) -> tuple[int, ...]:
        """A tensor of whole numbers, as those in attributes are."""
        data = b""
        for number, kind, at, _, end in self.wire.fields(start, stop):
            if number == 9 and kind == LENGTH:
                data = self.wire.data(at, end)
        if len(data) % 8 or len(data) > 8 * RANK:
            raise WireError("an attribute holds no whole numbers")
        return struct.unpack(f"<{len(data) // 8}q", data)


def signed(value: int) -> int:
    """A number of 64 bits with its sign, as the wire has it without."""
    return value - (1 << 64) if value >> 63 else value


def _add(runs: list[Run], wanted: int, kind: int, at: int, end: int) -> None:
    """Note where numbers of a typed field lie: packed in one go, or one by one."""
    if kind == LENGTH:
        if wanted == VARINT:
            runs.append(Run(at, end - at, 1, 1))
        else:
            width = 4 if wanted == FIXED32 else 8
            if (end - at) % width:
                raise WireError("packed numbers end within one")
            runs.append(Run(at, (end - at) // width, width, width))
    elif kind == wanted == VARINT:
        runs.append(Run(at, -1, 0, 0))  # the number itself: single integers are rare, and kept as they were read
    elif kind == wanted:
        width = 4 if wanted == FIXED32 else 8
        last = runs[-1] if runs else None
        if last and last.width == width and last.many > 0:
            step = at - (last.at + (last.many - 1) * last.step)
            if width < step <= width + 3 and (last.many == 1 or step == last.step):
                runs[-1] = Run(last.at, last.many + 1, width, step)
                return
        runs.append(Run(at, 1, width, width))
