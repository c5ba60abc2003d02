"""Running a program level by level over feeds: only what later levels need is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.program import Guard, Program, Step
from emp_onnx.errors import MissingExtraError, ModelError, quote
from emp_onnx.runtime.feeds import Feed

__all__ = ["Chunk", "Kept", "Runner", "Values", "chunks", "holds", "open_session"]

Array = NDArray[Any]
Overrides = Mapping[str, Array]
SMALL = 1 << 12  # bytes of a value that is not worth counting
ROOM = 1 << 26  # bytes of activations kept in memory by one runner; what is more goes to a temporary file


@dataclass
class Chunk:
    """Steps of one level and guard, with what they read from before and give to later; `keys`: tensors they are made
    with."""

    guard: Guard
    steps: list[Step]
    reads: list[str] = field(default_factory=list)
    gives: list[str] = field(default_factory=list)
    keys: frozenset[str] = frozenset()


def chunks(program: Program, levels: int, extra: Iterable[str] = ()) -> list[list[Chunk]]:
    """The program cut into chunks, by level. `extra` names values that someone wants to see."""
    fixed = program.fixed
    wanted: dict[str, int] = {}
    for step in program.steps:
        for name in step.reads:
            wanted[name] = max(wanted.get(name, 0), step.level)
    for name in (*extra, *program.outputs):
        wanted[name] = levels + 1
    out: list[list[Chunk]] = []
    for level in range(levels + 1):
        todo = [s for s in program.steps if s.level == level and any(n and n not in fixed for n in s.outputs)]
        out.append([])
        while todo:
            chunk, waiting, rest = Chunk(todo[0].guard, []), set[str](), list[Step]()
            for step in todo:
                conditions = {name for name, _ in step.guard}
                made = {name for s in chunk.steps for name in s.outputs}
                if step.guard != chunk.guard or any(n in waiting for n in step.reads) or conditions & made:
                    rest.append(step)
                    waiting.update(step.outputs)
                else:
                    chunk.steps.append(step)
            out[-1].append(chunk)
            todo = rest
    users: dict[str, list[Chunk]] = {}
    for chunk in (c for found in out for c in found):
        made = {name for s in chunk.steps for name in s.outputs}
        reads = {n: None for s in chunk.steps for n in s.inputs if n and n not in made and n not in fixed}
        chunk.reads = list(reads)
        chunk.keys = frozenset().union(*(program.sources(n) for s in chunk.steps for n in s.inputs if n in fixed))
        for name in (*reads, *(n for n, _ in chunk.guard)):
            users.setdefault(name, []).append(chunk)
    keep = {*extra, *program.outputs}
    for chunk in (c for found in out for c in found):
        for name in dict.fromkeys(n for s in chunk.steps for n in s.outputs):
            if name and name not in fixed and (name in keep or any(c is not chunk for c in users.get(name, ()))):
                chunk.gives.append(name)
    return out


class Values:
    """The values at hand, one array per feed; beyond `room` bytes they are kept in files, not in memory."""

    def __init__(self, room: int = ROOM) -> None:
        self.room, self.held = room, 0
        self._at: dict[str, dict[int, Array | Path]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0
        self._shapes: dict[Path, tuple[int, ...]] = {}
        self._given = set[str]()

    def __del__(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def put(self, name: str, feed: int, value: Array, *, given: bool = False) -> None:
        """Keep a value; one that was given is in memory anyway."""
        kept: Array | Path = value
        if given:
            self._given.add(name)
        elif value.dtype.kind != "O" and value.nbytes > SMALL:
            if self.held + value.nbytes > self.room:
                kept = self._spill(value)
            else:
                self.held += value.nbytes
        self._at.setdefault(name, {})[feed] = kept

    def get(self, name: str, feed: int) -> Array | None:
        """A value, or None where the feed does not reach it."""
        found = self._at.get(name, {}).get(feed)
        return np.load(found) if isinstance(found, Path) else found

    def shape(self, name: str, feed: int) -> tuple[int, ...] | None:
        """The shape of a value, or None where the feed does not reach it."""
        found = self._at.get(name, {}).get(feed)
        return None if found is None else self._shapes[found] if isinstance(found, Path) else found.shape

    def drop(self, keep: Iterable[str]) -> None:
        """Forget everything else."""
        stay = set(keep)
        for name in [name for name in self._at if name not in stay]:
            for value in self._at.pop(name).values():
                if isinstance(value, Path):
                    value.unlink(missing_ok=True)
                    del self._shapes[value]
                elif name not in self._given and value.dtype.kind != "O" and value.nbytes > SMALL:
                    self.held -= value.nbytes

    def _spill(self, value: Array) -> Path:
        # read back whole when wanted, not mapped: a map counts as memory in use
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="emp-")
        self._files += 1
        path = Path(self._folder.name) / f"{self._files}.npy"
        np.save(path, value)
        self._shapes[path] = value.shape
        return path


class Kept:
    """Sessions of chunks whose tensors are as stored, for whoever runs them next."""

    def __init__(self) -> None:
        self._at: dict[int, tuple[Chunk, Any]] = {}

    def get(self, chunk: Chunk) -> Any:
        """A chunk's session, or None."""
        return self._at.get(id(chunk), (None, None))[1]

    def put(self, chunk: Chunk, session: Any) -> None:
        """Keep a chunk's session."""
        self._at[id(chunk)] = chunk, session

    def drop(self, chunks: Iterable[Chunk]) -> None:
        """Forget those of some chunks."""
        for chunk in chunks:
            self._at.pop(id(chunk), None)


class Runner:
    """One network, run level by level: the model's own weights, or others in their place.

    Args:
        program, cut: the program and its chunks (see `chunks`).
        read: gives the values of a tensor by its key.
        threads: for onnxruntime.
        room: bytes of activations in memory.
        kept: sessions of chunks without `changed` tensors are taken from here, and left here.
    """

    def __init__(
        self,
        program: Program,
        cut: Sequence[Sequence[Chunk]],
        read: Any,
        *,
        threads: int | None = None,
        room: int = ROOM,
        kept: Kept | None = None,
        changed: Iterable[str] = (),
    ) -> None:
        self.program, self.cut, self.read, self.threads = program, cut, read, threads
        self.kept, self.changed = kept, frozenset(changed)
        self.values = Values(room)
        self.feeds = 0

    def start(self, feeds: Iterable[Feed]) -> None:
        """Take the feeds."""
        for i, feed in enumerate(feeds):
            for name, value in feed.items():
                self.values.put(name, i, np.asarray(value), given=True)
            self.feeds = i + 1

    def level(self, level: int, wanted: Iterable[str] = ()) -> None:
        """Run one level, on all feeds, and forget what no later level and no one else wants."""
        for chunk in self.cut[level]:
            self._chunk(chunk)
        later = {n for found in self.cut[level + 1 :] for c in found for n in (*c.reads, *(g for g, _ in c.guard))}
        self.values.drop(later | set(wanted) | set(self.program.outputs))

    def _chunk(self, chunk: Chunk) -> None:
        if not chunk.gives:
            return
        session: Any = None
        for i in range(self.feeds):
            if not all(holds(self.values.get(name, i), wanted) for name, wanted in chunk.guard):
                continue
            feed = {name: self.values.get(name, i) for name in chunk.reads}
            if session is None:
                session = self._session(chunk, feed)
            try:
                out = session.run(chunk.gives, {n: v for n, v in feed.items() if v is not None})
            except Exception as error:  # onnxruntime's own errors have no common base
                raise ModelError(f"onnxruntime cannot run a part of the model on feed {i}: {_line(error)}") from error
            for name, value in zip(chunk.gives, out, strict=True):
                if not isinstance(value, np.ndarray):
                    raise ModelError(f"value {quote(name)} is not a tensor, which calibration does not support")
                self.values.put(name, i, value)

    def _session(self, chunk: Chunk, feed: Mapping[str, Array | None]) -> Any:
        same = self.kept is not None and not chunk.keys & self.changed
        found = self.kept.get(chunk) if self.kept is not None and same else None
        if found is None:
            reads = {n: v for n, v in feed.items() if v is not None}
            found = open_session(self.program, chunk.steps, reads, chunk.gives, self.read, self.threads)
            if self.kept is not None and same:
                self.kept.put(chunk, found)
        return found


def open_session(
    program: Program,
    steps: Sequence[Step],
    reads: Mapping[str, Array],
    gives: Sequence[str],
    read: Any,
    threads: int | None,
) -> Any:
    """A session for some steps, with the constants that they need."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime") from error
    made = {name for step in steps for name in step.outputs}
    fixed = [n for s in steps for n in s.inputs if n and n not in made and n in program.fixed]
    fixed += [n for n in gives if n not in made]
    before = program.closure(fixed)
    graph = onnx.GraphProto(name="part")
    graph.node.extend(step.proto for step in (*before, *steps))
    held = {n for s in (*before, *steps) for n in s.inputs if n} | set(fixed)
    for name in sorted(held & set(program.constants)):
        graph.initializer.append(_tensor(onnx, name, program.constants[name], read))
    for name, value in reads.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype) if value.dtype.kind != "O" else onnx.TensorProto.STRING
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, [None] * value.ndim))
    graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in gives)
    model = onnx.ModelProto(ir_version=program.ir_version, graph=graph)
    model.opset_import.extend(program.opsets)
    model.functions.extend(program.functions)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.use_deterministic_compute = True
    options.enable_cpu_mem_arena = False  # what runs is small, and what an arena keeps is memory that work could use
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer) or any(
        value.dtype == np.float16 for value in reads.values()
    ):  # laying out attention in half precision crashes onnxruntime (1.32), and with it this process
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if threads:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"onnxruntime cannot load a part of the model: {_line(error)}") from error


def _tensor(onnx: Any, name: str, tensor: Any, read: Any) -> Any:
    values = np.asarray(read(tensor.key))
    if tensor.dtype == "string":
        return onnx.helper.make_tensor(name, onnx.TensorProto.STRING, values.shape, values.reshape(-1).tolist())
    return onnx.numpy_helper.from_array(values, name)


def holds(condition: Array | None, wanted: bool) -> bool:
    """Whether a condition is known and is as wanted."""
    return condition is not None and bool(np.asarray(condition).reshape(-1)[0]) == wanted


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
