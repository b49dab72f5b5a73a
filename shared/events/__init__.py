"""Events: their types, the outbox, the relay to Kafka, and delivery. Imports providers, postgresql and below."""
