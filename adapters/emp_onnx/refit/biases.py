"""Where layers without a bias would take one: zeros at first, to be solved with the weights.

What a layer loses with its weights is in good part a shift of its outputs' means, and only a bias can take that back.
"""

from __future__ import annotations

from emp_onnx.calibration.maps import Problem, Site
from emp_onnx.calibration.network import Network
from emp_onnx.certificates.added import KINDS, TAKING, Added, names_of

__all__ = ["missing_biases"]

LARGE = 1 << 28  # bytes of a model file (without its sidecars) beyond which it is left as it is
FIRST = 4  # version of the format from which initializers need not be inputs of the graph


def missing_biases(network: Network) -> list[Added]:
    """Where a bias would go, in a network's main graph."""
    model = network.model
    if model.source.size > LARGE or network.program.ir_version < FIRST or model.patches or model.sheet:
        return []
    number = {id(node): i for i, node in enumerate(model.graph.nodes)}
    taken = names_of(model)
    out = []
    for site in network.sites:
        at = number.get(id(site.step.node))
        if at is None or site.also or len(site.problems) != 1 or not _takes(network, site, site.problems[0]):
            continue
        groups, rows, _ = site.problems[0].shape
        name = f"{site.keys[0]}.bias"
        while name in taken:
            name += "'"
        taken.add(name)
        out.append(Added(at, name, model.tensors[site.keys[0]].dtype, groups * rows))
    return sorted(out, key=lambda item: item.node)


def _takes(network: Network, site: Site, problem: Problem) -> bool:
    """Whether a bias fits there: none is there yet, and the weight comes as it is, in the type of the outputs."""
    step = site.step
    if problem.bias is not None or step.node.domain or len(step.inputs) < 2 or any(step.inputs[2:]):
        return False
    tensor = network.program.constants.get(step.inputs[1])
    if tensor is None or tensor.key != site.keys[0] or tensor.dtype not in KINDS or not step.outputs[0]:
        return False
    if step.node.op == "MatMul":
        return len(tensor.shape) == 2
    given = {a.name: a.f for a in step.proto.attribute if a.name == "beta"}
    return step.node.op in TAKING and given.get("beta", 1.0) == 1.0
