"""`python -m emp_onnx.cli` is `emp`."""

import sys

from emp_onnx.cli.command import main

sys.exit(main())
