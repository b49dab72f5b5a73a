"""Check, deploy, roll back and list releases."""
