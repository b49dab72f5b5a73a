"""`aegis admin`."""

import click

from knative.commands.command import Command, Group, use_settings
from knative.terminal import Result


def add_to(aegis: click.Group) -> None:
    aegis.add_command(admin)


@click.group(cls=Group)
def admin() -> None:
    """Create administrators and codes for their first second factor."""


@admin.command(
    cls=Command, examples=("aegis admin create kim@example.com", "aegis admin create kim@example.com --locale en")
)
@click.argument("email", metavar="EMAIL")
@click.option(
    "--locale", type=click.Choice(["ko", "en"]), default="ko", show_default=True, help="Language of the mails."
)
def create(email: str, locale: str) -> Result:
    """Create the first administrator.

    To make further administrators, call PATCH /api/v1/users/{user_id}.

    A new account has no password: its owner receives a mail with a link to set one, then logs in and sets up a
    second factor, which every administrator operation requires. An existing account gets the role, and its
    sessions end.

    If the account has no second factor, the command prints a code that is needed to set up the first one. The
    code works once, within 24 hours. Hand it over in person or by phone, not by mail: anyone who can read the
    owner's mail can set the password.

    Repeating the command is safe: it sends a new link if the owner has no password, and prints a new code if the
    owner has no second factor.

    Settings come from the environment (DATABASE_URL, REDIS_URL). Without DATABASE_URL, the command uses the
    service that make up runs on DATA_DIR (.local).
    """
    use_settings("database", "cache")
    from knative.operations import administrators

    return administrators.create(email, locale)


@admin.command(cls=Command, examples=("aegis admin code kim@example.com", "aegis admin code kim@example.com --json"))
@click.argument("email", metavar="EMAIL")
def code(email: str) -> Result:
    """Print a new code for an administrator's first second factor.

    The code works once, within 24 hours, and replaces any earlier code. Hand it over in person or by phone, not
    by mail.

    Nothing else changes. An administrator who still has a factor gets no code. If that factor is lost, another
    administrator calls DELETE /api/v1/users/{user_id}/factors, which removes it and returns a code.
    """
    use_settings("database", "cache")
    from knative.operations import administrators

    return administrators.new_code(email)
