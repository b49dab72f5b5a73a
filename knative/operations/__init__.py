"""What operators do between releases: administrators, dead letters, replay, signing keys, backups."""
