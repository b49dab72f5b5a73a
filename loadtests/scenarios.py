"""How many people come when."""

from dataclasses import dataclass

from locust import LoadTestShape


@dataclass(frozen=True)
class Stage:
    """So many people, as a share of USERS, until so much of DURATION has passed; they arrive in so many seconds."""

    until: float
    share: float
    arrive_in: float


@dataclass(frozen=True)
class Scenario:
    users: int
    seconds: int
    stages: tuple[Stage, ...]


SCENARIOS = {
    "smoke": Scenario(users=10, seconds=30, stages=(Stage(until=1, share=1, arrive_in=3),)),
    "steady": Scenario(users=40, seconds=180, stages=(Stage(until=1, share=1, arrive_in=20),)),
    # Ten times as many within five seconds.
    "spike": Scenario(
        users=100,
        seconds=180,
        stages=(
            Stage(until=0.3, share=0.1, arrive_in=5),
            Stage(until=0.7, share=1, arrive_in=5),
            Stage(until=1, share=0.1, arrive_in=5),
        ),
    ),
}


class Shape(LoadTestShape):
    """Lets Locust follow a scenario."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__()
        self.scenario = scenario

    def tick(self) -> tuple[int, float] | None:
        passed = self.get_run_time() / self.scenario.seconds
        for stage in self.scenario.stages:
            if passed < stage.until:
                users = max(1, round(self.scenario.users * stage.share))
                return users, users / stage.arrive_in
        return None
