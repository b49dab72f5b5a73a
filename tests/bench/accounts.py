"""Fill a migrated database with a year's accounts and their data, to measure at scale.

    DATABASE_URL=postgresql://... python -m tests.bench.accounts 1000000

A million accounts take 210 s of work, shared by two connections, and 6 GB. PostgreSQL creates every row itself, under
the constraints and indexes of the schema. All accounts have the same password.
"""

import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, create_engine, make_url, text

from shared.identity.passwords import hash_password
from shared.postgresql import partitions
from shared.runtime.settings import settings
from tests.bench.people import PASSWORD

ADMINISTRATORS = 40
"""The first accounts are administrators, each with an active session."""

AT_ONCE = 50_000
"""Rows of this many accounts are inserted in index order at once, so each index is traversed only a few times."""
WRITERS = 2
SURNAMES = "김 이 박 최 정 강 조 윤 장 임 한 오 서 신 권 황 안 송 류 홍"
SURNAMES_IN_LATIN = "kim lee park choi jung kang cho yoon jang lim han oh seo shin kwon hwang ahn song ryu hong"
GIVEN_NAMES = "민준 서준 도윤 예준 시우 하준 지호 주원 지후 준우 서연 서윤 지우 서현 하은 하윤 민서 지유 윤서 채원"
GIVEN_NAMES_IN_LATIN = (
    "minjun seojun doyun yejun siu hajun jiho juwon jihu junu "
    "seoyeon seoyun jiwoo seohyeon haeun hayun minseo jiyu yunseo chaewon"
)

STATEMENTS = (
    # Registered evenly over a year, with two or three log-ins on the average: some have none, some have dozens. The
    # square of a random number takes the first surnames about as often as Korea does.
    """
    CREATE TEMP TABLE made ON COMMIT DROP AS
    SELECT number, pg_temp.uuid7(at) AS id, at, number <= :administrators AS is_admin,
           given_latin[given] || '.' || surnames_latin[surname] || number AS local,
           CASE WHEN random() < 0.8 THEN surnames[surname] || givens[given] END AS name,
           CASE WHEN number <= :administrators THEN 1 ELSE floor(-ln(1 - random()) * 3)::int END AS log_ins,
           CASE WHEN number <= :administrators THEN 'active'
                WHEN at > now() - interval '7 days' AND mod(number, 3) = 0 THEN 'pending'
                WHEN at < now() - interval '30 days' AND random() < 0.005 THEN 'withdrawn'
                WHEN random() < 0.005 THEN 'suspended'
                ELSE 'active' END AS status
    FROM (SELECT number, now() - interval '365 days' * (1 - number / CAST(:accounts AS float8)) AS at,
                 1 + floor(20 * random() ^ 2)::int AS surname, 1 + floor(20 * random())::int AS given
          FROM generate_series(CAST(:first AS int), CAST(:last AS int)) AS number) AS numbers,
         (SELECT string_to_array(:surnames, ' ') AS surnames, string_to_array(:surnames_latin, ' ') AS surnames_latin,
                 string_to_array(:givens, ' ') AS givens, string_to_array(:given_latin, ' ') AS given_latin) AS names
    """,
    # Two in five gave a phone number.
    """
    INSERT INTO account (id, email, canonical_email, name, locale, status, created_at, email_verified_at, roles,
                         phone, phone_verified_at, withdrawn_at)
    SELECT id, initcap(local) || '@example.com', local || '@example.com', name,
           CASE WHEN random() < 0.9 THEN 'ko' ELSE 'en' END, status, at, verified_at,
           CASE WHEN is_admin THEN ARRAY['admin'] ELSE '{}' END,
           CASE WHEN with_phone THEN '+8210' || 20000000 + number END, CASE WHEN with_phone THEN verified_at END,
           CASE WHEN status = 'withdrawn' THEN now() - random() * interval '30 days' END
    FROM (SELECT *, CASE WHEN status <> 'pending' THEN at + interval '5 minutes' END AS verified_at,
                 status <> 'pending' AND random() < 0.4 AS with_phone FROM made) AS made
    """,
    "INSERT INTO credential (account_id, password_hash, changed_at) SELECT id, :password_hash, at FROM made",
    """
    INSERT INTO verification (account_id, purpose, token_hash, created_at, expires_at)
    SELECT id, 'verify_email', pg_temp.random_bytes(), at, at + interval '1 day' FROM made WHERE status = 'pending'
    """,
    # One in fifty has changed the address within a week.
    """
    INSERT INTO former_email (id, account_id, email, canonical_email, token_hash, replaced_at, expires_at)
    SELECT gen_random_uuid(), id, 'former-' || id || '@example.com', 'former-' || id || '@example.com',
           pg_temp.random_bytes(), now(), now() + interval '7 days'
    FROM made WHERE status = 'active' AND random() < 0.02
    """,
    # One in fifty is in business.
    """
    INSERT INTO business (account_id, number, opened_on, representative, status, submitted_at, checked_at)
    SELECT id, lpad(number::text, 10, '1'), at::date - 1000, coalesce(name, 'Kim'), 'verified', at, now()
    FROM made WHERE status = 'active' AND random() < 0.02
    """,
    # One in twenty has an authenticator app and its ten recovery codes, as many a passkey.
    """
    INSERT INTO totp (account_id, secret, created_at, confirmed_at)
    SELECT id, pg_temp.random_bytes() || substr(pg_temp.random_bytes(), 1, 16), at, at
    FROM made WHERE is_admin OR (status = 'active' AND random() < 0.05)
    """,
    """
    INSERT INTO recovery_code (account_id, code_hash)
    SELECT account_id, pg_temp.random_bytes() FROM totp JOIN made ON id = account_id, generate_series(1, 10)
    """,
    """
    INSERT INTO passkey (id, account_id, credential_id, public_key, sign_count, name, created_at, last_used_at)
    SELECT pg_temp.uuid7(at), id, pg_temp.random_bytes(), pg_temp.random_bytes() || pg_temp.random_bytes(), 0,
           'Phone', at, now()
    FROM made WHERE status = 'active' AND random() < 0.05
    """,
    # A third of them end by a log-out.
    """
    CREATE TEMP TABLE log_in ON COMMIT DROP AS
    SELECT id AS account_id, pg_temp.uuid7(log_in_at) AS id, log_in_at AS at, status, is_admin,
           CASE WHEN status <> 'active' OR (NOT is_admin AND random() < 0.3)
                THEN least(log_in_at + random() * interval '30 days', now()) END AS ended_at
    FROM (SELECT made.*, CASE WHEN is_admin THEN now() ELSE at + random() * (now() - at) END AS log_in_at
          FROM made, generate_series(1, log_ins) WHERE status <> 'pending') AS log_ins
    """,
    # Of sessions those that have not been cleaned up: 90 days after the 30 for which one lives.
    """
    INSERT INTO session (id, account_id, created_at, expires_at, ended_at, amr, authenticated_at, last_used_at,
                         device, address)
    SELECT id, account_id, at, at + interval '30 days', ended_at,
           CASE WHEN is_admin THEN ARRAY['pwd', 'otp', 'mfa'] ELSE ARRAY['pwd'] END, at,
           least(at + random() * interval '30 days', ended_at, now()),
           'Mozilla/5.0 (Linux; Android 16) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Mobile',
           '203.0.113.' || floor(random() * 256)
    FROM log_in WHERE at > now() - interval '120 days' ORDER BY id
    """,
    # Each session has the token that it goes on with, and one that was used, which is kept for 30 days.
    """
    INSERT INTO refresh_token (token_hash, session_id, used_at)
    SELECT pg_temp.random_bytes() AS token_hash, id, CASE WHEN is_used THEN at + interval '10 minutes' END
    FROM log_in, (VALUES (true), (false)) AS tokens (is_used)
    WHERE at > now() - CASE WHEN is_used THEN interval '30 days' ELSE interval '120 days' END
    ORDER BY token_hash
    """,
    # The relay has sent all events; they are kept for eight days.
    """
    WITH recorded AS (
        INSERT INTO audit (event_id, account_id, type, occurred_at, request_id, data)
        SELECT pg_temp.uuid7(at) AS id, account_id, 'com.aegis.user.' || name || '.v1', at, gen_random_uuid()::text,
               jsonb_build_object('user_id', account_id) || data
        FROM (SELECT id AS account_id, 'registered' AS name, at, jsonb_build_object('locale', 'ko') AS data FROM made
              UNION ALL
              SELECT id, 'email_verified', at + interval '5 minutes', '{}' FROM made WHERE status <> 'pending'
              UNION ALL
              SELECT account_id, 'logged_in', at, jsonb_build_object('session_id', id, 'amr', ARRAY['pwd']) FROM log_in
              UNION ALL
              SELECT account_id, 'logged_out', ended_at, jsonb_build_object('session_id', id) FROM log_in
              WHERE ended_at IS NOT NULL) AS happened
        ORDER BY id
        RETURNING *
    )
    INSERT INTO outbox (id, type, subject, data, request_id, occurred_at, sent_at)
    SELECT event_id, type, account_id, data, request_id, occurred_at, occurred_at FROM recorded
    WHERE occurred_at > now() - interval '8 days'
    """,
)

FUNCTIONS = (
    # As our own ids: milliseconds first (RFC 9562, 5.7). PostgreSQL has one from version 18 on.
    """
    CREATE OR REPLACE FUNCTION pg_temp.uuid7(at timestamptz) RETURNS uuid LANGUAGE sql VOLATILE RETURN
        (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7'
         || substr(gen_random_uuid()::text, 16))::uuid
    """,
    """
    CREATE OR REPLACE FUNCTION pg_temp.random_bytes() RETURNS bytea LANGUAGE sql VOLATILE RETURN
        uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
    """,
)


def load(accounts: int) -> None:
    """Add this many accounts to the database of DATABASE_URL, which must be empty."""
    now = datetime.now(UTC)
    for day in (now - partitions.KEPT, now - partitions.KEPT / 2):
        partitions.keep_days(day)
    url = make_url(settings().database_url).set(drivername="postgresql+pg8000")
    engine = create_engine(url, pool_size=WRITERS)
    parameters = {
        "accounts": accounts,
        "administrators": ADMINISTRATORS,
        "password_hash": hash_password(PASSWORD),
        "surnames": SURNAMES,
        "surnames_latin": SURNAMES_IN_LATIN,
        "givens": GIVEN_NAMES,
        "given_latin": GIVEN_NAMES_IN_LATIN,
    }
    with ThreadPoolExecutor(WRITERS) as writers:
        firsts = range(1, accounts + 1, AT_ONCE)
        parts = [parameters | {"first": first, "last": min(first + AT_ONCE - 1, accounts)} for first in firsts]
        for _ in writers.map(lambda part: _write(engine, part), parts):
            pass
    # Otherwise autovacuum would do this during the measurement.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE)"))
    engine.dispose()


def _write(engine: Engine, part: Mapping[str, Any]) -> None:
    with engine.begin() as connection:
        for statement in (*FUNCTIONS, *STATEMENTS):
            connection.execute(text(statement), part)


def main() -> None:
    accounts = int(sys.argv[1])
    began = time.monotonic()
    load(accounts)
    print(f"{accounts:,} accounts in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
