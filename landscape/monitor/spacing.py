"""Spacing of measurements by steps and by a share of training time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# The next measurement is expected to take as long as the second slowest of the last so many. So a
# single slow one counts as time spent, but not in the forecast.
_RECENT = 5


class Spacing:
    """A schedule of measurements that keeps to a budget of time.

    Measuring takes at most `budget` of the training time.

    Training time is the time since the first step less that spent on measuring; pauses of the loop
    count. The first measurement cannot be predicted and is due at once. Another is due only once
    all time spent, with its own predicted time, is within the budget. So a single measurement can
    exceed the budget by as much as it takes longer than predicted; the next one is then due later.

    Args:
        every: Minimum number of steps between measurements.
        budget: Largest share of the training time, > 0; None for no limit.
        clock: Function that returns seconds; wall time by default.
        spent, trained: Seconds of measuring and of training in an earlier part of the same
            training.
    """

    def __init__(
        self,
        *,
        every: int = 1,
        budget: float | None = 0.05,
        clock: Callable[[], float] = time.perf_counter,
        spent: float = 0.0,
        trained: float = 0.0,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be 1 step or more, got {every}.")
        if budget is not None and not 0 < budget < float("inf"):
            raise ValueError(
                "budget must be a share > 0 of the training time, as 0.05, or None for no limit, "
                f"got {budget}."
            )
        self.every, self.budget = every, budget
        self.spent = spent
        self._clock = clock
        self._trained_before = trained
        self._begun: float | None = None
        self._spent_here = 0.0
        self._first: float | None = None
        self._recent: list[float] = []
        self._last_step: int | None = None
        self._has_measured = spent > 0

    def begin(self) -> None:
        """Begin to count the training time, unless that was done."""
        if self._begun is None:
            self._begun = self._clock()

    @property
    def trained(self) -> float:
        """Return the seconds of training so far, measuring left out."""
        here = 0.0 if self._begun is None else self._clock() - self._begun - self._spent_here
        return self._trained_before + max(here, 0.0)

    @property
    def share(self) -> float:
        """Divide the time spent on measuring by the training time.

        Returns inf before there is any training time.
        """
        trained = self.trained
        return self.spent / trained if trained > 0 else float("inf")

    @property
    def predicted(self) -> float:
        """Estimate the seconds of the next measurement.

        Only the second one is expected to take as long as the first, which has more to set up.
        """
        if self._recent:
            return sorted(self._recent)[-2] if len(self._recent) > 2 else max(self._recent)
        return self._first or 0.0

    def is_due(self, step: int) -> bool:
        """Tell whether to measure after this step."""
        self.begin()
        if self._last_step is not None and step - self._last_step < self.every:
            return False
        if self.budget is None or not self._has_measured:
            return True
        return self.spent + self.predicted <= self.budget * self.trained

    @property
    def last_seconds(self) -> float:
        """Return the seconds that the last measurement took."""
        return self._recent[-1] if self._recent else self._first or 0.0

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Count a section's time as spent, but not as a measurement's."""
        begun = self._clock()
        try:
            yield
        finally:
            self._spend(self._clock() - begun)

    def _spend(self, seconds: float) -> None:
        self._spent_here += seconds
        self.spent += seconds

    @contextmanager
    def measuring(self, step: int) -> Iterator[None]:
        """Count a section's time as a measurement's, however it ends."""
        self.begin()
        begun = self._clock()
        try:
            yield
        finally:
            seconds = self._clock() - begun
            self._spend(seconds)
            if self._first is None:
                self._first = seconds
            else:
                self._recent = [*self._recent, seconds][-_RECENT:]
            self._last_step, self._has_measured = step, True
