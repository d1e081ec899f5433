"""Trains every variant of the paper, several seeds each, and prints a table of them.

    python experiments/variants.py --dataset toy
    python experiments/variants.py --dataset shd --data-dir DIR --epochs 30 --seeds 0,1,2

A variant is a value of train.py's --delays, or none-wide: no delays, and hidden layers widened
until there are as many parameters as with learned delays.  Each is run dense, and sparse with
--connections inputs a neuron.  One run at a time, in its own process; a finished run is not run
again and one that was cut off goes on where it stopped, so the command can be stopped and repeated
at will.  The table, table.md beside the runs, has mean +- sample standard deviation over the seeds
of the test accuracy at the last epoch, and the difference to learned delays over the seeds that
both have, with its 95 % interval (Student's t).
"""
import argparse, itertools, json, math, os, statistics, subprocess, sys, time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import data
import train

VARIANTS = ["learned", "constant-sigma", "fixed", "none", "none-wide"]
T95 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]  # t(0.975) for 1..9 degrees

def parameters(o, hidden, delays, connections):
    """Trainable numbers of a network, as train.py counts them."""
    sizes = [data.INPUTS[o.dataset], *[hidden] * o.layers, data.CLASSES[o.dataset]]
    synapses = sum(min(connections or i, i) * out for i, out in zip(sizes, sizes[1:]))
    return synapses * (2 if delays in train.LEARNED else 1) + 2 * hidden * o.layers

def command(o, variant, connections, seed, out):
    hidden = o.hidden
    if variant == "none-wide":
        target = parameters(o, hidden, "learned", connections)
        while parameters(o, hidden, "none", connections) < target:
            hidden += 1
    words = ["--dataset", o.dataset, "--data-dir", o.data_dir, "--epochs", o.epochs, "--layers",
             o.layers, "--hidden", hidden, "--delays", variant.replace("-wide", ""),
             "--connections", connections, "--valid-speakers", o.valid_speakers, "--seed", seed,
             "--out", out]
    if os.path.exists(os.path.join(out, "last.pt")):
        words.append("--resume")
    return [sys.executable, os.path.join(os.path.dirname(HERE), "train.py"), *map(str, words)]

def result(folder, name="result.json"):
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return None
    with open(path) as file:
        try:
            return json.load(file)
        except ValueError:
            sys.exit(f"variants.py: {path} is broken: remove that run's folder to run it again")

def check(folder, **wanted):
    """A run that is there has to be of the same options."""
    there = result(folder, "config.json") or wanted
    for key, value in wanted.items():
        if there[key] != value:
            sys.exit(f"variants.py: {folder} is a run with --{key.replace('_', '-')} {there[key]}, "
                     f"not {value}: use another --out")

def spread(values):
    mean = f"{100 * statistics.mean(values):.2f}"
    return mean + (f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else "")

def interval(differences):
    if not differences:
        return "-"
    mean, n = 100 * statistics.mean(differences), len(differences)
    if n == 1:
        return f"{mean:+.2f} (one pair)"
    half = T95[min(n, 10) - 2] * 100 * statistics.stdev(differences) / math.sqrt(n)
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"

def table(folder, kinds, seeds):
    """Markdown, a row a kind: accuracies in %, minutes a run."""
    done = {(kind, s): r for kind in kinds for s in seeds if (r := result(f"{folder}/{kind}-{s}"))}
    lines = ["| variant | parameters | test accuracy, last epoch | best on test | difference to "
             "learned | n | minutes |", "|---|---|---|---|---|---|---|"]
    for kind in kinds:
        rows = {s: done[kind, s] for s in seeds if (kind, s) in done}
        if not rows:
            lines.append(f"| {kind} | | not run | | | 0 | |")
            continue
        reference = "learned-" + kind.rsplit("-", 1)[1]
        pairs = [rows[s]["test_accuracy"] - done[reference, s]["test_accuracy"]
                 for s in rows if (reference, s) in done and kind != reference]
        best = [r["best_on_test"] for r in rows.values() if r["best_on_test"] is not None]
        lines.append(f"| {kind} | {next(iter(rows.values()))['parameters']:,} | "
                     f"{spread([r['test_accuracy'] for r in rows.values()])} | "
                     f"{spread(best) if best else '-'} | {interval(pairs)} | {len(rows)} | "
                     f"{statistics.mean(r['seconds'] for r in rows.values()) / 60:.1f} |")
    return "\n".join(lines) + "\n"

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("--dataset", choices=list(train.SPLITS), default="toy")
    ap.add_argument("--data-dir", default="data")
    ap.add_argument("--epochs", type=int, help="passes [those of train.py]")
    ap.add_argument("--seeds", default="0,1,2", help="comma-separated [0,1,2]")
    ap.add_argument("--variants", default=",".join(VARIANTS), help=f"of {','.join(VARIANTS)}")
    ap.add_argument("--density", default="dense,sparse", help="of dense,sparse")
    ap.add_argument("--connections", type=int, default=10, help="inputs of a sparse neuron [10]")
    ap.add_argument("--valid-speakers", default="", help="as train.py's")
    ap.add_argument("--out", default="runs/variants", help="folder of the runs [runs/variants]")
    ap.add_argument("--table", action="store_true", help="run nothing, only print the table")
    a = ap.parse_args()
    variants, densities = a.variants.split(","), a.density.split(",")
    if not set(variants) <= set(VARIANTS) or not set(densities) <= {"dense", "sparse"}:
        ap.error(f"--variants {a.variants} --density {a.density}: expected of the values in -h")
    try:
        seeds = [int(s) for s in a.seeds.split(",")]
    except ValueError:
        ap.error(f"--seeds {a.seeds}: expected whole numbers, as in 0,1,2")
    if a.connections < 1 or min(seeds) < 0 or a.epochs is not None and a.epochs < 1:
        ap.error("expected at least 1 connection and epoch, and no negative seed")
    o = train.parse(["--dataset", a.dataset] + (["--epochs", str(a.epochs)] if a.epochs else []))[1]
    o.data_dir, o.valid_speakers = a.data_dir, a.valid_speakers
    without = f"-without-{a.valid_speakers}" if a.valid_speakers else ""
    folder = os.path.join(a.out, f"{a.dataset}-{o.epochs}{without}")
    kinds = [f"{v}-{d}" for d in densities for v in variants]
    for kind, seed in itertools.product(kinds, seeds):
        check(f"{folder}/{kind}-{seed}", connections=a.connections * kind.endswith("sparse"),
              **({} if a.table else {"data_dir": a.data_dir}))
    todo = [(v, d, s) for s in seeds for d in densities for v in variants
            if not result(f"{folder}/{v}-{d}-{s}")] * (not a.table)
    begun = time.time()
    for number, (variant, density, seed) in enumerate(todo):
        out = f"{folder}/{variant}-{density}-{seed}"
        rest = (time.time() - begun) / number * (len(todo) - number) if number else 0
        print(f"run {number + 1} of {len(todo)}: {out}" +
              (f", about {rest / 60:.0f} min left" if number else ""), flush=True)
        os.makedirs(out, exist_ok=True)
        words = command(o, variant, a.connections * (density == "sparse"), seed, out)
        with open(f"{out}/console.txt", "a") as console:
            code = subprocess.run(words, stdout=console, stderr=subprocess.STDOUT).returncode
        if code:
            with open(f"{out}/console.txt") as console:
                last = (console.read().strip().splitlines() or ["no output"])[-1]
            sys.exit(f"{out} failed: {last}")
        accuracy = result(out)["test_accuracy"]
        print(f"  {accuracy:.2%}, {time.time() - begun:.0f} s so far", flush=True)
    text = table(folder, kinds, seeds)
    if not a.table:
        train.write(folder, "table.md", text)
    print(text, end="")

if __name__ == "__main__":
    try:
        main()
    except OSError as problem:
        sys.exit(f"variants.py: {problem}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from here")
