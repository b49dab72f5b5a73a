"""When what is killed: at random moments, the same ones for the same seed."""

import random
from collections.abc import Collection, Sequence

BROKER = "kafka"
EVENTS_PASS = ("send_email", "relay", "dispatcher", "postgresql")
"""What an event passes, besides the broker: killed alone most often."""
INVOLVED = (
    *("register", "verify_email", "login", "get_profile", "update_profile", "refresh_token", "logout"),
    *(*EVENTS_PASS, "redis", "router", "site", "scheduler"),
)
"""What the load needs. The other functions die too, among several."""
GROUPS = 6
BYSTANDERS = 5
"""Other functions that die with each group."""

QUIET_SECONDS = 3.0
"""Before the first kill of an act, and after the last."""

Names = tuple[str, ...]


class Act(list[tuple[float, Names]]):
    """Seconds after its begin, and what is killed then."""

    def __init__(self, chance: random.Random, seconds: float) -> None:
        self.seconds = seconds
        self._chance = chance
        self._until = 0.0

    def add(self, kills: Sequence[Names], share: float) -> None:
        """Spreads kills over the next share of the time: at a random moment in each of so many equal parts."""
        part = share * (self.seconds - 2 * QUIET_SECONDS) / len(kills)
        for number, names in enumerate(kills):
            self.append((QUIET_SECONDS + self._until + part * (number + self._chance.random()), names))
        self._until += part * len(kills)


def draw(seed: int, seconds: float, everything: Collection[str]) -> tuple[Act, Act]:
    """Two acts, of so many seconds together; `everything` names all processes.

    The broker lives through the first. The embedded one forgets all events when it dies, and the relay sends them
    again, which would heal what others have lost before.
    """
    chance = random.Random(seed)  # noqa: S311  # chooses what dies
    bystanders = sorted(set(everything) - {*INVOLVED, BROKER})

    def group(*names: str) -> Names:
        return (*names, *chance.sample(INVOLVED, chance.randint(2, 6)), *chance.sample(bystanders, BYSTANDERS))

    first = Act(chance, 0.6 * seconds)
    alone = [*INVOLVED * 2, *EVENTS_PASS * 2]
    first.add([(name,) for name in chance.sample(alone, len(alone))], 0.65)
    first.add([group() for _ in range(GROUPS)], 0.25)
    first.add([tuple(sorted({*everything} - {BROKER}))], 0.1)

    second = Act(chance, 0.4 * seconds)
    second.add([(BROKER,)] * 4, 0.35)
    second.add([group(BROKER) for _ in range(3)], 0.25)
    second.add([("postgresql", BROKER, "relay")] * 3, 0.3)
    second.add([tuple(sorted(everything))], 0.1)
    return first, second
