"""Texts in responses, with their format in the OpenAPI document. Without pydantic, which cached reads do not import."""

from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Format:
    """Adds a format (JSON Schema 2020-12, validation, 7.3) to the schema that pydantic makes of an annotated text."""

    name: str

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(core_schema), "format": self.name}


UuidText = Annotated[str, Format("uuid")]
"""RFC 9562, 4."""
TimeText = Annotated[str, Format("date-time")]
"""RFC 3339, 5.6."""
DateText = Annotated[str, Format("date")]
"""RFC 3339, full-date."""
