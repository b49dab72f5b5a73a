"""Companies for tests."""

import secrets

from shared.text.business_numbers import check_digit


def new_business_number() -> str:
    """A business number that no other test has; the sandbox knows it as active as stated, for its last digit."""
    while True:
        first_nine = f"{200 + secrets.randbelow(700)}{10 + secrets.randbelow(80)}{1 + secrets.randbelow(9998):04}"
        if check_digit(first_nine) <= "4":
            return first_nine + check_digit(first_nine)
