"""The errors that a user may meet: each carries one clear sentence and an exit code."""


class ConsiliumError(Exception):
    """Something a user can act on: the message says what was found where, what was expected and what to do."""

    exit_code = 1


class BadInput(ConsiliumError):
    """A job file, manifest, image, checkpoint or argument is not what it should be."""

    exit_code = 2


class RunStopped(ConsiliumError):
    """The run could not go on; what was done so far is kept and can be resumed."""

    exit_code = 3


class SitesLeftOut(ConsiliumError):
    """The run is complete, but at least one site was left out of at least one round."""

    exit_code = 4
