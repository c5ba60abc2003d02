"""Settings for all tests: the same examples on every run, in CI and at home."""

import signal

from hypothesis import HealthCheck, settings

settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")

# what a shell starts in the background ignores Ctrl-C, and so would the processes that tests press it in
signal.signal(signal.SIGINT, signal.default_int_handler)
