"""What users hold in their hands: an authenticator app, and a passkey in software."""

import base64
import hashlib
import json
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cbor2
import pyotp
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import func, insert
from uuid_utils.compat import uuid7

from shared.identity.second_factors import new_recovery_codes, recovery_code_hash, seal_secret
from shared.postgresql.tables import passkey, recovery_code, totp
from shared.postgresql.transactions import transaction
from shared.runtime.settings import settings

if TYPE_CHECKING:
    from tests.conftest import User

USER_PRESENT, USER_VERIFIED, BACKUP_ELIGIBLE, BACKED_UP, ATTESTED = 0x01, 0x04, 0x08, 0x10, 0x40


@dataclass
class App:
    """An authenticator app that knows one secret (base 32)."""

    secret: str

    def code(self, *, steps: int = 0) -> str:
        """The code that it shows now, or so many steps of 30 seconds from now."""
        return pyotp.TOTP(self.secret).at(int(time.time()), counter_offset=steps)


def with_totp(user: "User") -> tuple[App, list[str]]:
    """Sets up an authenticator app without a request, so that no code of it is used yet; and the recovery codes."""
    secret, codes = os.urandom(20), new_recovery_codes()
    with transaction() as connection:
        connection.execute(
            insert(totp).values(account_id=user.id, secret=seal_secret(user.id, secret), confirmed_at=func.now())
        )
        rows = [{"account_id": user.id, "code_hash": recovery_code_hash(user.id, code)} for code in codes]
        connection.execute(insert(recovery_code).values(rows))
    return App(base64.b32encode(secret).decode()), codes


def second_factor_challenge(user: "User") -> str:
    """The challenge of a log-in whose password was right."""
    from tests.conftest import call

    response = call("login", body={"email": user.email, "password": user.password})
    assert (response.status_code, response.json["type"]) == (401, "urn:aegis:problem:second-factor-required")
    challenge: str = response.json["challenge"]
    return challenge


def encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def site() -> str:
    """The origin whose pages make passkeys."""
    return settings().public_url


@dataclass
class Authenticator:
    """A passkey of one account: it answers options as `toJSON()` of a browser's credential does.

    Its members may be set to what an honest one would not say.
    """

    user_handle: bytes
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    credential_id: bytes = field(default_factory=lambda: os.urandom(32))
    sign_count: int = 0
    flags: int = USER_PRESENT | USER_VERIFIED
    origin: str = field(default_factory=site)
    rp_id: str = "localhost"
    more_client_data: dict[str, Any] = field(default_factory=dict)

    def public_key(self) -> dict[int, Any]:
        """The key in COSE form (RFC 9053, 7.1.1): kty EC2, alg ES256, crv P-256, x, y."""
        numbers = self.key.public_key().public_numbers()
        return {1: 2, 3: -7, -1: 1, -2: numbers.x.to_bytes(32, "big"), -3: numbers.y.to_bytes(32, "big")}

    def data(self, flags: int, after: bytes = b"") -> bytes:
        """Authenticator data (WebAuthn, 6.1)."""
        counter = self.sign_count.to_bytes(4, "big")
        return hashlib.sha256(self.rp_id.encode()).digest() + bytes([flags]) + counter + after

    def attested(self) -> bytes:
        """Authenticator data with the new credential (WebAuthn, 6.5.1), of an authenticator that names no model."""
        length = len(self.credential_id).to_bytes(2, "big")
        credential = bytes(16) + length + self.credential_id + cbor2.dumps(self.public_key())
        return self.data(self.flags | ATTESTED, credential)

    def client_data(self, kind: str, options: dict[str, Any]) -> bytes:
        data = {"type": kind, "challenge": options["challenge"], "origin": self.origin, **self.more_client_data}
        return json.dumps(data).encode()

    def credential(self, response: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": encode(self.credential_id),
            "rawId": encode(self.credential_id),
            "type": "public-key",
            "authenticatorAttachment": "platform",
            "clientExtensionResults": {},
            "response": response,
        }

    def register(self, options: dict[str, Any], attestation: Any = None) -> dict[str, Any]:
        """A new credential.

        Args:
            attestation: in place of the attestation object, as it is before CBOR.
        """
        whole = {"fmt": "none", "attStmt": {}, "authData": self.attested()} if attestation is None else attestation
        return self.credential(
            {
                "clientDataJSON": encode(self.client_data("webauthn.create", options)),
                "attestationObject": encode(cbor2.dumps(whole)),
                "transports": ["internal", "hybrid"],
                "publicKeyAlgorithm": -7,
                "authenticatorData": encode(self.attested()),
            }
        )

    def log_in(self, options: dict[str, Any]) -> dict[str, Any]:
        """An answer that the key signs."""
        client_data, data = self.client_data("webauthn.get", options), self.data(self.flags)
        signature = self.key.sign(data + hashlib.sha256(client_data).digest(), ec.ECDSA(hashes.SHA256()))
        return self.credential(
            {
                "clientDataJSON": encode(client_data),
                "authenticatorData": encode(data),
                "signature": encode(signature),
                "userHandle": encode(self.user_handle),
            }
        )


def with_passkey(user: "User", flags: int = USER_PRESENT | USER_VERIFIED) -> Authenticator:
    """A passkey that the user has registered, by requests."""
    from tests.conftest import call, passkey_session_of

    tokens, authenticator = passkey_session_of(user), Authenticator(user.id.bytes, flags=flags)
    options = call("request_passkey_registration", tokens).json
    body = {"name": "Phone", "credential": authenticator.register(options)}
    response = call("register_passkey", tokens, body)
    assert response.status_code == 201, response.text
    return authenticator


def with_passkeys(user: "User", count: int) -> None:
    """So many passkeys without a request, that nobody holds the keys of."""
    with transaction() as connection:
        connection.execute(insert(passkey).values([keyless_passkey(user) for _ in range(count)]))


def keyless_passkey(user: "User") -> dict[str, Any]:
    """The row of a passkey that nobody holds the key of."""
    row = {"id": uuid7(), "account_id": user.id, "credential_id": os.urandom(32), "name": "Phone"}
    return {**row, "public_key": b"", "sign_count": 0}
