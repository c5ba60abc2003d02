"""``python -m emp_safetensors``."""

import sys

from emp_safetensors.cli import main

sys.exit(main())
