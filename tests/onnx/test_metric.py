"""A metric of the user's own that fails, in whatever way, is a sentence and exit code 2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emp_onnx.budget.metric import MetricError, read_metric
from emp_onnx.cli import main
from tests.onnx.builders import two_layers, write

FAILS = ["raise ValueError('no data')", "sys.exit('no data')", "sys.exit(0)", "sys.exit()", "raise SystemExit(3)"]


@pytest.mark.parametrize("line", FAILS)
@pytest.mark.parametrize("inside", [False, True], ids=["while read", "while called"])
def test_a_metric_that_fails_or_ends_itself_fails_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, inside: bool
) -> None:
    script, out = tmp_path / "metric.py", tmp_path / "curve.csv"
    body = f"    {line}\n" if inside else f"    return 1.0\n{line}\n"
    script.write_text(f"import sys\ndef score(path):\n{body}")
    spec, saved = f"{script}:score", write(two_layers(np.random.default_rng(0)).model, tmp_path / "m.onnx")
    assert main(["sweep", str(saved), "--at", "0.5", "--metric", spec, "-o", str(out), "--quiet"]) == 2
    assert f"metric '{spec}' must run, got " in capsys.readouterr().err
    assert not out.exists()
    if inside:
        with pytest.raises(MetricError, match="must run, got"):
            read_metric(spec)(saved)
    else:
        with pytest.raises(MetricError, match="must run, got"):
            read_metric(spec)
