"""Train variants and seeds, keep a row per run in runs.csv, and print what follows from them.

    python -m experiments.results train --dataset toy --variants learned,fixed,none --seeds 0,1,2
    python -m experiments.results add runs/toy-20-learned-0
    python -m experiments.results tables claims
    python -m experiments.results speakers RUN ... --data-dir DIR

`train` passes other options on to train.py.  It skips finished runs and resumes stopped ones.
`add` records the processor it runs on, so call it on the machine that trained the network.  A test
compares RESULTS.md with runs.csv: after `add`, replace its tables by those that `tables` prints.
`speakers` prints accuracy by speaker and the words that are confused most, over all RUNs.
Tables are in %: the mean ± the sample standard deviation, or the values themselves if there are
fewer than three.
"""

import argparse
import json
import math
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
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

SHD, SPEECH, TEN = "SHD (regenerated)", "Speech Commands (subset)", "--connections 10"
TEN_LEARNED, TEN_FIXED, TEN_CONSTANT = [
    (name, TEN) for name in ("learned", "fixed", "constant-sigma")
]
LEARNED, FIXED, NONE, CONTROL = ("learned", ""), ("fixed", ""), ("none", ""), ("control", "")
SLOW = ("none", "--tau 400.0 --tau-readout 10.05")  # the best of three on held-out speakers
CONSTANT, STILL = ("constant-sigma", ""), ("learned", "--delay-lr 0.0")
# About as many parameters as FIXED has, on SHD and on the toy task.
HALF, SMALL = ("learned", "--hidden 165"), ("learned", "--hidden 21")
WIDE = ("fixed", "--hidden 76")  # as many parameters as LEARNED on the toy task
PAIRS = ["1,8", "2,10", "3,6", "0,9", "7,11"]  # speakers of SHD that are held out together


class Claim(NamedTuple):
    """A comparison of two sides, each a variant and its options.

    Tests are two-sided: the sign of a difference that holds says which side is better.
    """

    data: str
    epochs: int
    text: str
    one: tuple[str, str]
    other: tuple[str, str]
    seeds: Sequence[int] | None = None  # None: all that have run
    speakers: Sequence[str] = ("",)  # the held-out speakers


FIRST_CLAIMS = [
    Claim(SHD, 150, "learned against fixed", LEARNED, FIXED),
    Claim(SHD, 150, "learned against fixed, equal parameters", HALF, FIXED),
    Claim(SHD, 30, "fixed against none, tau 400 ms", FIXED, SLOW),
    Claim(SHD, 30, "none, tau 400 against 10.05 ms", SLOW, NONE),
    Claim(SHD, 30, "ours against the authors' libraries", LEARNED, ("authors", "")),
    Claim(SHD, 30, "shrinking against constant sigma", LEARNED, CONSTANT),
    Claim(SHD, 60, "ten inputs: learned against fixed", TEN_LEARNED, TEN_FIXED),
    Claim(SHD, 60, "ten inputs: constant against shrinking", TEN_CONSTANT, TEN_LEARNED),
    Claim("toy", 20, "learned against none, tau 100 ms", LEARNED, ("none", "--tau 100.0")),
    Claim("toy", 20, "learned against fixed, equal parameters", SMALL, FIXED),
]
# Committed before its first run began (866d94d).  All of these seeds are run, none is added, and a
# claim is tested once, when all of its runs have ended.  Both sides are accuracies of rounded
# networks at the last epoch, from one processor.
SECOND_CLAIMS = [
    Claim(SHD, 30, "learned against the control", LEARNED, CONTROL, range(5, 10)),
    Claim(SHD, 60, "ten inputs: learned against fixed", TEN_LEARNED, TEN_FIXED, range(5)),
    Claim("toy", 20, "learned against fixed, equal parameters", SMALL, FIXED, range(10, 30)),
    Claim(SHD, 30, "learned against fixed, held-out speakers", LEARNED, FIXED, [0], PAIRS),
    Claim(SHD, 30, "shrinking against constant sigma", LEARNED, CONSTANT, range(5, 10)),
]
LISTED = "2026-11-29 12:21"  # in UTC, when the second list was committed and the first one closed
PROCESSOR = "AMD EPYC, family 25 model 17"  # of all runs of the second list

# The third list and the rule before it were committed before the first of their new runs began.
# Which recipe is the baseline?  Plain learned delays and `shift` each train 40 epochs with seed 0,
# once for each of the five PAIRS of held-out speakers.  What counts is valid_accuracy in the last
# row of the log.  shift is the recipe if the unweighted mean of the paired differences is a point
# or more, and if it wins at least four pairs.  A tie is a loss.
# Claim f is then tested once, when all of its runs have ended: by Welch's test, two-sided, on
# accuracies of rounded networks at the last epoch, on all of the test set.  The runs of learned
# delays are the five of claim 1, which were known already, and processors differ.
THIRD_CLAIMS = [Claim(SHD, 150, "shift against learned", ("shift", ""), LEARNED, range(5))]


def runs_of(rows, name, epochs, side, seeds=None, speakers=("",)) -> pandas.DataFrame:
    """Return the runs of a variant with these options, trained with padding.

    seeds: None returns the runs of all seeds.
    """
    found = rows.query(
        "data == @name and epochs == @epochs and variant == @side[0] and options == @side[1]"
        " and speakers in @speakers and padding == 'yes'"
    )
    return found if seeds is None else found[found["seed"].isin(seeds)]


class Difference(NamedTuple):
    """By how many points one side is above the other, with the 95 % interval."""

    points: float
    low: float
    high: float
    p: float  # nan: there are too few runs
    n: str  # of either side

    def __str__(self):
        if math.isnan(self.p):
            return "-"
        return f"{self.points:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def compare(one: pandas.Series, other: pandas.Series, paired=False) -> Difference:
    """Return how far one is above the other.  Each side needs at least three runs.

    one, other: accuracies, as fractions.
    paired: over the labels of the index that both have.  Otherwise the test is Welch's.
    """
    if paired:
        one, other = one.align(other, join="inner")
    n = f"{len(one)} and {len(other)}"
    if min(len(one), len(other)) < 3:
        return Difference(math.nan, math.nan, math.nan, math.nan, n)
    one, other = 100 * one, 100 * other
    test = stats.ttest_rel(one, other) if paired else stats.ttest_ind(one, other, equal_var=False)
    interval = test.confidence_interval(0.95)
    return Difference(one.mean() - other.mean(), *interval, test.pvalue, n)


def holm(p: pandas.Series) -> pandas.Series:
    """Return for each p whether it holds at 0.05 after Holm's correction.

    nan stands for a claim that was not run.  It counts in the length of the list.
    """
    ordered = p.sort_values()  # nan comes last
    corrected = ordered * list(range(len(p), 0, -1))
    holds = (corrected <= 0.05).cummin()  # up to the first that does not
    return holds.map({True: "holds", False: "not shown"}).where(p.notna(), "not run")


def claims_table(rows: pandas.DataFrame, claims: list[Claim], names: str) -> pandas.DataFrame:
    """Return the differences and verdicts of a list of claims.

    A claim that names its seeds is tested once all of its runs are there.
    """
    lines = []
    for name, claim in zip(names.split(), claims, strict=True):
        label = "speakers" if claim.speakers is PAIRS else "seed"
        sides = [
            runs_of(rows, claim.data, claim.epochs, side, claim.seeds, claim.speakers)
            for side in (claim.one, claim.other)
        ]
        one, other = [side.set_index(label)["accuracy"] for side in sides]
        found = compare(one, other, paired=label == "speakers")
        if claim.seeds and not len(one) == len(other) == len(claim.seeds) * len(claim.speakers):
            found = found._replace(p=math.nan)
        data_of = f"{claim.data}, {claim.epochs} epochs"
        lines.append([f"{name}. {claim.text}", data_of, str(found), found.p, found.n])
    found = pandas.DataFrame(lines, columns=["claim", "data", "difference", "p", "n"])
    found["verdict"] = holm(found["p"])
    found["p"] = found["p"].map("{:.2g}".format, na_action="ignore")
    return found


def baseline(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Return the accuracies on held-out speakers from which the baseline's recipe follows."""
    sides = {}
    for variant in ("learned", "shift"):
        runs = runs_of(rows, SHD, 40, (variant, ""), [0], PAIRS)
        sides[variant] = 100 * runs.set_index("speakers")["valid_accuracy"].reindex(PAIRS)
    gains = sides["shift"] - sides["learned"]
    if gains.isna().any():
        verdict = "not run"
    else:
        adopted = gains.mean() >= 1 and (gains > 0).sum() >= 4
        verdict = "the recipe" if adopted else "not the recipe"
    lines = []
    for name, values in (sides | {"shift - learned": gains}).items():
        cells = [*values, values.mean(skipna=False)]
        lines.append([name, *(f"{cell:.2f}".replace("nan", "-") for cell in cells)])
    found = pandas.DataFrame(lines, columns=["40 epochs", *PAIRS, "mean"])
    return found.assign(shift=["", "", verdict])


# ------------------------------------------------------------------------------------------ tables

# What the runs of a line have in common, besides their processor if seeds would repeat otherwise.
COMMON = ["data", "epochs", "padding", "variant", "options", "change"]
SHARES = {"last epoch": "accuracy", "unrounded": "unrounded", "best on test": "best_on_test"}
PARTS = {
    "no-tail": "no tail",
    "one-softmax": "no second softmax",
    "drop-steps": "dropout anew in each step",
    "alpha-2": "surrogate gradient of alpha 2, not 5",
    "alpha-20": "surrogate gradient of alpha 20, not 5",
    "triangle": "triangle instead of Gaussian",
    "from-zero": "delays that start at 0",
    "no-norm": "no batch norm",
}
TASKS = {"toy": 20, SHD: 30}  # with their epochs


def all_rows() -> pandas.DataFrame:
    """Return the rows of runs.csv, with what the tables need besides."""
    rows = pandas.read_csv(Path(FOLDER, "runs.csv"), dtype={"options": str, "change": str})
    rows = rows.fillna({"options": "", "change": "", "ended": ""})  # the oldest have no "ended"
    held_out = rows["options"].str.extract(r"--valid-speakers (\S+) --no-test ?(.*)")
    rows["speakers"] = held_out[0].fillna("")
    rows["options"] = held_out[1].fillna(rows["options"])
    rows["accuracy"] = rows["result_test"].fillna(rows["valid_accuracy"])
    # The list of claims that a run belongs to: 2, or 0 if it ran later on another processor.
    rows["list"] = (rows["processor"] == PROCESSOR) * 2
    rows.loc[rows["ended"] <= LISTED, "list"] = 1
    repeats = rows.duplicated([*COMMON, "speakers", "seed"], keep=False)
    repeats = repeats.groupby([rows[name] for name in COMMON]).transform("any")
    rows["machine"] = rows["processor"].where(repeats, "")
    return rows


def spread(shares: pandas.Series) -> str:
    values = 100 * shares.dropna()
    if len(values) < 3:
        return ", ".join(f"{value:.2f}" for value in values) or "-"
    return f"{values.mean():.2f} ± {values.std():.2f}"


def table(rows: pandas.DataFrame, columns: list[str]) -> pandas.DataFrame:
    """Return these columns, with a line for all runs that differ only in seed or speakers."""
    lines = []
    rows = rows.sort_values("epochs", ascending=False, kind="stable")
    for _, runs in rows.groupby([*COMMON, "machine"], sort=False):
        line = runs.iloc[0].to_dict()
        files = "" if line["data"] in (SHD, "toy", SPEECH) else line["data"]
        names = [line["variant"], line["options"], line["machine"], files]
        line["variant"] = ", ".join(name for name in names if name)
        line["parameters"] = f"{line['parameters']:,.0f}".replace("nan", "-")
        line |= {head: spread(runs[column]) for head, column in SHARES.items()}
        line |= {pair: spread(own["accuracy"]) for pair, own in runs.groupby("speakers")}
        line |= {"mean": f"{100 * runs['accuracy'].mean():.2f}", "n": len(runs)}
        lines.append(line)
    return pandas.DataFrame(lines, columns=columns)


def parts(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Return how accuracy changes with each idea of PARTS, and the seconds per epoch on SHD."""
    lines = []
    for idea, part in PARTS.items():
        line = {"part": part, "idea": idea}
        for task, epochs in TASKS.items():
            runs = runs_of(rows, task, epochs, (idea, ""))
            base = runs_of(rows, task, epochs, LEARNED)
            line[task] = compare(runs["accuracy"], base["accuracy"])
            line[f"n, {task}"] = line[task].n
        line["s per epoch, SHD"] = round(runs["seconds"].mean() / epochs) if len(runs) else "-"
        lines.append(line)
    return pandas.DataFrame(lines)


def if_seen(found: Difference) -> str:
    """Return a difference with its interval, or a sentence if the interval contains 0."""
    if found.low <= 0 <= found.high:
        return f"no difference seen, at most {max(-found.low, found.high):.2f}"
    return str(found)


def controls(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Return by how many points learned delays beat each control, and fixed ones the first."""
    lines = []
    for name, epochs in ((SHD, 30), ("toy", 20)):
        for one, other in ((LEARNED, CONTROL), (LEARNED, STILL), (FIXED, CONTROL)):
            sides = [runs_of(rows, name, epochs, side) for side in (one, other)]
            found = compare(*[side["accuracy"] for side in sides])
            # Fixed delays are at whole steps in either case.
            soft = compare(*[side["unrounded"].fillna(side["accuracy"]) for side in sides])
            words = f"{one[0]} over {' '.join(other).strip()}"
            lines.append([words, name, str(found), str(soft), found.n])
    heads = ["difference", "data", "rounded", "with training kernels", "n"]
    return pandas.DataFrame(lines, columns=heads)


def answers(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Return the differences in the sentences of RESULTS.md that no other table has."""
    first, second = rows[rows["list"] == 1], rows[rows["list"] == 2]
    found = {}
    for side in (LEARNED, HALF, FIXED, SLOW):
        long, short = [runs_of(first, SHD, epochs, side)["accuracy"] for epochs in (150, 30)]
        found[f"150 epochs over 30: {' '.join(side).strip()}"] = compare(long, short)
    sides = {"SHD": runs_of(first, SHD, 150, LEARNED), "toy": runs_of(first, "toy", 20, LEARNED)}
    sides["ten inputs"] = runs_of(second, SHD, 60, TEN_LEARNED)
    for name, runs in sides.items():
        found[f"rounding, {name}"] = compare(runs["accuracy"], runs["unrounded"], paired=True)
    wide = [runs_of(first, "toy", 20, side)["accuracy"] for side in (LEARNED, WIDE)]
    found["learned over fixed, toy, 1,520 parameters"] = compare(*wide)
    for what in ("new_speakers", "known_speakers"):
        one, other = [runs_of(second, SHD, 30, side)[what] for side in (LEARNED, CONTROL)]
        found[f"learned over control, {what}"] = compare(one, other)
    for idea in ("axonal", "dendritic", "whole-steps"):
        for task, epochs in TASKS.items():
            one, other = [runs_of(second, task, epochs, side) for side in ((idea, ""), LEARNED)]
            found[f"{idea} over learned, {task}"] = compare(one["accuracy"], other["accuracy"])
    lines = [[name, str(difference), difference.n] for name, difference in found.items()]
    return pandas.DataFrame(lines, columns=["answer", "difference", "n"])


def all_tables() -> dict[str, str]:
    """Return every table by its name, in Markdown."""
    rows = all_rows().query("change == ''")
    first, second = rows[rows["list"] == 1], rows[rows["list"] == 2]
    current = rows.query("speakers == '' and padding == 'yes' and variant not in @PARTS.keys()")
    sides = current[["variant", "options"]].apply(tuple, axis=1)
    again = current["seed"].ge(10) & sides.isin([SMALL, FIXED])  # of claim c, not for the toy table
    shd_or_other = current["data"].str.lower().str.startswith("shd")
    on_shd = current[shd_or_other & (current["variant"] != "authors")]
    sparse = on_shd["options"].str.contains("--connections")
    held_out = rows.query("speakers != '' and epochs == 30")
    held_out = held_out.query("padding == 'yes' or (variant == 'learned' and options == '')")

    worth = parts(second)
    for task in TASKS:
        worth[task] = worth[task].map(if_seen)

    shd = ["variant", "parameters", "epochs", *SHARES, "n"]
    tables = {
        # Claims 5 and 8 have a sentence each in RESULTS.md instead.
        "claims": claims_table(first, FIRST_CLAIMS, "1 2 3 4 5 6 7 8 9 10").drop([4, 7]),
        "second": claims_table(second, SECOND_CLAIMS, "a b c d e"),
        "third": claims_table(rows, THIRD_CLAIMS, "f"),
        "baseline": baseline(rows),
        "answers": answers(rows),
        "controls": controls(second),
        "shd": table(on_shd[~sparse], shd),
        "ten inputs": table(on_shd[sparse], shd),
        "toy": table(current[~again].query("data == 'toy'"), [*shd[:2], *shd[3:5], "n"]),
        "parts": worth,
        "held-out": table(held_out, ["variant", "padding", *PAIRS, "mean", "n"]),
        "authors": table(current.query("variant == 'authors'"), shd),
    }
    for name, frame in tables.items():
        cells = frame.astype(object).fillna("-").to_numpy()
        lines = [frame.columns, ["---"] * len(frame.columns), *cells]
        tables[name] = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    return tables


# ------------------------------------------------------------------------------ speakers and words

NEW_SPEAKERS = [4, 5]  # of SHD, in the test set alone


def network_of(folder: str) -> tuple[DelaySNN, argparse.Namespace, str | None]:
    """Return the network of a run, its options, and the idea of ideas.py that it was, if any."""
    names = torch.load(Path(folder, "net.pt"), map_location="cpu", weights_only=True)
    names = [names["network"], names["loss"], names["augment"]]
    usual = {"net_class": DelaySNN, "loss": train.cross_entropy, "augment": None}
    for idea, seams in ideas.IDEAS.items():
        net_class, loss, augment = (usual | seams).values()
        if names == [net_class.__name__, train.name_of(loss), train.name_of(augment)]:
            options = argparse.Namespace(**train.read_options(folder))
            net, _ = train.load_run(folder, train.build(options, net_class))
            return net, options, None if idea == "base" else idea
    raise UserError(f"{folder} has a network that is not in ideas.py: name it with --variant")


def answers_to(test: data.Spikes, folder: str, net: DelaySNN) -> pandas.DataFrame:
    """Return a line for each test sample of SHD: its speaker, its class, and the class it got."""
    heard = train.predict(net, test).argmax(1).numpy()
    found = pandas.DataFrame({"speaker": test.speakers, "said": test.labels, "heard": heard})
    known = ~found["speaker"].isin(NEW_SPEAKERS)
    return found.assign(run=folder, right=found["said"] == heard, known=known)


def print_speakers(folders: list[str], data_dir: str) -> None:
    """Print accuracy by speaker, and the ten largest confusions, over runs on SHD."""
    test = data.load("shd", "test", data_dir)
    words = class_names("shd", "test", data_dir)
    found = pandas.concat(answers_to(test, folder, network_of(folder)[0]) for folder in folders)
    for column, names in (("known", {False: "new", True: "known"}), ("speaker", {})):
        for key, samples in found.groupby(column):
            accuracies = samples.groupby("run")["right"].mean()
            print(f"speaker {names.get(key, key):<6} {spread(accuracies)} %")
    errors = found[~found["right"]]
    print(f"{len(errors) / len(folders):.1f} errors per run, of which")
    for (said, heard), number in errors.value_counts(["said", "heard"]).head(10).items():
        print(f"{number / len(folders):6.1f}  {words[said]} heard as {words[heard]}")


# ------------------------------------------------------ runs and commands: skip on a first reading

FOLDER = Path(__file__).resolve().parent
# Names by the first digits of the training file's md5, unpacked or packed: published, and our own.
DATA_NAMES = {"8e9877c8": "SHD", "d47c9825": "SHD", "d102be95": "SSC"}
DATA_NAMES |= {"db7189fb": SHD, "210a81f5": SHD, "63f094f4": SPEECH}


def changed_options(options: argparse.Namespace) -> str:
    """Return the options of a run that are not the defaults, as words.

    --delays, --epochs, --seed and the places of files have columns of their own, or none.
    """
    words = []
    known = options.dataset in data.DATASETS  # a fork's own has the defaults of SHD
    usual = vars(train.parse(["--dataset", options.dataset] if known else []))
    free = ["delays", "epochs", "seed", "data_dir", "device", "out", "resume", "eval"]
    for name, value in vars(options).items():
        if name not in free and value != usual[name]:
            words.append("--" + name.replace("_", "-"))
            if value is not True:
                words.append(str(value))
    return " ".join(words)


def row_of_run(folder: str, variant: str | None = None, data_dir: str | None = None) -> dict:
    """Return the row of a finished run of train.py or ideas.py.

    variant: the name of a network of your own, whose accuracy by speaker is then not computed.
    data_dir: the folder of the data files; None: where the run had them.
    """
    config_path, result_path = Path(folder, "config.json"), Path(folder, "result.json")
    config, result = json.loads(config_path.read_text()), json.loads(result_path.read_text())
    log = pandas.read_csv(Path(folder, "log.csv"), dtype=str, keep_default_na=False)
    # The log's test_accuracy takes the place of the result's, which is result_test below.
    row = config | result | log.filter(like="accuracy").iloc[-1].to_dict()
    row |= {"run": Path(folder).resolve().name, "padding": "yes"}
    row |= {f"{split}_samples": number for split, number in config["samples"].items()}
    row |= {f"result_{split}": result[f"{split}_accuracy"] for split in ("test", "valid")}
    if result["delays"] not in ("fixed", "none"):  # those are whole steps in any case
        row["unrounded"] = result["unrounded_accuracy"]
    row["options"] = changed_options(argparse.Namespace(**config["options"]))
    dataset = result["dataset"]
    md5 = [digest[:8] for digest in config["md5"].values()]
    row |= {"md5": " ".join(md5), "data": dataset}
    if md5:  # of the files of SHD and SSC
        row["data"] = DATA_NAMES.get(md5[0], f"{dataset} (other files)")

    row["variant"] = variant
    if variant is None:
        net, options, idea = network_of(folder)
        row["variant"] = idea or result["delays"]
        if dataset == "shd" and result["test_accuracy"] is not None:
            test = data.load("shd", "test", data_dir or options.data_dir)
            right = answers_to(test, folder, net).groupby("known")["right"].mean()
            row |= {"new_speakers": right.get(False), "known_speakers": right.get(True)}

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


def add(folders: list[str], variant: str | None, data_dir: str | None) -> None:
    """Add all of the runs, or none if one of them has a problem."""
    rows = pandas.read_csv(Path(FOLDER, "runs.csv"), dtype=str, keep_default_na=False)
    for folder in folders:
        found = row_of_run(folder, variant, data_dir)
        row = pandas.Series(found).reindex(rows.columns).fillna("").astype(str)
        same = [*COMMON, "seed", "processor"]
        there = rows[(rows[same] == row[same]).all(axis=1)]
        if len(there):
            rule = "delete that row first if this run replaces it"
            raise UserError(f"runs.csv already has {folder}, as {there['run'].iloc[0]}: {rule}")
        rows.loc[len(rows)] = row
    train.write(FOLDER, "runs.csv", rows.to_csv(index=False, lineterminator="\n"))


def train_all(variants: list[str], seeds: list[str], others: list[str]) -> None:
    """Train a run for each variant and seed, in folders that say what differs from the paper."""
    for variant in variants:
        words = [*others, "--delays", variant]
        options = train.parse(words)
        changed = changed_options(options)
        for seed in seeds:
            parts = [options.dataset, str(options.epochs), variant, seed]
            folder = "runs/" + "-".join(parts + changed.replace("--", "").split())
            print(folder, flush=True)
            if not Path(folder, "result.json").exists():
                place = ["--resume" if Path(folder).exists() else "--out", folder]
                train.train(train.parse([*words, "--seed", seed, *place]))


def main(argv: list[str] | None = None) -> None:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind, allow_abbrev=False)
    parser.add_argument("command", choices=["train", "add", "tables", "speakers"])
    parser.add_argument("--variants", default="learned", help="for train, as in learned,fixed")
    parser.add_argument("--seeds", default="0", help="for train, as in 0,1,2")
    parser.add_argument("--variant", help="for add: the name of a network of your own")
    parser.add_argument("--data-dir", help="for train, add and speakers: folder of the data files")
    arguments, words = parser.parse_known_args(argv)
    command, data_dir = arguments.command, arguments.data_dir
    try:
        if command in ("add", "speakers") and not words:
            raise UserError(f"{command} needs the folder of a run, or several")
        if command == "train":
            words += ["--data-dir", data_dir] if data_dir else []
            train_all(arguments.variants.split(","), arguments.seeds.split(","), words)
        elif command == "add":
            add(words, arguments.variant, data_dir)
        elif command == "speakers":
            print_speakers(words, data_dir or "data")
        else:
            tables = all_tables()
            for name in words or tables:
                if name not in tables:
                    raise UserError(f"no table {name}: expected one of {', '.join(tables)}")
                print(f"{name}:\n\n{tables[name]}\n")
    except (UserError, OSError) as problem:
        sys.exit(f"results.py: {problem}")


if __name__ == "__main__":
    main()
