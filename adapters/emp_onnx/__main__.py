"""The command `emp`, also as `python -m emp_onnx`."""

import sys

__all__ = ["main"]


def main() -> int:
    """The exit code of the command. Ctrl-C may come while its modules are still being imported.

    Example:
        >>> main()  # doctest: +SKIP
        0
    """
    try:
        from emp_onnx.cli import main as command

        return command()
    except KeyboardInterrupt:
        print("emp: interrupted; no half-written file is left behind", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
