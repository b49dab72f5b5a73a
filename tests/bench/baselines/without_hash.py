"""The server of a function with a nearly free password hash: argon2id with minimal memory and one pass."""

from argon2 import PasswordHasher

from shared.framework import server
from shared.identity import passwords

if __name__ == "__main__":
    passwords._hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    server.main()
