"""Why a command of an operator was not carried out."""


class Refused(Exception):
    """It cannot be done now; the message says what, why and what to do."""
