"""Run in a Python that has onnxsim, not in the project's: prune a model by one of its methods.

    python peer_onnxsim.py wanda|sparsegpt MODEL FEEDS.npz OUT SPARSITY

Prints one line of JSON: CPU seconds and peak bytes. FEEDS holds arrays named `<feed>|<input>`.
"""

from __future__ import annotations

import json
import resource
import sys
import time
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
    start = time.process_time()
    pruned = prune(onnx.load(path), calibration_data=samples, sparsity=float(sparsity))
    onnx.save(pruned, out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"cpu": time.process_time() - start, "peak": peak}))


if __name__ == "__main__":
    main()
