"""Logs: one JSON object per line, on standard output, with the ids of the request and the user."""

import json
import logging
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared.runtime.settings import Settings

request_id: ContextVar[str] = ContextVar("request_id", default="")
user_id: ContextVar[str] = ContextVar("user_id", default="")
"""The account that a request is about: the caller's, or the one that somebody tries to log in to."""

_STANDARD_ATTRIBUTES = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


_encoder = json.JSONEncoder(ensure_ascii=False, default=str)


class JsonFormatter(logging.Formatter):
    """Formats a record as JSON, with the values of `extra` as members."""

    def __init__(self, environment: str) -> None:
        super().__init__()
        self._environment = environment

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "environment": self._environment,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if identifier := request_id.get():
            line["request_id"] = identifier
        if account := user_id.get():
            line["user_id"] = account
        line |= {name: record.__dict__[name] for name in record.__dict__.keys() - _STANDARD_ATTRIBUTES}
        if record.exc_info and record.exc_info[1]:
            line["exception"] = _without_values(record.exc_info[1])
        return _encoder.encode(line)


def _without_values(error: BaseException) -> str:
    """Describe an error and its causes by type and place only: the message may quote a row or a request."""
    places = [f"{place.filename}:{place.lineno} {place.name}" for place in traceback.extract_tb(error.__traceback__)]
    text = f"{type(error).__module__}.{type(error).__qualname__} at " + " > ".join(places)
    cause = error.__cause__ or error.__context__
    return f"{text}, caused by {_without_values(cause)}" if cause else text


def configuration(settings: "Settings") -> dict[str, Any]:
    """Return the logging configuration (`logging.config.dictConfig`) of every process."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonFormatter, "environment": settings.environment}},
        "handlers": {"stdout": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "json"}},
        "root": {"level": settings.log_level, "handlers": ["stdout"]},
        "loggers": {
            "gunicorn.error": {"level": settings.log_level, "handlers": [], "propagate": True},
            # The client logs every attempt to reconnect; we log permanent failures ourselves.
            "kafka": {"level": "CRITICAL"},
        },
    }
