"""DeepSparse in a process of its own, under a Python that has it: `PYTHON peer_deepsparse.py MODEL THREADS ITEMS`.

Each line read from the standard input asks for one run; the answer is a line with its seconds. The first line written
says the version.
"""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    import deepsparse
    import numpy as np

    path, threads, shape = sys.argv[1], int(sys.argv[2]), tuple(json.loads(sys.argv[3]))
    engine = deepsparse.compile_model(path, batch_size=shape[0], num_cores=threads)
    feed = [np.random.default_rng(0).standard_normal(shape).astype(np.float32)]
    for _ in range(3):
        engine.run(feed)
    print(json.dumps({"version": deepsparse.__version__}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        engine.run(feed)
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
