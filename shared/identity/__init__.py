"""Identity: credentials, factors, tokens, sessions. Imports events and below."""
