"""Secrets of a development environment, under the names of the guide's 4.3: `make secrets`.

python -m knative.local.keys FILE
"""

import base64
import json
import secrets
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec


def new_signing_keys() -> str:
    """A JWK Set (RFC 7517) with one new private P-256 key."""
    private = ec.generate_private_key(ec.SECP256R1()).private_numbers()
    numbers = {"x": private.public_numbers.x, "y": private.public_numbers.y, "d": private.private_value}
    key = {name: base64url(number.to_bytes(32, "big")) for name, number in numbers.items()}
    return json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "kid": secrets.token_hex(8), **key}]})


def new_sms_key() -> str:
    """An account SID and an auth token, as Twilio makes them."""
    return f"AC{secrets.token_hex(16)}:{secrets.token_hex(16)}"


def base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def write_secrets(file: Path) -> bool:
    """Writes new secrets to a file unless it is there. Returns whether it did."""
    if file.exists():
        return False
    values = {
        "DB_USER": "aegis",
        "DB_PASSWORD": secrets.token_hex(16),
        "JWT_SECRET_KEY": new_signing_keys(),
        "JWT_REFRESH_SECRET_KEY": secrets.token_hex(32),
        "ENCRYPTION_KEY": secrets.token_hex(32),
        "EMAIL_API_KEY": secrets.token_hex(32),
        "SMS_API_KEY": new_sms_key(),
        "BUSINESS_REGISTRY_API_KEY": secrets.token_hex(32),
    }
    file.touch(mode=0o600)
    file.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    return True


def main() -> None:
    file = Path(sys.argv[1])
    print(f"wrote {file}" if write_secrets(file) else f"{file} is there already; delete it for new secrets")


if __name__ == "__main__":
    main()
