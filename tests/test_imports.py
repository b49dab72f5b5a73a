"""What each function imports when it starts: a cold start pays for all of it, and a first use only for itself."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from importlib.util import find_spec

import pytest

from shared.framework.registry import load_all
from tests.conftest import ROOT

EVERY = {"click", "flask", "functions_framework", "gunicorn", "typing_extensions"}  # flask imports click
DATABASE = EVERY | {"pg8000", "sqlalchemy"}
MODELS = DATABASE | {"pydantic"}
EVENTS = MODELS | {"uuid_utils"}

GROUPS = {
    "reads that the cache answers": (EVERY, ["get_profile", "jwks", "oauth_metadata", "openid_configuration"]),
    "answers for routes that there are not": (EVERY | {"yaml"}, ["fallback"]),
    "reads": (DATABASE, ["list_passkeys"]),
    "operations that announce nothing": (MODELS, ["list_audit", "request_passkey_login"]),
    "operations of a user": (
        EVENTS,
        [
            *("confirm_totp", "enroll_totp", "export_data", "list_sessions", "login_with_passkey"),
            *("login_with_second_factor", "logout", "refresh_token", "register_passkey", "remove_passkey"),
            *("remove_phone", "remove_totp", "renew_recovery_codes", "request_email_verification"),
            *("request_passkey_registration", "request_password_reset", "request_phone_code"),
            *(
                "revoke_other_sessions",
                "revoke_session",
                "submit_business",
                "undo_email_change",
                "update_profile",
                "verify_phone",
            ),
        ],
    ),
    "operations of an administrator": (
        EVENTS,
        ["end_user_sessions", "get_user", "list_users", "remove_user_factors", "update_user"],
    ),
    "what keeps records, or deletes them": (
        EVENTS,
        ["clean_up", "purge_withdrawn", "recheck_businesses", "record_audit"],
    ),
    "operations with a password": (
        EVENTS | {"argon2"},
        ["change_email", "change_password", "login", "register", "reset_password", "verify_email", "withdraw"],
    ),
    "what calls providers": (EVENTS | {"urllib3"}, ["send_email", "send_sms", "verify_business"]),
    "what knows the triggers": (EVENTS | {"yaml"}, ["keep_dead_letter", "resend_events"]),
}

# Each function in a fork, before which only that was imported which all of them share.
LOADED = """
import json, os, sys
from shared.framework import server
packages, functions = map(json.loads, sys.argv[1:])
for function in functions:
    if not os.fork():
        try:
            server.create_app(function)
            print(json.dumps([function, [name for name in packages if name in sys.modules]]), flush=True)
        finally:
            os._exit(0)
    os.wait()
"""


def dependencies() -> list[str]:
    """The packages that pyproject.toml asks for, by the names that they are imported by."""
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = {re.split("[>=<]", one)[0] for one in stated}
    return [
        package
        for package, distributions in packages_distributions().items()
        if wanted & {name.lower().replace("_", "-") for name in distributions}
        and not package.startswith("_")
        and (spec := find_spec(package))
        and spec.origin  # or it is a namespace that others share
    ]


@pytest.mark.parametrize("group", GROUPS)
def test_a_function_starts_with_the_packages_of_its_group_and_no_others(group: str) -> None:
    packages, functions = GROUPS[group]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, json.dumps(dependencies()), json.dumps(functions)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    loaded = {name: set(found) for name, found in map(json.loads, done.stdout.splitlines())}
    assert loaded == dict.fromkeys(functions, packages), done.stderr


def test_every_function_stands_in_one_group() -> None:
    assert sorted(name for _, functions in GROUPS.values() for name in functions) == sorted(load_all())
