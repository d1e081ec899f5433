"""Print what follows from runs.csv, compare runs of your own, and add runs to runs.csv.

    python -m experiments.results
    python -m experiments.results compare runs/mine-0 runs/mine-1 runs/mine-2 -- runs/theirs-*
    python -m experiments.results add runs/shd-learned-0 --commit HASH

The first prints every accuracy that follows from runs.csv, in %, and every difference that
comparisons.csv names, in points.  The second prints how far the first runs are above the others,
which need no row.  Call the third on the machine that trained.
"""

import argparse
import json
import os
import platform
import re
import sys
import time
from pathlib import Path

import numpy as np
import pandas
from scipy import stats

import train
from data import UserError, load
from delays import DelaySNN
from experiments import ideas

FOLDER = Path(__file__).resolve().parent
SHD, SPEECH = "SHD (regenerated)", "Speech Commands (subset)"
TOLD = ["table", "name", "data", "epochs", "one side", "other side", "difference", "n", "each"]
PAIRS = ["1,8", "2,10", "3,6", "0,9", "7,11"]  # speakers of SHD that are held out together


def all_rows() -> pandas.DataFrame:
    """Return the rows of runs.csv, with the side of a comparison that each run can be on."""
    texts = {"options": "", "speakers": "", "commit": ""}
    rows = pandas.read_csv(FOLDER / "runs.csv", dtype=dict.fromkeys(texts, str)).fillna(texts)
    rows["side"] = (rows["variant"] + " " + rows["options"]).str.strip()
    return rows


def spread(accuracies: pandas.Series) -> str:
    """Return mean ± standard deviation in % and n, or the values if there are fewer than three."""
    values = 100 * accuracies.dropna()
    if len(values) < 3:
        return ", ".join(values.map("{:.2f}".format))
    return f"{values.mean():.2f} ± {values.std():.2f} (n = {len(values)})"


def accuracies(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Return a line for all runs that differ only in seed (on SHD, in processor too)."""
    rows = rows.assign(rule=rows["rule"].str.partition(", epoch")[0])
    rows["processor"] = rows["processor"].where(rows["data"] == "toy", "")
    same = ["data", "side", "epochs", "rule", "speakers", "processor"]
    values = ["accuracy", "unrounded", "best_on_test", "new_speakers", "known_speakers"]
    rows = rows.drop_duplicates([*same, "seed"])
    return rows.groupby(same)[values].agg(spread).reset_index()


# ------------------------------------------------------------------------------------- differences


def over_seeds(accuracies: pandas.Series) -> pandas.Series:
    """Return the mean over the seeds of each pair of held-out speakers.

    If all runs held out the same speakers, or none, each seed stays on its own.
    """
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


# --------------------------------------------------------------------------------- runs of your own

# By the first digits of the training file's md5, packed or not: the published files, and ours.
DATA_NAMES = {"8e9877c8": "SHD", "d47c9825": "SHD", "d102be95": "SSC"}
DATA_NAMES |= {"db7189fb": SHD, "210a81f5": SHD, "63f094f4": SPEECH, "shd-regenerated": SHD}
FREE = {"seed", "dataset", "data_dir", "device", "out", "resume", "eval"}  # options of no variant


def read_run(folder: str) -> dict:
    """Return what the files of a finished run of train.py or a fork hold, and what is compared."""
    try:
        run = json.loads(Path(folder, "config.json").read_text())
        run |= json.loads(Path(folder, "result.json").read_text())
        log = pandas.read_csv(Path(folder, "log.csv"))
    except OSError as problem:
        raise UserError(f"{folder} is not the folder of a finished run: {problem}") from problem
    options = vars(train.make_parser().parse_args([])) | run["options"]
    split = "valid" if run["test_accuracy"] is None else "test"
    run |= {"run": folder, "options": options, "speakers": options["valid_speakers"]}
    run |= {"accuracy": run[f"{split}_accuracy"], "train_accuracy": log["train_accuracy"].iloc[-1]}
    run["best_on_valid"] = log["valid_accuracy"].max()
    if run["speakers"] and run["rule"] != "last epoch":
        now = "with held-out speakers the last epoch counts now, so train it again"
        raise UserError(f"{folder} reports '{run['rule']}': {now}")
    md5 = " ".join(digest[:8] for digest in run["md5"].values())  # of the files of SHD or SSC
    run["data"] = DATA_NAMES.get(md5[:8] or run["dataset"], f"{run['dataset']} {md5}".strip())
    rule = run["rule"].partition(", epoch")[0]
    run["of"] = f"{run['data']}, {split} accuracy in %, {rule}"
    told = options | {name: run[name] for name in ideas.SEAMS if name in run}
    run["told"] = {f"{name} {told[name]}" for name in told.keys() - FREE}
    return run


def check(one: pandas.DataFrame, other: pandas.DataFrame, paired: bool) -> None:
    """Raise a UserError if two sides cannot be compared."""
    runs = pandas.concat([one, other])
    kinds = runs.drop_duplicates("of")
    if len(kinds) > 1:
        found = "; ".join(f"{run.run} has {run.of}" for run in kinds.itertuples())
        raise UserError(f"{found}: both sides need the same data, files and rule")
    for side in one, other, runs.set_index(runs["run"].map(os.path.realpath)):
        same = side["run"][side.index.duplicated(keep=False)]
        if len(same):
            raise UserError(f"{', '.join(same)} are one run, or one seed of a side: leave one out")
    alone = runs["run"][runs.index.isin(one.index.symmetric_difference(other.index))]
    if paired and len(alone):
        raise UserError(f"--paired: the other side has no run of the seed of {', '.join(alone)}")


def compare(folders: list[str], others: list[str], paired: bool) -> None:
    """Print how far the first runs are above the others, by Welch's method or paired."""
    if not folders or not others:
        raise UserError("expected runs before and after a --, as in: compare RUN ... -- RUN ...")
    sides = [pandas.DataFrame(map(read_run, side)) for side in (folders, others)]
    one, other = [side.set_index(["speakers", "seed"]).sort_index() for side in sides]
    check(one, other, paired)
    print(one["of"].iloc[0])
    shared = set.intersection(*one["told"], *other["told"])
    shared |= {f"valid_speakers {pair}" for pair, _ in {*one.index} & {*other.index}}
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


# ---------------------------------------------------------- adding runs: skip it on a first reading


def row_of_run(folder: str) -> dict:
    """Return the row of a finished run of train.py or ideas.py."""
    run = read_run(folder)
    options, idea = run["options"], ideas.find(run)
    free = FREE | {"epochs"}
    row = run | {"run": Path(folder).resolve().name, "variant": idea, "spikes": None}
    if idea == "base":
        row["variant"] = options["delays"]
        free |= {"delays"}
    if options["no_test"] and run["speakers"]:
        free |= {"valid_speakers", "no_test"}
    else:
        row["speakers"] = ""
    usual = vars(train.parse(["--dataset", options["dataset"]]))
    changed = [name for name in usual if options[name] != usual[name] and name not in free]
    words = [f"--{name} {options[name]}" for name in changed]
    ended = time.gmtime(Path(folder, "result.json").stat().st_mtime)
    row["options"] = " ".join(words).replace("_", "-")
    row["ended"] = time.strftime("%Y-%m-%d %H:%M", ended)
    if run["test_accuracy"] is not None:
        row["spikes"] = round(sum(run["spikes"]), 1)
        if options["dataset"] in ("shd", "shd-regenerated"):
            net_class = ideas.IDEAS[idea].get("net_class", DelaySNN)
            net = train.build(argparse.Namespace(**options), net_class)
            train.load_run(folder, net)
            test = load(options["dataset"], "test", options["data_dir"])
            new = np.isin(test.speakers, [4, 5])  # whom the training set lacks
            row["new_speakers"] = train.evaluate(net, test.select(new))
            row["known_speakers"] = train.evaluate(net, test.select(~new))
        if options["delays"] not in ("fixed", "none"):  # those are whole steps in any case
            row["unrounded"] = run["unrounded_accuracy"]
    row["processor"] = run["device"] if options["device"] == "cuda" else processor()
    return row


def processor() -> str:
    """Return the model of this machine's processor."""
    cpu = Path("/proc/cpuinfo")
    found = dict(re.findall(r"(.*\S)\s*: (.*)", cpu.read_text())) if cpu.exists() else {}
    name = found.get("model name", platform.machine())
    return f"{name}, family {found.get('cpu family')} model {found.get('model')}"


def add(folders: list[str], commit: str | None) -> None:
    """Add all of the runs, or none if one of them has a problem."""
    if not re.fullmatch("[0-9a-f]{7,40}", commit or ""):
        raise UserError(f"--commit {commit}: expected that of the program that trained the runs")
    rows = pandas.read_csv(FOLDER / "runs.csv", dtype=str, keep_default_na=False)
    for folder in folders:
        row = pandas.Series(row_of_run(folder) | {"commit": commit})
        rows.loc[len(rows)] = row.reindex(rows.columns).fillna("").astype(str)
    same = ["data", "variant", "options", "epochs", "speakers", "seed", "processor"]
    twice = rows["run"][rows.duplicated(same)]
    if len(twice):
        rule = "delete the older row if this run replaces it"
        raise UserError(f"runs.csv already has a row like {', '.join(twice)}: {rule}")
    train.write(FOLDER, "runs.csv", rows.to_csv(index=False, lineterminator="\n"))


def main(argv: list[str]) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("command", nargs="?", choices=["compare", "add"], help="without: tables")
    parser.add_argument("runs", nargs="*", help="folders of runs")
    parser.add_argument("--paired", action="store_true", help="compare by speakers or by seed")
    parser.add_argument("--commit", help="for add: hash of the commit that trained the runs")
    # argparse would swallow the -- between two sides.
    options = parser.parse_intermixed_args(["|" if word == "--" else word for word in argv])
    try:
        if options.command == "compare":
            middle = [*options.runs, "|"].index("|")
            compare(options.runs[:middle], options.runs[middle + 1 :], options.paired)
        elif options.command == "add":
            add(options.runs, options.commit)
        else:
            rows = all_rows()
            print(accuracies(rows).to_string(index=False), end="\n\n")
            print(differences(rows)[TOLD].to_string(index=False))
    except (UserError, OSError) as problem:
        sys.exit(f"results.py: {problem}")


if __name__ == "__main__":
    main(sys.argv[1:])
