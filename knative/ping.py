"""Send a function its scheduled event. CronJobs run this where there is no Knative Eventing with PingSources.

    FUNCTION_URL=http://{service}.aegis-user-service.svc.cluster.local python -m knative.ping purge-withdrawn

Exits with 1 and the reason if the function did not accept the event.
"""

import os
import sys
import urllib.error
import urllib.request
import uuid

from shared.events.delivery_tokens import authorization
from shared.runtime.settings import InvalidSettings, load

TYPE = "dev.knative.sources.ping"
TIMEOUT_SECONDS = 60.0
"""Long enough for a revision to start first."""


def ping(service: str, function_url: str) -> str | None:
    """POST the event as a binary CloudEvent. Return None if the function accepted it, else the reason."""
    headers = {
        "Content-Type": "application/json",
        "ce-specversion": "1.0",
        "ce-id": str(uuid.uuid4()),
        "ce-source": f"/aegis/schedules/{service}",
        "ce-type": TYPE,
        **authorization(service),
    }
    url = function_url.format(service=service)
    try:
        request = urllib.request.Request(url, b"{}", headers, method="POST")  # noqa: S310  # set by the deployment
        urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        with error:
            return f"{url} answered {error.code}"
    except (OSError, ValueError) as error:
        return f"{url} cannot be reached: {error}"
    return None


def main() -> None:
    try:
        load(os.environ, ["deliveries"])
    except InvalidSettings as error:
        sys.exit("\n".join(["The scheduled event was not sent. Settings are missing or invalid:", *error.problems]))
    if reason := ping(sys.argv[1], os.environ["FUNCTION_URL"]):
        sys.exit(reason)


if __name__ == "__main__":
    main()
