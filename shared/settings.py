"""The settings of a process: read once from the environment, under the names of the guide's 4.2 and 4.3."""

import base64
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple
from urllib.parse import quote, urlsplit

Dependency = Literal["database", "cache", "kafka", "access_tokens", "refresh_tokens", "email"]

P256_BYTES = 32

REQUIRED_BY: dict[Dependency, tuple[str, ...]] = {
    "database": ("DATABASE_URL",),
    "cache": ("REDIS_URL",),
    "kafka": ("KAFKA_BOOTSTRAP_SERVERS",),
    "access_tokens": ("JWT_SECRET_KEY", "PUBLIC_URL"),
    "refresh_tokens": ("JWT_REFRESH_SECRET_KEY",),
    "email": ("EMAIL_SERVICE_URL", "EMAIL_API_KEY", "EMAIL_FROM", "PUBLIC_URL"),
}


class InvalidSettings(Exception):
    """Some settings are missing or malformed; `problems` names each, and no value of a secret."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class SigningKey(NamedTuple):
    """An ES256 key (RFC 7518, 6.2): base64url coordinates x, y and private scalar d, under its key id."""

    kid: str
    x: str
    y: str
    d: str


@dataclass(frozen=True, kw_only=True)
class Settings:
    log_level: str
    threads: int
    """Requests that one process works on at once; also its share of database connections."""
    database_url: str
    redis_url: str
    kafka_bootstrap_servers: str
    public_url: str
    """Where people meet the service: issuer of access tokens and start of the links in mails."""
    signing_keys: tuple[SigningKey, ...]
    """The first signs; all verify, so that a key can be replaced without logging anyone out."""
    refresh_key: bytes
    cors_allowed_origins: frozenset[str]
    """Origins whose pages may call the API from a browser, as https://app.example.com; none by default."""
    email_service_url: str
    email_api_key: str
    email_from: str


def load(environment: Mapping[str, str], uses: Collection[Dependency] = ()) -> Settings:
    """Reads and checks the settings.

    Args:
        environment: names and values, usually `os.environ`; an empty value counts as missing.
        uses: what the process will use; the settings that this needs must be there.

    Raises:
        InvalidSettings: with all problems at once.
    """
    values = {name: value for name, value in environment.items() if value}
    if "DATABASE_URL" not in values and "DB_HOST" in values:
        user, password = quote(values.get("DB_USER", ""), ""), quote(values.get("DB_PASSWORD", ""), "")
        host, port = values["DB_HOST"], values.get("DB_PORT", "5432")
        values["DATABASE_URL"] = f"postgresql://{user}:{password}@{host}:{port}/{values.get('DB_NAME', 'aegis_user')}"
    if "REDIS_URL" not in values and "REDIS_HOST" in values:
        values["REDIS_URL"] = f"redis://{values['REDIS_HOST']}:{values.get('REDIS_PORT', '6379')}/0"

    problems = [
        f"{name} is not set ({use} needs it)" for use in sorted(uses) for name in REQUIRED_BY[use] if name not in values
    ]

    def url(name: str, *schemes: str) -> str:
        value = values.get(name, "")
        try:
            parts = urlsplit(value)
            is_valid = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_valid = False
        if value and not is_valid:
            problems.append(f"{name} is not a URL with {' or '.join(schemes)}")
        elif value and parts.query:
            problems.append(f"{name} has parameters, and none is supported: {parts.query}")
        return value.rstrip("/")

    log_level = values.get("LOG_LEVEL", "INFO").upper()
    if log_level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        problems.append("LOG_LEVEL is none of DEBUG, INFO, WARNING, ERROR")

    threads = values.get("THREADS", "4")
    if not threads.isascii() or not threads.isdigit() or not 1 <= int(threads) <= 64:
        problems.append("THREADS is not a number from 1 to 64")
        threads = "1"

    refresh_key = values.get("JWT_REFRESH_SECRET_KEY", "").encode()
    if refresh_key and len(refresh_key) < 32:
        problems.append("JWT_REFRESH_SECRET_KEY has fewer than 32 characters")

    origins = frozenset(origin.strip() for origin in values.get("CORS_ALLOWED_ORIGINS", "").split(",")) - {""}
    if any(urlsplit(origin)[2:] != ("", "", "") or not urlsplit(origin).hostname for origin in origins):
        problems.append("CORS_ALLOWED_ORIGINS is not a list of origins such as https://app.example.com")

    signing_keys: tuple[SigningKey, ...] = ()
    if "JWT_SECRET_KEY" in values:
        try:
            signing_keys = _signing_keys(values["JWT_SECRET_KEY"])
        except (ValueError, KeyError, TypeError):
            problems.append("JWT_SECRET_KEY is not a JWK Set (RFC 7517) of private P-256 keys with kid")

    settings = Settings(
        log_level=log_level,
        threads=int(threads),
        database_url=url("DATABASE_URL", "postgresql"),
        redis_url=url("REDIS_URL", "redis", "rediss"),
        kafka_bootstrap_servers=values.get("KAFKA_BOOTSTRAP_SERVERS", ""),
        public_url=url("PUBLIC_URL", "http", "https"),
        signing_keys=signing_keys,
        refresh_key=refresh_key,
        cors_allowed_origins=origins,
        email_service_url=url("EMAIL_SERVICE_URL", "http", "https"),
        email_api_key=values.get("EMAIL_API_KEY", ""),
        email_from=values.get("EMAIL_FROM", ""),
    )
    if problems:
        raise InvalidSettings(problems)
    return settings


@cache
def settings() -> Settings:
    """The settings of this process."""
    return load(os.environ)


def _signing_keys(jwk_set: str) -> tuple[SigningKey, ...]:
    keys = json.loads(jwk_set)["keys"]
    if not keys or any((key["kty"], key["crv"]) != ("EC", "P-256") for key in keys):
        raise ValueError
    numbers = [base64.urlsafe_b64decode(key[name] + "=") for key in keys for name in ("x", "y", "d")]
    if any(len(number) != P256_BYTES for number in numbers):
        raise ValueError
    return tuple(SigningKey(*(str(key[name]) for name in SigningKey._fields)) for key in keys)
