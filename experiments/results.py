"""Train variants and seeds, keep a row per run in runs.csv, and print what follows from them.

    python -m experiments.results train --dataset toy --variants learned,fixed --seeds 0,1,2
    python -m experiments.results add runs/toy-20-learned-0
    python -m experiments.results tables claims
    python -m experiments.results speakers RUN ... --data-dir DIR

train     skips finished runs, resumes stopped ones, and passes other options on to train.py
add       appends finished runs to runs.csv: call it on the machine that trained them
tables    prints the named tables, or all of them, with accuracies and differences in %
speakers  prints accuracy by speaker of SHD and the words confused most, over all RUNs
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

SHD, SPEECH = "SHD (regenerated)", "Speech Commands (subset)"
TASKS = {"toy": 20, SHD: 30}  # with the epochs of most runs
PAIRS = ["1,8", "2,10", "3,6", "0,9", "7,11"]  # speakers of SHD that are held out together
TEN, LONG = " --connections 10", " --tau 400.0 --tau-readout 10.05"
SLOW = "none" + LONG  # the best of three on held-out speakers
STILL = "learned --delay-lr 0.0"
HALF, SMALL = "learned --hidden 165", "learned --hidden 21"  # as many parameters as "fixed"

# Lists of claims, each with the arguments of `versus`.  The column `list` of runs.csv says which
# list a run was made for.  The first two lists are closed: they take no more runs.
FIRST_CLAIMS = {
    "1. learned against fixed": (SHD, 150, "learned", "fixed"),
    "2. learned against fixed, equal parameters": (SHD, 150, HALF, "fixed"),
    "3. fixed against none, tau 400 ms": (SHD, 30, "fixed", SLOW),
    "4. none, tau 400 against 10.05 ms": (SHD, 30, SLOW, "none"),
    "5. ours against the authors' libraries": (SHD, 30, "learned", "authors"),
    "6. shrinking against constant sigma": (SHD, 30, "learned", "constant-sigma"),
    # 7 and 8 had not run when the list was closed.  Holm's correction counts them.
    "7. ten inputs: learned against fixed": (SHD, 60, "learned" + TEN, "fixed" + TEN),
    "8. ten inputs: constant against shrinking": (SHD, 60, "constant-sigma" + TEN, "learned" + TEN),
    "9. learned against none, tau 100 ms": ("toy", 20, "learned", "none --tau 100.0"),
    "10. learned against fixed, equal parameters": ("toy", 20, SMALL, "fixed"),
}
# Committed before its first run began (866d94d), with its seeds and with PAIRS.
SECOND_CLAIMS = {
    "a. learned against the control": (SHD, 30, "learned", "control", range(5, 10)),
    "b. ten inputs: learned against fixed": (SHD, 60, "learned" + TEN, "fixed" + TEN, range(5)),
    "c. learned against fixed, equal parameters": ("toy", 20, SMALL, "fixed", range(10, 30)),
    "d. learned against fixed, held-out speakers": (SHD, 30, "learned", "fixed", [0], PAIRS),
    "e. shrinking against constant sigma": (SHD, 30, "learned", "constant-sigma", range(5, 10)),
}
# Committed, with the rule in `recipe`, before the first of its new runs began.  The runs of learned
# delays were known, they are those of claim 1, and processors differ.  The test is Welch's and
# two-sided, once all runs have ended, on the accuracies of the last epoch (rounded, all of test).
THIRD_CLAIMS = {"f. shift against learned": (SHD, 150, "shift", "learned", range(5))}


class Difference(NamedTuple):
    """By how many points one side is above the other, with the 95 % interval and a p."""

    points: float = math.nan  # there are too few runs
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    n: str = ""  # of either side

    def __str__(self):
        if math.isnan(self.p):
            return "-"
        return f"{self.points:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def runs_of(rows, name, epochs, side, seeds=range(100), speakers=("",)) -> pandas.DataFrame:
    """Return the runs of a variant and its options, by held-out speakers and seed."""
    found = rows.query("data == @name and epochs == @epochs and side == @side")
    found = found.query("seed in @seeds and speakers in @speakers")
    return found.set_index(["speakers", "seed"])


def compare(one: pandas.Series, other: pandas.Series, paired=False) -> Difference:
    """Return how far one side is above the other, both accuracies as fractions.

    paired: over the labels of the index that both have.  Otherwise the test is Welch's.
    """
    if paired:
        one, other = one.align(other, join="inner")
    n = f"{len(one)} and {len(other)}"
    if min(len(one), len(other)) < 3:
        return Difference(n=n)
    one, other = 100 * one, 100 * other
    test = stats.ttest_rel(one, other) if paired else stats.ttest_ind(one, other, equal_var=False)
    interval = test.confidence_interval(0.95)
    return Difference(one.mean() - other.mean(), *interval, test.pvalue, n)


def versus(
    rows, name, epochs, one, other, seeds=range(100), speakers=("",), column="accuracy"
) -> Difference:
    """Compare two sides, each a variant and its options, over PAIRS if those were held out."""
    runs = [runs_of(rows, name, epochs, side, seeds, speakers)[column] for side in (one, other)]
    return compare(*runs, paired=speakers is PAIRS)


def holm(p: pandas.Series) -> pandas.Series:
    """Return for each p whether it holds at 0.05 after Holm's correction.

    nan stands for a claim that was not run.  It counts in the length of the list.
    """
    ordered = p.sort_values()  # nan comes last
    corrected = ordered * list(range(len(p), 0, -1))
    holds = (corrected <= 0.05).cummin()  # up to the first that does not
    return holds.map({True: "holds", False: "not shown"}).where(p.notna(), "not run")


def claims_table(rows: pandas.DataFrame, claims: dict[str, tuple]) -> pandas.DataFrame:
    """Return the differences and verdicts of a list of claims."""
    found = pandas.DataFrame({"claim": list(claims)})
    found["data"] = [f"{name}, {epochs} epochs" for name, epochs, *_ in claims.values()]
    found["difference"] = [versus(rows, *claim) for claim in claims.values()]
    found["p"] = [difference.p for difference in found["difference"]]
    found["n"] = [difference.n for difference in found["difference"]]
    if claims is THIRD_CLAIMS:  # claim f is open until all of its runs have ended
        found.loc[found["n"] != "5 and 5", ["difference", "p"]] = math.nan
    found["verdict"] = holm(found["p"])
    found["p"] = found["p"].map("{:.2g}".format, na_action="ignore")
    return found


# ------------------------------------------------------------------------------------------ tables

COMMON = ["data", "epochs", "variant", "options"]  # to the runs of a line
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


def all_rows() -> pandas.DataFrame:
    """Return the rows of runs.csv of the program as it is, with what the tables need besides."""
    texts = {"options": "", "machine": ""}
    rows = pandas.read_csv(Path(FOLDER, "runs.csv"), dtype=dict.fromkeys(texts, str))
    rows = rows[(rows["padding"] == "yes") & rows["change"].isna()].fillna(texts)
    held_out = r" ?--valid-speakers (\S+) --no-test"
    rows["speakers"] = rows["options"].str.extract(held_out, expand=False).fillna("")
    rows["options"] = rows["options"].str.replace(held_out, "", regex=True).str.strip()
    rows["side"] = (rows["variant"] + " " + rows["options"]).str.strip()
    rows["accuracy"] = rows["result_test"].fillna(rows["valid_accuracy"])
    rows["soft"] = rows["unrounded"].fillna(rows["accuracy"])  # fixed delays have whole steps
    return rows


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
    for _, runs in rows.groupby([*COMMON, "machine"], sort=False):
        line = runs.iloc[0].to_dict()
        files = "" if line["data"] in TASKS else line["data"]
        names = [line["variant"], line["options"], line["machine"], files]
        line["variant"] = ", ".join(name for name in names if name)
        line["parameters"] = f"{line['parameters']:,.0f}".replace("nan", "-")
        line |= {head: spread(runs[column]) for head, column in SHARES.items()}
        line |= {pair: spread(own["accuracy"]) for pair, own in runs.groupby("speakers")}
        line |= {"mean": f"{100 * runs['accuracy'].mean():.2f}", "n": len(runs)}
        lines.append(line)
    return pandas.DataFrame(lines, columns=columns)


def recipe(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Return the accuracies on held-out speakers that decide whether `shift` is the recipe.

    It is if, at the last epoch of 40 (seed 0), the unweighted mean of the paired differences over
    PAIRS is a point or more, and if it wins at least four pairs.  A tie is a loss.
    """
    sides = {}
    for side in ("learned", "shift"):
        runs = runs_of(rows, SHD, 40, side, [0], PAIRS).droplevel("seed")
        sides[side] = 100 * runs["valid_accuracy"].reindex(PAIRS)
    gains = sides["shift"] - sides["learned"]
    adopted = gains.mean() >= 1 and (gains > 0).sum() >= 4
    verdict = "adopted" if adopted else "not adopted"
    found = pandas.DataFrame(sides | {"shift - learned": gains}).T
    found["mean"] = found.mean(axis=1, skipna=False)
    found = found.map("{:.2f}".format).replace("nan", "-").rename_axis("40 epochs").reset_index()
    return found.assign(verdict=["", "", "not run" if gains.isna().any() else verdict])


def parts(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Return how accuracy changes with each idea of PARTS."""
    found = pandas.DataFrame({"part": list(PARTS.values()), "idea": list(PARTS)})
    for task, epochs in TASKS.items():
        found[task] = [versus(rows, task, epochs, idea, "learned") for idea in PARTS]
        found[f"n, {task}"] = [difference.n for difference in found[task]]
    return found


def answers(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Return the differences in sentences of the pages that no other table has."""
    first, second = rows[rows["list"] == 1], rows[rows["list"] == 2]
    later = rows.query("list in (2, 3)")
    found = {}
    for side in ("learned", HALF, "fixed", SLOW):
        long, short = [runs_of(first, SHD, epochs, side)["accuracy"] for epochs in (150, 30)]
        found[f"150 epochs over 30: {side}"] = compare(long, short)
    for name, runs in (
        ("SHD", runs_of(first, SHD, 150, "learned")),
        ("toy", runs_of(first, "toy", 20, "learned")),
        ("ten inputs", runs_of(second, SHD, 60, "learned" + TEN)),
    ):
        found[f"rounding, {name}"] = compare(runs["accuracy"], runs["unrounded"], paired=True)
    none = "none" + TEN + LONG
    found["fixed over none, ten inputs"] = versus(second, SHD, 60, "fixed" + TEN, none)
    for other in ("fixed", "fixed --hidden 76", "constant-sigma"):
        found[f"learned over {other}, toy"] = versus(first, "toy", 20, "learned", other)
    for what in ("new_speakers", "known_speakers"):
        difference = versus(second, SHD, 30, "learned", "control", column=what)
        found[f"learned over control, {what}"] = difference
    found["control over fixed, all runs"] = versus(rows, SHD, 30, "control", "fixed")
    for task, epochs in TASKS.items():
        for idea in ("axonal", "dendritic", "whole-steps", "between-taps"):
            found[f"{idea} over learned, {task}"] = versus(later, task, epochs, idea, "learned")
        for one, other in ("learned", "control"), ("learned", STILL), ("fixed", "control"):
            name = f"{one} over {other}, {task}"
            found[name] = versus(second, task, epochs, one, other)
            soft = versus(second, task, epochs, one, other, column="soft")
            found[f"{name}, training kernels"] = soft
    difference = versus(later, SHD, 30, "between-taps", "constant-sigma")  # both have no wide start
    found[f"between-taps over constant-sigma, {SHD}"] = difference
    lines = [[name, difference, difference.n] for name, difference in found.items()]
    return pandas.DataFrame(lines, columns=["answer", "difference", "n"])


def all_tables() -> dict[str, str]:
    """Return every table by its name, in Markdown."""
    rows = all_rows()
    first, second = rows[rows["list"] == 1], rows[rows["list"] == 2]
    on_test = rows.query("speakers == '' and variant not in @PARTS.keys()")
    on_shd = on_test[on_test["data"].str.lower().str.startswith("shd")]
    sparse = on_shd["options"].str.contains("--connections")
    chosen = on_shd["options"].str.contains("--valid-share")
    toy = on_test.query("data == 'toy' and (list != 2 or seed < 10)")  # the others are of claim c
    held_out = rows.query("speakers != '' and epochs == 30")
    heads = ["variant", "parameters", "epochs", *SHARES, "n"]
    reported = {"last epoch": "epoch that is best on validation"}
    tables = {
        # Claims 5 and 8 have a sentence each instead.
        "claims": claims_table(first, FIRST_CLAIMS).drop([4, 7]),
        "second": claims_table(second, SECOND_CLAIMS),
        "third": claims_table(rows.query("list in (1, 3)"), THIRD_CLAIMS),
        "baseline": recipe(rows.query("list == 3")),
        "answers": answers(rows),
        "shd": table(on_shd[~sparse & ~chosen], heads),
        "ten inputs": table(on_shd[sparse], heads),
        "validation": table(on_shd[chosen], heads).rename(columns=reported),
        "toy": table(toy, ["variant", "parameters", "last epoch", "unrounded", "n"]),
        "parts": parts(second),
        "held-out": table(held_out, ["variant", *PAIRS, "mean", "n"]),
    }
    for name, frame in tables.items():
        cells = frame.astype(object).fillna("-").to_numpy()
        lines = [frame.columns, ["---"] * len(frame.columns), *cells]
        tables[name] = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    return tables


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
    same = [*COMMON, "padding", "change", "seed"]
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
