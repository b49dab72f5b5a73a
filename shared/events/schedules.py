"""Functions that run at fixed times: a PingSource (Knative Eventing) or a CronJob sends each one its event."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class ScheduleFired(BaseModel):
    """The event that starts a scheduled function; its data is ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: ClassVar[str] = "dev.knative.sources.ping"
