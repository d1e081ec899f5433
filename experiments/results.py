"""Train variants and seeds, keep a row per run in runs.csv, and print the tables.

    python -m experiments.results train --dataset toy --variants learned,fixed,none --seeds 0,1,2
    python -m experiments.results add runs/toy-20-learned-0
    python -m experiments.results tables claims

`train` passes other options on to train.py.  It skips finished runs and resumes stopped ones.
`add` records the processor it runs on, so call it on the machine that trained the network.
Tables are in %: the mean ± the sample standard deviation, or the values if fewer than three.
"""

import argparse
import json
import math
import platform
import re
import subprocess
import sys
from pathlib import Path

import pandas
from scipy import stats

import data
import train
from data import UserError

CHOSEN_TAU = 400  # ms, of membranes without delays: of three, the best on held-out speakers
SLOW = ("none", f"--tau {CHOSEN_TAU:.1f} --tau-readout 10.05")
LEARNED, FIXED, NONE = ("learned", ""), ("fixed", ""), ("none", "")
SHD, TEN = "SHD (regenerated)", "--connections 10"

# Data, epochs, what is compared, and the variant and options of either side.  The tests are
# two-sided: the sign of a difference that holds says which side is better.
CLAIMS = [
    (SHD, 150, "learned against fixed", LEARNED, FIXED),
    (SHD, 150, "learned against fixed, equal parameters", ("learned", "--hidden 165"), FIXED),
    (SHD, 30, f"fixed against none, tau {CHOSEN_TAU} ms", FIXED, SLOW),
    (SHD, 30, f"none, tau {CHOSEN_TAU} against 10.05 ms", SLOW, NONE),
    (SHD, 30, "ours against the authors' libraries", LEARNED, ("authors", "")),
    (SHD, 30, "shrinking against constant sigma", LEARNED, ("constant-sigma", "")),
    (SHD, 60, "sparse: learned against fixed", ("learned", TEN), ("fixed", TEN)),
    (SHD, 60, "sparse: constant against shrinking", ("constant-sigma", TEN), ("learned", TEN)),
    ("toy", 20, "learned against none, tau 100 ms", LEARNED, ("none", "--tau 100.0")),
    ("toy", 20, "learned against fixed, equal parameters", ("learned", "--hidden 21"), FIXED),
]
LISTED = "2026-11-28 19:52"  # when the list was committed (3e8c1f5), in UTC

# The second list, committed before its first run began.  The seeds are fixed: all of them run, no
# more are added, and each claim is tested once, when all of its runs have ended.  Both sides are
# accuracies of rounded networks at the last epoch, from one processor.  The tests are two-sided:
# Welch's, and for the held-out pairs of speakers (seed 0 on each) a paired one over the five pairs.
# Holm's correction is over these five.
SECOND_CLAIMS = [
    (SHD, 30, "learned against the control that starts at whole steps", LEARNED, ("control", "")),
    (SHD, 60, "ten inputs: learned against fixed", ("learned", TEN), ("fixed", TEN)),
    ("toy", 20, "learned against fixed, equal parameters", ("learned", "--hidden 21"), FIXED),
    (SHD, 30, "learned against fixed on held-out speakers", LEARNED, FIXED),
    (SHD, 30, "shrinking against constant sigma", LEARNED, ("constant-sigma", "")),
]
SECOND_SEEDS = [
    range(5, 10),
    range(5),
    range(10, 30),
    ["1,8", "2,10", "3,6", "0,9", "7,11"],
    range(5, 10),
]


def t_test(rows: pandas.DataFrame, base: pandas.DataFrame, paired: bool) -> tuple:
    """Return by how many points rows are above base with the 95 % interval, p, and both n.

    paired: over the seeds that both have.  Otherwise it is Welch's test of the two means.
    p is nan for fewer than three runs on either side.
    """
    one, other = [100 * side.set_index("seed")["accuracy"] for side in (rows, base)]
    if paired:
        one, other = one.align(other, join="inner")
    counts = f"{len(one)} and {len(other)}"
    if min(len(one), len(other)) < 3:
        return "-", math.nan, counts
    test = stats.ttest_rel(one, other) if paired else stats.ttest_ind(one, other, equal_var=False)
    low, high = test.confidence_interval(0.95)
    return f"{one.mean() - other.mean():+.2f} [{low:+.2f}, {high:+.2f}]", test.pvalue, counts


def are_pairs(rows: pandas.DataFrame, base: pandas.DataFrame) -> bool:
    """Return whether runs of the same seed begin alike, on the same processor and threads."""
    # With layers of the same sizes, a seed gives these four the same first weights, masks, batches
    # and dropout, whatever the membranes, and the same delays, which fixed ones round.  With layers
    # of other sizes, runs share only the order of the batches.
    alike = {"constant-sigma": "learned", "fixed": "learned", "none": "learned"}
    both = pandas.concat([rows, base])
    options = both["options"].str.replace(r"--tau\S* \S+", "", regex=True).str.strip()
    beginnings = both["variant"].replace(alike) + options
    shared = rows.merge(base, on="seed")
    same_machine = len(shared) and (shared["machine_x"] == shared["machine_y"]).all()
    return beginnings.nunique() == 1 and bool(same_machine)


def holm(p: pandas.Series) -> pandas.Series:
    """Return a verdict on each p at 0.05, by Holm's correction.

    nan is a claim that was not run, but it counts in the length of the list.
    """
    ordered = p.sort_values()  # nan comes last
    corrected = ordered * list(range(len(p), 0, -1))
    holds = (corrected <= 0.05).cummin()  # up to the first that does not
    return holds.map({True: "holds", False: "not shown"}).where(p.notna(), "not run")


def claims_table(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Return the table of CLAIMS.  The other test is named if only one interval contains 0."""
    heads = ["claim", "data", "difference", "p", "n", "seen", "test", "processor", "other test"]
    names = {True: "paired", False: "Welch"}
    groups = dict(list(rows.groupby(["data", "epochs", "variant", "options"])))
    lines = []
    for number, (name, epochs, claim, *sides) in enumerate(CLAIMS, 1):
        one, other = [groups.get((name, epochs, *side), rows[:0]) for side in sides]
        paired = are_pairs(one, other)
        difference, p, counts = t_test(one, other, paired)
        second, other_p, _ = t_test(one, other, not paired)
        disagrees = p < 0.05 <= other_p or other_p < 0.05 <= p
        line = [f"{number}. {claim}", f"{name}, {epochs} epochs", difference, p, counts]
        line += [" and ".join(str((side["ended"] <= LISTED).sum()) for side in (one, other))]
        machines = ["; ".join(sorted(set(side["machine"]))) or "-" for side in (one, other)]
        line += [names[paired], " against ".join(machines)]
        lines.append([*line, f"{names[not paired]} {second}" if disagrees else "-"])
    found = pandas.DataFrame(lines, columns=heads)
    p = found["p"].map("{:.2g}".format, na_action="ignore")
    return found.assign(verdict=holm(found["p"]), p=p)


# ------------------------------------------------------------------------------------------ tables

COMMON = ["data", "epochs", "padding", "variant", "options", "change"]  # of the runs of a line
SHARES = {"last epoch": "accuracy", "unrounded": "unrounded", "best on test": "best_on_test"}
PAIRS = ["1,8", "2,10", "3,6", "0,9", "7,11"]  # speakers of SHD that are held out together
MEMBRANES = ["", *(f"--tau {tau}.0 --tau-readout 10.05" for tau in (50, 100, 200, 400))]


def all_rows() -> pandas.DataFrame:
    """Return the rows of runs.csv, with what the tables need besides."""
    rows = pandas.read_csv(Path(FOLDER, "runs.csv"), dtype={"options": str, "change": str})
    rows = rows.fillna({"options": "", "change": "", "ended": ""})  # the oldest have no "ended"
    held_out = rows["options"].str.extract(r"--valid-speakers (\S+) --no-test ?(.*)")
    rows["speakers"] = held_out[0].fillna("")
    rows["options"] = held_out[1].fillna(rows["options"])
    rows["sparse"] = rows["options"].str.contains("--connections")
    threads = ", " + rows["threads"].astype(str) + " threads"
    rows["machine"] = rows["processor"] + threads.replace(", 1 threads", "")
    rows["accuracy"] = rows["result_test"].fillna(rows["valid_accuracy"])  # last epoch
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
    for _, runs in rows.groupby(COMMON, sort=False):
        line = runs.iloc[0].to_dict()
        line["variant"] = f"{line['variant']}, {line['options']}".removesuffix(", ")
        line["parameters"] = f"{line['parameters']:,.0f}".replace("nan", "-")
        line |= {head: spread(runs[column]) for head, column in SHARES.items()}
        line |= {pair: spread(own["accuracy"]) for pair, own in runs.groupby("speakers")}
        line["mean"] = f"{100 * runs['accuracy'].mean():.2f}"
        line |= {"n": len(runs), "processor": "; ".join(sorted(set(runs["machine"])))}
        lines.append(line)
    return pandas.DataFrame(lines, columns=columns)


def all_tables() -> dict[str, str]:
    """Return every table by its name, in Markdown."""
    rows = all_rows().query("change == ''")
    today = rows.query("speakers == '' and padding == 'yes'")
    earlier = rows.query("speakers == '' and padding == 'no' and data == @SHD")
    ours = today.query("variant != 'authors'")
    sparse = pandas.concat([ours, earlier]).query("sparse and data == @SHD")
    tau = rows.query("speakers != '' and epochs == 30 and options in @MEMBRANES")
    tau = tau.query("variant == 'none' or options == ''")
    of_line = ["variant", "options", "padding"]
    tau = tau.groupby(of_line).filter(lambda runs: len(runs) == len(PAIRS)).sort_values(of_line)

    shd = ["variant", "parameters", "epochs", *SHARES, "n", "processor"]
    toy = [head for head in shd if head not in ("epochs", "best on test")]
    unpadded = table(earlier.query("not sparse"), shd)
    authors = table(today.query("variant == 'authors'"), shd)
    tables = {
        "claims": claims_table(today),
        **{name: table(runs, shd) for name, runs in ours.query("not sparse").groupby("data")},
        "sparse": table(sparse, ["padding", *shd]),
        "toy": table(today.query("data == 'toy'"), toy),
        "validation": table(tau, ["variant", "padding", *PAIRS, "mean", "n", "processor"]),
        "unpadded": unpadded.rename(columns={"variant": "commits 9c3082d to 72060dc"}),
        "authors": authors.rename(columns={"variant": "dcls 0.1.1, spikingjelly 2.0.0"}),
    }
    for name, frame in tables.items():
        cells = frame.astype(object).fillna("-").to_numpy()
        lines = [frame.columns, ["---"] * len(frame.columns), *cells]
        tables[name] = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    return tables


# ------------------------------------------------------ runs and commands: skip on a first reading

FOLDER = Path(__file__).resolve().parent
# Names by the first digits of the training file's md5, unpacked or packed: published, and our own.
DATA_NAMES = {"8e9877c8": "SHD", "d47c9825": "SHD", "d102be95": "SSC"}
DATA_NAMES |= {"db7189fb": SHD, "210a81f5": SHD, "63f094f4": "Speech Commands (subset)"}


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


def row_of_run(folder: str) -> dict:
    """Return the row of a finished run of train.py."""
    config_path, result_path = Path(folder, "config.json"), Path(folder, "result.json")
    config, result = json.loads(config_path.read_text()), json.loads(result_path.read_text())
    log = pandas.read_csv(Path(folder, "log.csv"), dtype=str, keep_default_na=False)
    row = config | result | log.filter(like="accuracy").iloc[-1].to_dict()
    row |= {"run": Path(folder).resolve().name, "padding": "yes"}
    row |= {f"{split}_samples": number for split, number in config["samples"].items()}
    row |= {f"result_{split}": result[f"{split}_accuracy"] for split in ("test", "valid")}
    if result["delays"] not in ("fixed", "none"):  # those are whole steps in any case
        row["unrounded"] = result["unrounded_accuracy"]
    row["variant"] = result["delays"]
    row["options"] = changed_options(argparse.Namespace(**config["options"]))
    md5 = [digest[:8] for digest in config["md5"].values()]
    row |= {"md5": " ".join(md5), "data": result["dataset"]}
    if md5:
        row["data"] = DATA_NAMES.get(md5[0], f"{result['dataset']} (other files)")

    # The last commit of this checkout before the run, which writes its config.json once, first.
    begun = f"--before=@{config_path.stat().st_mtime:.0f}"
    command = ["git", "-C", FOLDER, "log", "-1", "--format=%h", begun]
    row["version"] = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    ended = pandas.Timestamp(result_path.stat().st_mtime, unit="s")  # in UTC
    row["ended"] = ended.strftime("%Y-%m-%d %H:%M")
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else []
    names.append(platform.processor() or platform.machine())
    row["processor"] = " ".join(re.sub(r"\(\w+\)", "", names[0]).split()[:2])  # as in Intel Xeon
    if config["options"]["device"] == "cuda":
        row["processor"] = config["device"]
    return row


def add(folders: list[str], variant: str | None) -> None:
    """Add all of the runs, or none if one of them has a problem."""
    rows = pandas.read_csv(Path(FOLDER, "runs.csv"), dtype=str, keep_default_na=False)
    for folder in folders:
        row = pandas.Series(row_of_run(folder)).reindex(rows.columns).fillna("").astype(str)
        row["variant"] = variant or row["variant"]
        same = [*COMMON, "seed"]
        there = rows[(rows[same] == row[same]).all(axis=1)]
        if len(there):
            rule = "delete that row first if this run replaces it"
            raise UserError(f"runs.csv has {folder} already, as {there['run'].iloc[0]}: {rule}")
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
    parser.add_argument("command", choices=["train", "add", "tables"])
    parser.add_argument("--variants", default="learned", help="to train, as in learned,fixed")
    parser.add_argument("--seeds", default="0", help="to train, as in 0,1,2")
    parser.add_argument("--variant", help="to add: the name of a network of your own")
    arguments, words = parser.parse_known_args(argv)
    try:
        if arguments.command == "train":
            train_all(arguments.variants.split(","), arguments.seeds.split(","), words)
        elif arguments.command == "add":
            add(words, arguments.variant)
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
