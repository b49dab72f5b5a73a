// Registers, logs in and makes passkeys, by the public API alone.
"use strict";

const USERS = "/api/v1/users";
const SECRETS = /password|token|challenge|code|credential/;
const element = (id) => document.getElementById(id);
let tokens = null;
let challenge = "";

/** Calls an operation; returns the body of its answer, or throws its problem details. */
async function call(method, path, body) {
  const headers = { "Content-Type": "application/json" };
  if (tokens) headers.Authorization = `Bearer ${tokens.access_token}`;
  const response = await fetch(USERS + path, { method, headers, body: body && JSON.stringify(body) });
  const text = await response.text();
  const answer = text ? JSON.parse(text) : null;
  const shown = JSON.stringify(answer, (name, value) => (SECRETS.test(name) && typeof value === "string" ? "…" : value), 2);
  element("calls").hidden = false;
  element("log").prepend(`${method} ${USERS}${path}\n${response.status} ${response.statusText}${answer ? `\n${shown}` : ""}\n\n`);
  if (!response.ok) throw answer;
  return answer;
}

function say(text, kind = "") {
  element("outcome").textContent = text;
  element("outcome").className = kind;
}

/** Leads to the link in the mail, which a newcomer opens next. */
function sayWithInbox(text, email) {
  const link = document.createElement("a");
  link.href = `/inbox?to=${encodeURIComponent(email)}`;
  link.textContent = "Open the inbox";
  say(`${text} `, "done");
  element("outcome").append(link);
}

function explain(problem) {
  if (problem?.name === "NotAllowedError") return say("No passkey was used: it was cancelled, or there is none here.", "refused");
  if (!problem?.title) return say(problem?.message || "The service cannot be reached right now.", "refused");
  const faults = (problem.errors || []).map((error) => `${error.pointer?.slice(1) || ""}: ${error.detail}`);
  say([`${problem.title}.`, ...(faults.length ? faults : [problem.detail || ""])].join(" "), "refused");
}

function showSession() {
  element("account").hidden = Boolean(tokens || challenge);
  element("code-form").hidden = !challenge;
  element("session").hidden = !tokens;
}

async function enter(answer) {
  tokens = answer;
  challenge = "";
  const profile = await call("GET", "/me");
  element("who").textContent = profile.name || profile.email;
  element("password").value = element("code").value = "";
  say("");
}

const steps = {
  async register() {
    const email = element("email").value;
    await call("POST", "", { email, password: element("password").value });
    sayWithInbox("Almost done: confirm the address by the link that was mailed, then log in.", email);
  },
  async login() {
    try {
      await enter(await call("POST", "/login", { email: element("email").value, password: element("password").value }));
    } catch (problem) {
      if (!problem?.challenge) throw problem;
      challenge = problem.challenge;
      say("The account has a second factor.");
    }
  },
  async passkey() {
    const options = await call("POST", "/login/passkey/options");
    const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(options);
    const credential = (await navigator.credentials.get({ publicKey })).toJSON();
    await enter(await call("POST", "/login/passkey", { credential }));
    say("The passkey was enough: no password, no code.", "done");
  },
  async code() {
    await enter(await call("POST", "/login/second-factor", { challenge, code: element("code").value }));
  },
  async addPasskey() {
    const options = await call("POST", "/me/passkeys/options");
    const publicKey = PublicKeyCredential.parseCreationOptionsFromJSON(options);
    const credential = (await navigator.credentials.create({ publicKey })).toJSON();
    await call("POST", "/me/passkeys", { name: "Start page", credential });
    say("The account has a passkey now. Log out, and log in with it.", "done");
  },
  async logout() {
    await call("POST", "/logout");
    tokens = null;
    say("You are logged out.");
  },
};

async function take(step) {
  const buttons = [...element("try").querySelectorAll("button")];
  for (const button of buttons) button.disabled = true;
  say("Working …");
  try {
    await steps[step]();
  } catch (problem) {
    explain(problem);
  }
  for (const button of buttons) button.disabled = false;
  showSession();
}

element("account").addEventListener("submit", (event) => {
  event.preventDefault();
  take(event.submitter?.value || "login");
});
element("code-form").addEventListener("submit", (event) => {
  event.preventDefault();
  take("code");
});
element("add-passkey").addEventListener("click", () => take("addPasskey"));
element("logout").addEventListener("click", () => take("logout"));
element("elsewhere").hidden = location.origin === element("try").dataset.url;
