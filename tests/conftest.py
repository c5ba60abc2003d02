"""Settings for all tests: the same examples on every run, in CI and at home; as many processes as there are cores."""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")

# what a shell starts in the background ignores Ctrl-C, and so would the processes that tests press it in
signal.signal(signal.SIGINT, signal.default_int_handler)

MOST = 4  # processes: each one imports every framework there is, which takes seconds and up to 2.5 GB
PACKAGES = [
    "emp_core", "emp_jax", "emp_keras", "emp_kernels", "emp_onnx", "emp_safetensors", "emp_sklearn", "emp_torch"
]  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Whole folders are shared out among processes; files, single tests and `-k` are not, nor with `-n 0`.

    Here and not in pyproject.toml: there it would fail where pytest-xdist is absent or switched off.
    """
    option = config.option
    if not config.pluginmanager.hasplugin("xdist") or hasattr(config, "workerinput") or os.name != "posix":
        return
    here = option.keyword or option.collectonly or option.usepdb or option.trace or option.capture == "no"
    whole = all(Path(config.invocation_params.dir, argument).is_dir() for argument in config.args)
    if option.numprocesses is None and option.dist == "no" and not option.tx and whole and not here:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        option.numprocesses = min(cores, MOST) if cores > 1 else 0
    if option.numprocesses:
        if option.dist == "no":
            # a file's tests use one generator of numbers, in turn; files in their order end in short ones
            option.dist, option.loadscopereorder = "loadfile", False
        room = tempfile.TemporaryDirectory()
        config.add_cleanup(room.cleanup)
        os.environ["EMP_TESTS_ROOM"] = room.name
        # the products of one process's matrices must not wait for threads of another's; `threads` of ours is not this
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish(session: pytest.Session) -> None:
    """All of our modules are loaded before the first test of a process of several.

    Hypothesis takes some of its examples from the constants of the modules that are loaded by then. Some are loaded by
    tests only, and which of those a process has run depends on who was quicker: the examples would, too.
    """
    for package in PACKAGES if hasattr(session.config, "workerinput") else []:
        with suppress(ImportError):
            for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
                if not module.name.endswith("__main__"):
                    with suppress(ImportError):
                        importlib.import_module(module.name)
    gc.freeze()  # what all tests share is no garbage; to look for some among the frameworks takes most of a second


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test marked `alone` runs while no other process runs one.

    A lock on a file, held by many or by one. Who waits for it holds the lock in front of it, so that those who come
    later wait behind, and one that wants to be alone is not passed by others for ever.
    """
    folder = os.environ.get("EMP_TESTS_ROOM")
    if folder is None or not hasattr(item.config, "workerinput"):
        return (yield)
    import fcntl

    with Path(folder, "door").open("w") as door, Path(folder, "room").open("w") as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_SH if item.get_closest_marker("alone") is None else fcntl.LOCK_EX)
        fcntl.flock(door, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)  # closing is not enough where a test has left a copy of this process
