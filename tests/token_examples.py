"""The examples of docs/tokens.md, made to work with the service that runs, and tokens to try them with."""

import re
import time
import uuid
from collections.abc import Iterable
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from shared.identity import access_tokens
from shared.runtime.settings import settings
from tests.conftest import ROOT, User, session_of

PAGE = ROOT / "docs" / "tokens.md"
ISSUER = "https://api.aegis.example.com"
"""Of the examples."""


def example(heading: str, language: str, number: int = 0) -> str:
    """The code in this language below a heading of the page: the first block of it, or that of this number."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert section, f"{PAGE.name} has no section {heading}"
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
    assert len(blocks) > number, f"{heading} has no such example in {language}"
    return str(blocks[number]).replace(ISSUER, settings().public_url)


def tokens(user: User) -> dict[str, str]:
    """A good token of the user, and others in which one thing is wrong, by name."""
    good = session_of(user)["access_token"]
    claims, now = jwt.decode(good, options={"verify_signature": False}), int(time.time())
    return {
        "good": good,
        "for another audience": _signed({**claims, "aud": "another service"}),
        "expired": _signed({**claims, "iat": now - 1200, "exp": now - 600}),
        "of another type": _signed(claims, typ="JWT"),
        "of another issuer": _signed({**claims, "iss": "https://elsewhere.example.com"}),
        "of another key": _signed(claims, ec.generate_private_key(ec.SECP256R1())),
        "of an unknown key": _signed(claims, ec.generate_private_key(ec.SECP256R1()), kid=str(uuid.uuid4())),
        "unsigned": jwt.encode(claims, "", "none", {"typ": access_tokens.TYPE}),
    }


def good_alone(user: User, tokens: Iterable[str]) -> dict[str, str | None]:
    """What a verifier should find: the user in the good token, None in each other."""
    return dict.fromkeys(tokens, None) | {"good": str(user.id)}


def _signed(claims: dict[str, Any], key: Any = None, typ: str = access_tokens.TYPE, kid: str = "") -> str:
    header = {"typ": typ, "kid": kid or settings().signing_keys[0].kid}
    return jwt.encode(claims, key or access_tokens._private_key(), access_tokens.ALGORITHM, header)
