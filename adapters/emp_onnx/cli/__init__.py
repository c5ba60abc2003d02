"""The command `emp`: parses, calls, prints, and returns an exit code. The only rooms that print or exit.

One file per kind of work (`pruning`, `refitting`, `packing`, `shrinking`, `running`), each with its commands: what they
take, and what they do with it. `options` has what several commands take, `values` reads their texts, `show` prints.
"""

from emp_onnx.cli.command import main

__all__ = ["main"]
