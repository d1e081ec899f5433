"""Trains variants and seeds, keeps a row a run in runs.csv, and prints the tables of results.

    python -m experiments.results train --dataset toy --variants learned,fixed,none --seeds 0,1,2
    python -m experiments.results add runs/toy-20-learned-0 --epochs
    python -m experiments.results add authors-0.txt --seed 0 --threads 1 --data-dir DIR
    python -m experiments.results tables
    python -m experiments.results speakers runs/shd-30-learned-0

`train` hands further options on to train.py; a finished run stays, one that was stopped goes on.
`add` takes folders of train.py, and the printed text of a program with the authors' libraries.

runs.csv has fractions, the tables %: mean ± sample standard deviation over seeds, or, of fewer than
three, the values themselves.  Brackets are 95 % intervals.  A difference to learned delays is over
the seeds that both have, on the same data, with as many epochs, the same padding and --connections.
"""

import argparse
import bisect
import csv
import io
import itertools
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from statistics import mean, stdev, variance

import numpy as np

import data
import train
from data import UserError

# -------------------------------------------------------------------------------------- statistics


def t_quantile(degrees: float) -> float:
    """The t for which Student's distribution has 95 % of its mass within -t..t.

    With t = sqrt(degrees) tan(angle), the density of the angle is cos(angle)^(degrees - 1).
    """
    edges = np.linspace(0, math.pi / 2, 100_001)
    density = np.cos((edges[:-1] + edges[1:]) / 2) ** (degrees - 1)
    mass = np.append(0, density.cumsum()) / density.sum()  # between 0 and each edge
    return math.sqrt(degrees) * math.tan(np.interp(0.95, mass, edges))


def difference(rows: list[dict], base: list[dict]) -> str:
    """By how many points the accuracies of rows are above those of the base, with the interval.

    Behind it stands in how many of the seeds they are higher.

    They are paired by seed, but for the authors' network, whose seeds draw other numbers: there it
    is the difference of the means, with Welch's interval.
    """
    ones = {row["seed"]: 100 * float(row["accuracy"]) for row in rows}
    others = {row["seed"]: 100 * float(row["accuracy"]) for row in base}
    if "authors" in {row["variant"] for row in rows + base}:
        if min(len(ones), len(others)) < 3:
            return "-"
        middle = mean(ones.values()) - mean(others.values())
        one, other = variance(ones.values()) / len(ones), variance(others.values()) / len(others)
        error = math.sqrt(one + other)
        degrees = error**4 / (one**2 / (len(ones) - 1) + other**2 / (len(others) - 1))
        note = ""
    else:
        points = [ones[seed] - others[seed] for seed in ones if seed in others]
        if len(points) < 3:
            return ", ".join(f"{value:+.2f}" for value in points) or "-"
        middle, error = mean(points), stdev(points) / math.sqrt(len(points))
        degrees = len(points) - 1
        note = f" ({sum(value > 0 for value in points)}/{len(points)})"
    half = t_quantile(degrees) * error
    return f"{middle:+.2f} [{middle - half:+.2f}, {middle + half:+.2f}]{note}"


def spread(rows: list[dict], column: str) -> str:
    values = [100 * float(row[column]) for row in rows if row.get(column)]
    if len(values) < 3:
        return ", ".join(f"{value:.2f}" for value in values) or "-"
    return f"{mean(values):.2f} ± {stdev(values):.2f}"


def pooled(rows: list[dict]) -> str:
    """The accuracy over the held-out samples of all rows."""
    right = sum(float(row["accuracy"]) * int(row["valid_samples"]) for row in rows)
    return f"{100 * right / sum(int(row['valid_samples']) for row in rows):.2f}"


# ------------------------------------------------------------------------------------------ tables


# What runs that differ in the seed alone have in common.
COMMON = ("data", "epochs", "padding", "variant", "connections", "options", "change")
LEARNED = {"variant": "learned", "options": "", "change": ""}
PAIRS = ("1,8", "2,10", "3,6", "0,9", "7,11")  # speakers of SHD that are held out together


def table(rows: list[dict], columns: dict, base=LEARNED, to="learned") -> str:
    """A Markdown table with a line for all runs that differ in the seed alone.

    columns: shares to show, or functions of a line's runs, by their headings.  base: what is
    different in the runs that those of a line are compared with.  to: these in a word.
    """
    groups = {}  # variants come in the order of runs.csv
    for row in sorted(rows, key=lambda row: (row["data"], -int(row["epochs"]), row["padding"])):
        groups.setdefault(tuple(row[column] for column in COMMON), []).append(row)
    heads = ["data", "epochs", "padding", "variant", "parameters", *columns]
    heads += [f"difference to {to}", "n", "machine/threads"]
    lines = [heads, ["---"] * len(heads)]
    for group, found in groups.items():
        beside = found[0] | base
        others = groups.get(tuple(beside[column] for column in COMMON), [])
        parameters = found[0]["parameters"]
        machines = {f"{row['device']}/{row['threads']}" for row in found}
        cells = [*group[:3], ", ".join(filter(None, group[3:]))]
        cells.append(f"{int(parameters):,}" if parameters else "-")
        for column in columns.values():
            cells.append(column(found) if callable(column) else spread(found, column))
        cells.append("-" if found is others else difference(found, others))
        lines.append([*cells, str(len(found)), "; ".join(sorted(machines))])
    # Empty columns go, and what all lines have in common, which the text around the table says.
    shown = []
    for head, _, *cells in zip(*lines, strict=True):
        may_go = head in ("data", "epochs", "padding", "machine/threads") or "-" in cells
        shown.append(not may_go or len(set(cells)) > 1)
    lines = [itertools.compress(cells, shown) for cells in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def take_out(row: dict, column: str, pattern: str) -> None:
    """Moves the options that match the pattern to a column of their own."""
    row[column] = " ".join(re.findall(pattern, row["options"]))
    row["options"] = " ".join(re.sub(pattern, "", row["options"]).split())


def all_rows() -> tuple[list[dict], list[dict]]:
    """The rows of runs.csv that test judges, and those that validation does."""
    tested, validated = [], []
    for row in read(FOLDER, "runs.csv"):
        take_out(row, "connections", r"--connections \S+")
        if row["result_test"]:
            row["accuracy"] = row["result_test"]
            tested.append(row)
        else:
            row["accuracy"] = row["valid_accuracy"]
            take_out(row, "speakers", r"--valid-speakers \S+|--no-test")
            row["seed"] += row["speakers"]  # pairs are of the same held-out speakers as well
            row[row["speakers"].split()[1]] = row["accuracy"]  # in the column of the pair
            validated.append(row)
    return tested, validated


def all_tables() -> dict[str, str]:
    """Every table by its name, from runs.csv; "course" from epochs.csv too."""
    curves = {}
    for entry in read(FOLDER, "epochs.csv"):
        curves.setdefault(entry["run"], {})[entry["epoch"]] = entry["test_accuracy"]
    tested, validated = all_rows()
    plain = [row for row in tested if row["connections"] + row["options"] + row["change"] == ""]
    first = [row for row in plain if row["variant"] in ("learned", "fixed", "none", "authors")]
    tables = {"headline": table(first, {"test accuracy": "accuracy"})}
    best = {"best on test": "best_on_test"}
    for name in sorted({row["data"] for row in tested}):
        here = [row for row in tested if row["data"] == name]
        rule = here[0]["rule"].split(",")[0]  # "last epoch" or "best on validation"
        beside = {} if name == "toy" else best  # that is for comparison with papers
        tables[name] = table(here, {rule: "accuracy"} | beside | {"unrounded": "unrounded"})
    shown = {pair: pair for pair in PAIRS} | {"pooled": pooled, "training": "train_accuracy"}
    paper = {"options": "", "change": ""}
    tables["validation"] = table(validated, shown, paper, "the paper's options")

    theirs = {(row["data"], row["epochs"]) for row in plain if row["variant"] == "authors"}
    both = [row for row in first if row["variant"] in ("learned", "authors")]
    both = [row for row in both if (row["data"], row["epochs"]) in theirs]
    authors = {"variant": "authors", "padding": "yes"}
    tables["authors"] = table(both, {"last epoch": "accuracy"} | best, authors, "the authors'")
    ways = {}
    for row in plain:
        ways.setdefault((row["data"], row["epochs"], row["variant"]), set()).add(row["padding"])
    twice = [row for row in plain if len(ways[row["data"], row["epochs"], row["variant"]]) == 2]
    shown = {"last epoch": "accuracy", "training": "train_accuracy"}
    tables["padding"] = table(twice, shown, {"padding": "yes"}, "padded")
    shifted = [row for row in tested if "--shift" in row["options"]]
    at = {(row["data"], row["epochs"], row["padding"]) for row in shifted}
    beside = [row for row in plain if (row["data"], row["epochs"], row["padding"]) in at]
    beside = [row | {f"seed {row['seed']}": row["accuracy"]} for row in beside + shifted]
    shown = {f"seed {seed}": f"seed {seed}" for seed in range(5)} | {"last epoch": "accuracy"}
    tables["shift"] = table(beside, shown | best, {"variant": "learned"}, "learned, same options")
    watched = [row | curves[row["run"]] for row in tested if row["run"] in curves]
    shown = {f"after epoch {epoch}": epoch for epoch in ("1", "5", "10")}
    tables["course"] = table(watched, shown | {"the last": "accuracy"})
    return tables


# ------------------------------------------------------------------------------- variants and rows


def widened(options: argparse.Namespace) -> int:
    """The hidden size with the parameters nearest to learned delays'; of two, the larger one."""

    def parameters(hidden, delays=options.delays):
        changed = vars(options) | {"hidden": hidden, "delays": delays}
        return train.count_parameters(train.build(argparse.Namespace(**changed)))

    wanted = parameters(options.hidden, "learned")
    sizes = range(10 * options.hidden + 100)
    size = bisect.bisect_left(sizes, wanted, lo=options.hidden, key=parameters)  # enough, at least
    return min(size, size - 1, key=lambda hidden: abs(parameters(hidden) - wanted))


def variant_and_words(options: argparse.Namespace) -> tuple[str, str]:
    """The variant of a run, and its other options that are not the defaults, as command line."""
    variant = options.delays
    usual = vars(train.parse(["--dataset", options.dataset]))
    if variant in ("fixed", "none") and options.hidden != usual["hidden"]:
        narrow = vars(options) | {"hidden": usual["hidden"]}
        if options.hidden == widened(argparse.Namespace(**narrow)):
            usual["hidden"] = options.hidden
            variant += "-wide"
    free = ["dataset", "delays", "epochs", "seed", "data_dir", "device", "out", "resume", "eval"]
    words = []
    for name, value in vars(options).items():
        if name not in free and value != usual[name]:
            words.append("--" + name.replace("_", "-"))
            if value is not True:
                words.append(str(value))
    return variant, " ".join(words)


def row_of_run(folder: str) -> tuple[dict, list[dict]]:
    """The row of a finished run of train.py, and its log."""
    path = os.path.join(folder, "config.json")
    if not os.path.exists(os.path.join(folder, "result.json")):
        rule = f"finish it with python train.py --resume {folder}"
        raise UserError(f"{folder} has no result.json, which a finished run has: {rule}")
    with open(os.path.join(folder, "result.json")) as file:
        result = json.load(file)
    with open(path) as file:
        config = json.load(file)
    # The last commit of this checkout before the run, which writes its config.json once, first.
    begun = f"--before=@{os.path.getmtime(path):.0f}"
    command = ["git", "-C", FOLDER, "log", "-1", "--format=%h", begun]

    log = read(folder, "log.csv")
    row = config | result | {"md5": list(config["md5"].values())}
    row |= {key: log[-1][key] for key in ("train_accuracy", "valid_accuracy", "test_accuracy")}
    row["variant"], row["options"] = variant_and_words(argparse.Namespace(**config["options"]))
    row["version"] = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    row["ended"] = time_of(os.path.join(folder, "result.json"))
    row["valid_samples"] = config["samples"].get("valid")
    row["test_samples"] = config["samples"].get("test")
    row["result_test"] = result["test_accuracy"]
    row["result_valid"] = result["valid_accuracy"]
    if config["options"]["delays"] not in ("fixed", "none"):  # those are whole steps in any case
        row["unrounded"] = result["unrounded_accuracy"]
    return row, log


def time_of(path: str) -> str:
    """When a file was last written, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(os.path.getmtime(path)))


def row_of_text(path: str, arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    """As row_of_run, from what the program with the authors' libraries printed on SHD."""
    with open(path) as file:
        text = file.read()
    end = re.search(r'^\{"last".*', text, re.MULTILINE)
    if end is None:
        raise UserError(f"{path} does not end with a line of JSON: wait until its run is finished")
    files = [data.find("shd", split, arguments.data_dir) for split in ("train", "test")]
    if None in [arguments.seed, arguments.threads, *files]:
        rule = "name them with --seed, --threads and --data-dir, the folder of its SHD files"
        raise UserError(f"{path} says neither seed, threads nor data: {rule}")
    log = []
    line = r"epoch (\d+)/\d+ loss (\S+) train (\S+)% test (\S+)% (\S+) s"
    for epoch, loss, train_percent, test_percent, seconds in re.findall(line, text):
        log.append({"epoch": epoch, "loss": loss, "seconds": seconds})
        log[-1]["train_accuracy"] = round(float(train_percent) / 100, 6)
        log[-1]["test_accuracy"] = round(float(test_percent) / 100, 6)
    result = json.loads(end[0])
    row = log[-1] | {"dataset": "shd", "variant": "authors", "epochs": len(log)}
    row["ended"] = time_of(path)
    row |= {"rule": "last epoch", "md5": [data.md5(file) for file in files]}
    row |= {"device": platform.machine(), "threads": arguments.threads, "seed": arguments.seed}
    row |= {"test_accuracy": result["last"], "result_test": result["last"]}
    return row | {"best_on_test": result["best_test"], "seconds": result["seconds"]}, log


# ------------------------------------------------ files and commands: skip this on a first reading

FOLDER = os.path.dirname(os.path.abspath(__file__))  # of the two files
COLUMNS = {
    "runs.csv": "run data md5 variant epochs seed options padding change version device threads "
    "torch parameters valid_samples test_samples train_accuracy valid_accuracy test_accuracy "
    "result_test rule result_valid best_on_test unrounded seconds ended",
    "epochs.csv": "run epoch loss train_accuracy test_accuracy valid_accuracy sigma seconds",
}
# fmt: off
DATA_NAMES = {  # by the first digits of the training file's md5, unpacked or packed
    "8e9877c8": "SHD", "d47c9825": "SHD", "d102be95": "SSC",
    "db7189fb": "SHD (regenerated)", "210a81f5": "SHD (regenerated)",
    "63f094f4": "Speech Commands (subset)",
}
# fmt: on


def read(folder: str, name: str) -> list[dict]:
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def append(name: str, rows: list[dict]) -> None:
    """Adds rows to a file, which is written anew, so that it is never half there."""
    text, columns = io.StringIO(), COLUMNS[name].split()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*read(FOLDER, name), *rows])
    train.write(FOLDER, name, text.getvalue())


def add(arguments: argparse.Namespace) -> None:
    """Adds all of the runs or, if there is anything wrong with one, none."""
    there = {(row["run"], row["data"]) for row in read(FOLDER, "runs.csv")}
    rows, epochs = [], []
    for path in arguments.runs:
        row, log = row_of_run(path) if os.path.isdir(path) else row_of_text(path, arguments)
        row["run"] = os.path.basename(os.path.abspath(path)).removesuffix(".txt")
        row["variant"] = arguments.variant or row["variant"]
        row["padding"] = "yes"
        row["change"] = arguments.change
        md5 = [digest[:8] for digest in row["md5"]]
        row["md5"] = " ".join(md5)
        row["data"] = row["dataset"]
        if md5:
            row["data"] = DATA_NAMES.get(md5[0], f"{row['dataset']} (other files)")
        if (row["run"], row["data"]) in there:
            rule = "if it is another run, give its folder or file another name"
            raise UserError(f"runs.csv has {row['run']} on {row['data']} already: {rule}")
        there.add((row["run"], row["data"]))
        rows.append(row)
        epochs += [entry | {"run": row["run"]} for entry in log]
    if arguments.epochs:
        append("epochs.csv", epochs)
    append("runs.csv", rows)


def train_all(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Trains a run for each variant and seed, in folders that say what differs from the paper."""
    for variant in arguments.variants.split(","):
        words = [*rest, "--dataset", arguments.dataset, "--delays", variant.removesuffix("-wide")]
        if variant.endswith("-wide"):
            words += ["--hidden", str(widened(train.parse(words)))]
        options = train.parse(words)
        variant, changed = variant_and_words(options)
        for seed in arguments.seeds.split(","):
            parts = [options.dataset, str(options.epochs), variant, seed]
            parts += changed.replace("--", "").split()
            folder = "runs/" + "-".join(parts)
            print(folder, flush=True)
            if not os.path.exists(f"{folder}/result.json"):
                place = ["--resume" if os.path.exists(folder) else "--out", folder]
                train.print_result(train.train(train.parse([*words, "--seed", seed, *place])))


def print_tables(name: str | None) -> None:
    tables = all_tables()
    if name not in [None, *tables]:
        raise UserError(f"there is no table {name}: expected one of {', '.join(tables)}")
    for title in [name] if name else tables:
        print(f"{title}:\n\n{tables[title]}\n")


def print_speakers(folder: str, data_dir: str | None) -> None:
    """The accuracy of a run on the test set, for each of its speakers."""
    net, options = train.load_run(folder)
    test = data.load(options.dataset, "test", data_dir or options.data_dir)
    guess = train.predict(net, test, options.batch_size).argmax(1)
    right = (guess == test.labels).numpy()
    names = test.speakers.astype(str)
    for name in [*np.unique(names), "all"]:
        chosen = right if name == "all" else right[names == name]
        print(f"speaker {name:12}{len(chosen):9} samples{chosen.mean():10.2%}")


def main(argv: list[str] | None = None) -> None:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    commands = parser.add_subparsers(dest="command", required=True)
    option = commands.add_parser("train", help="train runs", allow_abbrev=False).add_argument
    option("--dataset", required=True)
    option("--variants", required=True, help="as in learned,fixed,fixed-wide")
    option("--seeds", default="0", help="as in 0,1,2")
    option = commands.add_parser("add", help="append runs to runs.csv").add_argument
    option("runs", nargs="+", metavar="RUN", help="a folder, or a text of the authors' network")
    option("--change", default="", help="a sentence on the code, if it was changed")
    option("--variant", help="the name of a network of one's own")
    option("--epochs", action="store_true", help="append the runs' epochs to epochs.csv too")
    option("--seed", type=int, help="of a text")
    option("--threads", type=int, help="of a text")
    option("--data-dir", default=data.DATA_DIR, help="of a text: folder of its data")
    option = commands.add_parser("tables", help="print the tables in Markdown").add_argument
    option("name", nargs="?", help="of one table; without it, all")
    option = commands.add_parser("speakers", help="print a run's accuracies").add_argument
    option("run")
    option("--data-dir", help="folder of the data, if not that of the run")

    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command != "train":
        parser.error(f"{arguments.command} has no option {rest[0]}")
    try:
        if arguments.command == "train":
            train_all(arguments, rest)
        elif arguments.command == "add":
            add(arguments)
        elif arguments.command == "tables":
            print_tables(arguments.name)
        else:
            print_speakers(arguments.run, arguments.data_dir)
    except (UserError, OSError) as problem:
        sys.exit(f"results.py: {problem}")


if __name__ == "__main__":
    main()
