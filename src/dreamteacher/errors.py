"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: one line that says what is wrong, where, and what to do.

    The command line prints the message alone and exits with code 2; any other exception is a defect of ours.
    """


class Interrupted(Exception):
    """Training was stopped by a signal after its checkpoint was written; the command line exits with 128 + signum."""

    def __init__(self, signum: int, step: int):
        super().__init__(f"stopped by signal {signum} at step {step}; start the same command again to resume")
        self.signum = signum
        self.step = step
