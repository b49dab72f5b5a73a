"""Users: profiles, search, phone numbers. Imports identity and below."""
