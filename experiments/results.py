"""Print what follows from runs.csv, compare runs of your own, and add runs to runs.csv.

    python -m experiments.results
    python -m experiments.results compare runs/mine-0 runs/mine-1 runs/mine-2 -- runs/theirs-*
    python -m experiments.results add runs/shd-learned-0 --commit HASH

The first prints two wide tables: every accuracy that follows from runs.csv, in %, and every
difference that comparisons.csv names, in points.  The second prints how far the first runs are
above the others, which need no row in runs.csv.  Call the third on the machine that trained.
"""

import argparse
import json
import math
import os
import platform
import re
import sys
from pathlib import Path

import pandas
from scipy import stats

import train
from data import UserError
from experiments import ideas

FOLDER = Path(__file__).resolve().parent
SHD, SPEECH = "SHD (regenerated)", "Speech Commands (subset)"
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
    # Two processors ran some seeds of the toy task, which may not count twice.
    rows["processor"] = rows["processor"].where(rows["data"] == "toy", "")
    same = ["data", "side", "epochs", "rule", "speakers", "processor"]
    values = ["accuracy", "unrounded", "best_on_test", "new_speakers", "known_speakers"]
    return rows.groupby(same)[values].agg(spread).reset_index()


# ------------------------------------------------------------------------------------- differences


def over_seeds(accuracies: pandas.Series) -> pandas.Series:
    """Return the mean over the seeds of each pair of held-out speakers.

    If all runs held out the same speakers, or none, each seed stays on its own.
    """
    if accuracies.index.unique("speakers").size < 2:
        return accuracies
    return accuracies.groupby("speakers").mean()


def each_gain(one: pandas.Series, other: pandas.Series) -> pandas.Series:
    """Return the points by which one side is above the other, by pair of speakers or by seed."""
    gains = 100 * (over_seeds(one) - over_seeds(other))
    kind = gains.index.names[-1]
    return gains.set_axis([f"{kind} {name}" for name in gains.index.get_level_values(kind)])


def difference(one: pandas.Series, other: pandas.Series, paired: bool) -> dict:
    """Return n, the points by which one side is above the other, the 95 % interval, p, and a text.

    one, other: accuracies as fractions, by speakers and seed.  Fewer than three have no interval.
    paired: over the labels of the index, which are equal.  Otherwise the test is Welch's.
    """
    if paired:
        one, other = over_seeds(one), over_seeds(other)
    n = f"{len(one)} pairs" if paired else f"{len(one)} and {len(other)}"
    one, other = 100 * one, 100 * other
    points = one.mean() - other.mean()
    if min(len(one), len(other)) < 3:
        return dict(n=n, points=points, p=math.nan, difference=f"{points:+.2f}")
    test = stats.ttest_rel(one, other) if paired else stats.ttest_ind(one, other, equal_var=False)
    low, high = test.confidence_interval(0.95)
    text = f"{points:+.2f} [{low:+.2f}, {high:+.2f}]"
    return dict(n=n, points=points, low=low, high=high, p=test.pvalue, difference=text)


def sides_of(rows: pandas.DataFrame, line: dict) -> list[pandas.Series]:
    """Return the accuracies of both sides of a line of comparisons.csv, by speakers and seed."""
    speakers = PAIRS if line["paired"] == "speakers" else [""]
    rows = rows[rows["speakers"].isin(speakers) & (rows["data"] == line["data"])]
    rows = rows[(rows["processor"] == line["processor"]) | (line["processor"] == "")]
    found = []
    for side in "one", "other":
        first, _, last = line[f"{side}_seeds"].partition("-")  # as in 0-4, or only one
        own = rows[rows["seed"].between(int(first), int(last or first))]
        own = own[(own["side"] == line[side]) & (own["epochs"] == int(line[f"{side}_epochs"]))]
        found.append(own.set_index(["speakers", "seed"])[line[f"{side}_value"]].sort_index())
    return found[0].align(found[1], join="inner") if line["paired"] else found


def holm(p: pandas.Series) -> pandas.Series:
    """Return for each p whether it is significant at 5 %, after Holm's correction for all."""
    ordered = p.sort_values()
    corrected = ordered * list(range(len(p), 0, -1))
    return (corrected <= 0.05).cummin()  # up to the first that is not


def differences(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Return the lines of comparisons.csv with what follows from them, and verdicts if tested."""
    csv = pandas.read_csv(FOLDER / "comparisons.csv", dtype=str, keep_default_na=False)
    lines = csv.to_dict("records")
    for line in lines:
        one, other = map(over_seeds, sides_of(rows, line))
        line |= difference(one, other, line["paired"] != "")
        line |= {"one side": spread(one), "other side": spread(other), "each": ""}
        line["epochs"] = " and ".join(dict.fromkeys([line["one_epochs"], line["other_epochs"]]))
        if one.index.equals(other.index):
            gains = [f"{name} {gain:+.2f}" for name, gain in each_gain(one, other).items()]
            line["each"] = "; ".join(gains) if len(gains) <= 5 else ""
    found = pandas.DataFrame(lines)
    significant = holm(found["p"][found["written_before"] != ""].dropna())
    found["verdict"] = significant.map({True: "yes", False: "not significant"})
    return found.fillna({"verdict": ""})


def print_tables() -> None:
    """Print all accuracies and differences, and how many of the tested ones are significant."""
    rows = all_rows()
    print(accuracies(rows).to_string(index=False), end="\n\n")
    found = differences(rows)
    tested = found["verdict"][found["verdict"] != ""]
    print(f"{len(tested)} differences are tested, {(tested == 'yes').sum()} of them significant")
    print("(at 5 %, after Holm's correction for all of them):\n")
    found["p"] = found["p"].map("{:.2g}".format)
    heads = ["name", "data", "epochs", "n", "one side", "other side", "difference", "p"]
    print(found[[*heads, "written_before", "verdict", "each"]].to_string(index=False))


# --------------------------------------------------------------------------------- runs of your own

# By the first digits of the training file's md5, packed or not: the published files, and ours.
DATA_NAMES = {"8e9877c8": "SHD", "d47c9825": "SHD", "d102be95": "SSC"}
DATA_NAMES |= {"db7189fb": SHD, "210a81f5": SHD, "63f094f4": SPEECH}
FREE = {"seed", "data_dir", "device", "out", "resume", "eval"}  # options of no variant


def read_run(folder: str) -> dict:
    """Return what the files of a finished run of train.py or a fork hold, and what is compared.

    Runs that held out samples and did not read test are for choosing: their last epoch counts.
    """
    try:
        run = json.loads(Path(folder, "config.json").read_text())
        run |= json.loads(Path(folder, "result.json").read_text())
        log = pandas.read_csv(Path(folder, "log.csv"))
    except OSError as problem:
        raise UserError(f"{folder} is not the folder of a finished run: {problem}") from problem
    # An option newer than the run has its default.
    options = vars(train.make_parser().parse_args([])) | run["options"]
    split = "valid" if run["test_accuracy"] is None else "test"
    run |= {"run": folder, "options": options, "speakers": options["valid_speakers"]}
    run |= {"accuracy": run[f"{split}_accuracy"], "train_accuracy": log["train_accuracy"].iloc[-1]}
    if split == "valid" and (options["valid_speakers"] or options["valid_share"]):
        run |= {"accuracy": log["valid_accuracy"].iloc[-1], "rule": "last epoch"}
    md5 = [digest[:8] for digest in run["md5"].values()]  # of the files of SHD or SSC
    unknown = f"{run['dataset']} (files {' '.join(md5)})"
    run["data"] = DATA_NAMES.get(md5[0], unknown) if md5 else run["dataset"]
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
    """Print how far the first runs are above the others, by Welch's test or paired."""
    if not folders or not others:
        raise UserError("expected runs before and after a --, as in: compare RUN ... -- RUN ...")
    sides = [pandas.DataFrame(map(read_run, side)) for side in (folders, others)]
    one, other = [side.set_index(["speakers", "seed"]).sort_index() for side in sides]
    check(one, other, paired)
    print(one["of"].iloc[0])
    for name, side, against in ("first", one, other), ("others", other, one):
        print(f"{name:<14}{spread(side['accuracy'])}")
        words = sorted(set.union(*side["told"]) - set.union(*against["told"]))
        print(f"{'':<14}{', '.join(words) or 'no option differs'}")
    if paired:  # by seed, or by held-out speakers: then by the means over seeds
        gains = each_gain(one["accuracy"], other["accuracy"])
        for name, gain in gains.items():
            print(f"{name:<14}{gain:+.2f}")
        print(f"{'first wins':<14}{(gains > 0).sum()} of {len(gains)}")
    found = difference(one["accuracy"], other["accuracy"], paired)
    limits = "no interval below three" if math.isnan(found["p"]) else "95 % interval"
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
    row |= {"options": " ".join(words).replace("_", "-"), "best_on_valid": run["valid_accuracy"]}
    if run["test_accuracy"] is not None:
        row["spikes"] = round(sum(run["spikes"]), 1)
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


def main(argv: list[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    add_argument = parser.add_argument
    add_argument("command", nargs="?", choices=["compare", "add"], help="without: the tables")
    add_argument("runs", nargs="*", help="folders of runs")
    add_argument("--paired", action="store_true", help="for compare: by held-out speakers or seed")
    add_argument("--commit", help="for add: hash of the commit that trained the runs")
    words = sys.argv[1:] if argv is None else argv
    # argparse would swallow the -- between two sides.
    options = parser.parse_intermixed_args(["|" if word == "--" else word for word in words])
    try:
        if options.command == "compare":
            middle = [*options.runs, "|"].index("|")
            compare(options.runs[:middle], options.runs[middle + 1 :], options.paired)
        elif options.command == "add":
            add(options.runs, options.commit)
        else:
            print_tables()
    except (UserError, OSError) as problem:
        sys.exit(f"results.py: {problem}")


if __name__ == "__main__":
    main()
