"""All exceptions that landscape raises on purpose, with their exit status.

A message says where - what (expected, got) - why it matters - what to do, on one line.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass


class LandscapeError(Exception):
    """A wrong file, setting or run.

    The command line prints it on one line and exits with `exit_code`.

    Attributes:
        is_repeated: Whether another process has raised it first, or describes better what happened.
    """

    exit_code = 2
    is_repeated = False


class ManifestError(LandscapeError):
    """The manifest is missing, malformed, or describes something that does not exist."""


class DataError(LandscapeError):
    """The image-text pairs are missing, too few, or unreadable."""


class PictureError(DataError):
    """A picture cannot be read: its batch fails, others can be measured.

    Args:
        problem: Which picture, and why.
        advice: What to do.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(f"{problem} {advice}".strip())
        self.problem = problem


class AnswersError(LandscapeError):
    """Answers of observers to pictures are missing, unreadable, or contradict each other."""


class DistortionError(LandscapeError):
    """A distortion, its level, or something that it needs is missing or not valid."""


class OptionError(LandscapeError):
    """An option has no effect together with the others."""


class ModelError(LandscapeError):
    """The model is unknown, or cannot be built from its configuration."""


class CheckpointError(LandscapeError):
    """A checkpoint is missing, truncated, unsafe to load, or does not fit its model."""


class ObjectiveError(LandscapeError):
    """The loss is not a twice differentiable, deterministic function of the parameters."""


class StoreError(LandscapeError):
    """The output file has another schema, another manifest, or cannot be written."""


class MissingDependencyError(LandscapeError):
    """The request needs an optional package; the message names the extra to install."""


class WorkerError(LandscapeError):
    """A worker process cannot start, does not fit this one, or takes no work."""


class WorkerDied(WorkerError):
    """A worker process ended in the middle of a call.

    The call may be sent again.
    """

    exit_code = 1


class NumericalError(LandscapeError):
    """A product or a loss overflowed: this task failed, others may continue."""

    exit_code = 1


class MemoryLimitError(LandscapeError, MemoryError):
    """No method of computation fits in the free or the allowed memory."""


@dataclass(frozen=True)
class NoEffect:
    """Options that have no effect in the present situation.

    Args:
        options: Options as on the command line, such as "--seed".
        why: Reason as a clause, without a full stop.
        advice: A sentence that says what to do.
    """

    options: tuple[str, ...]
    why: str
    advice: str


def check_effects(place: str, stated: Collection[str], rules: Iterable[NoEffect]) -> None:
    """Refuse options that would be ignored.

    Their user would take the result for another one.

    Args:
        stated: The options that the user stated, without defaults.

    Raises:
        OptionError: If one of them has no effect.
    """
    for rule in rules:
        named = [option for option in rule.options if option in stated]
        if named:
            raise OptionError(
                f"{place}: {' and '.join(named)} would have no effect: {rule.why}. {rule.advice}"
            )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, shortened.

    If the message is empty, return the name of its class.
    """
    return str(error).partition("\n")[0][:300] or type(error).__name__
