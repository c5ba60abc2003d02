"""Products that read the same tensor, made one: x·[A B C], then split.

Queries, keys and values of attention are three small products; one larger one takes less time, where splitting takes
less than what is saved. That is measured before it is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["together"]


def together(model: Any) -> Any:
    """A copy in which MatMuls of one tensor with constants, each with its bias, are one; None if there are none."""
    import onnx

    new = onnx.ModelProto()
    new.CopyFrom(model)
    graph = new.graph
    tensors = {t.name: t for t in graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {o.name for o in graph.output}
    opset = max((o.version for o in new.opset_import if o.domain in ("", "ai.onnx")), default=1)
    done = False
    for source in list(readers):
        found = []
        for node in readers[source]:
            if node.op_type != "MatMul" or node.domain or node.input[0] != source or node.output[0] in outputs:
                continue
            weight = tensors.get(node.input[1])
            if weight is None or len(weight.dims) != 2 or len(readers[node.input[1]]) != 1:
                continue
            found.append((node, *_bias(node, readers, tensors)))
        kinds = {(len(tensors[n.input[1]].dims), tensors[n.input[1]].data_type, bias is None) for n, bias, _ in found}
        if len(found) < 2 or len(kinds) > 1:
            continue
        _join(graph, tensors, source, found, opset)
        done = True
    return new if done else None


def _bias(node: Any, readers: dict[str, list[Any]], tensors: dict[str, Any]) -> tuple[Any, Any]:
    """The constant added to a product by its only reader, and that reader."""
    users = readers.get(node.output[0], [])
    if len(users) != 1 or users[0].op_type != "Add":
        return None, None
    other = next((name for name in users[0].input if name != node.output[0]), "")
    bias = tensors.get(other)
    if bias is None or list(bias.dims) != [tensors[node.input[1]].dims[1]]:
        return None, None
    return bias, users[0]


def _join(graph: Any, tensors: dict[str, Any], source: str, found: list[Any], opset: int) -> None:
    import onnx

    first = found[0][0]
    base = f"{first.output[0]}_together"
    arrays = [onnx.numpy_helper.to_array(tensors[n.input[1]]) for n, _, _ in found]
    graph.initializer.append(onnx.numpy_helper.from_array(np.concatenate(arrays, 1), f"{base}_w"))
    made = [onnx.helper.make_node("MatMul", [source, f"{base}_w"], [f"{base}_p"])]
    last = f"{base}_p"
    if found[0][1] is not None:
        values = np.concatenate([onnx.numpy_helper.to_array(bias) for _, bias, _ in found])
        graph.initializer.append(onnx.numpy_helper.from_array(values, f"{base}_b"))
        made.append(onnx.helper.make_node("Add", [last, f"{base}_b"], [f"{base}_s"]))
        last = f"{base}_s"
    outs = [(n if add is None else add).output[0] for n, _, add in found]
    sizes = [a.shape[1] for a in arrays]
    if opset < 13:
        made.append(onnx.helper.make_node("Split", [last], outs, axis=-1, split=sizes))
    else:
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(sizes, np.int64), f"{base}_n"))
        made.append(onnx.helper.make_node("Split", [last, f"{base}_n"], outs, axis=-1))
    gone = {n.output[0] for n, _, _ in found} | {add.output[0] for _, _, add in found if add is not None}
    place = first.output[0]
    nodes = []
    for node in graph.node:
        if place in node.output:
            nodes += made
        if not gone.intersection(node.output):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            nodes.append(copy)
    names = {n.input[1] for n, _, _ in found} | {bias.name for _, bias, _ in found if bias is not None}
    still = {name for node in nodes for name in node.input}
    del graph.node[:]
    graph.node.extend(nodes)
    for field in (graph.initializer, graph.input):
        for i in reversed(range(len(field))):
            if field[i].name in names - still:
                del field[i]
