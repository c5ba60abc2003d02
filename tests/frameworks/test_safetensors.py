"""emp_safetensors: files in, files out; what the core selects, what safetensors reads, whatever the layout."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import emp_core
import emp_safetensors
from emp_core import ArgumentError
from emp_core.certificates import KEY
from emp_safetensors import CheckpointError, Plan, VerifyError, header

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "uint8": "U8", "bool": "BOOL"}


def dump(tensors, metadata=None):
    """A file as the format says it, by hand."""
    body, data = ({"__metadata__": metadata} if metadata else {}), b""
    for name, a in tensors.items():
        dtype, raw = ("BF16", a.tobytes()) if a.dtype == np.uint16 else (NAMES[a.dtype.name], a.tobytes())
        body[name] = {"dtype": dtype, "shape": list(a.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(body).encode()
    return len(text).to_bytes(8, "little") + text + data


def parse(path):
    """A file by hand: arrays by name, metadata, and the rest of the header."""
    raw = Path(path).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    body, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    metadata = body.pop("__metadata__", {})
    kinds = {v: k for k, v in NAMES.items()} | {"BF16": "uint16"}
    return {
        name: np.frombuffer(data[slice(*said["data_offsets"])], kinds[said["dtype"]]).reshape(said["shape"])
        for name, said in body.items()
    }, metadata


def tensors(seed=0):
    r = np.random.default_rng(seed)
    return {
        "a.weight": r.standard_normal((30, 40)).astype(np.float32),
        "a.bias": r.standard_normal(30).astype(np.float32),
        "half.weight": r.standard_normal((20, 10)).astype(np.float16),
        "brain.weight": (r.standard_normal((12, 50)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16),
        "ties.weight": np.round(r.standard_normal((16, 33)) * 2).astype(np.float64),
        "tokens.embed.weight": r.standard_normal((9, 4)).astype(np.float32),
        "steps": np.arange(6),
        "nothing.weight": np.zeros((0, 4), np.float32),
    }


def numbers(a):
    return (a.astype(np.uint32) << 16).view(np.float32) if a.dtype == np.uint16 else a


WEIGHTS = ("a.weight", "half.weight", "brain.weight", "ties.weight")


@pytest.mark.parametrize("scope", ["tensor", "row", "model"])
@pytest.mark.parametrize("amount", [{"beta": 1.0}, {"beta": 0.5}, {"sparsity": 0.7}], ids=str)
def test_what_is_written_is_what_the_core_selects(tmp_path, scope, amount):
    held = tensors()
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    source.write_bytes(dump(held, {"format": "pt"}))
    report = emp_safetensors.prune(source, out, scope=scope, **amount)
    scores = {name: numbers(held[name]) for name in WEIGHTS}
    if scope == "model":
        masks = emp_core.select(scores, scope="model", **amount).mask
    else:
        masks = {
            n: emp_core.select(s, scope="rows" if scope == "row" else "whole", **amount).mask for n, s in scores.items()
        }
    found, metadata = parse(out)
    assert list(found) == list(held)
    assert metadata["format"] == "pt"
    assert KEY in metadata
    for name, a in held.items():
        expected = np.where(masks[name], a, 0) if name in masks else a
        assert np.array_equal(found[name], expected), name
        assert found[name].tobytes() == expected.astype(a.dtype).tobytes(), name
    assert report.plan.total.k == sum(int(mask.sum()) for mask in masks.values())
    assert emp_safetensors.verify(out, source) == ()
    assert source.read_bytes() == dump(held, {"format": "pt"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.safetensors", "out.safetensors"]


@given(st.data())
@settings(max_examples=40)
def test_masks_of_pieces_are_those_of_the_whole(tmp_path_factory, data):
    """Rows longer and shorter than a piece, ties across their borders."""
    checkpoint, rows = (importlib.import_module(room) for room in ("emp_safetensors.checkpoint", "emp_core._row_cuts"))
    shape = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 40)))
    values = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.5, -0.5, 1.0, -2.0]), min_size=shape[0] * shape[1],
                                         max_size=shape[0] * shape[1])), np.float32).reshape(shape)  # fmt: skip
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "in.safetensors").write_bytes(dump({"w": values}))
    scope = data.draw(st.sampled_from(["tensor", "row", "model"]))
    if not values.any():
        with pytest.raises(emp_safetensors.CheckpointError, match="'w': it holds only zeros"):
            emp_safetensors.prune(folder / "in.safetensors", folder / "out.safetensors", scope=scope)
        return
    before = checkpoint.PIECE, rows.CHUNK, rows.SLAB
    checkpoint.PIECE, rows.CHUNK, rows.SLAB = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 60)), 20
    try:
        emp_safetensors.prune(folder / "in.safetensors", folder / "out.safetensors", scope=scope)
    finally:
        checkpoint.PIECE, rows.CHUNK, rows.SLAB = before
    mask = emp_core.select(values, scope="rows" if scope == "row" else "whole").mask
    assert np.array_equal(parse(folder / "out.safetensors")[0]["w"], np.where(mask, values, 0))
    assert emp_safetensors.verify(folder / "out.safetensors", folder / "in.safetensors") == ()


def sharded(folder, seed=0):
    held = tensors(seed)
    names = list(held)
    folder.mkdir()
    shards = {"model-00001-of-00002.safetensors": names[:3], "model-00002-of-00002.safetensors": names[3:]}
    for shard, some in shards.items():
        (folder / shard).write_bytes(dump({n: held[n] for n in some}))
    mapped = {n: shard for shard, some in shards.items() for n in some}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": mapped})
    )
    return held


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_shards_are_as_one_file(tmp_path, scope):
    held = sharded(tmp_path / "in")
    (tmp_path / "one.safetensors").write_bytes(dump(held))
    emp_safetensors.prune(tmp_path / "in", tmp_path / "out", scope=scope)
    emp_safetensors.prune(tmp_path / "one.safetensors", tmp_path / "pruned.safetensors", scope=scope)
    expected, _ = parse(tmp_path / "pruned.safetensors")
    found = {}
    for shard in (tmp_path / "out").glob("*.safetensors"):
        found |= parse(shard)[0]
    assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in expected.items()}
    index = "model.safetensors.index.json"
    assert (tmp_path / "out" / index).read_bytes() == (tmp_path / "in" / index).read_bytes()
    assert emp_safetensors.verify(tmp_path / "out", tmp_path / "in") == ()
    assert emp_safetensors.verify(tmp_path / "out" / index) == ()


def test_safetensors_reads_it_and_so_does_every_framework(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    held = {"w": np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)}
    numpy.save_file(held, tmp_path / "in.safetensors", metadata={"a": "b"})
    emp_safetensors.prune(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    found = numpy.load_file(tmp_path / "out.safetensors")["w"]
    assert np.array_equal(found, np.where(emp_core.select(held["w"]).mask, held["w"], 0))


@pytest.mark.parametrize("scope", ["tensor", "row", "model"])
def test_a_plan_is_data(tmp_path, scope):
    source = tmp_path / "in.safetensors"
    source.write_bytes(dump(tensors()))
    made = emp_safetensors.plan(emp_safetensors.load(source), scope=scope)
    again = Plan.from_json(made.to_json())
    assert again == made
    assert (
        again.to_json()
        == made.to_json()
        == emp_safetensors.plan(emp_safetensors.load(source), scope=scope, threads=1).to_json()
    )
    emp_safetensors.prune(source, tmp_path / "a.safetensors", plan=again)
    emp_safetensors.prune(source, tmp_path / "b.safetensors", scope=scope)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    other = tmp_path / "other.safetensors"
    other.write_bytes(dump(tensors(1)))
    with pytest.raises(ArgumentError, match="plan must be made for this checkpoint"):
        emp_safetensors.prune(other, tmp_path / "c.safetensors", plan=again)
    for text in (
        "",
        "{}",
        "[]",
        made.to_json().replace('"n_eff"', '"neff"', 1),
        made.to_json().replace('"k": ', '"k": "x', 1),
    ):
        with pytest.raises(ArgumentError, match="plan must be as"):
            Plan.from_json(text)
    assert "all" in str(made)


def test_verify_finds_every_change(tmp_path):
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    source.write_bytes(dump(tensors()))
    emp_safetensors.prune(source, out)
    whole = out.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    for place in (8 + length + 1, 8 + length + 2000, len(whole) - 60):
        out.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        assert emp_safetensors.verify(out, source)
    edited = whole[: 8 + length].replace(b'\\"k\\":', b'\\"K\\":', 1)
    out.write_bytes(edited + whole[8 + length :])
    with pytest.raises(ArgumentError, match="edited"):
        emp_safetensors.verify(out)
    with pytest.raises(ArgumentError, match="without one"):
        emp_safetensors.verify(source)
    out.write_bytes(whole)
    source.write_bytes(dump(tensors(1)))
    assert emp_safetensors.verify(out) == ()
    assert emp_safetensors.verify(out, source)


def test_places_that_cannot_be_written(tmp_path):
    source = tmp_path / "in.safetensors"
    source.write_bytes(dump(tensors()))
    (tmp_path / "link.safetensors").symlink_to(source)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    sharded(tmp_path / "shards")
    for out, what in (("in.safetensors", "must not be the input"), ("link.safetensors", "must not be the input"),
                      ("no/out.safetensors", "directory that exists"), ("full", "must be a file name")):  # fmt: skip
        with pytest.raises(ArgumentError, match=what):
            emp_safetensors.prune(source, tmp_path / out)
    for out, what in (("shards", "must not be the input"), ("full", "new or an empty directory")):
        with pytest.raises(ArgumentError, match=what):
            emp_safetensors.prune(tmp_path / "shards", tmp_path / out)
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".part")]


@pytest.mark.parametrize("when", ["write", "rename"])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, when):
    from emp_safetensors import write

    source = tmp_path / "in.safetensors"
    source.write_bytes(dump(tensors()))
    (tmp_path / "out.safetensors").write_bytes(b"old")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(*((write, "_read_back", stop) if when == "write" else (write.os, "replace", stop)))
    with pytest.raises(KeyboardInterrupt):
        emp_safetensors.prune(source, tmp_path / "out.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.safetensors", "out.safetensors"]
    assert (tmp_path / "out.safetensors").read_bytes() == b"old"


@pytest.mark.parametrize("scope", ["tensor", "row", "model"])
def test_large_files_go_to_the_disk_directly_and_are_the_same(tmp_path, monkeypatch, scope):
    """What lies between tensors, and ends that fill no block, go the usual way."""
    from emp_safetensors import write

    held = tensors()
    held["big.weight"] = np.random.default_rng(1).standard_normal((700, 1025)).astype(np.float32)
    held["odd"] = np.arange(3, dtype=np.uint8)
    (tmp_path / "in.safetensors").write_bytes(dump(held))
    emp_safetensors.prune(tmp_path / "in.safetensors", tmp_path / "one.safetensors", scope=scope)
    monkeypatch.setattr(write, "LARGE", 1)
    emp_safetensors.prune(tmp_path / "in.safetensors", tmp_path / "two.safetensors", scope=scope)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_what_reads_back_otherwise_is_refused(tmp_path, monkeypatch):
    from emp_safetensors import write

    (tmp_path / "in.safetensors").write_bytes(dump(tensors()))

    class Changed(write.Bytes):
        def into(self, at, buffer):
            done = super().into(at, buffer)
            memoryview(buffer).cast("B")[0] ^= 1
            return done

    monkeypatch.setattr(write, "Bytes", Changed)
    with pytest.raises(VerifyError, match="reads back otherwise"):
        emp_safetensors.prune(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.safetensors"]


@pytest.mark.parametrize("amount", [{"beta": 1.0}, {"sparsity": 0.5}], ids=str)
@pytest.mark.parametrize("scope", ["tensor", "row", "model"])
def test_tensors_of_zeros_are_in_no_pool(tmp_path, scope, amount):
    held = {"a.weight": tensors()["a.weight"], "zero.weight": np.zeros((50, 60), np.float32)}
    (tmp_path / "in.safetensors").write_bytes(dump(held))
    report = emp_safetensors.prune(tmp_path / "in.safetensors", tmp_path / "out.safetensors", scope=scope, **amount)
    mask = emp_core.select(held["a.weight"], scope="rows" if scope == "row" else "whole", **amount).mask
    found, _ = parse(tmp_path / "out.safetensors")
    assert np.array_equal(found["a.weight"], np.where(mask, held["a.weight"], 0))
    assert report.plan.refusals == (("zero.weight", "it holds only zeros: nothing tells one from another"),)
    assert emp_safetensors.verify(tmp_path / "out.safetensors", tmp_path / "in.safetensors") == ()


def test_weights_that_hold_nan_are_named(tmp_path):
    held = tensors()
    held["half.weight"][3, 3] = np.nan
    (tmp_path / "in.safetensors").write_bytes(dump(held))
    for scope in ("tensor", "row", "model"):
        with pytest.raises(CheckpointError, match=r"half\.weight.* must be finite|half\.weight.*leave it out"):
            emp_safetensors.prune(tmp_path / "in.safetensors", tmp_path / "out.safetensors", scope=scope)
    emp_safetensors.prune(tmp_path / "in.safetensors", tmp_path / "out.safetensors", exclude=["half.*"])
    with pytest.raises(CheckpointError, match=r"nothing in .* can be pruned"):
        emp_safetensors.prune(tmp_path / "in.safetensors", tmp_path / "o.safetensors", include=["a.bias"])
    with pytest.raises(ArgumentError, match="include must match names of tensors"):
        emp_safetensors.prune(tmp_path / "in.safetensors", tmp_path / "o.safetensors", include=["zzz"])


def attack(body=None, *, text=None, length=None, data=b"\0" * 16):
    raw = json.dumps(body).encode() if text is None else text
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(**changes):
    return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}


ATTACKS = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "a header longer than the file": attack({"w": entry()}, length=10**6),
    "a header of 2⁶³ bytes": attack({"w": entry()}, length=2**63),
    "no JSON": attack(text=b"{not json at all"),
    "not UTF-8": attack(text=b'{"\xff": 1}'),
    "a list": attack([1, 2]),
    "deep": attack(text=b'{"w":' * 5000 + b"1" + b"}" * 5000),
    "a name twice": attack(
        text=b'{"w":' + json.dumps(entry()).encode() + b',"w":' + json.dumps(entry()).encode() + b"}"
    ),
    "NaN in the header": attack(text=b'{"w": NaN}'),
    "no dtype": attack({"w": {"shape": [2, 2], "data_offsets": [0, 16]}}),
    "unknown dtype": attack({"w": entry(dtype="F99")}),
    "a dtype that is a list": attack({"w": entry(dtype=["F32"])}),
    "negative offsets": attack({"w": entry(data_offsets=[-16, 0])}),
    "offsets beyond the file": attack({"w": entry(data_offsets=[0, 1 << 40], shape=[1 << 38])}),
    "offsets back to front": attack({"w": entry(data_offsets=[16, 0])}),
    "three offsets": attack({"w": entry(data_offsets=[0, 8, 16])}),
    "fractional shape": attack({"w": entry(shape=[2.0, 2])}),
    "true as a size": attack({"w": entry(shape=[True, 4])}),
    "a shape that overflows": attack({"w": entry(shape=[1 << 62, 1 << 62])}),
    "shape and bytes disagree": attack({"w": entry(shape=[3, 2])}),
    "overlap": attack({"w": entry(), "v": entry(data_offsets=[8, 24])}, data=b"\0" * 24),
    "a hole": attack({"w": entry(data_offsets=[8, 24])}, data=b"\0" * 24),
    "bytes after the end": attack({"w": entry()}, data=b"\0" * 17),
    "too few bytes": attack({"w": entry()}, data=b"\0" * 15),
    "metadata that is no mapping": attack({"__metadata__": [1], "w": entry()}),
    "metadata that is no text": attack({"__metadata__": {"a": 1}, "w": entry()}),
    "a shape of a thousand axes": attack({"w": entry(shape=[1] * 1000 + [2, 2])}),
}


@pytest.mark.parametrize("name", list(ATTACKS))
def test_hostile_files_are_refused_in_a_sentence(tmp_path, name):
    (tmp_path / "in.safetensors").write_bytes(ATTACKS[name])
    with pytest.raises(CheckpointError, match=r"must|could not") as caught:
        emp_safetensors.load(tmp_path / "in.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("index", "what"),
    [
        ("", "must be JSON"), ("[]", "must be JSON"), ('{"weight_map": {"w": 3}}', "must be JSON"),
        ('{"weight_map": {"w": "../secret.safetensors"}}', "must name files beside it"),
        ('{"weight_map": {"w": "/etc/passwd"}}', "must name files beside it"),
        ('{"weight_map": {"w": "gone.safetensors"}}', "could not be read"),
        ('{"weight_map": {"v": "one.safetensors"}}', "must map 'w'"),
        ('{"weight_map": {"w": "one.safetensors", "v": "one.safetensors"}}', "which does not hold it"),
    ],
)  # fmt: skip
def test_hostile_indices_are_refused(tmp_path, index, what):
    (tmp_path / "one.safetensors").write_bytes(attack({"w": entry()}))
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=what):
        emp_safetensors.load(tmp_path)


@given(
    st.binary(max_size=300)
    | st.builds(
        lambda a, b: dump({"w": np.ones((2, 3), np.float32)})[:a] + b, st.integers(0, 90), st.binary(max_size=80)
    )
)
@settings(max_examples=150)
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    place = tmp_path_factory.getbasetemp() / "any.safetensors"
    place.write_bytes(data)
    with suppress(CheckpointError):
        emp_safetensors.load(place)


def test_headers_come_back():
    held = dump(tensors(), {"ä": "ö\n"})
    path = Path("x")
    import os
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "f")
        path.write_bytes(held)
        handle = os.open(path, os.O_RDONLY)
        found = header.read_header(handle, path)
        os.close(handle)
    again = header.dump(found, found.metadata)
    assert len(again) % 8 == 0
    assert json.loads(again[8:]) == json.loads(held[8 : found.data])


def test_the_command(tmp_path):
    (tmp_path / "in.safetensors").write_bytes(dump(tensors()))
    (tmp_path / "bad.safetensors").write_bytes(b"no")

    def run(*words):
        return subprocess.run(
            [sys.executable, "-m", "emp_safetensors", *words], cwd=tmp_path, capture_output=True, encoding="utf-8",
            env={"PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}", "PYTHONIOENCODING": "utf-8"}, timeout=60,
        )  # fmt: skip

    assert run("plan", "in.safetensors").returncode == 0
    done = run("prune", "in.safetensors", "out.safetensors", "--scope", "model", "--verbose")
    assert done.returncode == 0, done.stderr
    assert "written and checked" in done.stdout
    assert run("verify", "out.safetensors", "in.safetensors").stdout == "the certificate holds\n"
    (tmp_path / "in.safetensors").write_bytes(dump(tensors(1)))
    assert run("verify", "out.safetensors", "in.safetensors").returncode == 1
    assert run("verify", "in.safetensors").returncode == 2
    assert run("plan", "bad.safetensors").returncode == 3
    assert run("prune", "in.safetensors", "in.safetensors").returncode == 2
    assert run("prune", "in.safetensors", "x.safetensors", "--beta", "-1").returncode == 2
    assert not (tmp_path / "x.safetensors").exists()


def test_memory_does_not_grow_with_the_file(tmp_path):
    """64 MB more of file, not 8 MB more of memory."""
    code = (
        "import sys, emp_safetensors; emp_safetensors.prune(sys.argv[1], sys.argv[2], threads=1);"
        "print(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not tell the most memory that a process held")
    most = []
    for layers in (4, 12):
        r = np.random.default_rng(0)
        held = {f"{i}.weight": r.standard_normal((1024, 2048), dtype=np.float32) for i in range(layers)}
        (tmp_path / "in.safetensors").write_bytes(dump(held))
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors")],
            capture_output=True, text=True, check=True, env={"PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"}, timeout=120,
        )  # fmt: skip
        most.append(int(done.stdout) / 1024)
    assert most[1] < 150
    assert most[1] - most[0] < 8


FAILURES = [
    (MemoryError(), 3, "more memory than there is"),
    (OSError(5, "Input/output error", "in.safetensors"), 2, "Input/output error: 'in.safetensors'"),
    (KeyboardInterrupt(), 130, "interrupted; no half-written file is left behind"),
    (VerifyError("it reads back otherwise"), 1, "it reads back otherwise"),
]


@pytest.mark.parametrize(("error", "code", "says"), FAILURES, ids=lambda x: type(x).__name__)
def test_the_command_ends_every_failure_in_a_sentence(tmp_path, monkeypatch, capsys, error, code, says):
    """A traceback would exit with 1, which says that verification failed."""
    from emp_safetensors import cli

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(cli, "prune", fails)
    assert cli.main(["prune", "in.safetensors", str(tmp_path / "out.safetensors")]) == code
    out, said = capsys.readouterr()
    assert out == ""
    assert said.startswith("error: ")
    assert says in said


@pytest.mark.parametrize(
    ("words", "code"), [(["plan", "in.safetensors"], 0), (["verify", "out.safetensors", "other.safetensors"], 1)]
)
def test_a_reader_that_leaves_is_no_error_of_the_command(tmp_path, words, code):
    (tmp_path / "in.safetensors").write_bytes(dump(tensors()))
    (tmp_path / "other.safetensors").write_bytes(dump(tensors(1)))
    emp_safetensors.prune(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "emp_safetensors", *words], cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"}, timeout=60,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (code, b"")


def test_an_old_terminal_gets_ascii(tmp_path):
    (tmp_path / "in.safetensors").write_bytes(dump({"wéight": tensors()["a.weight"]}))
    done = subprocess.run(
        [sys.executable, "-m", "emp_safetensors", "plan", "in.safetensors"], cwd=tmp_path, capture_output=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}", "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"w\\xe9ight" in done.stdout


def test_errors_of_programming_are_no_faults_of_a_checkpoint(tmp_path, monkeypatch):
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    source.write_bytes(dump(tensors()))
    emp_safetensors.prune(source, out)

    def fails(error):
        def decide(*_, **__):
            raise error

        monkeypatch.setattr(importlib.import_module("emp_safetensors.verify"), "decide", decide)

    for error in (CheckpointError("tensor 'a' holds NaN"), OSError(5, "Input/output error")):
        fails(error)
        assert emp_safetensors.verify(out, source) == (f"its original cannot be counted again: {error}",)
    for error in (TypeError("a bug"), MemoryError()):
        fails(error)
        with pytest.raises(type(error)):
            emp_safetensors.verify(out, source)


@pytest.mark.parametrize("scope", ["tensor", "row", "model"])
@pytest.mark.parametrize(
    ("other", "says"),
    [
        (np.arange(1200).reshape(30, 40), "'a.weight' holds I64"),
        (np.zeros((0, 40), np.float32), "'a.weight' is empty"),
        (np.float32(3), "'a.weight' has fewer than two axes"),
        (np.full((30, 40), np.nan, np.float32), "must be finite"),
        (np.zeros((30, 40), np.float32), "'a.weight' holds nothing but zeros in the original"),
    ],
    ids=["integers", "empty", "scalar", "nan", "zeros"],
)
def test_an_original_of_another_kind_is_named(tmp_path, scope, other, says):
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    source.write_bytes(dump(tensors()))
    emp_safetensors.prune(source, out, scope=scope)
    source.write_bytes(dump({**tensors(), "a.weight": np.asarray(other)}))
    assert says in " ".join(emp_safetensors.verify(out, source))
