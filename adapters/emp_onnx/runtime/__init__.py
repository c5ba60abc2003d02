"""onnxruntime: sessions, feeds, and what two models answer to the same ones."""

__all__: list[str] = []
