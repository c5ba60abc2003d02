"""Effective Model Pruning of ONNX files.

The verbs: `load` a file, `find_weights` in it, `plan` what to keep, `apply` the plan, `verify` the result, `save` it;
and `prune`, which does all of it. The command line is `emp`.

Importing this imports neither onnx nor onnxruntime; they are loaded when first needed.
"""

from emp_onnx.apply import apply
from emp_onnx.certificate import Certificate, Certified, read_certificate
from emp_onnx.errors import MissingExtraError, ModelError, OnnxError, OutputError, PlanError, UsageError, VerifyError
from emp_onnx.feeds import read_feeds
from emp_onnx.figures import Figures, Rule
from emp_onnx.layout import Layout
from emp_onnx.model_io import Model, load, save
from emp_onnx.packing.choose import Row
from emp_onnx.packing.pack import Packing, pack, unpack
from emp_onnx.plan import Entry, Plan, plan
from emp_onnx.prune import Report, Sizes, prune
from emp_onnx.runtime import Behaviour, Difference
from emp_onnx.sparse_arrays import from_scipy, to_scipy
from emp_onnx.verify import Check, Verification, verify
from emp_onnx.weights import Found, Refusal, Weight, find_weights

__all__ = [
    "Behaviour",
    "Certificate",
    "Certified",
    "Check",
    "Difference",
    "Entry",
    "Figures",
    "Found",
    "Layout",
    "MissingExtraError",
    "Model",
    "ModelError",
    "OnnxError",
    "OutputError",
    "Packing",
    "Plan",
    "PlanError",
    "Refusal",
    "Report",
    "Row",
    "Rule",
    "Sizes",
    "UsageError",
    "Verification",
    "VerifyError",
    "Weight",
    "apply",
    "find_weights",
    "from_scipy",
    "load",
    "pack",
    "plan",
    "prune",
    "read_certificate",
    "read_feeds",
    "save",
    "to_scipy",
    "unpack",
    "verify",
]
