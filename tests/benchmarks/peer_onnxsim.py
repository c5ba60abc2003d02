"""Run in a Python that has onnxsim, not in the project's: prune a model by one of its methods, with its own settings.

    python peer_onnxsim.py wanda|sparsegpt MODEL FEEDS.npz OUT SPARSITY

FEEDS holds arrays named `<feed>|<input>`. Initializers that the model also lists as inputs are taken off that list,
since every input must be fed.
"""

from __future__ import annotations

import sys
from typing import Any


def main() -> None:
    method, path, feeds, out, sparsity = sys.argv[1:]
    import numpy as np
    import onnx
    import onnxsim  # type: ignore[import-not-found,unused-ignore]

    data: dict[int, dict[str, Any]] = {}
    with np.load(feeds) as z:
        for name in z.files:
            i, _, key = name.partition("|")
            data.setdefault(int(i), {})[key] = z[name]
    samples = [data[i] for i in sorted(data)]
    prune = {"wanda": onnxsim.apply_wanda_pruning, "sparsegpt": onnxsim.apply_sparsegpt_pruning}[method]
    model = onnx.load(path)
    constant = {item.name for item in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in constant]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    onnx.save(prune(model, calibration_data=samples, sparsity=float(sparsity)), out)


if __name__ == "__main__":
    main()
