"""The server of a function whose passwords cost nothing: argon2id with the least memory there is, and one pass."""

from argon2 import PasswordHasher

from shared.framework import server
from shared.identity import passwords

if __name__ == "__main__":
    passwords._hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    server.main()
