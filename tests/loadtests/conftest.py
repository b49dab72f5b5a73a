"""Locust patches the standard library where it is imported: not in the process of the tests, which has used it."""

import os

os.environ["LOCUST_SKIP_MONKEY_PATCH"] = "1"
import locust  # noqa: F401

del os.environ["LOCUST_SKIP_MONKEY_PATCH"]  # load tests of the tests are processes of their own
