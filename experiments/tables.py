"""Prints tables of RESULTS.md again, from the logs in experiments/logs.

    python experiments/tables.py             # all of them
    python experiments/tables.py held-out    # one

A test compares them, line by line, with the file.  Tables with all variants of a data set are
printed by variants.py --table.
"""

import csv
import os
import statistics
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import variants

import train

LOGS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "logs")
PAIRS = ["1,8", "2,10", "3,6"]  # of speakers that were held out of training
RECIPES = ["paper", "augmented", "warped"]
SEEDS = range(20)  # those without a log are left out


def read_log(folder: str) -> list[dict[str, float | None]]:
    """The rows of a run's log.csv; None where nothing was measured."""
    with open(os.path.join(folder, "log.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: float(text) if text else None for key, text in row.items()} for row in rows]


def runs(kind: str) -> dict[int, list[dict]]:
    """The logs by seed of the finished runs of a kind, as in shd-30/learned-dense."""
    return {
        seed: read_log(f"{LOGS}/{kind}-{seed}")
        for seed in SEEDS
        if os.path.exists(f"{LOGS}/{kind}-{seed}/result.json")
    }


def lines(heads: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown, line by line."""
    head, *others = [f"| {' | '.join(row)} |" for row in [heads, *rows]]
    return [head, "|" + "---|" * len(heads), *others]


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


# -------------------------------------------------------------------------------------- the tables


def held_out() -> list[str]:
    """Recipes on speakers held out of training, and their mean differences to the paper's.

    A pair's seeds are averaged first: their samples are the same, so they are not independent.
    """
    heads = ["held-out speakers", "seed", "recipe", "validation (mean of the last five epochs)"]
    heads += ["difference to paper", "training"]
    rows = []
    above_paper = {recipe: {} for recipe in RECIPES}  # by pair, a list over its seeds
    for pair in PAIRS:
        found = {recipe: runs(f"shd-50-without-{pair}/{recipe}") for recipe in RECIPES}
        for seed, paper in found["paper"].items():
            for recipe in RECIPES:
                if seed not in found[recipe]:
                    continue
                log = found[recipe][seed]
                last = log[-1]["valid_accuracy"]
                difference = last - paper[-1]["valid_accuracy"]
                above_paper[recipe].setdefault(pair, []).append(difference)
                cells = [pair.replace(",", ", "), str(seed), recipe]
                cells.append(f"{percent(last)} ({tail_mean(log)})")
                cells.append("-" if recipe == "paper" else f"{100 * difference:+.2f}")
                rows.append([*cells, percent(log[-1]["train_accuracy"])])
    for recipe in RECIPES[1:]:
        means = [statistics.mean(by_seed) for by_seed in above_paper[recipe].values()]
        rows.append([f"mean of {len(means)} pairs", "", recipe, "", variants.interval(means), ""])
    return lines(heads, rows)


def tail_mean(log: list[dict]) -> str:
    """Mean of validation over the last five epochs."""
    return percent(statistics.mean(row["valid_accuracy"] for row in log[-5:]))


def course() -> list[str]:
    """What a run shows on its way: test accuracy after some epochs."""
    kinds = {
        "toy task, 20 epochs": ("toy-20/learned-dense", 20),
        "SHD (regenerated), 30 epochs": ("shd-30/learned-dense", 30),
        "SHD (regenerated), 150 epochs": ("shd-150/learned-dense", 150),
        "SHD (regenerated), 150 epochs, augmented": ("shd-150/augmented", 150),
    }
    rows = []
    for name, (kind, epochs) in kinds.items():
        logs = list(runs(kind).values())
        if not logs:
            continue
        cells = []
        for epoch in (1, 5, 10, 30):
            shares = [log[epoch - 1]["test_accuracy"] for log in logs if epoch < epochs]
            cells.append(variants.spread(shares))
        cells.append(variants.spread([log[-1]["test_accuracy"] for log in logs]))
        rows.append([name, *cells, str(len(logs))])
    return lines(["test accuracy after epoch", "1", "5", "10", "30", "the last", "n"], rows)


def full_length() -> list[str]:
    """The recipes at 150 epochs on all of train, run by run, and the difference of last epochs."""
    heads = ["recipe", "seed", "last epoch", "best on test", "training", "speakers in training"]
    heads += ["speakers 4 and 5", "shifted copies together"]
    kinds = {"paper": "shd-150/learned-dense", "augmented": "shd-150/augmented"}
    rows, means = [], []
    for recipe, kind in kinds.items():
        shares = []
        for seed, log in runs(kind).items():
            result = results(kind)[seed]
            folder = f"{LOGS}/{kind}-{seed}"
            groups = variants.read_json(folder, "speakers.json")
            if groups is None:
                raise ValueError(f"{folder} has no speakers.json: experiments/speakers.py makes it")
            groups = groups["rows"]
            shares.append(
                [
                    result["test_accuracy"],
                    result["best_on_test"],
                    log[-1]["train_accuracy"],
                    groups["speakers in training"]["accuracy"],
                    groups["other speakers"]["accuracy"],
                    groups["all"]["shifted"],
                ]
            )
            rows.append([recipe, str(seed), *map(percent, shares[-1])])
        spreads = [variants.spread(list(column)) for column in zip(*shares, strict=True)]
        means.append([f"{recipe}, mean", f"n = {len(shares)}", *spreads])
    difference = variants.interval(differences(*map(results, kinds.values())))
    last = ["augmented - paper", "", difference, "", "", "", "", ""]
    return lines(heads, [*rows, *means, last])


def differences(base: dict[int, dict], others: dict[int, dict]) -> list[float]:
    """By how much the headlines of others are above those of base, for the seeds of both."""
    both = sorted(base.keys() & others.keys())
    return [others[seed]["test_accuracy"] - base[seed]["test_accuracy"] for seed in both]


def ideas(name: str, kind: str) -> list[str]:
    """The networks of ideas.py beside the base, in runs of a kind as shd-30."""
    heads = [f"network on {name}", "whole steps", "training's kernels", "difference to base"]
    heads += ["parameters", "shortest epoch, s", "n"]
    base = results(f"{kind}/learned-dense")
    rows = []
    for idea in ("base", "axonal", "dendritic", "recurrent", "adaptive"):
        folder = f"{kind}/learned-dense" if idea == "base" else f"{kind}-ideas/{idea}"
        found = results(folder)
        cells = [
            variants.spread([result.get(key) for result in found.values()])
            for key in ("test_accuracy", "unrounded_accuracy")
        ]
        cells.append("-" if idea == "base" else variants.interval(differences(base, found)))
        (parameters,) = {result["parameters"] for result in found.values()}
        seconds = min(row["seconds"] for log in runs(folder).values() for row in log)
        rows.append([idea, *cells, f"{parameters:,}", f"{seconds:.1f}", str(len(found))])
    return lines(heads, rows)


def speech_commands() -> list[str]:
    """Speech Commands (subset), test accuracy at the epoch that was best on validation.

    memory.txt, beside the logs, has the peak memory of the process in MiB.
    """
    heads = ["Speech Commands (subset), 60 epochs", "parameters", "test accuracy"]
    heads += ["difference to learned", "best epoch", "validation there", "at the last epoch"]
    heads += ["training's kernels", "median epoch, s", "peak memory, MiB", "n"]
    kinds = {
        "learned": "ssc-60/learned-dense",
        "learned, two synapses a pair": "ssc-60/learned-two",
        "fixed": "ssc-60/fixed-dense",
        "none": "ssc-60/none-dense",
    }
    rows = []
    for name, kind in kinds.items():
        found, logs = results(kind), runs(kind)
        if not found:
            rows.append([name, "", "not run", *[""] * 7, "0"])
            continue
        (parameters,) = {result["parameters"] for result in found.values()}
        accuracies = {
            key: variants.spread([result[key] for result in found.values()])
            for key in ("test_accuracy", "valid_accuracy", "unrounded_accuracy")
        }
        below = differences(results(kinds["learned"]), found)
        last = [log[-1]["valid_accuracy"] for log in logs.values()]
        seconds = [row["seconds"] for log in logs.values() for row in log]
        memory = [read_number(f"{LOGS}/{kind}-{seed}/memory.txt") for seed in found]
        rows.append(
            [
                name,
                f"{parameters:,}",
                accuracies["test_accuracy"],
                "-" if name == "learned" else variants.interval(below),
                ", ".join(str(train.best_epoch(log)) for log in logs.values()),
                accuracies["valid_accuracy"],
                variants.spread(last),
                accuracies["unrounded_accuracy"],
                f"{statistics.median(seconds):.0f}",
                f"{max(memory):,}",
                str(len(found)),
            ]
        )
    return lines(heads, rows)


def speech_commands_settings() -> list[str]:
    """Speech Commands (subset), learned delays: what validation says of length and dropout."""
    heads = ["epochs", "dropout", "seed", "best epoch", "validation there", "at the last epoch"]
    heads += ["mean of the last five", "training"]
    rows = []
    for folder in ("ssc-60", "ssc-30", "ssc-30-dropout-0.1", "ssc-30-dropout-0.5"):
        for seed, log in runs(f"{folder}/learned-dense").items():
            config = variants.read_json(f"{LOGS}/{folder}/learned-dense-{seed}", "config.json")
            best = train.best_epoch(log)
            shares = [log[best - 1]["valid_accuracy"], log[-1]["valid_accuracy"]]
            cells = [str(config[key]) for key in ("epochs", "dropout", "seed")]
            cells += [str(best), *map(percent, shares), tail_mean(log)]
            rows.append([*cells, percent(log[-1]["train_accuracy"])])
    return lines(heads, rows)


def read_number(path: str) -> int:
    with open(path) as file:
        return int(file.read())


def results(kind: str) -> dict[int, dict]:
    """result.json by seed of the finished runs of a kind."""
    return {seed: variants.read_json(f"{LOGS}/{kind}-{seed}", "result.json") for seed in runs(kind)}


TABLES = {
    "held-out": held_out,
    "course": course,
    "full length": full_length,
    "ideas on the toy task": lambda: ideas("the toy task", "toy-20"),
    "Speech Commands": speech_commands,
    "Speech Commands, settings": speech_commands_settings,
    "ideas on SHD": lambda: ideas("SHD (regenerated)", "shd-30"),
}


def main(names: list[str]) -> None:
    if not set(names) <= TABLES.keys():
        raise ValueError(f"{' '.join(names)}: expected some of {', '.join(TABLES)}")
    for name in names or TABLES:
        print(f"{name}:\n")
        print("\n".join(TABLES[name]()), end="\n\n")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal without the sign of ± shows "?"
    try:
        main(sys.argv[1:])
    except ValueError as problem:
        sys.exit(f"tables.py: {problem}")
