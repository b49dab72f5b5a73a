"""The scenarios: how many people arrive when."""

from dataclasses import dataclass

from locust import LoadTestShape

from loadtests.people import Administrator, Commuter, Person, Somebody


@dataclass(frozen=True)
class Stage:
    """A share of USERS until a share of DURATION has passed. They arrive within `arrive_in` seconds."""

    until: float
    share: float
    arrive_in: float


@dataclass(frozen=True)
class Scenario:
    says: str
    users: int
    seconds: int
    stages: tuple[Stage, ...]
    people: tuple[type[Somebody], ...] = (Person,)
    begins: float = 0.0
    """The share of DURATION after which commuters log in."""
    from_zero: bool = False
    """Wait until no function has a pod."""


SCENARIOS = {
    "smoke": Scenario("ten people for 30 s", 10, 30, (Stage(until=1, share=1, arrive_in=3),)),
    "steady": Scenario("40 people for three minutes", 40, 180, (Stage(until=1, share=1, arrive_in=20),)),
    "ramp": Scenario(
        "ten more people every 30 s, up to 100",
        100,
        300,
        tuple(Stage(until=step / 10, share=step / 10, arrive_in=25) for step in range(1, 11)),
    ),
    "spike": Scenario(
        "ten people, then 100 within 5 s, then ten",
        100,
        180,
        (
            Stage(until=0.3, share=0.1, arrive_in=5),
            Stage(until=0.7, share=1, arrive_in=5),
            Stage(until=1, share=0.1, arrive_in=5),
        ),
    ),
    "login-storm": Scenario(
        "60 people with accounts log in within 5 s",
        60,
        120,
        (
            Stage(until=0.1, share=0.4, arrive_in=5),
            Stage(until=0.2, share=0.7, arrive_in=5),
            Stage(until=1, share=1, arrive_in=5),
        ),
        people=(Commuter,),
        begins=0.4,
    ),
    "soak": Scenario("20 people for an hour", 20, 3600, (Stage(until=1, share=1, arrive_in=20),)),
    "scale-from-zero": Scenario(
        "20 people at once, while no function has a pod",
        20,
        120,
        (Stage(until=1, share=1, arrive_in=1),),
        from_zero=True,
    ),
    "mixed": Scenario(
        "40 people, including administrators who search users, for three minutes",
        40,
        180,
        (Stage(until=1, share=1, arrive_in=20),),
        people=(Person, Administrator),
    ),
}


class Shape(LoadTestShape):
    """Makes Locust follow a scenario."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__()
        self.scenario = scenario

    def passed(self) -> float:
        """Return the share of DURATION that has passed."""
        return float(self.get_run_time()) / self.scenario.seconds

    def has_begun(self) -> bool:
        return self.passed() >= self.scenario.begins

    def tick(self) -> tuple[int, float] | None:
        for stage in self.scenario.stages:
            if self.passed() < stage.until:
                users = max(1, round(self.scenario.users * stage.share))
                return users, users / stage.arrive_in
        return None
