"""The table of relations, one small rule per operation; importing this fills it."""

from emp_onnx.shrink.axes.rules import attention, elementwise, linear, moving, normal, pooling, recurrent, shapes

__all__ = ["attention", "elementwise", "linear", "moving", "normal", "pooling", "recurrent", "shapes"]
