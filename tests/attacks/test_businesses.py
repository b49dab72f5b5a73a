"""Somebody else's company, claimed with what its certificate of registration says."""

from tests.attacks.attacker import USERS, Caller
from tests.businesses import new_business_number
from tests.conftest import wait_for


def submitted(caller: Caller, number: str) -> dict[str, str]:
    """What the profile shows of a business once it is checked."""
    stated = {"number": number, "opened_on": "2019-03-04", "representative": "김민준"}
    assert caller.send("PUT", f"{USERS}/me/business", stated).status == 202

    def checked() -> dict[str, str] | None:
        shown: dict[str, str] = caller.send("GET", f"{USERS}/me").body["business"]
        return shown if shown["status"] != "pending" else None

    return wait_for(checked) or {}


def test_a_company_is_verified_on_one_account_alone_and_nothing_tells_whose_it_is(address: str) -> None:
    owner, thief, number = Caller(), Caller(), new_business_number()
    for caller, email in ((owner, address), (thief, f"thief-{address}")):
        caller.register(email)
        assert caller.log_in(email).status == 200
    assert submitted(owner, number)["status"] == "verified"
    refused = {"number": number, "status": "rejected", "reason": "verified_elsewhere"}
    assert submitted(thief, number) == refused
    assert owner.send("GET", f"{USERS}/me").body["business"]["status"] == "verified"
