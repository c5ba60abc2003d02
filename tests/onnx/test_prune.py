"""The whole of it, on files."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import emp_onnx
from emp_onnx import Model, ModelError, PlanError, UsageError, VerifyError, load, plan, prune, verify
from emp_onnx.certificates.rule import KEY
from emp_onnx.figures import SCOPES
from emp_onnx.files.names import default_out
from tests.onnx.builders import (
    Case,
    cases,
    conv,
    expected_masks,
    gemm,
    model,
    read_weight,
    tensor,
    two_layers,
    value,
    write,
    write_external,
)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(two_layers(np.random.default_rng(0), 6).model, tmp_path / "m.onnx")


@settings(max_examples=15)
@given(cases(), st.sampled_from(SCOPES), st.booleans())
def test_files_of_every_kind(tmp_path_factory: pytest.TempPathFactory, case: Case, scope: str, external: bool) -> None:
    folder = tmp_path_factory.mktemp("m")
    path = (write_external if external else write)(case.model, folder / "m.onnx")
    masks = expected_masks(case, scope=scope)
    if not masks:
        with pytest.raises(ModelError, match="only zeros"):
            prune(path, scope=scope)
        return
    report = prune(path, scope=scope, gzip=False)
    assert report.out == folder / "m.pruned.onnx"
    for name, mask in masks.items():
        expected = np.where(mask, case.weights[name].view(np.uint32), np.uint32(0))
        assert read_weight(report.out, name).view(np.uint32).tobytes() == expected.tobytes()
    assert verify(report.out, path).ok


def test_the_report_counts_what_is_on_disk(path: Path) -> None:
    report = prune(path)
    assert report.before.plain == path.stat().st_size
    assert report.after.plain == report.out.stat().st_size
    packed = len(gzip.compress(report.out.read_bytes(), 6))
    assert report.after.gzipped == pytest.approx(packed, abs=40)
    data = report.to_dict()
    assert data["total"]["k"] == sum(e["k"] for e in data["plan"]["entries"])
    assert prune(path, gzip=False).after.gzipped is None


def test_the_output_is_the_same_each_time(path: Path, tmp_path: Path) -> None:
    one, two = (prune(path, tmp_path / f"{i}.onnx", threads=i).out.read_bytes() for i in (1, 2))
    assert one == two


@pytest.mark.parametrize("name", ["m.onnx", "./m.onnx", "hard.onnx", "soft.onnx"])
def test_the_input_is_no_place_for_the_output(path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(path.parent)
    os.link("m.onnx", "hard.onnx")
    os.symlink("m.onnx", "soft.onnx")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="out must not be the input"):
        prune(path, name)
    assert path.read_bytes() == before


def test_in_place(path: Path) -> None:
    source = load(path)
    report = prune(path, in_place=True)
    assert report.out == path
    assert KEY in load(path).metadata
    assert verify(path, source).ok or verify(load(path), Model(source._proto)).ok
    with pytest.raises(UsageError, match="in_place must come without another output"):
        prune(path, path.with_name("x.onnx"), in_place=True)


def test_in_place_with_sidecars_says_what_is_left_over(tmp_path: Path) -> None:
    path = write_external(two_layers(np.random.default_rng(0), 6).model, tmp_path / "m.onnx")
    report = prune(path, in_place=True)
    assert "no longer uses 'm.onnx.weights'" in " ".join(report.notes)
    assert (tmp_path / "m.onnx.weights").exists()
    again = prune(path, in_place=True, beta=0.5)
    assert len([f for f in tmp_path.iterdir() if f.suffix == ".data"]) == 1
    assert again.verification.ok


def test_an_output_that_exists_is_replaced(path: Path, tmp_path: Path) -> None:
    (tmp_path / "m.pruned.onnx").write_bytes(b"old")
    assert prune(path).out.read_bytes() != b"old"


def test_models_in_memory(tmp_path: Path) -> None:
    source = Model(gemm(np.random.default_rng(0)).model)
    report = prune(source, tmp_path / "out.onnx")
    assert report.source is None
    assert verify(report.out, source).ok
    with pytest.raises(UsageError, match="out must be given"):
        prune(source)
    with pytest.raises(UsageError, match="in_place must come"):
        prune(source, in_place=True)


def test_a_saved_plan_gives_the_same_file(path: Path, tmp_path: Path) -> None:
    made = emp_onnx.Plan.from_json(plan(load(path), scope="row", exclude=["b"]).to_json())
    one = prune(path, tmp_path / "one.onnx", plan=made).out
    two = prune(path, tmp_path / "two.onnx", scope="row", exclude=["b"]).out
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    "options", [{"beta": 1.0}, {"sparsity": 0.5}, {"scope": "row"}, {"order": 1}, {"include": ["a"]}, {"min_size": 2}]
)
def test_a_plan_comes_alone(path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="plan must come alone"):
        prune(path, plan=plan(load(path)), **options)


def test_a_plan_for_another_model_writes_nothing(path: Path, tmp_path: Path) -> None:
    made = plan(Model(two_layers(np.random.default_rng(1), 6).model))
    with pytest.raises(PlanError, match="made for another"):
        prune(path, plan=made)
    with pytest.raises(PlanError, match="at least one weight"):
        prune(path, plan=emp_onnx.Plan(made.rule, ()))
    assert [f.name for f in tmp_path.iterdir()] == ["m.onnx"]


def test_nothing_to_prune(tmp_path: Path) -> None:
    half = gemm(np.random.default_rng(0))
    half.model.graph.initializer[0].CopyFrom(tensor("w", np.ones((5, 3), np.int32)))
    with pytest.raises(ModelError, match=r"nothing in .* can be pruned: 1 × int32 weights are not pruned"):
        prune(write(half.model, tmp_path / "half.onnx"))
    none = model([onnx.helper.make_node("Relu", ["x"], ["y"])], [value("x", [1])], [value("y", None)])
    with pytest.raises(ModelError, match="no operation that is known here has a constant weight"):
        prune(write(none, tmp_path / "none.onnx"))
    with pytest.raises(UsageError, match="must leave something to prune"):
        prune(write(gemm(np.random.default_rng(0)).model, tmp_path / "m.onnx"), min_size=10**6)
    assert len(list(tmp_path.iterdir())) == 3


def test_notes(path: Path, tmp_path: Path) -> None:
    assert "NOTHING WAS PRUNED" in " ".join(prune(path, beta=99.0).notes)
    once = prune(path).out
    assert "carried a certificate" in " ".join(prune(once, tmp_path / "twice.onnx").notes)
    case = two_layers(np.random.default_rng(0), 6)
    case.model.graph.initializer[0].CopyFrom(tensor("a", case.weights["a"] * np.float32(1e-6)))
    report = prune(write(case.model, tmp_path / "small.onnx"), scope="model")
    assert "Nothing is left of 1 weights" in " ".join(report.notes)
    assert report.plan.entries[0].k == 0
    assert verify(report.out, tmp_path / "small.onnx").ok


class Doubled:
    """A patch gone wrong."""

    def __init__(self, patch: Any) -> None:
        self.patch, self.digest = patch, "wrong"

    def __call__(self, start: int, old: Any) -> Any:
        return self.patch(start, old) * np.float32(2)


def test_a_result_that_fails_verification_is_not_kept(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Model.replaced

    def wrong(self: Model, values: Any, metadata: Any) -> Model:
        return real(self, {name: Doubled(patch) for name, patch in values.items()}, metadata)

    monkeypatch.setattr(Model, "replaced", wrong)
    with pytest.raises(VerifyError, match="nothing was written") as caught:
        prune(path)
    assert caught.value.verification is not None
    assert not caught.value.verification.ok
    assert [f.name for f in tmp_path.iterdir()] == ["m.onnx"]


def test_feeds_are_used_and_wrong_ones_write_nothing(path: Path, tmp_path: Path) -> None:
    good = [{"x": np.ones((3, 4), np.float32)}]
    assert prune(path, feeds=good).verification.behaviour.feeds == 1  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="feed 0 must hold"):
        prune(path, tmp_path / "no.onnx", feeds=[{"y": np.ones(1)}])
    assert not (tmp_path / "no.onnx").exists()


def test_names_of_outputs() -> None:
    assert default_out(Path("a/m.onnx"), "pruned") == Path("a/m.pruned.onnx")
    assert default_out(Path("a/m.ONNX"), "fused") == Path("a/m.fused.onnx")
    assert default_out(Path("a/model"), "pruned") == Path("a/model.pruned.onnx")


def test_float_data_stays_float_data(tmp_path: Path) -> None:
    path = write(conv(np.random.default_rng(0), storage="typed").model, tmp_path / "m.onnx")
    proto = onnx.load(prune(path).out)
    assert len(proto.graph.initializer[0].float_data) == 36
    assert not proto.graph.initializer[0].HasField("raw_data")
