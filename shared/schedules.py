"""What a PingSource (Knative Eventing) delivers when its time has come."""

from typing import ClassVar

from pydantic import BaseModel


class ScheduleFired(BaseModel):
    type: ClassVar[str] = "dev.knative.sources.ping"
