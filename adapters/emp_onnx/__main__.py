"""`python -m emp_onnx` is the command `emp`."""

import sys

from emp_onnx.cli import main

sys.exit(main())
