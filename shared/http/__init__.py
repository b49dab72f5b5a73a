"""HTTP requests: their bodies, clients, CORS and rate limits. Imports redis, text, runtime."""
