"use strict";

const token = new URLSearchParams(location.hash.slice(1)).get("token") || "";
const outcome = document.getElementById("outcome");
const again = document.getElementById("again");

// The token is spent here; it need not stay in the address bar and the history.
history.replaceState(null, "", location.pathname);
// Another link that is opened in this tab changes the fragment alone.
addEventListener("hashchange", () => location.reload());

function show(state) {
  outcome.textContent = outcome.dataset[state];
  outcome.className = state;
  again.hidden = state !== "unavailable";
}

async function verify() {
  try {
    const response = await fetch("/api/v1/users/email/verify", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ token }),
    });
    show(response.ok ? "done" : response.status < 500 && response.status !== 429 ? "invalid" : "unavailable");
  } catch {
    show("unavailable");
  }
}

again.addEventListener("click", verify);
verify();
