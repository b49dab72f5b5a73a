"""Functions that run at fixed times: a PingSource (Knative Eventing) or a CronJob sends each its event."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class ScheduleFired(BaseModel):
    """The time of a schedule has come; what the event carries does not matter."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: ClassVar[str] = "dev.knative.sources.ping"
