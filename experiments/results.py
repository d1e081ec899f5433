"""Keep a row per run in runs.csv, print what follows from the rows, and compare runs of your own.

    python -m experiments.results tables tested
    python -m experiments.results add runs/shd-learned-0 --data-dir DIR --commit HASH
    python -m experiments.results compare runs/mine-0 runs/mine-1 runs/mine-2 -- runs/theirs-*

tables   prints the named tables, or all of them, with accuracies in % and differences in points
add      appends finished runs to runs.csv: call it on the machine that trained them
compare  prints how far the first runs are above the others, which need no row in runs.csv
"""

import argparse
import json
import math
import platform
import re
import sys
from pathlib import Path

import pandas
import torch
from scipy import stats

import data
import train
from data import UserError
from delays import DelaySNN
from experiments import ideas

FOLDER = Path(__file__).resolve().parent
SHD, SPEECH = "SHD (regenerated)", "Speech Commands (subset)"
PAIRS = ["1,8", "2,10", "3,6", "0,9", "7,11"]  # speakers of SHD that are held out together


def all_rows() -> pandas.DataFrame:
    """Return the rows of runs.csv, with the side of a comparison that each run can be on."""
    texts = {"options": "", "speakers": "", "commit": ""}
    rows = pandas.read_csv(Path(FOLDER, "runs.csv"), dtype=dict.fromkeys(texts, str)).fillna(texts)
    rows["side"] = (rows["variant"] + " " + rows["options"]).str.strip()
    return rows


# ------------------------------------------------------------------------------------- differences


def over_seeds(accuracies: pandas.Series) -> pandas.Series:
    """Return the mean over the seeds of each pair of held-out speakers.

    If all runs held out the same speakers, or none, each seed stays on its own.
    """
    if accuracies.index.unique("speakers").size < 2:
        return accuracies
    return accuracies.groupby("speakers").mean()


def difference(one: pandas.Series, other: pandas.Series, paired: bool) -> list:
    """Return by how many points one side is above the other, the 95 % interval, p, and a text.

    Returns nan and "-" if a side has fewer than three values.
    one, other: accuracies as fractions, by speakers and seed.
    paired: over the labels of the index, which are equal.  Otherwise the test is Welch's.
    """
    if paired:
        one, other = over_seeds(one), over_seeds(other)
    if min(len(one), len(other)) < 3:
        return [math.nan] * 4 + ["-"]
    one, other = 100 * one, 100 * other
    test = stats.ttest_rel(one, other) if paired else stats.ttest_ind(one, other, equal_var=False)
    points = one.mean() - other.mean()
    low, high = test.confidence_interval(0.95)
    return [points, low, high, test.pvalue, f"{points:+.2f} [{low:+.2f}, {high:+.2f}]"]


def runs_of(rows, name, epochs, side, seeds="0-99", paired="", processor="") -> pandas.DataFrame:
    """Return the runs of a variant and its options, by held-out speakers and seed.

    seeds: the first and the last of them, as in 0-4, or a single one.
    paired: "speakers" returns the runs that held out one of PAIRS.
    processor: of the runs; "" returns those of all.
    """
    first, _, last = seeds.partition("-")
    found = rows[(rows["data"] == name) & (rows["epochs"] == epochs) & (rows["side"] == side)]
    found = found[found["seed"].between(int(first), int(last or first))]
    found = found[found["speakers"].isin(PAIRS if paired == "speakers" else [""])]
    found = found[found["processor"].eq(processor) | (processor == "")]
    return found.set_index(["speakers", "seed"])


def sides_of(rows: pandas.DataFrame, line: pandas.Series) -> list[pandas.Series]:
    """Return the accuracies of both sides of a line of comparisons.csv."""
    found = []
    for side in "one", "other":
        what = ["data", f"{side}_epochs", side, f"{side}_seeds", "paired", "processor"]
        found.append(runs_of(rows, *line[what])[line[f"{side}_value"]])
    return found[0].align(found[1], join="inner") if line["paired"] else found


def holm(p: pandas.Series) -> pandas.Series:
    """Return for each p whether it holds at 0.05 after Holm's correction for all of them."""
    ordered = p.sort_values()
    corrected = ordered * list(range(len(p), 0, -1))
    holds = (corrected <= 0.05).cummin()  # up to the first that does not
    return holds.map({True: "holds", False: "not shown"})


def differences(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Return the lines of comparisons.csv with what follows from them, and verdicts if tested."""
    found = pandas.read_csv(Path(FOLDER, "comparisons.csv"), dtype=str, keep_default_na=False)
    found = found.astype({"one_epochs": int, "other_epochs": int})
    for i, line in found.iterrows():
        one, other = sides_of(rows, line)
        columns = ["points", "low", "high", "p", "difference"]
        found.loc[i, columns] = difference(one, other, paired=line["paired"] != "")
        if line["paired"]:
            one, other = over_seeds(one), over_seeds(other)
        found.loc[i, "n"] = f"{len(one)} and {len(other)}"
    verdicts = holm(found["p"][found["written_before"] != ""])
    found["verdict"] = verdicts.reindex(found.index, fill_value="")
    return found


# ------------------------------------------------------------------------------------------ tables

SAME = ["data", "epochs", "variant", "options"]  # for all runs of a line
MEASURED = ["accuracy", "unrounded", "best_on_test", "new_speakers", "known_speakers"]
HEADS = ["variant", "parameters", "epochs", "accuracy", "unrounded", "best_on_test", "n"]
TOY_HEADS = ["variant", "parameters", "accuracy", "unrounded", "n"]
LAST = "speakers == '' and rule == 'last epoch' and"
TOY = f"{LAST} data == 'toy' and"
SPARSE = "options.str.contains('--connections')"
# Of each table, its runs and its columns.  Lines have one processor if that is a column.
TABLES = {
    "shd": (f"{LAST} data == @SHD and epochs == 150 and not {SPARSE}", HEADS),
    "shd, fewer epochs": (f"{LAST} data == @SHD and epochs < 150 and not {SPARSE}", HEADS),
    "ten inputs": (f"{LAST} data == @SHD and {SPARSE}", HEADS),
    "toy": (f"{TOY} processor == 'Intel Xeon'", TOY_HEADS),
    "toy, other processors": (f"{TOY} processor != 'Intel Xeon'", ["processor", *TOY_HEADS]),
    "validation": ("data == @SHD and rule != 'last epoch'", HEADS),
    "speech": ("data == @SPEECH", HEADS),
    "speakers": ("new_speakers >= 0", ["variant", "epochs", "new_speakers", "known_speakers", "n"]),
    "held-out": ("speakers in @PAIRS and epochs == 30", ["variant", *PAIRS, "mean", "n"]),
    "recipe": ("speakers in @PAIRS and epochs == 40", ["variant", *PAIRS, "mean", "n"]),
    "other data": ("data not in ['toy', @SHD, @SPEECH]", ["data", *HEADS]),
}


def spread(shares: pandas.Series) -> str:
    """Return mean ± sample standard deviation, or the values if there are fewer than three."""
    values = 100 * shares.dropna()
    if len(values) < 3:
        return ", ".join(f"{value:.2f}" for value in values) or "-"
    return f"{values.mean():.2f} ± {values.std():.2f}"


def table(rows: pandas.DataFrame, columns: list[str]) -> pandas.DataFrame:
    """Return these columns, with a line for all runs that differ only in seed or speakers."""
    lines = []
    rows = rows.sort_values("epochs", ascending=False, kind="stable")
    for _, runs in rows.groupby([*SAME, *{"processor"}.intersection(columns)], sort=False):
        line = runs.iloc[0].to_dict()
        line["variant"] = ", ".join(filter(None, [line["variant"], line["options"]]))
        line["parameters"] = f"{line['parameters']:,.0f}".replace("nan", "-")
        line |= {column: spread(runs[column]) for column in MEASURED}
        line |= {pair: spread(own["accuracy"]) for pair, own in runs.groupby("speakers")}
        mean = runs.groupby("speakers")["accuracy"].mean().mean()
        line |= {"mean": f"{100 * mean:.2f}", "n": len(runs)}
        lines.append(line)
    return pandas.DataFrame(lines, columns=columns)


def all_tables() -> dict[str, str]:
    """Return every table by its name, in Markdown."""
    rows = all_rows()
    found = differences(rows)
    found["data, epochs"] = found["data"] + ", " + found["one_epochs"].astype(str)
    found["p"] = found["p"].map("{:.2g}".format)
    tables = {name: table(rows.query(query), heads) for name, (query, heads) in TABLES.items()}
    for name, epochs in ("held-out", 30), ("recipe", 40):
        paired = (found["paired"] == "speakers") & (found["one_epochs"] == epochs)
        for _, line in found[paired].iterrows():  # pair by pair
            one, other = sides_of(rows, line)
            points = 100 * (over_seeds(one) - over_seeds(other)).reindex(PAIRS)
            texts = [f"{value:+.2f}".replace("+nan", "-") for value in [*points, points.mean()]]
            tables[name].loc[len(tables[name])] = [line["name"], *texts, points.count()]
    heads = ["name", "data, epochs", "difference", "n"]
    tables["differences"] = found[heads]
    tested = found[found["written_before"] != ""]
    tables["tested"] = tested[[*heads, "p", "written_before", "verdict"]]
    for name, frame in tables.items():
        heads = [head.replace("_", " ") for head in frame.columns]
        lines = [heads, ["---"] * len(heads), *frame.astype(object).fillna("-").to_numpy()]
        tables[name] = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    return tables


# --------------------------------------------------------------------------------- runs of your own

# By the first digits of the training file's md5, packed or not: the published files, and ours.
DATA_NAMES = {"8e9877c8": "SHD", "d47c9825": "SHD", "d102be95": "SSC"}
DATA_NAMES |= {"db7189fb": SHD, "210a81f5": SHD, "63f094f4": SPEECH}
SEAMS = ["network", "loss", "augment", "before_epoch"]  # what checkpoints hold by name
FREE = ["seed", "data_dir", "device", "out", "resume", "eval"]  # options of no variant


def read_run(folder: str) -> tuple[dict, dict, str]:
    """Return the config and the result of a finished run, and the name of its data."""
    try:
        config = json.loads(Path(folder, "config.json").read_text())
        result = json.loads(Path(folder, "result.json").read_text())
    except OSError as problem:
        raise UserError(f"{folder} is not the folder of a finished run: {problem}") from problem
    name = result["dataset"]
    md5 = [digest[:8] for digest in config["md5"].values()]
    if md5:  # of the files of SHD or SSC
        name = DATA_NAMES.get(md5[0], f"{name} (files {' '.join(md5)})")
    return config, result, name


def side_of(folders: list[str]) -> pandas.DataFrame:
    """Return what a comparison needs of runs of train.py or a fork, by speakers and seed."""
    lines = []
    for folder in folders:
        config, result, name = read_run(folder)
        split = "valid" if result["test_accuracy"] is None else "test"
        # An option newer than the run has its default.
        options = vars(train.make_parser().parse_args([])) | config["options"]
        line = {"run": folder, "place": Path(folder).resolve(), "seed": result["seed"]}
        line |= {"speakers": options["valid_speakers"], "accuracy": result[f"{split}_accuracy"]}
        line["of"] = f"{name}, {split} accuracy, {result['rule'].partition(', epoch')[0]}"
        options |= {part: config[part] for part in SEAMS if part in config}
        line["options"] = {f"{key} {options[key]}" for key in options.keys() - set(FREE)}
        lines.append(line)
    return pandas.DataFrame(lines).set_index(["speakers", "seed"]).sort_index()


def check(one: pandas.DataFrame, other: pandas.DataFrame, paired: bool) -> None:
    """Raise a UserError if two sides cannot be compared."""
    runs = pandas.concat([one, other])
    kinds = runs.drop_duplicates("of")
    if len(kinds) > 1:
        found = "; ".join(f"{run.run} has {run.of}" for run in kinds.itertuples())
        raise UserError(f"{found}: both sides need the same data, files and rule")
    twice = runs["run"][runs["place"].duplicated()]
    if len(twice):
        raise UserError(f"{', '.join(twice)} is given twice: leave one out")
    for side in one, other:
        same = side["run"][side.index.duplicated(keep=False)]
        if len(same):
            raise UserError(f"{', '.join(same)} are of one seed: a side counts a seed once")
    alone = runs["run"][runs.index.isin(one.index.symmetric_difference(other.index))]
    if paired and len(alone):
        raise UserError(f"--paired: the other side has no run of the seed of {', '.join(alone)}")


def compare(folders: list[str], others: list[str], paired: bool) -> None:
    """Print how far the first runs are above the others, by Welch's test or paired.

    Runs are paired by seed, or by held-out speakers: then each pair is the mean over its seeds.
    """
    if not folders or not others:
        raise UserError("expected runs before and after a --, as in: compare RUN ... -- RUN ...")
    one, other = side_of(folders), side_of(others)
    check(one, other, paired)
    print(one["of"].iloc[0])
    for name, side, against in ("first", one, other), ("others", other, one):
        print(f"{name:<11} {spread(side['accuracy'])} % (n = {len(side)})")
        words = sorted(set.union(*side["options"]) - set.union(*against["options"]))
        print(f"{'':<11} {', '.join(words) or 'no option differs'}")
    if min(len(one), len(other)) >= 3:
        *_, text = difference(one["accuracy"], other["accuracy"], paired)
        print(f"difference  {text} points, 95 % interval ({'paired' if paired else 'Welch'})")


# ---------------------------------------------------------- adding runs: skip it on a first reading


def network_of(folder: str) -> tuple[DelaySNN, argparse.Namespace, str | None]:
    """Return the network of a run, its options, and the idea of ideas.py that it was, if any."""
    saved = torch.load(Path(folder, "net.pt"), map_location="cpu", weights_only=True)
    usual = dict(net_class=DelaySNN, loss=train.cross_entropy, augment=None, before_epoch=None)
    for idea, seams in ideas.IDEAS.items():
        parts = usual | seams
        names = {"network": parts["net_class"].__name__}
        names |= {part: train.name_of(parts[part]) for part in SEAMS[1:]}
        if names.items() <= (names | saved).items():  # older checkpoints name no hook
            options = argparse.Namespace(**train.read_options(folder))
            net, _ = train.load_run(folder, train.build(options, parts["net_class"]))
            return net, options, None if idea == "base" else idea
    raise UserError(f"{folder} has a network that is not in ideas.py: add it to IDEAS there")


def changed_options(options: argparse.Namespace, idea: str | None) -> str:
    """Return the options of a run that are not the defaults and have no column, as words."""
    usual = vars(train.parse(["--dataset", options.dataset]))
    others = ["epochs", *FREE] if idea else ["delays", "epochs", *FREE]
    if options.valid_speakers and options.no_test:
        others += ["valid_speakers", "no_test"]
    words = [
        f"--{name.replace('_', '-')} {value}"
        for name, value in vars(options).items()
        if name not in others and value != usual[name]
    ]
    return " ".join(words).replace("--no-test True", "--no-test")


def row_of_run(folder: str, data_dir: str | None, commit: str) -> dict:
    """Return the row of a finished run of train.py or ideas.py.

    data_dir: the folder of the data files; None: where the run had them.
    commit: of the program that trained.
    """
    config, result, name = read_run(folder)
    net, options, idea = network_of(folder)
    log = pandas.read_csv(Path(folder, "log.csv"), dtype=str).iloc[-1]
    row = config | result | {"run": Path(folder).resolve().name, "data": name}
    row["commit"] = commit
    row |= {"variant": idea or result["delays"], "options": changed_options(options, idea)}
    row |= {"train_accuracy": log["train_accuracy"], "best_on_valid": result["valid_accuracy"]}
    if options.no_test:  # for choosing, which compares last epochs
        row |= {"accuracy": log["valid_accuracy"], "rule": "last epoch", "spikes": None}
        row["speakers"] = options.valid_speakers
    else:
        test = data.load(options.dataset, "test", data_dir or options.data_dir)
        spikes = result.get("spikes") or train.hidden_spikes(net, test)  # older runs lack them
        row |= {"accuracy": result["test_accuracy"], "spikes": round(sum(spikes), 1)}
        if result["delays"] not in ("fixed", "none"):  # those are whole steps in any case
            row["unrounded"] = result["unrounded_accuracy"]
        if options.dataset == "shd":
            right = pandas.Series(train.predict(net, test).argmax(1) == test.labels)
            new = pandas.Series(test.speakers).isin([4, 5])  # who are in the test set alone
            row |= {"new_speakers": right[new].mean(), "known_speakers": right[~new].mean()}
    ended = pandas.Timestamp(Path(folder, "result.json").stat().st_mtime, unit="s")  # in UTC
    row["ended"] = ended.strftime("%Y-%m-%d %H:%M")
    row["processor"] = config["device"] if config["options"]["device"] == "cuda" else processor()
    return row


def processor() -> str:
    """Return the full model of this machine's processor."""
    cpu = Path("/proc/cpuinfo")
    found = dict(re.findall(r"(.*\S)\s*: (.*)", cpu.read_text())) if cpu.exists() else {}
    if "model name" not in found:
        return platform.processor() or platform.machine()
    return f"{found['model name']}, family {found['cpu family']} model {found['model']}"


def add(folders: list[str], data_dir: str | None, commit: str | None) -> None:
    """Add all of the runs, or none if one of them has a problem."""
    if not re.fullmatch("[0-9a-f]{7,40}", commit or ""):
        raise UserError(f"--commit {commit}: expected that of the program that trained the runs")
    rows = pandas.read_csv(Path(FOLDER, "runs.csv"), dtype=str, keep_default_na=False)
    same = [*SAME, "speakers", "seed", "processor"]
    for folder in folders:
        row = pandas.Series(row_of_run(folder, data_dir, commit))
        row = row.reindex(rows.columns).fillna("").astype(str)
        there = rows["run"][(rows[same] == row[same]).all(axis=1)]
        if len(there):
            rule = "delete that row first if this run replaces it"
            raise UserError(f"runs.csv already has {folder}, as {there.iloc[0]}: {rule}")
        rows.loc[len(rows)] = row
    train.write(FOLDER, "runs.csv", rows.to_csv(index=False, lineterminator="\n"))


def main(argv: list[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("command", choices=["tables", "add", "compare"])
    parser.add_argument("names", nargs="*", help="of tables, or of the folders of runs")
    parser.add_argument("--data-dir", help="for add: folder of the data files, if they were moved")
    parser.add_argument("--commit", help="for add: hash of the commit that trained the runs")
    parser.add_argument(
        "--paired", action="store_true", help="for compare: by speakers, or by seed"
    )
    words = sys.argv[1:] if argv is None else argv
    # argparse would swallow the -- between two sides.
    options = parser.parse_intermixed_args(["|" if word == "--" else word for word in words])
    names = options.names
    try:
        if options.command == "add":
            add(names, options.data_dir, options.commit)
        elif options.command == "compare":
            middle = [*names, "|"].index("|")
            compare(names[:middle], names[middle + 1 :], options.paired)
        else:
            tables = all_tables()
            for name in names or tables:
                if name not in tables:
                    raise UserError(f"no table is called {name!r}, but {', '.join(tables)}")
                print(f"{name}:\n\n{tables[name]}\n")
    except (UserError, OSError) as problem:
        sys.exit(f"results.py: {problem}")


if __name__ == "__main__":
    main()
