"""The settings of a process, read once from the environment under the names of the guide's sections 4.2 and 4.3."""

import base64
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple
from urllib.parse import SplitResult, quote, urlsplit

from shared.runtime import database_url

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

Dependency = Literal[
    "database",
    "cache",
    "kafka",
    "public_url",
    "access_tokens",
    "token_signing",
    "refresh_tokens",
    "encryption",
    "email",
    "sms",
    "business_registry",
    "backups",
    "deliveries",
    "gateway",
]

P256_BYTES = 32
REDIS_CLUSTER = "redis+cluster"
"""The URL scheme for Redis in cluster mode."""

ENVIRONMENTS = ("development", "staging", "production")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

DEFAULT_AUDIENCE = "aegis"
# A StringOrURI (RFC 7519, 2): with a colon it must be a URI. Its length is limited because every token contains it.
_AUDIENCE = re.compile(r"(?=.{1,255}$)([!#-9;-\[\]-~]+|[A-Za-z][A-Za-z0-9+.-]*:[!#-\[\]-~]+)")

REQUIRED_BY: dict[Dependency, tuple[str, ...]] = {
    "database": ("DATABASE_URL",),
    "cache": ("REDIS_URL",),
    "kafka": ("KAFKA_BOOTSTRAP_SERVERS",),
    "public_url": ("PUBLIC_URL",),
    "access_tokens": ("JWT_PUBLIC_KEYS", "PUBLIC_URL"),
    "token_signing": ("JWT_SECRET_KEY", "PUBLIC_URL"),
    "refresh_tokens": ("JWT_REFRESH_SECRET_KEY",),
    "encryption": ("ENCRYPTION_KEY",),
    "email": ("EMAIL_SERVICE_URL", "EMAIL_API_KEY", "EMAIL_FROM", "PUBLIC_URL"),
    "sms": ("SMS_SERVICE_URL", "SMS_API_KEY", "SMS_FROM", "PUBLIC_URL"),
    "business_registry": ("BUSINESS_REGISTRY_API_URL", "BUSINESS_REGISTRY_API_KEY"),
    "backups": ("BACKUP_STORE", "BACKUP_RECIPIENTS", "BACKUP_MANIFEST_KEY"),
    "deliveries": ("DELIVERY_KEY",),
    "gateway": ("GATEWAY_KEY",),
}

SECRETS: dict[Dependency, tuple[str, ...]] = {
    "database": ("DB_USER", "DB_PASSWORD"),
    "deliveries": ("DELIVERY_KEY",),
    "access_tokens": ("JWT_PUBLIC_KEYS",),
    "token_signing": ("JWT_SECRET_KEY",),
    "refresh_tokens": ("JWT_REFRESH_SECRET_KEY",),
    "encryption": ("ENCRYPTION_KEY",),
    "email": ("EMAIL_API_KEY",),
    "sms": ("SMS_API_KEY",),
    "business_registry": ("BUSINESS_REGISTRY_API_KEY",),
    "gateway": ("GATEWAY_KEY",),
}
"""The keys of the Secret user-service-secrets that a process gets for each dependency; it gets no others."""


def secrets_of(uses: Collection[Dependency]) -> set[str]:
    """Return the names of the secrets that these dependencies need."""
    return {name for use in uses for name in SECRETS.get(use, ())}


class InvalidSettings(Exception):
    """Some settings are missing or malformed. `problems` names each, and contains no secret values."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class PublicKey(NamedTuple):
    """The public key of a `SigningKey`, which verifies its tokens."""

    kid: str
    x: str
    y: str


class SigningKey(NamedTuple):
    """An ES256 key (RFC 7518, 6.2): base64url coordinates x, y and private scalar d, under its key id."""

    kid: str
    x: str
    y: str
    d: str


@dataclass(frozen=True, kw_only=True)
class Settings:
    environment: str
    """development, staging or production; included in every log line. Production rejects http:// URLs."""
    log_level: str
    """DEBUG, INFO, WARNING or ERROR."""
    threads: int
    """How many requests a process handles at once; also the size of its database pool."""
    database_url: str
    """The URL of PostgreSQL, or with target_session_attrs=read-write of several servers, one of them the primary."""
    owner_database_url: str
    """The same, with the login of the tables' owner: for migrations, backups and operators. Functions never get it."""
    replica_database_url: str
    """The URL of a replica for reads that may be seconds old; empty for none."""
    replica_max_lag_seconds: int
    """Do not read from a replica that is further behind."""
    redis_url: str
    """The URL of Redis, or with the scheme redis+cluster of any node of a cluster."""
    kafka_bootstrap_servers: str
    """HOST:PORT, separated by commas. Only the relay and the dispatcher use Kafka."""
    kafka_fetch_milliseconds: int
    """How long the broker waits for events before it answers the dispatcher. 0 for a broker that waits although events
    arrive: the dispatcher then polls it many times a second, less often while there are no events."""
    public_url: str
    """The public URL of the service: the issuer of access tokens, and the start of links in mails."""
    signing_keys: tuple[SigningKey, ...]
    """A JWK Set (RFC 7517) of private keys. The first signs. Only functions that issue tokens get it."""
    public_keys: tuple[PublicKey, ...]
    """A JWK Set of public keys. All of them verify tokens, so that replacing a key logs nobody out. A process with
    JWT_SECRET_KEY derives them from it."""
    audiences: tuple[str, ...]
    """Audiences of access tokens (RFC 7519, 4.1.3). New tokens name the first; all are accepted, to allow a change."""
    refresh_key: bytes
    """The key for hashing refresh tokens."""
    encryption_key: bytes
    """Encrypts second factors and stored answers, hashes codes, and authenticates cursors."""
    delivery_key: bytes
    """Signs delivery tokens; see shared/events/delivery_tokens.py."""
    delivery_issuer: str
    """The issuer of Knative Eventing's service account tokens. They are accepted only if DELIVERY_JWKS is set too."""
    delivery_jwks: str
    """The cluster's public keys (RFC 7517), which verify those tokens."""
    gateway_keys: tuple[bytes, ...]
    """Keys, separated by commas. The gateway sends the first with each request; all are accepted, to allow a change."""
    passkey_domain: str
    """The relying party of passkeys (WebAuthn RP ID): the host of PUBLIC_URL (the default) or a parent domain."""
    trusted_proxy_hops: int
    """How many proxies in front of a function append to X-Forwarded-For; earlier entries are not trusted.

    The header is ignored in a request without one of the gateway's keys. If GATEWAY_KEY is not set (in development),
    every request counts as sent by the gateway.
    """
    rate_limit_exempt: "tuple[IPv4Network | IPv6Network, ...]"
    """Networks that are exempt from per-address limits: load generators, servers that call for many users."""
    withdrawal_days: int
    """How many days a withdrawn account can be restored by logging in before it is purged."""
    breached_passwords_url: str
    """A k-anonymity range API such as https://api.pwnedpasswords.com; empty for no check."""
    cors_allowed_origins: frozenset[str]
    """Origins whose pages may call the API from a browser, such as https://app.example.com; none by default."""
    email_service_url: str
    """The URL of SendGrid's API or a compatible one."""
    email_api_key: str
    """The API key for EMAIL_SERVICE_URL."""
    email_from: str
    """The sender address of mails."""
    sms_service_url: str
    """The URL of Twilio's API or a compatible one."""
    sms_api_key: str
    """Account SID and auth token, as SID:TOKEN."""
    sms_from: str
    """The sender number of texts."""
    sms_regions: frozenset[str]
    """Regions whose numbers get texts (ISO 3166-1, two letters). In some regions, fraudsters earn on each text."""
    texts_per_hour: int
    """How many texts the whole service sends per hour at most."""
    unverified_mails_per_hour: int
    """How many mails the whole service sends per hour to unverified addresses at most; anybody can trigger them."""
    business_registry_api_url: str
    """The URL of the National Tax Service's API at odcloud.kr, with or without /api at the end."""
    business_registry_api_key: str
    """The API key for BUSINESS_REGISTRY_API_URL."""
    backup_store: str
    """Where backups are stored: a folder, or a bucket as s3://BUCKET/PREFIX."""
    backup_recipients: tuple[str, ...]
    """Public keys (age recipients, https://age-encryption.org/v1); the owner of any of them can open a backup."""
    backup_manifest_keys: tuple[bytes, ...]
    """Keys, separated by commas. The first authenticates backup manifests; all verify them."""
    backup_identity: str
    """An age identity that opens backups. Set it only for automatic restore drills."""
    backup_keep: tuple[int, int, int]
    """How many daily, weekly and monthly backups to keep."""

    @property
    def privileged_database_url(self) -> str:
        """Return the URL with the owner's login, or the functions' URL if there is no other."""
        return self.owner_database_url or self.database_url


def load(environment: Mapping[str, str], uses: Collection[Dependency] = ()) -> Settings:
    """Read and check the settings.

    In production, public and provider URLs must be https, because tokens, codes and API keys are sent there.

    Args:
        environment: names and values, usually `os.environ`; an empty value counts as missing.
        uses: the dependencies of the process, whose settings must be present.

    Raises:
        InvalidSettings: lists all problems.
    """
    given = {name: value for name, value in environment.items() if value}
    values = _urls_of_parts(given) | given
    problems = [
        *(
            f"{name} is not set ({use} needs it)"
            for use in sorted(uses)
            for name in REQUIRED_BY[use]
            if name not in values
            and not (name == "JWT_PUBLIC_KEYS" and "JWT_SECRET_KEY" in values)
            and not (name == "GATEWAY_KEY" and values.get("ENVIRONMENT", "development") == "development")
        ),
        *_problems_of_backups(values),
    ]

    def url(name: str, *schemes: str) -> str:
        value = values.get(name, "")
        try:
            parts = urlsplit(value)
            is_valid = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_valid = False
        if value and not is_valid:
            problems.append(f"{name} is not a URL with the scheme {' or '.join(schemes)}")
        elif value and (problem := _unsupported(parts)):
            problems.append(f"{name} {problem}")
        elif value and environment_name == "production" and parts.scheme == "http":
            problems.append(f"{name} must be an https URL in production")
        return value.rstrip("/") if is_valid else ""

    environment_name = _choice("ENVIRONMENT", values.get("ENVIRONMENT", "development"), ENVIRONMENTS, problems)

    log_level = _choice("LOG_LEVEL", values.get("LOG_LEVEL", "INFO").upper(), LOG_LEVELS, problems)

    def number(name: str, default: int, least: int, most: int) -> int:
        text = values.get(name, str(default))
        if text.isascii() and text.isdigit() and least <= int(text) <= most:
            return int(text)
        problems.append(f"{name} is not a number from {least} to {most}")
        return default

    def secret(name: str) -> bytes:
        value = values.get(name, "").encode()
        if value and len(value) < 32:
            problems.append(f"{name} has fewer than 32 characters")
        return value

    gateway_keys = _listed(values.get("GATEWAY_KEY", ""))
    if "GATEWAY_KEY" in values and not (gateway_keys and all(re.fullmatch("[!-~]{32,}", key) for key in gateway_keys)):
        problems.append("GATEWAY_KEY is not a list of keys of at least 32 visible ASCII characters")

    threads = number("THREADS", 4, 1, 64)
    refresh_key, encryption_key = secret("JWT_REFRESH_SECRET_KEY"), secret("ENCRYPTION_KEY")

    exempt: tuple[IPv4Network | IPv6Network, ...] = ()
    try:
        exempt = _networks(values.get("RATE_LIMIT_EXEMPT_NETWORKS", ""))
    except ValueError:
        problems.append("RATE_LIMIT_EXEMPT_NETWORKS is not a list of networks such as 10.0.0.0/8")

    origins = frozenset(_listed(values.get("CORS_ALLOWED_ORIGINS", "")))
    if any(urlsplit(origin)[2:] != ("", "", "") or not urlsplit(origin).hostname for origin in origins):
        problems.append("CORS_ALLOWED_ORIGINS is not a list of origins such as https://app.example.com")

    audiences = tuple(audience.strip() for audience in values.get("JWT_AUDIENCE", DEFAULT_AUDIENCE).split(","))
    if not all(_AUDIENCE.fullmatch(audience) for audience in audiences):
        problems.append("JWT_AUDIENCE is not a list of names or URIs such as aegis or https://api.example.com")

    signing_keys, public_keys = _signing_and_public_keys(values, problems)

    settings = Settings(
        environment=environment_name,
        log_level=log_level,
        threads=threads,
        database_url=_database_url(values, "DATABASE_URL", problems),
        owner_database_url=_database_url(values, "OWNER_DATABASE_URL", problems),
        replica_database_url=_database_url(values, "REPLICA_DATABASE_URL", problems),
        replica_max_lag_seconds=number("REPLICA_MAX_LAG_SECONDS", 5, 3, 3600),
        redis_url=url("REDIS_URL", "redis", "rediss", REDIS_CLUSTER),
        kafka_bootstrap_servers=values.get("KAFKA_BOOTSTRAP_SERVERS", ""),
        kafka_fetch_milliseconds=number("KAFKA_FETCH_MILLISECONDS", 1000, 0, 1000),
        public_url=(public_url := url("PUBLIC_URL", "http", "https")),
        signing_keys=signing_keys,
        public_keys=public_keys,
        audiences=audiences,
        refresh_key=refresh_key,
        encryption_key=encryption_key,
        delivery_key=secret("DELIVERY_KEY"),
        delivery_issuer=url("DELIVERY_ISSUER", "https"),
        delivery_jwks=_public_jwk_set(values, problems),
        gateway_keys=tuple(key.encode() for key in gateway_keys),
        passkey_domain=values.get("PASSKEY_DOMAIN") or urlsplit(public_url).hostname or "",
        trusted_proxy_hops=number("TRUSTED_PROXY_HOPS", 0, 0, 10),
        rate_limit_exempt=exempt,
        withdrawal_days=number("WITHDRAWAL_DAYS", 30, 1, 3650),
        breached_passwords_url=url("BREACHED_PASSWORDS_URL", "http", "https"),
        cors_allowed_origins=origins,
        email_service_url=url("EMAIL_SERVICE_URL", "http", "https"),
        email_api_key=values.get("EMAIL_API_KEY", ""),
        email_from=values.get("EMAIL_FROM", ""),
        sms_service_url=url("SMS_SERVICE_URL", "http", "https"),
        sms_api_key=values.get("SMS_API_KEY", ""),
        sms_from=values.get("SMS_FROM", ""),
        sms_regions=_regions("SMS_REGIONS", values.get("SMS_REGIONS", "KR"), problems),
        texts_per_hour=number("TEXTS_PER_HOUR", 1000, 1, 10_000_000),
        unverified_mails_per_hour=number("UNVERIFIED_MAILS_PER_HOUR", 10_000, 1, 10_000_000),
        # The guide (4.2) puts /api after the host; other sources leave it out.
        business_registry_api_url=url("BUSINESS_REGISTRY_API_URL", "http", "https").removesuffix("/api"),
        business_registry_api_key=values.get("BUSINESS_REGISTRY_API_KEY", ""),
        backup_store=values.get("BACKUP_STORE", ""),
        backup_recipients=_listed(values.get("BACKUP_RECIPIENTS", "")),
        backup_manifest_keys=tuple(key.encode() for key in _listed(values.get("BACKUP_MANIFEST_KEY", ""))),
        backup_identity=values.get("BACKUP_IDENTITY", ""),
        backup_keep=(
            number("BACKUP_KEEP_DAILY", 7, 1, 366),
            number("BACKUP_KEEP_WEEKLY", 4, 0, 520),
            number("BACKUP_KEEP_MONTHLY", 12, 0, 120),
        ),
    )
    if problems:
        raise InvalidSettings(problems)
    return settings


@cache
def settings() -> Settings:
    """Return the settings of this process."""
    return load(os.environ)


def required(key: bytes, name: str) -> bytes:
    """Return a key that must not be empty: with an empty key, anybody could forge our tokens and hashes.

    Raises:
        RuntimeError: it is empty, because the function does not declare the dependency.
    """
    if not key:
        raise RuntimeError(f"{name} is not set: the function must declare the dependency that needs it")
    return key


def _urls_of_parts(values: Mapping[str, str]) -> dict[str, str]:
    """Build URLs from the guide's settings for their parts."""
    urls: dict[str, str] = {}
    functions, owner = ("DB_USER", "DB_PASSWORD"), ("DB_OWNER", "DB_OWNER_PASSWORD")
    place = f"{values.get('DB_PORT', '5432')}/{values.get('DB_NAME', 'aegis_user')}"
    for name, host, login in (
        ("DATABASE_URL", "DB_HOST", functions),
        ("OWNER_DATABASE_URL", "DB_HOST", owner),
        ("REPLICA_DATABASE_URL", "REPLICA_DB_HOST", functions),
    ):
        if host in values and (login is functions or login[0] in values):
            user, password = (quote(values.get(part, ""), "") for part in login)
            urls[name] = f"postgresql://{user}:{password}@{values[host]}:{place}"
    if "REDIS_HOST" in values:
        urls["REDIS_URL"] = f"redis://{values['REDIS_HOST']}:{values.get('REDIS_PORT', '6379')}/0"
    return urls


def _database_url(values: Mapping[str, str], name: str, problems: list[str]) -> str:
    """Return the URL with this name; append any error to the problems."""
    url = values.get(name, "")
    try:
        if url:
            database_url.parse(url)
    except ValueError as error:
        problems.append(f"{name} {error}")
    return url


def _choice(name: str, value: str, choices: Collection[str], problems: list[str]) -> str:
    """Return the value; append to the problems if it is not one of the choices."""
    if value not in choices:
        problems.append(f"{name} is not one of {', '.join(choices)}")
    return value


def _regions(name: str, text: str, problems: list[str]) -> frozenset[str]:
    regions = frozenset(region.strip() for region in text.split(","))
    if not all(re.fullmatch("[A-Z]{2}", region) for region in regions):
        problems.append(f"{name} is not a list of two-letter regions such as KR,JP")
    return regions


def _unsupported(url: SplitResult) -> str:
    if url.fragment:
        return f"has a fragment, which is not supported: {url.fragment}"
    if url.query:
        return f"has parameters, which are not supported: {url.query}"
    if url.scheme == REDIS_CLUSTER and url.path not in ("", "/", "/0"):
        return f"names the database {url.path}, but a cluster has only /0"
    return ""


def _problems_of_backups(values: Mapping[str, str]) -> Iterator[str]:
    store, identity = values.get("BACKUP_STORE", ""), values.get("BACKUP_IDENTITY", "")
    if store and not re.match("/|s3://[^/]+", store):
        yield "BACKUP_STORE is neither an absolute path nor s3://BUCKET/PREFIX"
    recipients = _listed(values.get("BACKUP_RECIPIENTS", ""))
    if not all(re.fullmatch("age1[02-9ac-hj-np-z]{58}", one) for one in recipients):
        yield "BACKUP_RECIPIENTS is not a list of age recipients (age1...)"
    if any(len(key) < 32 for key in _listed(values.get("BACKUP_MANIFEST_KEY", ""))):
        yield "BACKUP_MANIFEST_KEY has a key of fewer than 32 characters"
    if identity and not re.fullmatch("AGE-SECRET-KEY-1[02-9AC-HJ-NP-Z]{58}", identity):
        yield "BACKUP_IDENTITY is not an age identity (AGE-SECRET-KEY-1...)"


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part for part in (part.strip() for part in text.split(",")) if part)


def _public_jwk_set(values: Mapping[str, str], problems: list[str]) -> str:
    text = values.get("DELIVERY_JWKS", "")
    try:
        if text and not all(key["kid"] and "d" not in key for key in json.loads(text)["keys"]):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        problems.append("DELIVERY_JWKS is not a JWK Set (RFC 7517) of public keys with kid")
    if text and "DELIVERY_ISSUER" not in values:
        problems.append("DELIVERY_ISSUER is not set (DELIVERY_JWKS needs it)")
    return text


def _networks(text: str) -> "tuple[IPv4Network | IPv6Network, ...]":
    if not text:
        return ()
    from ipaddress import ip_network

    return tuple(ip_network(part.strip()) for part in text.split(","))


def _signing_and_public_keys(
    values: Mapping[str, str], problems: list[str]
) -> tuple[tuple[SigningKey, ...], tuple[PublicKey, ...]]:
    """Return the keys of access tokens; append any error to the problems."""
    signing_keys: tuple[SigningKey, ...] = ()
    public_keys: tuple[PublicKey, ...] = ()
    name, kind = ("JWT_SECRET_KEY", "private") if "JWT_SECRET_KEY" in values else ("JWT_PUBLIC_KEYS", "public")
    try:
        if kind == "private":
            signing_keys = tuple(SigningKey(*key) for key in _keys(values[name], SigningKey._fields))
            public_keys = tuple(PublicKey(key.kid, key.x, key.y) for key in signing_keys)
        elif name in values:
            public_keys = tuple(PublicKey(*key) for key in _keys(values[name], PublicKey._fields))
    except (ValueError, KeyError, TypeError):
        problems.append(f"{name} is not a JWK Set (RFC 7517) of {kind} P-256 keys with kid")
    return signing_keys, public_keys


def _keys(jwk_set: str, fields: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return these fields of each key. Reject a private key (with d) if the fields do not include d."""
    keys = json.loads(jwk_set)["keys"]
    if not keys or any((key["kty"], key["crv"]) != ("EC", "P-256") for key in keys):
        raise ValueError
    if "d" not in fields and any("d" in key for key in keys):
        raise ValueError
    numbers = [base64.urlsafe_b64decode(key[name] + "=") for key in keys for name in fields if name != "kid"]
    if any(len(number) != P256_BYTES for number in numbers):
        raise ValueError
    return [tuple(str(key[name]) for name in fields) for key in keys]
