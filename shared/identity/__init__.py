"""Who somebody is: credentials, factors, tokens, sessions. Imports events and below."""
