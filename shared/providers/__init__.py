"""Providers of mail, texts and facts: bounded requests, mail texts, sending limits. Imports http and below."""
