"""Compare the accuracies of two sets of runs, of train.py or of forks.

    python -m experiments.tools.compare runs/mine-0 runs/mine-1 runs/mine-2 -- runs/theirs-*
    python -m experiments.tools.compare --paired runs/mine-pair-* -- runs/theirs-pair-*

Prints by how many points the first runs are above the others, and in which options they differ.
--paired compares the runs of each seed, or of each group of held-out speakers, with each other.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import pandas
from scipy import stats

import train
from data import UserError

PARTS = ("network", "loss", "augment", "before_epoch")  # of a run, which config.json names
FREE = {"seed", "dataset", "data_dir", "device", "out", "resume", "eval"}  # not printed


def spread(accuracies: pandas.Series) -> str:
    """Return mean ± standard deviation in % and n, or the values if there are fewer than three."""
    values = 100 * accuracies.dropna()
    if len(values) < 3:
        return ", ".join(values.map("{:.2f}".format))
    return f"{values.mean():.2f} ± {values.std():.2f} (n = {len(values)})"


def over_seeds(accuracies: pandas.Series) -> pandas.Series:
    """Return the mean over seeds of each group of held-out speakers, or of one group, each seed."""
    several = accuracies.index.unique("speakers").size > 1
    return accuracies.groupby("speakers" if several else "seed").mean()


def difference(one: pandas.Series, other: pandas.Series, paired: bool) -> dict:
    """Return the points by which one side is above the other, with their 99 % interval and n.

    one, other: accuracies as fractions, by speakers and seed.  Fewer than three have no interval.
    paired: over the labels of the index, which are equal.  Otherwise the method is Welch's.
    """
    found = {"n": f"{len(one)} and {len(other)}", "gains": {}}
    if paired:
        one, other = over_seeds(one), over_seeds(other)
        kind = one.index.name
        found["n"] = f"{len(one)} {'pairs' if kind == 'speakers' else 'seeds'}"
        found["gains"] = {f"{kind} {x}": gain for x, gain in (100 * (one - other)).items()}
    one, other = 100 * one, 100 * other
    found["points"] = one.mean() - other.mean()
    found["difference"] = f"{found['points']:+.2f}"
    if min(len(one), len(other)) < 3:
        return found
    test = stats.ttest_rel(one, other) if paired else stats.ttest_ind(one, other, equal_var=False)
    found["low"], found["high"] = test.confidence_interval(0.99)
    found["difference"] += f" [{found['low']:.2f}, {found['high']:.2f}]"
    return found


def read_run(folder: str) -> dict:
    """Return what the files of a finished run hold, and what is compared."""
    try:
        run = json.loads(Path(folder, "config.json").read_text())
        run |= json.loads(Path(folder, "result.json").read_text())
    except (OSError, ValueError) as problem:
        raise UserError(f"{folder} is not the folder of a finished run: {problem}") from problem
    options = train.defaults() | run["options"]
    split = "valid" if run["test_accuracy"] is None else "test"
    rule = run["rule"].partition(", epoch")[0]
    run |= {"run": folder, "speakers": options["valid_speakers"]}
    run["accuracy"] = run[f"{split}_accuracy"]
    run["of"] = f"{run['dataset']}, {split} accuracy in %, {rule}"
    run["settings"] = options | {part: run.get(part) for part in PARTS}
    return run


def check(one: pandas.DataFrame, other: pandas.DataFrame, paired: bool) -> None:
    """Raise a UserError if two sides cannot be compared."""
    runs = pandas.concat([one, other])
    kinds = runs.drop_duplicates("of")
    if len(kinds) > 1:
        found = "; ".join(f"{run.run} has {run.of}" for run in kinds.itertuples())
        raise UserError(f"{found}: both sides need the same data set, split and rule")
    for side in one, other, runs.set_index(runs["run"].map(os.path.realpath)):
        same = side["run"][side.index.duplicated(keep=False)]
        if len(same):
            raise UserError(f"{', '.join(same)} are one run, or one seed of a side: leave one out")
    alone = runs["run"][runs.index.isin(one.index.symmetric_difference(other.index))]
    if paired and len(alone):
        raise UserError(f"--paired: the other side has no run of the seed of {', '.join(alone)}")


def words_of(settings: dict, names: set[str]) -> set[str]:
    """Return what is told of a run: one entry for each of the names, which it may lack."""
    missing = {name for name in names if settings.get(name) in (None, "")}
    return {f"no {name}" for name in missing} | {f"{x} {settings[x]}" for x in names - missing}


def compare(folders: list[str], others: list[str], paired: bool) -> None:
    """Print how far the first runs are above the others, by Welch's method or paired."""
    if not folders or not others:
        raise UserError("expected runs before and after a --, as in: compare RUN ... -- RUN ...")
    sides = [pandas.DataFrame(map(read_run, side)) for side in (folders, others)]
    one, other = [side.set_index(["speakers", "seed"]).sort_index() for side in sides]
    check(one, other, paired)
    # A fork may have options that train.py lacks.
    names = set().union(*one["settings"], *other["settings"]) - FREE
    for side in one, other:
        side["told"] = [words_of(settings, names) for settings in side["settings"]]
    shared = set.intersection(*one["told"], *other["told"])
    shared |= {f"valid_speakers {group}" for group, _ in {*one.index} & {*other.index}}

    print(one["of"].iloc[0])
    for name, side in ("first", one), ("others", other):
        print(f"{name:<14}{spread(side['accuracy'])}")
        words = sorted(set.union(*side["told"]) - shared)
        print(f"{'':<14}{', '.join(words) or 'no option differs'}")
    found = difference(one["accuracy"], other["accuracy"], paired)
    for name, gain in found["gains"].items():  # by seed, or by held-out speakers
        print(f"{name:<14}{gain:+.2f}")
    if paired:
        wins = sum(gain > 0 for gain in found["gains"].values())
        print(f"{'first wins':<14}{wins} of {len(found['gains'])}")
    limits = "99 % interval" if "low" in found else "no interval below three"
    method = "paired" if paired else "Welch"
    print(f"{'difference':<14}{found['difference']} points, {limits} ({method}, n = {found['n']})")


def main(argv: list[str]) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a folder, or -- between the sides")
    parser.add_argument("--paired", action="store_true", help="compare by speakers or by seed")
    # argparse would swallow the -- between two sides.
    options = parser.parse_intermixed_args(["|" if word == "--" else word for word in argv])
    middle = [*options.runs, "|"].index("|")
    try:
        compare(options.runs[:middle], options.runs[middle + 1 :], options.paired)
    except UserError as problem:
        sys.exit(f"compare.py: {problem}")


if __name__ == "__main__":
    main(sys.argv[1:])
