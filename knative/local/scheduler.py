"""Send functions their scheduled events on one machine, at the times in the PingSources.

    FUNCTION_URL=http://127.0.0.1:8081/{service} python -m knative.local.scheduler

Events that were due while it was not running are not sent later: the next run does that work as well.
"""

import logging
import logging.config
import os
import signal
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim

from knative.ping import ping
from shared.runtime import logs
from shared.runtime.manifests import Schedule, schedules
from shared.runtime.settings import load
from shared.runtime.stopping import stopped_by

log = logging.getLogger("scheduler")


def next_time(schedule: Schedule, now: datetime) -> datetime:
    """Return when a schedule fires next, in UTC."""
    return next(CronSim(schedule.schedule, now.astimezone(ZoneInfo(schedule.timezone)))).astimezone(UTC)


def run(
    schedule: Schedule,
    function_url: str,
    stopped: threading.Event,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Fire one schedule until stopped."""
    while not stopped.is_set():
        due = next_time(schedule, now())
        while (seconds := (due - now()).total_seconds()) > 0:
            if stopped.wait(min(seconds, 60.0)):  # in steps, as the machine may be suspended
                return
        if reason := ping(schedule.service, function_url):
            log.warning("not taken", extra={"schedule": schedule.name, "reason": reason})
        else:
            log.info("fired", extra={"schedule": schedule.name})


def main() -> None:
    logging.config.dictConfig(logs.configuration(load(os.environ, ["deliveries"])))
    stopped = stopped_by(signal.SIGTERM)
    for schedule in schedules():
        threading.Thread(target=run, args=(schedule, os.environ["FUNCTION_URL"], stopped), daemon=True).start()
    stopped.wait()


if __name__ == "__main__":
    main()
