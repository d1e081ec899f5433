"""Print every accuracy that follows from runs.csv and every difference of comparisons.csv.

    python -m experiments.evidence.tables

Accuracies are in %, differences in points, with their 99 % intervals.
"""

from pathlib import Path

import pandas

from experiments.tools.compare import difference, over_seeds, spread

FOLDER = Path(__file__).resolve().parent
SHD = "SHD (regenerated)"
PAIRS = ["1,8", "2,10", "3,6", "0,9", "7,11"]  # speakers of SHD that are held out together
COLUMNS = ["table", "name", "data", "epochs", "one side", "other side", "difference", "n", "each"]


def all_rows() -> pandas.DataFrame:
    """Return the rows of runs.csv, with the side of a comparison that each run can be on."""
    texts = {"options": "", "speakers": "", "commit": ""}
    rows = pandas.read_csv(FOLDER / "runs.csv", dtype=dict.fromkeys(texts, str)).fillna(texts)
    rows["side"] = (rows["variant"] + " " + rows["options"]).str.strip()
    return rows


def accuracies(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Return a line for all runs that differ only in seed (on SHD, in processor too)."""
    rows = rows.assign(rule=rows["rule"].str.partition(", epoch")[0])
    rows["processor"] = rows["processor"].where(rows["data"] == "toy", "")
    same = ["data", "side", "epochs", "rule", "speakers", "processor"]
    values = ["accuracy", "unrounded", "best_on_test", "new_speakers", "known_speakers"]
    rows = rows.drop_duplicates([*same, "seed"])
    return rows.groupby(same)[values].agg(spread).reset_index()


def sides_of(rows: pandas.DataFrame, line: dict) -> list[pandas.Series]:
    """Return the accuracies of both sides of a line of comparisons.csv, by speakers and seed.

    An empty field of the line takes all seeds or all processors.
    """
    rows = rows[rows["speakers"].isin(PAIRS if line["paired"] == "speakers" else [""])]
    for column in "data", "epochs", "seed", "processor":
        wanted = line[column].split("; ")  # seeds as in 1; 2
        rows = rows[rows[column].astype(str).isin(wanted) | (line[column] == "")]
    # A seed that another processor ran again may not count twice: its first row counts.
    rows = rows.drop_duplicates(["side", "speakers", "seed"]).set_index(["speakers", "seed"])
    one, other = [rows[rows["side"] == line[side]].sort_index() for side in ("one", "other")]
    one, other = one[line["one_value"]], other[line["other_value"]]
    return one.align(other, join="inner") if line["paired"] else [one, other]


def differences(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Return the lines of comparisons.csv with what follows from them."""
    csv = FOLDER / "comparisons.csv"
    lines = pandas.read_csv(csv, dtype=str, keep_default_na=False).to_dict("records")
    for line in lines:
        one, other = sides_of(rows, line)
        line |= difference(one, other, line["paired"] != "")
        line |= {"one side": spread(over_seeds(one)), "other side": spread(over_seeds(other))}
        line["each"] = "; ".join(f"{name} {gain:+.2f}" for name, gain in line["gains"].items())
    return pandas.DataFrame(lines)


if __name__ == "__main__":
    rows = all_rows()
    print(accuracies(rows).to_string(index=False), end="\n\n")
    print(differences(rows)[COLUMNS].to_string(index=False))
