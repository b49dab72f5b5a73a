"""A function for functions-framework that does nothing."""

from flask import Request


def hello(_request: Request) -> str:
    return "hello"
