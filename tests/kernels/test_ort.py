"""The border with onnxruntime: declarations, registration, and packed nodes in sessions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import emp_kernels
from emp_onnx.files.functions import function_bytes
from emp_onnx.files.reader import DOMAIN
from emp_onnx.fused.fuse import fuse
from tests.kernels.native import SOURCES, Floats, build, instruction_sets, pack

FORMS = ("Mask", "Mask4")


@pytest.fixture(autouse=True)
def _library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMP_KERNELS_LIBRARY", str(next(build().glob("libemp_kernels.*"))))


def session(model: onnx.ModelProto, *, kernels: bool, threads: int = 1) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if kernels:
        emp_kernels.register(options)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def packed(dense: Floats, name: str, form: str) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    """The node that makes a weight from its packed parts, and these."""
    mask, stored = pack(dense)
    places = 4 if form == "Mask4" else 1
    inputs = [f"{name}.mask", f"{name}.values", *["after"] * places]
    node = helper.make_node(f"Unpack{form}", inputs, [name], domain=DOMAIN)
    shape = node.attribute.add()
    shape.name, shape.type = "shape", onnx.AttributeProto.TENSOR
    shape.t.CopyFrom(numpy_helper.from_array(np.array(dense.shape, np.int64)))
    values = np.concatenate([np.zeros(1, np.float32), stored])
    return node, [numpy_helper.from_array(mask, f"{name}.mask"), numpy_helper.from_array(values, f"{name}.values")]


def model(nodes: list[onnx.NodeProto], parts: list[onnx.TensorProto], x: list[Any], form: str) -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", onnx.TensorProto.FLOAT, x)],
        [info("y", onnx.TensorProto.FLOAT, [f"y{i}" for i in range(len(x))])],
        [*parts, numpy_helper.from_array(np.float32(0), "after")],
    )  # fmt: skip
    unpack = onnx.FunctionProto.FromString(function_bytes(f"Unpack{form}", 17))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=[unpack])


def of_rank(made: onnx.ModelProto, rank: int) -> onnx.ModelProto:
    """The same model, whose output has so many axes of any size."""
    shape = made.graph.output[0].type.tensor_type.shape
    del shape.dim[:]
    shape.dim.extend([onnx.TensorShapeProto.Dimension()] * rank)
    return made


def fused(before: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """A model with its one product fused, and the name of its node."""
    after = onnx.ModelProto()
    after.CopyFrom(before)
    (told,) = fuse(after, every=True)
    onnx.checker.check_model(after, full_check=True)
    return after, told.op


def same(before: onnx.ModelProto, after: onnx.ModelProto, x: Any) -> None:
    """Dense, fused without kernels, fused with kernels."""
    expected = session(before, kernels=False).run(None, {"x": x})[0]
    plain = session(after, kernels=False).run(None, {"x": x})[0]
    np.testing.assert_allclose(plain, expected, rtol=1e-5, atol=2e-5, strict=True)
    got = session(after, kernels=True, threads=2).run(None, {"x": x})[0]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5, strict=True)


def weight(rng: np.random.Generator, *shape: int) -> Floats:
    dense = rng.standard_normal(shape).astype(np.float32)
    dense[rng.random(shape) < 0.6] = 0
    return dense


def linear(op: str, form: str, *, bias: bool, relu: bool, transposed: bool = False) -> onnx.ModelProto:
    rng = np.random.default_rng(7)
    dense = weight(rng, 48, 64) if transposed else weight(rng, 64, 48)
    node, parts = packed(dense, "w", form)
    parts.append(numpy_helper.from_array(rng.standard_normal(48).astype(np.float32), "b"))
    nodes = [node]
    if op == "Gemm":
        nodes.append(helper.make_node("Gemm", ["x", "w", *(["b"] if bias else [])], ["p"], transB=int(transposed)))
    else:
        nodes.append(helper.make_node("MatMul", ["x", "w"], ["m" if bias else "p"]))
        if bias:
            nodes.append(helper.make_node("Add", ["b", "m"], ["p"]))
    nodes.append(helper.make_node("Relu" if relu else "Identity", ["p"], ["y"]))
    return model(nodes, parts, ["n", 64], form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("op", "transposed"), [("MatMul", False), ("Gemm", False), ("Gemm", True)])
def test_products_with_and_without_kernels(op: str, transposed: bool, bias: bool, relu: bool, form: str) -> None:
    before = linear(op, form, bias=bias, relu=relu, transposed=transposed)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    (told,) = fuse(after, every=True)
    kind = "MatMulAdd" if op == "MatMul" and bias else op
    assert told.op == f"{kind}{'Relu' if relu else ''}{form}"
    onnx.checker.check_model(after, full_check=True)
    for items in (0, 1, 5, 40):
        x = np.random.default_rng(items).standard_normal((items, 64)).astype(np.float32)
        expected = session(before, kernels=False).run(None, {"x": x})[0]
        plain = session(after, kernels=False).run(None, {"x": x})[0]
        assert np.array_equal(plain, expected)
        got = session(after, kernels=True, threads=2).run(None, {"x": x})[0]
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)


def test_a_product_over_more_axes() -> None:
    rng = np.random.default_rng(1)
    node, parts = packed(weight(rng, 64, 32), "w", "Mask")
    before = model([node, helper.make_node("MatMul", ["x", "w"], ["y"])], parts, ["a", "b", 64], "Mask")
    after = onnx.ModelProto()
    after.CopyFrom(before)
    assert [item.op for item in fuse(after, every=True)] == ["MatMulMask"]
    x = rng.standard_normal((3, 5, 64)).astype(np.float32)
    expected = session(before, kernels=False).run(None, {"x": x})[0]
    np.testing.assert_allclose(session(after, kernels=True).run(None, {"x": x})[0], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "attributes",
    [
        {}, {"strides": [2, 2], "pads": [1, 1, 1, 1]}, {"dilations": [2, 1], "pads": [0, 2, 1, 0]},
        {"group": 2, "kernel_shape": [3, 3]},
    ],
)  # fmt: skip
def test_convolutions_with_and_without_kernels(attributes: dict[str, Any], form: str) -> None:
    rng = np.random.default_rng(2)
    channels = 16 // attributes.get("group", 1)
    node, parts = packed(weight(rng, 24, channels, 3, 3), "w", form)
    parts.append(numpy_helper.from_array(rng.standard_normal(24).astype(np.float32), "b"))
    nodes = [
        node,
        helper.make_node("Conv", ["x", "w", "b"], ["c"], **attributes),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    before = model(nodes, parts, ["n", 16, "h", "w_"], form)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    assert [item.op for item in fuse(after, every=True)] == [f"ConvRelu{form}"]
    onnx.checker.check_model(after, full_check=True)
    x = rng.standard_normal((2, 16, 13, 11)).astype(np.float32)
    expected = session(before, kernels=False).run(None, {"x": x})[0]
    plain = session(after, kernels=False).run(None, {"x": x})[0]
    np.testing.assert_allclose(plain, expected, rtol=1e-6, atol=1e-6)
    got = session(after, kernels=True, threads=2).run(None, {"x": x})[0]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("dims", [[2, 24, 11, 9], [24, 1, 1], [1], [5, 2, 24, 11, 9], [2, 1, 11, 1], [1, 1, 1, 1, 1]])
@pytest.mark.parametrize("relu", [False, True])
def test_what_is_added_to_a_convolution_is_part_of_its_node(dims: list[int], relu: bool) -> None:
    """It is computed after the convolution, and may be of any shape that fits."""
    rng = np.random.default_rng(2)
    node, parts = packed(weight(rng, 24, 16, 3, 3), "w", "Mask")
    parts.append(numpy_helper.from_array(rng.standard_normal(dims).astype(np.float32), "s"))
    nodes = [
        node,
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Neg", ["s"], ["t"]),
        helper.make_node("Add", ["t", "c"], ["a" if relu else "y"]),
        *([helper.make_node("Relu", ["a"], ["y"])] if relu else []),
    ]
    before = model(nodes, parts, ["n", 16, "h", "w_"], "Mask")
    del before.graph.output[0].type.tensor_type.shape.dim[:]
    before.graph.output[0].type.tensor_type.shape.dim.extend([onnx.TensorShapeProto.Dimension()] * max(4, len(dims)))
    after = onnx.ModelProto()
    after.CopyFrom(before)
    assert [item.op for item in fuse(after, every=True)] == [f"ConvAdd{'Relu' if relu else ''}Mask"]
    onnx.checker.check_model(after, full_check=True)
    x = rng.standard_normal((2, 16, 13, 11)).astype(np.float32)
    expected = session(before, kernels=False).run(None, {"x": x})[0]
    plain = session(after, kernels=False).run(None, {"x": x})[0]
    np.testing.assert_allclose(plain, expected, rtol=1e-5, atol=5e-5, strict=True)
    got = session(after, kernels=True, threads=2).run(None, {"x": x})[0]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=5e-5, strict=True)


def test_a_sum_that_cannot_be_ends_in_a_sentence() -> None:
    rng = np.random.default_rng(2)
    node, parts = packed(weight(rng, 24, 16, 3, 3), "w", "Mask")
    parts.append(numpy_helper.from_array(np.ones((7, 1), np.float32), "s"))
    nodes = [node, helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Add", ["s", "c"], ["y"])]
    made = model(nodes, parts, ["n", 16, "h", "w_"], "Mask")
    fuse(made, every=True)
    with pytest.raises(Exception, match=r"what is added must fit the shape \[1, 24, 6, 6\], got \[7, 1\]"):
        session(made, kernels=True).run(None, {"x": np.ones((1, 16, 8, 8), np.float32)})



def replaced(name: str, array: Any) -> onnx.ModelProto:
    made = linear("Gemm", "Mask", bias=True, relu=False)
    fuse(made, every=True)
    made.graph.node[0].name = "layer"
    for tensor in made.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    return made


def initializer(name: str) -> Any:
    made = linear("Gemm", "Mask", bias=True, relu=False)
    return next(numpy_helper.to_array(tensor) for tensor in made.graph.initializer if tensor.name == name)


HOSTILE = {
    "short mask": ("w.mask", lambda a: a[:-1], "must have a mask of 384 bytes, got 383"),
    "long mask": ("w.mask", lambda a: np.append(a, a), "must have a mask of 384 bytes, got 768"),
    "no mask": ("w.mask", lambda a: a[:0], "must have a mask of 384 bytes, got 0"),
    "one bit more": ("w.mask", lambda a: a | 1 | 2 | 4 | 8, "must have as many values as bits set in its mask"),
    "one value less": ("w.values", lambda a: a[:-1], "must have as many values as bits set in its mask"),
    "no values": ("w.values", lambda a: a[:0], "must have values that begin with the fill, got none"),
    "another fill": ("w.values", lambda a: a + 1, "must have 0 as its fill"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_parts_that_disagree_are_refused_when_the_session_is_made(case: str) -> None:
    name, change, sentence = HOSTILE[case]
    with pytest.raises(Exception, match="layer") as caught:
        session(replaced(name, change(initializer(name))), kernels=True)
    assert "the packed weight of GemmMask 'layer'" in str(caught.value)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("shape", [[64], [64, 48, 1], [64, -48], [2**40, 2**40], [48, 65], []])
def test_shapes_that_cannot_be_are_refused(shape: list[int]) -> None:
    made = replaced("", None)
    (attribute,) = (a for a in made.graph.node[0].attribute if a.name == "shape")
    attribute.t.CopyFrom(numpy_helper.from_array(np.array(shape, np.int64)))
    with pytest.raises(Exception, match="the packed weight of GemmMask 'layer' must have"):
        session(made, kernels=True)


def test_activations_and_bias_that_do_not_fit_end_in_a_sentence() -> None:
    made = replaced("", None)
    made.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "k"
    with pytest.raises(Exception, match=r"last dimension of the input must be 64, got the shape \[2, 63\]"):
        session(made, kernels=True).run(None, {"x": np.zeros((2, 63), np.float32)})
    with pytest.raises(Exception, match="bias must have 48 elements"):
        session(replaced("b", np.zeros(47, np.float32)), kernels=True).run(None, {"x": np.zeros((1, 64), np.float32)})


def test_every_instruction_set_runs_in_a_session() -> None:
    """The choice is read once, so each gets a process of its own."""
    told = []
    for isa in instruction_sets():
        done = subprocess.run(
            [sys.executable, "-c", "import emp_kernels; print(emp_kernels.isa())"],
            env={**os.environ, "EMP_KERNELS_ISA": isa, "PYTHONPATH": str(SOURCES.parent)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        told.append(done.stdout.strip())
    assert told == instruction_sets()
    assert emp_kernels.isa() == instruction_sets()[0]


def test_absent_and_broken_libraries_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMP_KERNELS_LIBRARY", str(tmp_path / "absent.so"))
    with pytest.raises(emp_kernels.KernelsError, match="must be the path of a shared library"):
        emp_kernels.register(onnxruntime.SessionOptions())
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"\x7fELF no library")
    monkeypatch.setenv("EMP_KERNELS_LIBRARY", str(broken))
    with pytest.raises(emp_kernels.KernelsError, match="onnxruntime cannot use the kernels"):
        emp_kernels.register(onnxruntime.SessionOptions())
    with pytest.raises(emp_kernels.KernelsError, match="cannot be loaded"):
        emp_kernels.isa()
    monkeypatch.delenv("EMP_KERNELS_LIBRARY")
    monkeypatch.setattr(emp_kernels, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(emp_kernels.KernelsError, match="have not been built"):
        emp_kernels.library()


def test_an_onnxruntime_that_is_too_old_is_told(tmp_path: Path) -> None:
    """A stand-in for one: it knows the first version of the interface only."""
    program = tmp_path / "old.cpp"
    program.write_text(
        """
        #include <cstdio>
        #include <cstring>
        #include "ort.hpp"
        extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions*, const OrtApiBase*);
        static const void* table[300];
        static OrtStatus* create(int, const char* text) noexcept { std::puts(text); return nullptr; }
        int main() {
            table[emp::ort::kCreateStatus] = reinterpret_cast<const void*>(&create);
            static const OrtApiBase base = {
                [](uint32_t version) noexcept {
                    return version == 1 ? reinterpret_cast<const OrtApi*>(table) : nullptr;
                },
                []() noexcept { return "1.2.3"; }};
            RegisterCustomOps(nullptr, &base);
        }
        """
    )
    found = next(build().glob("libemp_kernels.*"))
    subprocess.run(
        ["c++", "-std=c++17", f"-I{SOURCES / 'src'}", str(program), str(found), f"-Wl,-rpath,{found.parent}", "-o",
         str(tmp_path / "old")], check=True,
    )  # fmt: skip
    done = subprocess.run([str(tmp_path / "old")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "the kernels for packed weights need onnxruntime >= 1.17, got 1.2.3"


def header() -> Path | None:
    """onnxruntime's own header, where the system or ONNXRUNTIME_INCLUDE has it; no wheel does."""
    for folder in (
        os.environ.get("ONNXRUNTIME_INCLUDE", ""),
        "/usr/include/onnxruntime",
        "/usr/local/include/onnxruntime",
    ):
        if folder and (Path(folder) / "onnxruntime_c_api.h").is_file():
            return Path(folder)
    return None


def test_our_declarations_agree_with_the_real_header(tmp_path: Path) -> None:
    folder = header()
    if folder is None:
        pytest.skip(
            "onnxruntime_c_api.h is not here; ONNXRUNTIME_INCLUDE may name its folder (Debian: libonnxruntime-dev)"
        )
    if shutil.which("c++") is None:
        pytest.skip("c++ is not installed")
    text = (SOURCES / "src" / "ort.hpp").read_text()
    slots = dict(re.findall(r"^    k(\w+) = (\d+),$", text, re.M))
    fields = re.search(r"struct CustomOp \{(.*?)\};", text, re.S)
    assert fields
    names = re.findall(r"\(\*(\w+)\)", fields.group(1))
    assert len(slots) > 15
    assert len(names) > 20
    special = {
        "KernelInfoGetNodeName": "KernelInfo_GetNodeName",
        "KernelInfoGetConstantInputTensor": "KernelInfoGetConstantInput_tensor",
        "KernelContextParallelFor": "KernelContext_ParallelFor", "KernelContextGetInput": "KernelContext_GetInput",
        "KernelContextGetOutput": "KernelContext_GetOutput", "CustomOpDomainAdd": "CustomOpDomain_Add",
        "KernelInfoGetAttributeInt64": "KernelInfoGetAttribute_int64",
        "KernelInfoGetAttributeTensor": "KernelInfoGetAttribute_tensor",
        "KernelInfoGetAttributeArrayInt64": "KernelInfoGetAttributeArray_int64",
    }  # fmt: skip
    checks = [
        f'static_assert(offsetof(OrtApi, {special.get(name, name)}) == {at} * sizeof(void*), "{name}");'
        for name, at in slots.items()
    ]
    checks += [
        f"static_assert(offsetof(OrtCustomOp, {name}) == offsetof(emp::ort::CustomOp, {name}));" for name in names
    ]
    (tmp_path / "check.cpp").write_text(
        f'#include "{folder}/onnxruntime_c_api.h"\n#define OrtApiBase OrtApiBaseOurs\n#include "ort.hpp"\n'
        + "\n".join(checks)
    )
    done = subprocess.run(
        ["c++", "-std=c++17", "-fsyntax-only", f"-I{SOURCES / 'src'}", str(tmp_path / "check.cpp")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_registering_only_some_operations() -> None:
    before = linear("Gemm", "Mask", bias=True, relu=True)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    fuse(after, every=True)
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    expected = session(before, kernels=False).run(None, {"x": x})[0]
    for only in (["GemmReluMask"], ["ConvMask", "GemmReluMask"], ["GemmMask"], []):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        emp_kernels.register(options, only=only)
        got = onnxruntime.InferenceSession(after.SerializeToString(), options).run(None, {"x": x})[0]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)
