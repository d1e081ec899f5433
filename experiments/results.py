"""Keep a row per run in runs.csv, print what follows from the rows, and compare runs of your own.

    python -m experiments.results tables tested
    python -m experiments.results add runs/shd-learned-0 --data-dir DIR
    python -m experiments.results compare runs/mine-0 runs/mine-1 runs/mine-2 -- runs/theirs-*

tables   prints the named tables, or all of them, with accuracies in % and differences in points
add      appends finished runs to runs.csv: call it on the machine that trained them
compare  prints how far the first runs are above the others; they need no row in runs.csv
"""

import argparse
import json
import math
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pandas
import torch
from scipy import stats

import data
import train
from data import UserError
from delays import DelaySNN
from experiments import ideas
from experiments.export import class_names

FOLDER = Path(__file__).resolve().parent
SHD, SPEECH = "SHD (regenerated)", "Speech Commands (subset)"
PAIRS = ["1,8", "2,10", "3,6", "0,9", "7,11"]  # speakers of SHD that are held out together


def all_rows() -> pandas.DataFrame:
    """Return the rows of runs.csv, with the side of a comparison that each run belongs to."""
    texts = {"options": "", "speakers": ""}
    rows = pandas.read_csv(Path(FOLDER, "runs.csv"), dtype=dict.fromkeys(texts, str)).fillna(texts)
    rows["side"] = (rows["variant"] + " " + rows["options"]).str.strip()
    return rows


# ------------------------------------------------------------------------------------- differences


class Difference(NamedTuple):
    """By how many points one side is above the other, with the 95 % interval and p."""

    points: float = math.nan  # there are too few runs
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan

    def __str__(self):
        if math.isnan(self.p):
            return "-"
        return f"{self.points:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def difference(one: pandas.Series, other: pandas.Series, paired: bool) -> Difference:
    """Return how far one side is above the other, both accuracies as fractions.

    paired: over the labels of the index, which are equal.  Otherwise the test is Welch's.
    """
    if min(len(one), len(other)) < 3:
        return Difference()
    one, other = 100 * one, 100 * other
    test = stats.ttest_rel(one, other) if paired else stats.ttest_ind(one, other, equal_var=False)
    return Difference(one.mean() - other.mean(), *test.confidence_interval(0.95), test.pvalue)


def runs_of(rows, name, epochs, side, seeds="0-99", paired="", processor="") -> pandas.DataFrame:
    """Return the runs of a variant and its options, by held-out speakers and seed.

    seeds: the first and the last of them, as in 0-4.
    paired: "speakers" returns the runs that held out one of PAIRS.
    processor: of the runs; "" if each seed ran on one alone.
    """
    first, _, last = seeds.partition("-")
    found = rows.query("data == @name and epochs == @epochs and side == @side")
    found = found[found["seed"].between(int(first), int(last or first))]
    found = found[found["speakers"].isin(PAIRS if paired == "speakers" else [""])]
    if processor:
        found = found[found["processor"] == processor]
    return found.set_index(["speakers", "seed"])


def sides_of(rows: pandas.DataFrame, line) -> list[pandas.Series]:
    """Return the accuracies of both sides of a line of comparisons.csv."""
    found = []
    for epochs, side, seeds, value in (
        (line.one_epochs, line.one, line.one_seeds, line.one_value),
        (line.other_epochs, line.other, line.other_seeds, line.other_value),
    ):
        runs = runs_of(rows, line.data, epochs, side, seeds, line.paired, line.processor)
        found.append(runs[value])
    if line.paired:
        found = found[0].align(found[1], join="inner")
    return found


def holm(p: pandas.Series) -> pandas.Series:
    """Return for each p whether it holds at 0.05 after Holm's correction for all of them."""
    ordered = p.sort_values()
    corrected = ordered * list(range(len(p), 0, -1))
    holds = (corrected <= 0.05).cummin()  # up to the first that does not
    return holds.map({True: "holds", False: "not shown"})


def differences(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Return the lines of comparisons.csv with their differences, n, and verdicts if tested."""
    found = pandas.read_csv(Path(FOLDER, "comparisons.csv"), dtype=str, keep_default_na=False)
    found = found.astype({"one_epochs": int, "other_epochs": int})
    sides = [sides_of(rows, line) for line in found.itertuples()]
    found["n"] = [f"{len(one)} and {len(other)}" for one, other in sides]
    found["difference"] = [
        difference(*pair, paired=bool(paired))
        for pair, paired in zip(sides, found["paired"], strict=True)
    ]
    found = found.join(pandas.DataFrame(found["difference"].tolist()))
    verdicts = holm(found["p"][found["written_before"] != ""])
    found["verdict"] = verdicts.reindex(found.index).fillna("")
    return found


# ------------------------------------------------------------------------------------------ tables

SAME = ["data", "epochs", "variant", "options"]  # for all runs of a line
SHARES = {
    "last epoch": "accuracy",
    "best on validation": "accuracy",
    "unrounded": "unrounded",
    "best on test": "best_on_test",
    "new speakers": "new_speakers",
    "known speakers": "known_speakers",
}
ON_TEST = "speakers == '' and rule == 'last epoch' and "
SPARSE = "options.str.contains('--connections')"
HEADS = ["variant", "parameters", "epochs", "last epoch", "unrounded", "best on test", "n"]
# Of each table, which runs it has, and its columns.  A column `processor` has lines of its own.
TABLES = {
    "shd": (f"{ON_TEST} data == @SHD and not {SPARSE}", HEADS),
    "ten inputs": (f"{ON_TEST} data == @SHD and {SPARSE}", HEADS),
    "toy": (
        f"{ON_TEST} data == 'toy'",
        ["variant", "parameters", "processor", "last epoch", "unrounded", "n"],
    ),
    "validation": (
        "data == @SHD and speakers == '' and rule != 'last epoch'",
        ["variant", "parameters", "epochs", "best on validation", "unrounded", "n"],
    ),
    "speakers": (
        "data == @SHD and new_speakers.notna()",
        ["variant", "epochs", "new speakers", "known speakers", "n"],
    ),
    "speech": ("data == @SPEECH", ["variant", "epochs", "best on validation", "n"]),
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
        line |= {head: spread(runs[column]) for head, column in SHARES.items()}
        line |= {pair: spread(own["accuracy"]) for pair, own in runs.groupby("speakers")}
        line |= {"mean": f"{100 * runs['accuracy'].mean():.2f}", "n": len(runs)}
        lines.append(line)
    return pandas.DataFrame(lines, columns=columns)


def gains(rows: pandas.DataFrame, line) -> list[str]:
    """Return a line for a table of PAIRS: how far one side is above the other, pair by pair."""
    one, other = sides_of(rows, line)
    points = 100 * (one - other).droplevel("seed").reindex(PAIRS)
    texts = [f"{value:+.2f}".replace("+nan", "-") for value in [*points, points.mean()]]
    return [line.name, *texts, len(one)]


def all_tables() -> dict[str, str]:
    """Return every table by its name, in Markdown."""
    rows = all_rows()
    found = differences(rows)
    changed = found.query("where.str.contains('parts.png')")
    others = rows[~rows["variant"].isin(changed["one"])]
    tables = {}
    for name, (query, columns) in TABLES.items():
        tables[name] = table(others.query(query), columns)
    for name, epochs in ("held-out", 30), ("recipe", 40):
        paired = (found["paired"] == "speakers") & (found["one_epochs"] == epochs)
        for line in found[paired].itertuples():
            tables[name].loc[len(tables[name])] = gains(rows, line)

    found["data"] = found["data"] + ", " + found["one_epochs"].astype(str) + " epochs"
    found["p"] = found["p"].map("{:.2g}".format)
    heads = ["name", "data", "difference", "p", "n", "written_before", "verdict"]
    tables["tested"] = found[found["written_before"] != ""][heads]
    tables["differences"] = found[["name", "data", "difference", "n"]]
    lines = []
    for part, own in changed.groupby(["name", "one"], sort=False):
        line = dict(zip(own["data"], own["difference"], strict=True))
        lines.append(dict(zip(["part", "idea"], part, strict=True)) | line)
    tables["parts"] = pandas.DataFrame(lines)
    return {name: markdown(frame) for name, frame in tables.items()}


def markdown(frame: pandas.DataFrame) -> str:
    cells = frame.astype(object).fillna("-").to_numpy()
    heads = [head.replace("_", " ") for head in frame.columns]
    lines = [heads, ["---"] * len(heads), *cells]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


# ------------------------------------------------------------------------------ speakers and words


def network_of(folder: str) -> tuple[DelaySNN, argparse.Namespace, str | None]:
    """Return the network of a run, its options, and the idea of ideas.py that it was, if any."""
    saved = torch.load(Path(folder, "net.pt"), map_location="cpu", weights_only=True)
    saved = {"before_epoch": train.name_of(None)} | saved  # older checkpoints lack it
    usual = dict(net_class=DelaySNN, loss=train.cross_entropy, augment=None, before_epoch=None)
    for idea, seams in ideas.IDEAS.items():
        parts = usual | seams
        names = {"network": parts["net_class"].__name__}
        names |= {part: train.name_of(parts[part]) for part in ("loss", "augment", "before_epoch")}
        if names.items() <= saved.items():
            options = argparse.Namespace(**train.read_options(folder))
            net, _ = train.load_run(folder, train.build(options, parts["net_class"]))
            return net, options, None if idea == "base" else idea
    raise UserError(f"{folder} has a network that is not in ideas.py: add it to IDEAS there")


@torch.no_grad()
def hidden_spikes(net: DelaySNN, spikes: data.Spikes) -> float:
    """Return the mean number of hidden spikes per sample, of the rounded network.

    A layer's spikes count within the sample's own steps and the tails so far.
    """
    counted = []
    for layer in net.layers[1:]:
        layer.register_forward_pre_hook(lambda _, inputs: counted.append(inputs[0].sum().item()))
    for steps in spikes.steps.unique():
        same = spikes.select((spikes.steps == steps).numpy())  # without padding
        net(torch.stack(same.counts))
    return sum(counted) / net.count / len(spikes.labels)  # a layer sees its inputs `count` times


def answers_to(test: data.Spikes, folder: str, net: DelaySNN) -> pandas.DataFrame:
    """Return a line for each test sample of SHD: its speaker, its class, and the class it got."""
    heard = train.predict(net, test).argmax(1).numpy()
    found = pandas.DataFrame({"speaker": test.speakers, "said": test.labels, "heard": heard})
    new = found["speaker"].isin([4, 5])  # who are in the test set alone
    found["kind"] = new.map({True: "new", False: "known"})
    return found.assign(run=folder, right=found["said"] == heard)


def print_speakers(folders: list[str], data_dir: str) -> None:
    """Print accuracy by speaker, and the ten largest confusions, over runs on SHD."""
    test = data.load("shd", "test", data_dir)
    words = class_names("shd", "test", data_dir)
    found = pandas.concat(answers_to(test, folder, network_of(folder)[0]) for folder in folders)
    for column in ("kind", "speaker"):
        for key, samples in found.groupby(column):
            accuracies = samples.groupby("run")["right"].mean()
            print(f"speaker {key:<6} {spread(accuracies)} %")
    errors = found[~found["right"]]
    print(f"{len(errors) / len(folders):.1f} errors per run, of which")
    for (said, heard), number in errors.value_counts(["said", "heard"]).head(10).items():
        print(f"{number / len(folders):6.1f}  {words[said]} heard as {words[heard]}")


# ------------------------------------------------------ runs and commands: skip on a first reading

FOLDER = Path(__file__).resolve().parent
# By the first digits of the training file's md5, packed or not: the published files, and ours.
DATA_NAMES = {"8e9877c8": "SHD", "d47c9825": "SHD", "d102be95": "SSC"}
DATA_NAMES |= {"db7189fb": SHD, "210a81f5": SHD, "63f094f4": SPEECH}


def changed_options(options: argparse.Namespace) -> str:
    """Return the options of a run that are not the defaults, as words.

    --delays, --epochs, --seed and the places of files have columns of their own, or none.
    """
    usual = vars(train.parse(["--dataset", options.dataset]))
    free = ["delays", "epochs", "seed", "data_dir", "device", "out", "resume", "eval"]
    words = [
        f"--{name.replace('_', '-')} {value}"
        for name, value in vars(options).items()
        if name not in free and value != usual[name]
    ]
    return " ".join(words).replace("--no-test True", "--no-test")


def row_of_run(folder: str, data_dir: str | None) -> dict:
    """Return the row of a finished run of train.py or ideas.py.

    data_dir: the folder of the data files; None: where the run had them.
    """
    net, options, idea = network_of(folder)
    config_path, result_path = Path(folder, "config.json"), Path(folder, "result.json")
    config, result = json.loads(config_path.read_text()), json.loads(result_path.read_text())
    log = pandas.read_csv(Path(folder, "log.csv"), dtype=str, keep_default_na=False)
    # The log's test_accuracy takes the place of the result's, which is result_test below.
    row = config | result | log.filter(like="accuracy").iloc[-1].to_dict()
    row |= {"run": Path(folder).resolve().name, "padding": "yes", "data": result["dataset"]}
    row |= {"variant": idea or result["delays"], "options": changed_options(options)}
    if idea and result["delays"] != "learned":
        row["options"] = f"--delays {result['delays']} {row['options']}".strip()
    row |= {f"{split}_samples": number for split, number in config["samples"].items()}
    row |= {f"result_{split}": result[f"{split}_accuracy"] for split in ("test", "valid")}
    if result["delays"] not in ("fixed", "none"):  # those are whole steps in any case
        row["unrounded"] = result["unrounded_accuracy"]
    md5 = [digest[:8] for digest in config["md5"].values()]
    row["md5"] = " ".join(md5)
    if md5:  # of the files of SHD and SSC
        row["data"] = DATA_NAMES.get(md5[0], f"{result['dataset']} (other files)")

    if result["test_accuracy"] is not None:
        test = data.load(options.dataset, "test", data_dir or options.data_dir)
        row["spikes"] = round(hidden_spikes(net, test), 1)
        if options.dataset == "shd":
            right = answers_to(test, folder, net).groupby("kind")["right"].mean()
            row |= {f"{kind}_speakers": accuracy for kind, accuracy in right.items()}

    # The last commit of this checkout before the run, which writes config.json when it begins.
    begun = f"--before=@{config_path.stat().st_mtime:.0f}"
    command = ["git", "-C", FOLDER, "log", "-1", "--first-parent", "--format=%h", begun]
    row["version"] = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    ended = pandas.Timestamp(result_path.stat().st_mtime, unit="s")  # in UTC
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


def add(folders: list[str], data_dir: str | None) -> None:
    """Add all of the runs, or none if one of them has a problem."""
    rows = pandas.read_csv(Path(FOLDER, "runs.csv"), dtype=str, keep_default_na=False)
    same = [*SAME, "padding", "change", "seed"]
    for folder in folders:
        row = pandas.Series(row_of_run(folder, data_dir))
        row = row.reindex(rows.columns).fillna("").astype(str)
        there = rows[(rows[same] == row[same]).all(axis=1)]
        if row["processor"] in set(there["processor"]):
            rule = "delete that row first if this run replaces it"
            raise UserError(f"runs.csv already has {folder}, as {there['run'].iloc[0]}: {rule}")
        # If another processor ran this seed, the run has a line of its own and is of no list.
        row["list"], row["machine"] = ("", row["processor"]) if len(there) else ("3", "")
        rows.loc[len(rows)] = row
    train.write(FOLDER, "runs.csv", rows.to_csv(index=False, lineterminator="\n"))


def train_all(variants: list[str], seeds: list[str], others: list[str]) -> None:
    """Train a run for each variant and seed, in folders that say what differs from the paper."""
    for variant in variants:
        words = [*others, "--delays", variant]
        options = train.parse(words)
        changed = changed_options(options).replace("--", "").split()
        for seed in seeds:
            names = [options.dataset, str(options.epochs), variant, seed, *changed]
            folder = Path("runs", "-".join(names))
            print(folder, flush=True)
            if not Path(folder, "result.json").exists():
                place = ["--resume" if folder.exists() else "--out", str(folder)]
                train.train(train.parse([*words, "--seed", seed, *place]))


def main(argv: list[str] | None = None) -> None:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind, allow_abbrev=False)
    parser.add_argument("command", choices=["train", "add", "tables", "speakers"])
    parser.add_argument("--variants", default="learned", help="for train, as in learned,fixed")
    parser.add_argument("--seeds", default="0", help="for train, as in 0,1,2")
    parser.add_argument("--data-dir", help="folder of the data files (for add: if they were moved)")
    options, words = parser.parse_known_args(argv)
    data_dir = options.data_dir or "data"
    try:
        if options.command == "train":
            words += ["--data-dir", data_dir]
            train_all(options.variants.split(","), options.seeds.split(","), words)
        elif options.command == "add":
            add(words, options.data_dir)
        elif options.command == "speakers":
            print_speakers(words, data_dir)
        else:
            tables = all_tables()
            for name in words or tables:
                print(f"{name}:\n\n{tables[name]}\n")
    except (UserError, OSError) as problem:
        sys.exit(f"results.py: {problem}")


if __name__ == "__main__":
    main()
