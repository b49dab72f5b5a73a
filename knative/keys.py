"""Create the secrets of an environment without a secret store, named as in the guide's 4.3: `make secrets`.

python -m knative.keys FILE...
"""

import base64
import json
import secrets
import sys
from pathlib import Path

import pyrage
from cryptography.hazmat.primitives.asymmetric import ec

OWNER = "aegis"
"""The role that owns the tables."""


def new_signing_keys() -> str:
    """Return a JWK Set (RFC 7517) with one new private P-256 key."""
    private = ec.generate_private_key(ec.SECP256R1()).private_numbers()
    numbers = {"x": private.public_numbers.x, "y": private.public_numbers.y, "d": private.private_value}
    key = {name: base64url(number.to_bytes(32, "big")) for name, number in numbers.items()}
    return json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "kid": secrets.token_hex(8), **key}]})


def public_keys(signing_keys: str) -> str:
    """Return the JWK Set with which others verify tokens: the same keys without their private parts."""
    keys = json.loads(signing_keys)["keys"]
    return json.dumps({"keys": [{name: key[name] for name in ("kty", "crv", "kid", "x", "y")} for key in keys]})


def new_sms_key() -> str:
    """Return an account SID and an auth token in Twilio's format."""
    return f"AC{secrets.token_hex(16)}:{secrets.token_hex(16)}"


def base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def new_backup_key() -> str:
    """Return a new age identity."""
    return str(pyrage.x25519.Identity.generate())


def recipient_of(identity: str) -> str:
    """Return the public half of an age identity."""
    return str(pyrage.x25519.Identity.from_str(identity).to_public())


def write_secrets(file: Path) -> list[str]:
    """Add the secrets that a file lacks, and create the file if needed. Return the names of the new secrets.

    Secrets that no function needs go to files beside it: owner.env for the owner of the tables, backup.env,
    backup-identity.txt and drill.env for backups. gateway.env has what the gateway sends: the first of GATEWAY_KEY.
    """
    given = _given(file)
    owner = {"username": OWNER, "password": secrets.token_hex(16)}
    if given.get("DB_USER") == OWNER:  # written before functions had their own role
        owner["password"] = given["DB_PASSWORD"]
        others = [line for line in file.read_text().splitlines() if not line.startswith(("DB_USER=", "DB_PASSWORD="))]
        _add(file.with_name("owner.env"), owner)
        file.write_text("".join(f"{line}\n" for line in others))
    signing_keys = given.get("JWT_SECRET_KEY") or new_signing_keys()
    values = {
        "DB_USER": "aegis_functions",
        "DB_PASSWORD": secrets.token_hex(16),
        "JWT_SECRET_KEY": signing_keys,
        "JWT_PUBLIC_KEYS": public_keys(signing_keys),
        "JWT_REFRESH_SECRET_KEY": secrets.token_hex(32),
        "ENCRYPTION_KEY": secrets.token_hex(32),
        "DELIVERY_KEY": secrets.token_hex(32),
        "GATEWAY_KEY": secrets.token_hex(32),
        "EMAIL_API_KEY": secrets.token_hex(32),
        "SMS_API_KEY": new_sms_key(),
        "BUSINESS_REGISTRY_API_KEY": secrets.token_hex(32),
    }
    made = _add(file, values)
    return [
        *made,
        *_put_in_gateway(file.with_name("gateway.env"), _given(file)["GATEWAY_KEY"].split(",")[0].strip()),
        *_add(file.with_name("owner.env"), owner),
        *_write_secrets_of_backups(file.parent),
    ]


def _put_in_gateway(file: Path, key: str) -> list[str]:
    values = {"credential": key}
    if _given(file) == values:
        return []
    file.unlink(missing_ok=True)
    return _add(file, values)


def _write_secrets_of_backups(folder: Path) -> list[str]:
    """Add what is missing in backup.env, needed to take backups, and in drill.env if the environment has drills.

    The identity that opens backups is added once to backup-identity.txt. Operators keep it elsewhere, never in a
    cluster. An earlier release stored it in backup.env as BACKUP_KEY; it is moved from there.
    """
    file, own, of_the_drill = (folder / name for name in ("backup.env", "backup-identity.txt", "drill.env"))
    kustomization = folder / "kustomization.yaml"
    made: list[str] = []
    if kustomization.exists() and of_the_drill.name in kustomization.read_text():
        made += _add(of_the_drill, {"BACKUP_IDENTITY": new_backup_key()})
    values = {"BACKUP_MANIFEST_KEY": secrets.token_hex(32)}
    given = _given(file)
    identity = given.pop("BACKUP_KEY", "")
    if "BACKUP_RECIPIENTS" not in given:
        identity = identity or new_backup_key()
        recipients = [identity, *_given(of_the_drill).values()]
        values["BACKUP_RECIPIENTS"] = ",".join(map(recipient_of, recipients))
    if identity:
        own.touch(mode=0o600)
        with own.open("a") as lines:
            lines.write(f"{identity}\n")
        if file.exists():
            file.write_text("".join(f"{name}={value}\n" for name, value in given.items()))
    return [*made, *_add(file, values)]


def _given(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line) if file.exists() else {}


def _add(file: Path, values: dict[str, str]) -> list[str]:
    file.touch(mode=0o600)
    known = _given(file)
    missing = [name for name in values if name not in known]
    with file.open("a") as lines:
        lines.writelines(f"{name}={values[name]}\n" for name in missing)
    return missing


def main() -> None:
    for file in map(Path, sys.argv[1:]):
        if made := write_secrets(file):
            print(f"added to the secrets in {file.parent}: {', '.join(made)}")
        else:
            print(f"{file} already has all secrets; delete it to create new ones")


if __name__ == "__main__":
    main()
