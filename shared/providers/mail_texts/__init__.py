"""Mails, with their texts in Korean and English."""

import html
import tomllib
from functools import cache
from pathlib import Path
from string import Template

from shared.runtime.settings import settings

_TEXTS = Path(__file__).parent


def compose(mail: str, locale: str, link: str = "") -> tuple[str, str, str]:
    """Return the subject, plain text and HTML of a mail. It has no user input, because it may reach a stranger.

    Args:
        mail: a section of mails.toml.
        locale: ko or en.
        link: the link in the mail, if any.
    """
    words = texts()[mail][locale]
    days = {"withdrawal_days": str(settings().withdrawal_days)}
    paragraphs = Template(words["text"].strip()).substitute(days).split("\n\n")
    action = [words["action"], link] if link else []
    text = "\n\n".join([*paragraphs, *(["\n".join(action)] if action else [])]) + "\n"
    return (
        words["subject"],
        text,
        _layout().substitute(
            locale=locale,
            subject=html.escape(words["subject"]),
            paragraphs="".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in paragraphs),
            action=f'<p><a href="{html.escape(link)}">{html.escape(words["action"])}</a></p>' if link else "",
        ),
    )


@cache
def texts() -> dict[str, dict[str, dict[str, str]]]:
    """Return all mails by section and locale: subject, text and, if there is a link, action."""
    return tomllib.loads((_TEXTS / "mails.toml").read_text("utf-8"))


@cache
def _layout() -> Template:
    return Template((_TEXTS / "layout.html").read_text("utf-8"))
