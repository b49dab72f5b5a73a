"""What attackers do to a running service, over the network alone, and what they get."""
