"""Range of the accuracies of single people in each condition."""

import pandas as pd

from landscape.answers.scores import condition_table
from landscape.answers.table import Answers

COLUMNS = ["dataset", "condition", "low", "high", "num_people"]


def range_over_people(answers: Answers) -> pd.DataFrame:
    """Tabulate the least and the most accurate person of each condition.

    These accuracies are the plots' human band. It is a range, not an interval: with more people it
    grows. The two persons may differ between conditions.

    Returns:
        Columns `dataset`, `condition`, `low`, `high`, `num_people`, without conditions that nobody
        saw.
    """
    table = condition_table(answers)
    if table.empty:
        return pd.DataFrame(columns=COLUMNS)
    people = table[table.kind == "human"].groupby(["dataset", "condition"], sort=False).accuracy
    return people.agg(low="min", high="max", num_people="size").reset_index()
