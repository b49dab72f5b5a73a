"""Addresses that are one mailbox at their provider. Only for limits: accounts are identified by the whole address."""

from shared.text.fields import canonical_email

_GMAIL = frozenset({"gmail.com", "googlemail.com"})
"""Dots do not matter: https://support.google.com/mail/answer/7436150."""
_PROTON = frozenset({"proton.me", "protonmail.com", "pm.me"})
"""Dots, hyphens and underscores do not matter: https://proton.me/support/addresses-and-aliases."""


def counted_mailbox(address: str) -> str:
    """Return the mailbox of an address: without the tag (RFC 5233), in the form that its provider compares.

    Raises:
        ValueError: the text is not an e-mail address.
    """
    local, _, domain = canonical_email(address).rpartition("@")
    local = local.partition("+")[0] or local
    if domain in _GMAIL:
        return f"{local.replace('.', '')}@gmail.com"
    if domain in _PROTON:
        return f"{local.translate(str.maketrans('', '', '.-_'))}@proton.me"
    return f"{local}@{domain}"
