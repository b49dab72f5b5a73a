"""The local web pages: a start page, the API documentation, the inbox, and the pages that links in mails open.

python -m knative.local.site
"""

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import flask_swagger_ui
from flask import Flask, Response, jsonify, make_response, render_template, request, send_from_directory

from knative.local.hosts import KNOWN_HOST
from knative.local.sandbox import sandbox
from shared.framework import asyncapi, openapi
from shared.framework.registry import EVENT_FUNCTIONS, HTTP_FUNCTIONS, load_all
from shared.framework.server import Server
from shared.http.request import ProblemResponse
from shared.runtime.problems import MisdirectedRequest
from shared.runtime.settings import settings

VERIFY_EMAIL_WORDS = {
    "en": {
        "product": "Aegis",
        "title": "E-mail address",
        "label": "Enter the password of your account to confirm that you want to use this address for it.",
        "show": "Show the password",
        "send": "Confirm the address",
        "working": "Confirming your e-mail address …",
        "done": "Your e-mail address is confirmed. You can close this page and log in to Aegis now.",
        "refused": "This is not the password of the account. If you did not ask for this link, close this page.",
        "incomplete": "This link is incomplete. Open it from the e-mail again, or copy all of it into the address bar.",
        "invalid": "This link has been used, has expired, or a newer one was sent. Ask for a new one.",
        "unavailable": "The service cannot be reached right now. Try again in a moment.",
    },
    "ko": {
        "product": "이지스",
        "title": "이메일 주소",
        "label": "계정의 비밀번호를 입력해 주세요. 이 주소를 해당 계정에 사용한다는 것을 확인합니다.",
        "show": "비밀번호 표시",
        "send": "이메일 주소 확인",
        "working": "이메일 주소를 확인하고 있습니다 …",
        "done": "이메일 주소가 확인되었습니다. 이제 이 페이지를 닫고 이지스에 로그인해 주세요.",
        "refused": "계정의 비밀번호가 아닙니다. 이 링크를 요청하지 않았다면 이 페이지를 닫아 주세요.",
        "incomplete": "링크가 완전하지 않습니다. 이메일에서 다시 열거나 링크 전체를 복사해 주소창에 붙여 넣어 주세요.",
        "invalid": "이미 사용했거나 만료되었거나 새 링크가 발송되었습니다. 새 링크를 요청해 주세요.",
        "unavailable": "지금은 서비스에 연결할 수 없습니다. 잠시 후 다시 시도해 주세요.",
    },
}
RESET_PASSWORD_WORDS = {
    "en": {
        "product": "Aegis",
        "title": "New password",
        "label": "At least 15 characters; a few unrelated words are easy to remember.",
        "show": "Show the password",
        "send": "Set the password",
        "working": "Setting your password …",
        "done": "Your new password is set, and you are logged out on all devices. "
        "You can close this page and log in to Aegis with the new password now.",
        "refused": "Choose another password:",
        "password_too_short": "this one has fewer than 15 characters.",
        "password_common": "this one is common, or easy to guess.",
        "password_breached": "this one appears in a list of stolen passwords.",
        "incomplete": "This link is incomplete. Open it from the e-mail again, or copy all of it into the address bar.",
        "invalid": "This link has been used, has expired, or a newer one was sent. Ask for a new one.",
        "unavailable": "The service cannot be reached right now. Try again in a moment.",
    },
    "ko": {
        "product": "이지스",
        "title": "새 비밀번호",
        "label": "15자 이상 입력해 주세요. 서로 관계없는 단어를 몇 개 이으면 기억하기 쉽습니다.",
        "show": "비밀번호 표시",
        "send": "비밀번호 설정",
        "working": "비밀번호를 설정하고 있습니다 …",
        "done": "새 비밀번호가 설정되었으며 모든 기기에서 로그아웃되었습니다. 이제 이 페이지를 닫고 새 비밀번호로 "
        "이지스에 로그인해 주세요.",
        "refused": "다른 비밀번호를 입력해 주세요:",
        "password_too_short": "15자보다 짧습니다.",
        "password_common": "흔히 사용되거나 추측하기 쉬운 비밀번호입니다.",
        "password_breached": "유출된 비밀번호 목록에 있습니다.",
        "incomplete": "링크가 완전하지 않습니다. 이메일에서 다시 열거나 링크 전체를 복사해 주소창에 붙여 넣어 주세요.",
        "invalid": "이미 사용했거나 만료되었거나 새 링크가 발송되었습니다. 새 링크를 요청해 주세요.",
        "unavailable": "지금은 서비스에 연결할 수 없습니다. 잠시 후 다시 시도해 주세요.",
    },
}

UNDO_EMAIL_CHANGE_WORDS = {
    "en": {
        "product": "Aegis",
        "title": "Undo the change of your e-mail address",
        "label": "Your account gets its old e-mail address back, and everybody is logged out.",
        "send": "Undo the change",
        "working": "Undoing the change …",
        "done": "Your account has its old e-mail address again, and you are logged out on all devices. "
        "Set a new password now.",
        "incomplete": "This link is incomplete. Open it from the e-mail again, or copy all of it into the address bar.",
        "invalid": "This link has been used or has expired.",
        "unavailable": "The service cannot be reached right now. Try again in a moment.",
    },
    "ko": {
        "product": "이지스",
        "title": "이메일 주소 변경 취소",
        "label": "계정의 이메일 주소를 이전 주소로 되돌리고 모든 기기에서 로그아웃합니다.",
        "send": "변경 취소",
        "working": "변경을 취소하고 있습니다 …",
        "done": "이메일 주소가 이전 주소로 되돌아갔으며 모든 기기에서 로그아웃되었습니다. "
        "지금 비밀번호를 새로 설정해 주세요.",
        "incomplete": "링크가 완전하지 않습니다. 이메일에서 다시 열거나 링크 전체를 복사해 주소창에 붙여 넣어 주세요.",
        "invalid": "이미 사용했거나 만료된 링크입니다.",
        "unavailable": "지금은 서비스에 연결할 수 없습니다. 잠시 후 다시 시도해 주세요.",
    },
}

# Only the files of Swagger UI: the page of the package has Swagger's branding and an inline script.
_SWAGGER_UI = Path(flask_swagger_ui.__file__).parent / "dist"

app = Flask(__name__)
app.register_blueprint(sandbox)


@app.before_request
def refuse_unknown_names() -> Response | None:
    """Refuse unknown host names, as the router does: a page that rebinds its name can also reach this port."""
    return None if re.fullmatch(KNOWN_HOST, request.host) else ProblemResponse(MisdirectedRequest())


@app.get("/")
def show_home() -> str:
    """Show the start page."""
    return render_template("home.html", url=settings().public_url)


@app.get("/docs/")
def show_docs() -> str:
    """Show the API documentation."""
    return render_template("docs.html")


@app.get("/docs/<name>")
def show_swagger_ui(name: str) -> Response:
    """Return a file of Swagger UI."""
    return send_from_directory(_SWAGGER_UI, name)


@app.get("/openapi.json")
def show_openapi() -> Response:
    return jsonify(openapi_document())


@app.get("/asyncapi.json")
def show_asyncapi() -> Response:
    return jsonify(asyncapi_document())


@app.get("/verify-email")
def show_verify_email() -> Response:
    """Ask for the password, post it with the token from the link's fragment, and show the result."""
    return _link_form("/api/v1/users/email/verify", "current-password", VERIFY_EMAIL_WORDS)


@app.get("/reset-password")
def show_reset_password() -> Response:
    """Ask for a new password, post it with the token from the link's fragment, and show the result."""
    return _link_form("/api/v1/users/password/reset", "new-password", RESET_PASSWORD_WORDS)


@app.get("/undo-email-change")
def show_undo_email_change() -> Response:
    """Post the token from the link's fragment when the button is pressed, and show the result."""
    return _link_form("/api/v1/users/email/undo", None, UNDO_EMAIL_CHANGE_WORDS)


def _link_form(path: str, autocomplete: str | None, words: dict[str, dict[str, str]]) -> Response:
    language = request.accept_languages.best_match(list(words)) or "en"
    page = make_response(
        render_template(
            "link_form.html", path=path, autocomplete=autocomplete, language=language, words=words[language]
        )
    )
    page.content_language.add(language)
    page.vary.add("Accept-Language")
    return page


@app.after_request
def protect(response: Response) -> Response:
    """Allow no foreign content in these pages, and send no referrer: their addresses contain tokens."""
    # Swagger UI and the mails in the inbox have inline styles.
    inline = " 'unsafe-inline'" if request.path.startswith(("/docs", "/inbox")) else ""
    # /docs always sends its requests to PUBLIC_URL, even if it was opened under another name.
    response.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src 'self'; style-src 'self'{inline}; img-src 'self' data:; "
        f"connect-src 'self' {settings().public_url}; frame-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@app.after_request
def let_documents_be_kept(response: Response) -> Response:
    """Let browsers and proxies cache documents, but revalidate them each time (RFC 9111, 4.3)."""
    if request.blueprint == sandbox.name:
        response.headers["Cache-Control"] = "no-store"  # it shows links that log people in
    elif request.method in ("GET", "HEAD") and response.status_code in (200, 206, 304):
        response.headers["Cache-Control"] = "no-cache"
        response.vary.add("Accept-Encoding")
        if "ETag" not in response.headers:
            response.add_etag()
            response.make_conditional(request)
        # Weak, as the router compresses some responses: a strong tag is valid for one encoding only (RFC 9110, 8.8.3).
        tag, _ = response.get_etag()
        response.set_etag(tag or "", weak=True)
    return response


@cache
def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI document of all functions."""
    load_all()
    return openapi.document(HTTP_FUNCTIONS.values(), settings().public_url)


@cache
def asyncapi_document() -> dict[str, Any]:
    """Return the AsyncAPI document of all events."""
    load_all()
    return asyncapi.document(EVENT_FUNCTIONS.values(), settings().public_url)


def main() -> None:
    Server(app, bind=f"127.0.0.1:{os.environ['PORT']}", settings=settings()).run()


if __name__ == "__main__":
    main()
