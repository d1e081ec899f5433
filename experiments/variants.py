"""Trains every variant of the paper, several seeds each, and prints a table of them.

    python experiments/variants.py --dataset toy
    python experiments/variants.py --dataset shd --data-dir DIR --epochs 30 --seeds 0,1,2
    python experiments/variants.py --dataset toy --table    # of the runs that are there

A variant is a value of train.py's --delays.  With "-wide", its hidden layers are widened until it
has as many parameters as the network with learned delays.  Each variant is run dense, and sparse
with --connections inputs a neuron.  Options that are not listed here are handed to train.py.

The runs follow one another, each in a process of its own.  If one fails, the others go on.  Stop
the command and repeat it at will: finished runs stay, and one that was cut off is continued.

The table, also in table.md beside the runs, has accuracies in %: mean ± sample standard deviation
over the seeds.  "Unrounded" is test accuracy with the kernels of training in place of whole steps.
The difference to learned delays, if they are among --variants, is over the seeds that both have,
with its 95 % interval.
"""

import argparse
import bisect
import json
import math
import os
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import data
import train

VARIANTS = ["learned", "constant-sigma", "fixed", "none", "fixed-wide", "none-wide"]
DENSITIES = ["dense", "sparse"]
# Student's t, two-sided, 95 %, for 1 to 9 degrees of freedom.
T95 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]
HEADS = {  # the table's columns of accuracies, by their names in result.json
    "test_accuracy": "test accuracy",
    "valid_accuracy": "validation accuracy, best epoch",
    "best_on_test": "best on test",
    "unrounded_accuracy": "unrounded",
}


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The options of this program, and those for train.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--dataset", choices=list(data.DATASETS), default="toy", help="default: toy")
    add("--seeds", type=seeds, default=[0, 1, 2], help="default: 0,1,2")
    add("--variants", type=some_of(VARIANTS), default=VARIANTS, help=f"of {','.join(VARIANTS)}")
    add("--density", type=some_of(DENSITIES), default=DENSITIES, help="of dense,sparse")
    add(
        "--connections",
        type=train.number(int, 1),
        default=10,
        help="inputs of a sparse neuron, default: 10",
    )
    add("--out", default="runs/variants", help="folder of all runs, default: runs/variants")
    add("--table", action="store_true", help="run nothing, only print the table")
    arguments, rest = parser.parse_known_args()

    for name in ("--delays", "--seed", "--resume", "--eval"):
        if any(word.split("=")[0] == name for word in rest):
            parser.error(f"{name}: this program sets it for each run")
    return arguments, ["--dataset", arguments.dataset, *rest]


def seeds(text: str) -> list[int]:
    return sorted({train.number(int, 0)(seed) for seed in text.split(",")})


def some_of(names: list[str]):
    """An argparse type: some of the names, with commas between them."""

    def convert(text):
        chosen = text.split(",")
        if not set(chosen) <= set(names):
            raise argparse.ArgumentTypeError(f"{text}: expected some of {','.join(names)}")
        return chosen

    return convert


# ---------------------------------------------------------------------------------------- the runs


def run_options(words: list[str], variant: str, connections: int) -> list[str]:
    """The arguments of train.py for a variant, without seed and folder."""
    delays = variant.removesuffix("-wide")
    words = [*words, "--delays", delays, "--connections", str(connections)]
    if delays != variant:
        words += ["--hidden", str(wide(words))]
    return words


def wide(words: list[str]) -> int:
    """How wide hidden layers have to be for as many parameters as with learned delays."""

    def parameters(*more):
        return train.count_parameters(train.build(train.parse([*words, *more])))

    hidden = train.parse(words).hidden
    wanted = parameters("--delays", "learned")
    widths = range(hidden, 4 * hidden + 100)
    return widths[bisect.bisect_left(widths, wanted, key=lambda n: parameters("--hidden", str(n)))]


def read_json(folder: str, name: str) -> dict | None:
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return None
    try:
        with open(path) as file:
            return json.load(file)
    except ValueError:
        rule = "put a copy of it back, or move its folder away and run that again"
        raise ValueError(f"{path} is broken: {rule}") from None


def check_same(folder: str, words: list[str], free: set[str]) -> None:
    """A run that is there already has to be of the same options, but for the free ones.

    An option that was added to train.py since it ran had its default there.
    """
    there = read_json(folder, "config.json")
    if there is None:
        return
    there = train.complete(there)
    for key, value in vars(train.parse(words)).items():
        if key not in free and there[key] != value:
            option = f"--{key.replace('_', '-')}"
            rule = "use another --out"
            raise ValueError(f"{folder} has {option} {there[key]}, not {value}: {rule}")


def run(folder: str, words: list[str]) -> str | None:
    """Trains in a child process; returns what went wrong, if anything did."""
    command = [sys.executable, train.__file__, *words, "--out", folder]
    if os.path.exists(os.path.join(folder, "last.pt")):
        command.append("--resume")

    os.makedirs(folder, exist_ok=True)
    console = os.path.join(folder, "console.txt")
    with open(console, "a") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
    if code == 0:
        return None
    with open(console, errors="replace") as file:
        lines = file.read().split("\n")
    said = [line for line in lines if line.strip()] or ["no output"]
    return f"exit code {code}: {said[-1]}"


def run_all(runs: dict[str, list[str]], headline: str) -> dict[str, str]:
    """Trains what is not finished yet.  Returns what went wrong in each folder that failed."""
    todo = [folder for folder in runs if read_json(folder, "result.json") is None]
    begun = time.time()
    failures = {}
    for done, folder in enumerate(todo):
        rest = ""
        if done:
            minutes = (time.time() - begun) / done * (len(todo) - done) / 60
            rest = f", about {minutes:.0f} min left"
        print(f"run {done + 1} of {len(todo)}: {folder}{rest}", flush=True)

        failure = run(folder, runs[folder])
        if failure is None:
            accuracy = read_json(folder, "result.json")[headline]
            print(f"  {accuracy:.2%}, {time.time() - begun:.0f} s so far", flush=True)
        else:
            failures[folder] = failure
            print(f"  failed, {failure}", flush=True)
    return failures


# --------------------------------------------------------------------------------------- the table


def spread(values: list[float | None]) -> str:
    """Mean ± sample standard deviation of shares, in %, and of how many, if some are None."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    text = f"{statistics.mean(known):.2f}"
    if len(known) > 1:
        text += f" ± {statistics.stdev(known):.2f}"
    return text if len(known) == len(values) else f"{text} (n = {len(known)})"


def interval(differences: list[float]) -> str:
    """Mean of paired differences in points, with its 95 % interval by Student's t."""
    n = len(differences)
    if n == 0:
        return "-"
    mean = 100 * statistics.mean(differences)
    if n == 1:
        return f"{mean:+.2f} (one pair)"
    t = T95[min(n, 10) - 2]  # beyond ten pairs this is a little too wide
    half = t * 100 * statistics.stdev(differences) / math.sqrt(n)
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


def row(results: dict[int, dict], learned: dict[int, dict], columns: list[str]) -> list[str]:
    """A row's cells behind its name, from the results by seed of a variant and of learned."""
    if not results:
        return ["", "not run", *[""] * len(columns), "0", ""]
    runs = list(results.values())
    cells = [f"{runs[0]['parameters']:,}"]
    for column in columns:
        cells.append(spread([result.get(column) for result in runs]))

    differences = []
    if results is not learned:
        for seed in results.keys() & learned.keys():
            differences.append(results[seed][columns[0]] - learned[seed][columns[0]])
    cells.append(interval(differences))

    minutes = statistics.mean(result["seconds"] for result in runs) / 60
    return [*cells, str(len(runs)), f"{minutes:.1f}"]


def table(results: dict[str, dict[int, dict]], headline: str) -> str:
    """Markdown, from the results by kind, as in learned-dense, and by seed."""
    columns = [headline, "best_on_test", "unrounded_accuracy"]
    heads = ["variant", "parameters", *(HEADS[column] for column in columns)]
    heads += ["difference to learned", "n", "minutes"]
    lines = [heads, ["---"] * len(heads)]
    for kind, by_seed in results.items():
        variant, density = kind.rsplit("-", 1)
        learned = results.get(f"learned-{density}", {})
        lines.append([f"{variant}, {density}", *row(by_seed, learned, columns)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def finished(out: str, kind: str, seeds: list[int]) -> dict[int, dict]:
    """The results by seed of a kind's finished runs."""
    results = {seed: read_json(f"{out}/{kind}-{seed}", "result.json") for seed in seeds}
    return {seed: result for seed, result in results.items() if result is not None}


def main() -> int:
    """Returns 1 if a run failed, else 0."""
    sys.stdout.reconfigure(errors="replace")  # a terminal without the sign of ± shows "?"
    arguments, words = parse()
    options = train.parse(words)
    headline = "valid_accuracy" if options.no_test else "test_accuracy"
    out = f"{arguments.out}/{options.dataset}-{options.epochs}"
    if options.valid_speakers:
        out += f"-without-{options.valid_speakers}"

    kinds = {}  # and the arguments of train.py for each
    for density in arguments.density:
        connections = arguments.connections if density == "sparse" else 0
        for variant in arguments.variants:
            kinds[f"{variant}-{density}"] = run_options(words, variant, connections)
    runs = {}  # folders, and the arguments of train.py for each
    for seed in arguments.seeds:
        for kind in kinds:
            runs[f"{out}/{kind}-{seed}"] = [*kinds[kind], "--seed", str(seed)]
    free = train.MAY_DIFFER if arguments.table else train.MAY_DIFFER - {"data_dir"}
    for folder in runs:
        check_same(folder, runs[folder], free)

    failures = {} if arguments.table else run_all(runs, headline)
    text = table({kind: finished(out, kind, arguments.seeds) for kind in kinds}, headline)
    if not arguments.table:
        train.write(out, "table.md", text)
    print(text, end="")
    for folder, failure in failures.items():
        print(f"{folder} failed, {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        with train.sentences("variants.py"):
            sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from here")
