"""One hypothesis profile for all: no deadline, since the first call of a library is slow."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("onnx", deadline=None, max_examples=60)
settings.load_profile("onnx")
