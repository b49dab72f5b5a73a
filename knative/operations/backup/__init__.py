"""Take, list, restore and test backups of the database."""
