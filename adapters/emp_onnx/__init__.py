"""Effective Model Pruning of ONNX files.

The verbs: `load` a file, `find_weights` in it, `plan` what to keep, `apply` the plan, `verify` the result, `save` it;
and `prune`, which does all of it.
With calibration feeds there are also `calibrate`, which saves what goes into the weights, and `refit`, which prunes and
solves what is left. The command line is `emp`.

Importing this imports neither onnx nor onnxruntime; they are loaded when first needed.
"""

from emp_onnx import _importing
from emp_onnx.apply import apply
from emp_onnx.budget.point import Budget, Point
from emp_onnx.calibration.statistics import Inputs, Statistics, calibrate
from emp_onnx.certificates.refit import Refitted
from emp_onnx.certificates.rule import Certificate, Certified, read_certificate
from emp_onnx.decide import plan
from emp_onnx.errors import MissingExtraError, ModelError, OnnxError, OutputError, PlanError, UsageError
from emp_onnx.figures import Figures, Rule
from emp_onnx.files.model_io import Model, load, save
from emp_onnx.packing.choose import Row
from emp_onnx.packing.pack import Packing, pack, unpack
from emp_onnx.plan import Entry, Plan
from emp_onnx.prune import Report, Sizes, prune
from emp_onnx.refit.fitting import Fitting, Thin
from emp_onnx.refitting import RefitReport, refit
from emp_onnx.runtime.compare import Behaviour, Difference
from emp_onnx.runtime.feeds import read_feeds
from emp_onnx.sparse_arrays import from_scipy, to_scipy
from emp_onnx.verification.outcome import Check, Verification, VerifyError
from emp_onnx.verification.verify import verify
from emp_onnx.weights.find import Found, Refusal, Weight, find_weights
from emp_onnx.weights.layout import Layout

_importing.done()

__all__ = [
    "Behaviour",
    "Budget",
    "Certificate",
    "Certified",
    "Check",
    "Difference",
    "Entry",
    "Figures",
    "Fitting",
    "Found",
    "Inputs",
    "Layout",
    "MissingExtraError",
    "Model",
    "ModelError",
    "OnnxError",
    "OutputError",
    "Packing",
    "Plan",
    "PlanError",
    "Point",
    "RefitReport",
    "Refitted",
    "Refusal",
    "Report",
    "Row",
    "Rule",
    "Sizes",
    "Statistics",
    "Thin",
    "UsageError",
    "Verification",
    "VerifyError",
    "Weight",
    "apply",
    "calibrate",
    "find_weights",
    "from_scipy",
    "load",
    "pack",
    "plan",
    "prune",
    "read_certificate",
    "read_feeds",
    "refit",
    "save",
    "to_scipy",
    "unpack",
    "verify",
]
