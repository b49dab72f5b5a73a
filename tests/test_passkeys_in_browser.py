"""Passkeys in a real browser, with an authenticator of the browser's own."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.authenticator import site
from tests.browser import PHONE, needs_chromium
from tests.conftest import PASSWORD, User, call, session_of, wait_for

REGISTER = """async ([tokens, name]) => {
    const headers = {"Content-Type": "application/json", "Authorization": `Bearer ${tokens.access_token}`};
    const options = await (await fetch("/api/v1/users/me/passkeys/options", {method: "POST", headers})).json();
    const publicKey = PublicKeyCredential.parseCreationOptionsFromJSON(options);
    const credential = (await navigator.credentials.create({publicKey})).toJSON();
    const body = JSON.stringify({name, credential});
    const response = await fetch("/api/v1/users/me/passkeys", {method: "POST", headers, body});
    return [response.status, await response.json()];
}"""
LOG_IN = """async () => {
    const headers = {"Content-Type": "application/json"};
    const options = await (await fetch("/api/v1/users/login/passkey/options", {method: "POST", headers})).json();
    const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(options);
    const credential = (await navigator.credentials.get({publicKey})).toJSON();
    const body = JSON.stringify({credential});
    const response = await fetch("/api/v1/users/login/passkey", {method: "POST", headers, body});
    return [response.status, await response.json()];
}"""


@pytest.fixture
def with_authenticator(page: Page) -> Iterator[Page]:
    """A page of the site in a browser that has an authenticator built in, whose user puts the finger on it."""
    page.goto(site())
    devtools = page.context.new_cdp_session(page)
    devtools.send("WebAuthn.enable")
    options: dict[str, Any] = {
        "protocol": "ctap2",
        "transport": "internal",
        "hasResidentKey": True,
        "hasUserVerification": True,
        "isUserVerified": True,
        "automaticPresenceSimulation": True,
    }
    devtools.send("WebAuthn.addVirtualAuthenticator", {"options": options})
    yield page
    devtools.send("WebAuthn.disable")
    devtools.detach()


@needs_chromium
def test_a_person_makes_a_passkey_and_logs_in_with_it_alone(with_authenticator: Page, active_user: User) -> None:
    status, registered = with_authenticator.evaluate(REGISTER, [session_of(active_user), "노트북"])
    assert (status, registered.get("name")) == (201, "노트북"), registered

    status, tokens = with_authenticator.evaluate(LOG_IN)
    assert status == 200, tokens
    assert call("get_profile", tokens).json["id"] == str(active_user.id)
    (used,) = call("list_passkeys", tokens).json["passkeys"]
    assert used["last_used_at"]

    # Its counter goes up.
    assert with_authenticator.evaluate(LOG_IN)[0] == 200


@needs_chromium
def test_a_newcomer_registers_verifies_and_logs_in_with_a_passkey_on_the_start_page(
    with_authenticator: Page, address: str
) -> None:
    page = with_authenticator

    def fill() -> None:
        page.get_by_label("E-mail address").fill(address)
        page.get_by_label("Password").fill(PASSWORD)

    fill()
    page.get_by_role("button", name="Register").click()
    page.get_by_role("link", name="Open the inbox").click()
    link = page.get_by_role("link", name="/verify-email#")
    wait_for(lambda: link.count() or not page.reload())
    page.goto(link.get_attribute("href") or "")
    page.locator("#password").fill(PASSWORD)
    page.get_by_role("button").click()
    page.locator("#outcome.done").wait_for()

    page.goto(site())
    fill()
    page.get_by_role("button", name="Log in", exact=True).click()
    page.get_by_text(f"You are logged in as {address}").wait_for()
    page.get_by_role("button", name="Add a passkey").click()
    page.get_by_text("The account has a passkey now.").wait_for()
    page.get_by_role("button", name="Log out").click()
    page.get_by_role("button", name="Log in with a passkey").click()
    page.get_by_text(f"You are logged in as {address}").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@needs_chromium
def test_the_start_page_says_under_which_name_passkeys_work(page: Page) -> None:
    page.goto(site().replace("localhost", "127.0.0.1"))
    page.get_by_text("Passkeys need this page under its own name").wait_for()
    assert page.locator("#elsewhere a").get_attribute("href") == site()
