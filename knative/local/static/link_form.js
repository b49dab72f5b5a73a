// The form of a mailed link: it posts the token from the fragment, with a password if the form asks for one.
"use strict";

const { path } = document.currentScript.dataset;
const token = new URLSearchParams(location.hash.slice(1)).get("token") || "";
const form = document.getElementById("form");
const password = document.getElementById("password");
const button = form.querySelector("button");
const outcome = document.getElementById("outcome");

// The token need not stay in the address bar and the history.
history.replaceState(null, "", location.pathname);
// Another link that is opened in this tab changes the fragment alone.
addEventListener("hashchange", () => location.reload());

function show(state, details = []) {
  outcome.textContent = [outcome.dataset[state], ...details].join(" ");
  outcome.className = state;
  form.hidden = ["done", "invalid", "incomplete"].includes(state);
  button.disabled = state === "working";
}

async function send() {
  show("working");
  try {
    const response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ token, password: password?.value }),
    });
    if (response.ok) return show("done");
    const errors = response.status === 422 ? (await response.json()).errors : [];
    if (errors.some((error) => error.pointer === "/token")) return show("incomplete");
    const faults = errors.filter((error) => error.pointer === "/password").map((error) => outcome.dataset[error.code] || error.detail);
    if (faults.length || response.status === 403) show("refused", faults);
    else show(response.status < 500 && response.status !== 429 ? "invalid" : "unavailable");
  } catch {
    show("unavailable");
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
if (!token) show("incomplete");

document.getElementById("show")?.addEventListener("change", (event) => {
  password.type = event.target.checked ? "text" : "password";
});
