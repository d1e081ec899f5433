"""Draws the README's figures from saved runs (matplotlib is needed here and nowhere else).

    python experiments/figures.py --record              # trains the toy task
    python experiments/variants.py --dataset toy
    python experiments/variants.py --dataset shd --data-dir DIR --epochs 30
    python experiments/figures.py --data-dir DIR        # draws all four
    python experiments/figures.py --only kernel why     # draws two
    python experiments/figures.py --run RUN             # a look into any run of train.py

In a fork, draw_run takes the network too: draw_run(RUN, net=train.build(options, Axonal)).

kernel.png and why.png show the run of --record; variants.png all runs of variants.py, and
speech.png one of those of SHD.
"""

import argparse
import io
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

try:
    import matplotlib
except ImportError:
    sys.exit("figures.py: it draws with matplotlib, which is missing: pip install matplotlib")
import numpy as np
import torch

import data
import train
from delays import DelaySNN, gaussian_kernel, shrinking_sigma
from experiments import look

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

FIGURES = ["kernel", "why", "variants", "speech"]
INK = "#222222"
GREY = "#b8b8b8"
PALE = "#dcdcdc"
BLUE = "#2166ac"
RED = "#d6604d"
TIME = "time (steps of 10 ms)"


def style(axis, title: str = "", x: str = "", y: str = "") -> None:
    axis.set_title(title, fontsize=9, loc="left", color=INK)
    axis.set_xlabel(x, fontsize=8, color=INK)
    axis.set_ylabel(y, fontsize=8, color=INK)
    axis.tick_params(labelsize=7, color=GREY, labelcolor=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["bottom", "left"]].set_color(GREY)


def label(axis, x: float, y: float, words: str, color: str = INK, **layout) -> None:
    axis.text(x, y, words, color=color, fontsize=8, **layout)


def save(figure, folder: str, name: str) -> None:
    os.makedirs(folder, exist_ok=True)
    kind = os.path.splitext(name)[1][1:]
    picture = io.BytesIO()
    figure.savefig(picture, format=kind, dpi=130, facecolor="white", bbox_inches="tight")
    plt.close(figure)
    train.write(folder, name, picture.getvalue())
    print(os.path.join(folder, name))


def need(path: str, command: str) -> str:
    if not os.path.exists(path):
        raise ValueError(f"{path} is not there; first run: python experiments/{command}")
    return path


# ------------------------------------------------------------------------- kernel.png: one synapse


def record(folder: str) -> None:
    """Trains the toy task and keeps the first layer's delays of every epoch in history.pt."""
    last = os.path.join(folder, "last.pt")
    if os.path.exists(last):
        raise ValueError(f"{folder} holds a run already; remove it to record anew")
    options = train.parse(["--dataset", "toy", "--device", "cpu", "--out", folder])
    history = []

    def keep(net, row):
        history.append(net.layers[0].delay.detach().clone())

    train.train(options, on_epoch=keep)
    first = train.read_checkpoint(last)["first_delays"][0]
    content = io.BytesIO()
    torch.save(torch.stack([first, *history]), content)
    train.write(folder, "history.pt", content.getvalue())


def recorded(folder: str) -> tuple[DelaySNN, argparse.Namespace]:
    """The run of record, as train.load_run returns it."""
    net, options = train.load_run(need(folder, "figures.py --record"))
    if options.dataset != "toy" or options.delays == "none" or options.kernel_count > 1:
        raise ValueError(f"{folder} holds another run than that of figures.py --record")
    return net, options


def kernel_figure(folder: str, out: str) -> None:
    net, options = recorded(folder)
    path = need(os.path.join(folder, "history.pt"), "figures.py --record")
    try:
        history = torch.load(path, weights_only=True)  # [1 + epochs, out, in]
        history = history.view(1 + options.epochs, *net.layers[0].delay.shape)
    except Exception as problem:  # torch raises many kinds
        raise ValueError(f"{path} was not written by --record, or is broken") from problem
    neuron, i = travelled(net.layers[0], history)
    track = history[:, neuron, i]  # [1 + epochs]
    kernels = []
    for epoch, delay in enumerate(track[:-1]):
        sigma = shrinking_sigma(epoch, options.epochs, options.taps)
        kernel = gaussian_kernel(torch.ones(1, 1), delay.view(1, 1), sigma, options.taps)
        kernels.append(kernel[0, 0] / kernel.max())
    shades = torch.stack(kernels)  # [epochs, taps]

    figure = plt.figure(figsize=(7.2, 2.5))
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    draw_learning(left, track.tolist(), shades)
    draw_kernels(right, track.tolist(), shades, epochs=[0, 1, 3, options.epochs - 1])
    save(figure, out, "kernel.png")


def travelled(layer, history) -> tuple[int, int]:
    """Neuron and input of a strong synapse that moved far, to a whole step amid the range."""
    end = history[-1]
    way = (end - history[0]).abs().clamp(max=8)
    whole = (end - end.round()).abs() < 0.2
    amid = (end - layer.taps / 2).abs() < layer.taps / 4
    merit = layer.weight.detach().abs() * way * whole * amid
    return divmod(int(merit.argmax()), merit.shape[1])


def draw_learning(axis, track, shades) -> None:
    epochs, taps = shades.shape
    axis.pcolormesh(range(1, epochs + 1), range(taps), shades.T, cmap="Blues", vmax=1.25)
    axis.plot(range(1, epochs + 2), track, color=RED, linewidth=1.8)  # at the start of each epoch
    label(axis, epochs + 1.3, track[-1], " its delay", RED, va="center")
    axis.set_xlim(0.5, epochs + 4)
    style(axis, "one synapse's kernel while it learns", "epoch", "delay (steps of 10 ms)")


def draw_kernels(axis, track, shades, epochs: list[int]) -> None:
    """The kernel at the start of some epochs, one above the other; on top that of evaluation."""
    taps = shades.shape[1]
    for level, epoch in enumerate(epochs):
        curve = level + 0.85 * shades[epoch]
        axis.fill_between(range(taps), level, curve, color=BLUE, alpha=0.35, linewidth=0)
        axis.plot(range(taps), curve, color=BLUE, linewidth=1)
        axis.vlines(track[epoch], level, level + 0.85, color=RED, linewidth=1.2)
        label(axis, taps - 0.2, level + 0.25, f"epoch {epoch + 1}")
    top = len(epochs)
    axis.vlines(round(track[-1]), top, top + 0.85, color=INK, linewidth=2)
    label(axis, taps - 0.2, top + 0.25, "evaluation")
    axis.set_yticks([])
    style(axis, "from a wide Gaussian to one tap", "delay (steps of 10 ms)")
    axis.spines["left"].set_visible(False)


# --------------------------------------------------------------------------- why.png: one neuron


def why_figure(folder: str, out: str) -> None:
    """A neuron of the toy task, and two classes, of which one makes it fire and one hardly does."""
    net, _ = recorded(folder)
    counts = clear_patterns()
    with torch.no_grad():
        current = net.layers[0](counts)
        current = net.norms[0](current.flatten(0, 1)).view_as(current)
        spikes = net.neurons(0, current)  # [B, T + tail, N]

    fired = spikes.sum(1)  # [B, N]
    contrast = (fired.amax(0) + 1) / (fired.amin(0) + 1)
    neuron = int(contrast.argmax())  # the one that the classes differ in most
    quiet = int(fired[:, neuron].argmin())
    firing = int(fired[:, neuron].argmax())

    figure = plt.figure(figsize=(7.2, 4.6))
    axes = figure.subplots(3, 2, sharex=True, sharey="row", height_ratios=(1, 1, 0.9))
    titles = ["spikes of a class that hardly makes it fire", "of a class that makes it fire"]
    for column, b, title in zip(axes.T, (quiet, firing), titles, strict=True):
        draw_arrivals(column, net.layers[0], neuron, counts[b])
        draw_membrane(column[2], current[b, :, neuron], net.tau)
        for step in spikes[b, :, neuron].nonzero()[:, 0].tolist():
            for axis in column[1:]:
                axis.axvspan(step - 0.5, step + 0.5, color=PALE, zorder=0)
        style(column[0], title)
    for axis in axes[:2, 0]:
        axis.set_ylabel("input", fontsize=8, color=INK)
    label(axes[0, 1], 72, 6, "exciting", BLUE, ha="right")
    label(axes[0, 1], 72, 5, "inhibiting", RED, ha="right")
    figure.tight_layout()
    save(figure, out, "why.png")


def clear_patterns() -> torch.Tensor:
    """Toy samples of all classes without noise, which begin at once: all of their spikes arrive."""
    toy = data.toy("test", jitter=0, noise=0)
    every = torch.arange(len(toy.labels))
    counts = data.padded(toy, every, int(toy.steps.max()))  # [B, T, in]
    begins = (counts[:, 1] > 0).any(1)  # in the first step that has spikes
    return counts[begins]


def draw_arrivals(axes, layer, neuron: int, counts) -> None:
    """Spikes of the inputs, and below as they reach the neuron; as high as the weight is strong."""
    weight = layer.weight[neuron].detach()
    height = 0.9 * weight.abs() / weight.abs().max()
    delay = layer.delay[neuron].detach().round()
    step, i = counts.nonzero().T
    looks = {
        "height": height[i],
        "bottom": i - height[i] / 2,
        "width": 0.85,
        "color": np.where(weight[i] > 0, BLUE, RED),
    }
    axes[0].bar(step, **looks)
    axes[1].bar(step + delay[i], **looks)
    for axis in axes[:2]:
        axis.set_ylim(-0.7, len(weight) - 0.3)
    style(axes[1], "as they reach the neuron, each after its delay")


def draw_membrane(axis, current, tau: float) -> None:
    """h of the neuron, as lif computes it."""
    v = 0.0
    potential = []
    for value in current.tolist():
        h = (1 - 1 / tau) * v + value
        potential.append(h)
        v = 0.0 if h >= 1 else h
    axis.plot(potential, color=INK, linewidth=1)
    axis.axhline(1, color=INK, linewidth=0.8, linestyle="--")
    label(axis, len(potential), 1.35, "threshold", ha="right")
    axis.set_xlim(0, len(potential))
    style(axis, "its membrane; grey: it spikes", TIME)


# ------------------------------------------------------------------------- variants.png: accuracies


def variants_figure(runs: str, wanted: list[str], shd: str, out: str) -> None:
    """A panel for each folder of variants.py's runs, a dot a seed, a line for the mean.

    wanted: some of these folders; none means all.
    """
    found = read_results(runs)
    tasks = {task: found.get(task) for task in wanted or found}
    if not tasks or None in tasks.values():
        names = " ".join(task for task, kinds in tasks.items() if kinds is None)
        rule = "first run: python experiments/variants.py --dataset toy"
        raise ValueError(f"{os.path.join(runs, names)} has no finished runs to compare; {rule}")

    figure = plt.figure(figsize=(4.2 * len(tasks), 3.2))
    axes = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axis, (task, kinds) in zip(axes, tasks.items(), strict=True):
        names = []
        for y, kind in enumerate(sorted(kinds, key=lambda kind: np.mean(kinds[kind]))):
            accuracies = kinds[kind]
            axis.scatter(accuracies, [y] * len(accuracies), s=16, color=BLUE, alpha=0.6)
            axis.vlines(np.mean(accuracies), y - 0.3, y + 0.3, color=INK, linewidth=2)
            names.append(f"{kind} (n = {len(accuracies)})")
        axis.set_yticks(range(len(names)), names)
        dataset, epochs, *rest = task.split("-", 2)
        title = f"{shd if dataset == 'shd' else dataset}, {epochs} epochs"
        style(axis, ", ".join([title, *rest]), "test accuracy, last epoch (%)")
    figure.tight_layout()
    save(figure, out, "variants.png")


def read_results(runs: str) -> dict[str, dict[str, list[float]]]:
    """Test accuracies in %, by task as in toy-20, and variant as in learned-dense."""
    tasks = {}
    for path in sorted(Path(runs).glob("*-*/*-*/result.json")):
        try:
            accuracy = json.loads(path.read_text())["test_accuracy"]
        except (KeyError, TypeError, ValueError):
            continue  # not train.py's
        task = path.parent.parent.name
        kind = path.parent.name.rsplit("-", 1)[0]
        if accuracy is not None:
            tasks.setdefault(task, {}).setdefault(kind, []).append(100 * accuracy)
    return {task: kinds for task, kinds in tasks.items() if len(kinds) > 1}


# --------------------------------------------------------------------- speech.png: a spoken digit


def speech_figure(folder: str, data_dir: str, out: str) -> None:
    """A sample of SHD on its way through the network, and the delays before and after learning."""
    command = "variants.py --dataset shd --data-dir DIR --epochs 30"
    last = os.path.join(folder, "last.pt") if os.path.isdir(folder) else folder
    first = train.read_checkpoint(need(last, command))["first_delays"]
    net, options = train.load_run(last)
    if options.dataset != "shd":
        raise ValueError(f"{last} is a run on {options.dataset}, and speech.png shows one on shd")
    test = look.load("shd", "test", data_dir)
    sample = look.follow(net, "test", test, first_right(net, test))
    hidden = len(net.norms)
    figure = plt.figure(figsize=(9.6, 3.9))
    grid = figure.add_gridspec(2, hidden + 2, width_ratios=[1] * (hidden + 1) + [0.9])
    names = ["one spoken digit", *(f"hidden layer {i + 1}" for i in range(hidden))]
    for i, (spikes, name) in enumerate(zip(sample.spikes, names, strict=True)):
        draw_raster(figure.add_subplot(grid[0, i]), spikes, name, len(sample.share))
    draw_scores(figure.add_subplot(grid[1, :-1]), sample.share, sample.label)
    for i in range(2):
        axis = figure.add_subplot(grid[i, -1])
        draw_delays(axis, first[i], net.layers[i], f"delays, layer {i + 1}", legend=i == 0)
    figure.tight_layout()
    save(figure, out, "speech.png")


def first_right(net, test: data.Spikes) -> int:
    """The first sample whose class the network gets right."""
    with torch.no_grad():
        for b, (label, steps) in enumerate(zip(test.labels, test.steps, strict=True)):
            scores = train.predict(net, test, torch.tensor([b]), int(steps))
            if scores.argmax(1) == label:
                return b
    raise ValueError("speech.png: the network gets no sample of the test set right")


def draw_raster(axis, spikes, name: str, end: int) -> None:
    step, unit = spikes.nonzero().T
    axis.scatter(step, unit, s=0.5, color=INK, linewidths=0)
    axis.set_xlim(0, end)
    style(axis, name, "", "input" if name == "one spoken digit" else "neuron")


def draw_scores(axis, share, spoken: int) -> None:
    axis.plot(share, color=GREY, linewidth=0.8)
    axis.plot(share[:, spoken], color=BLUE, linewidth=2)
    height, top = share[:, spoken].max(0)
    label(axis, int(top) + 2, float(height), "the spoken one", BLUE, va="top")
    axis.set_xlim(0, len(share))
    title = f"softmax over the {share.shape[1]} classes at each step; their sums decide"
    style(axis, title, TIME, "share")


def draw_delays(axis, first, layer, title: str, legend: bool) -> None:
    bins = np.arange(layer.taps)
    learned = layer.delay.detach().flatten()
    axis.hist(first.flatten(), bins, color=GREY, label="initial")
    axis.hist(learned, bins, histtype="step", color=BLUE, linewidth=1.4, label="learned")
    axis.set_yticks([])
    axis.set_ylim(0, 1.5 * axis.get_ylim()[1])
    style(axis, title, "" if legend else "steps of 10 ms")
    if legend:
        axis.legend(fontsize=7, frameon=False, ncols=2, loc="upper center")


# ------------------------------------------------------------------------ run.png: look into a run


def draw_run(
    path: str,
    data_dir: str | None = None,
    net: DelaySNN | None = None,
    out: str | None = None,
    sample: int = 0,
) -> None:
    """Draws what there is to see of a run of train.py, finished or not, and prints what is missing.

    path, data_dir, net, sample: as in look.read_run.
    out: the picture, or a folder for it; by default run.png beside the checkpoint.
    """
    run = look.read_run(path, data_dir, net, sample)
    for sentence in run.missing:
        print(f"figures.py: {sentence}", file=sys.stderr)

    parts = [(run_curves, 1.8)]  # what draws it, and its height in inches
    if any(layer.before.any() or layer.after.any() for layer in run.layers):
        parts.append((run_delays, 2.9))
    if run.sample is not None:
        parts.append((run_sample, 3.6))
    heights = [height for _, height in parts]
    figure = plt.figure(figsize=(9.2, sum(heights) + 0.2), layout="constrained")
    panels = figure.subfigures(len(parts), height_ratios=heights, squeeze=False)[:, 0]
    for panel, (draw, _) in zip(panels, parts, strict=True):
        draw(panel, run)

    folder = path if os.path.isdir(path) else os.path.dirname(path)
    name = "run.png"
    if out and os.path.splitext(out)[1]:
        folder, name = os.path.split(out)
    elif out:
        folder = out
    save(figure, folder or ".", name)


def heading(panel, words: str) -> None:
    panel.suptitle(words, x=0.01, ha="left", fontsize=10, fontweight="bold", color=INK)


def run_curves(panel, run: look.Run) -> None:
    """Loss, accuracies, sigma with the delays' way, and firing rates, by epoch."""
    options, done = run.options, len(run.rows)
    delays = "no" if options.delays == "none" else options.delays
    kind = f"{options.dataset}, {delays} delays, seed {options.seed}"
    heading(panel, f"{kind}: epoch {done} of {options.epochs}")
    names = [
        {"loss": "training"},
        {"train_accuracy": "training", "valid_accuracy": "validation", "test_accuracy": "test"},
        {"sigma": "sigma", "moved_ms": "moved by, mean"},
        {name: f"hidden layer {name[5:]}" for name in run.curves if name.startswith("rate_")},
    ]
    titles = ["loss", "accuracy (%)", "delays (ms)", "firing rate (Hz)"]
    for axis, title, words in zip(panel.subplots(1, 4), titles, names, strict=True):
        draw_curves(axis, run.curves, words)
        style(axis, title, "epoch")


def draw_curves(axis, curves: dict, names: dict[str, str]) -> None:
    """The curves that there are, under these names; a dot where there is but one epoch."""
    colors = iter([BLUE, RED, INK] * len(names))
    for name, words in names.items():
        if name not in curves:
            continue
        values = curves[name]
        color = GREY if name == "train_accuracy" else next(colors)
        marker = "." if len(values) == 1 else ""
        words = f"{words}: {values[-1]:.3g}"
        epochs = range(1, len(values) + 1)
        axis.plot(epochs, values, color=color, linewidth=1.3, marker=marker, label=words)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    if "train_accuracy" in names:
        axis.set_ylim(0, 105)
        legend(axis, "best")
    elif axis.lines:
        room = 1.1 + 0.3 * len(axis.lines)  # for the legend
        axis.set_ylim(0, room * axis.get_ylim()[1])
        legend(axis, "upper right")


def legend(axis, where: str, columns: int = 1) -> None:
    axis.legend(fontsize=7, frameon=False, loc=where, labelcolor=INK, ncols=columns)


def run_delays(panel, run: look.Run) -> None:
    """Above each layer's delays before and after, as whole steps; below how far they moved."""
    heading(panel, "delays of each layer")
    now = f"after epoch {len(run.rows)}"
    step = run.step_ms
    longest = max(float(torch.cat([layer.before, layer.after]).max()) for layer in run.layers)
    bins = (np.arange(round(longest / step) + 2) - 0.5) * step  # in the middle of each a whole step
    axes = panel.subplots(2, len(run.layers), squeeze=False, sharey="row")
    for (above, below), layer, name in zip(axes.T, run.layers, layer_names(run), strict=True):
        draw_share(above, layer.before, bins, color=GREY, label="first ones")
        draw_share(above, layer.after, bins, histtype="step", color=BLUE, label=now)
        style(above, f"{name}: {len(layer.after):,} delays", "delay (ms)")
        draw_share(below, layer.moved, bins, color=BLUE, alpha=0.5)
        mean = float(layer.moved.mean())
        below.axvline(mean, color=RED, linewidth=1)
        style(below, f"moved by {mean:.1f} ms (mean)", "moved by (ms)")
    for axis in axes[:, 0]:
        axis.set_ylabel("% of them", fontsize=8, color=INK)
    axes[0, 0].set_ylim(0, 1.3 * axes[0, 0].get_ylim()[1])
    legend(axes[0, 0], "upper right", columns=2)


def layer_names(run: look.Run) -> list[str]:
    """In plain words for the layers of DelaySNN; for others, as the network calls them."""
    names = [layer.name for layer in run.layers]
    hidden = len(names) - 1
    if names != [f"layers.{i}" for i in range(hidden + 1)]:
        return names
    return [*(f"hidden layer {i + 1}" for i in range(hidden)), "readout"]


def draw_share(axis, values, bins, **looks) -> None:
    axis.hist(values, bins, weights=np.full(len(values), 100 / len(values)), **looks)


def run_sample(panel, run: look.Run) -> None:
    """Input and hidden spikes, the classes' shares at each step, and their sums so far."""
    sample, step = run.sample, run.step_ms
    score = sample.share.cumsum(0)  # [T, classes]
    guess = int(score[-1].argmax())
    heading(panel, f"sample {sample.index} of the {sample.split} set, of class {sample.label}")
    upper, lower = panel.subfigures(2)
    names = ["input", *(f"hidden layer {i}" for i in range(1, len(sample.spikes)))]
    rasters = upper.subplots(1, len(names), squeeze=False)[0]
    for axis, spikes, name in zip(rasters, sample.spikes, names, strict=True):
        t, neuron = spikes.nonzero().T
        size = min(max(60 / spikes.shape[1], 0.9), 2.2)  # of a spike, in points
        axis.scatter(t * step, neuron, s=size**2, color=INK, linewidths=0, antialiased=False)
        axis.set_xlim(0, len(score) * step)
        axis.set_ylim(-0.5, spikes.shape[1] - 0.5)
        style(axis, f"{name}: {int(spikes.sum()):,} spikes", "time (ms)", "")
    rasters[0].set_ylabel("neuron", fontsize=8, color=INK)
    shares, sums = lower.subplots(1, 2)
    for axis, values in ((shares, sample.share), (sums, score)):
        draw_classes(axis, values, step, sample.label, guess)
    style(shares, "share of each class at each step", "time (ms)", "softmax")
    style(sums, f"score, the sum so far: class {guess} wins", "time (ms)", "score")
    legend(sums, "upper left")


def draw_classes(axis, values, step: float, label: int, guess: int) -> None:
    """A line for each class, [T, classes]; the sample's own in blue, a wrong guess in red."""
    time = np.arange(len(values)) * step
    axis.plot(time, values, color=GREY, linewidth=0.7)
    if guess != label:
        axis.plot(time, values[:, guess], color=RED, linewidth=1.6, label=f"class {guess}, wrong")
    axis.plot(time, values[:, label], color=BLUE, linewidth=1.6, label=f"class {label}, its own")
    axis.set_xlim(0, len(values) * step)
    axis.set_ylim(bottom=0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    only_one = parser.add_mutually_exclusive_group()
    here = os.path.dirname(os.path.abspath(__file__))
    add("--runs", default="runs/variants", help="variants.py's --out, default: runs/variants")
    add("--recorded", default="runs/recorded", help="folder of --record, default: runs/recorded")
    add("--speech", help="the run of speech.png, default: RUNS/shd-30/learned-dense-0")
    add("--data-dir", help="the data files, default: data; with --run, the folder the run had")
    add("--tasks", nargs="+", default=[], help="for variants.png, folders of RUNS; default: all")
    add("--shd-name", default="SHD (regenerated)", help="their name in variants.png")
    only_one.add_argument(
        "--only", nargs="+", choices=FIGURES, default=FIGURES, help="default: all"
    )
    add("--out", default="", help="folder of the pictures; with --run, the picture or its folder")
    only_one.add_argument(
        "--record", action="store_true", help="train the toy task, for kernel.png and why.png"
    )
    only_one.add_argument("--run", help="draw only this run, a folder or checkpoint of train.py")
    add("--sample", type=int, default=0, help="with --run, the test sample to follow, default: 0")
    options = parser.parse_args()

    if options.run is not None:
        draw_run(options.run, options.data_dir, out=options.out, sample=options.sample)
        return
    if options.record:
        record(options.recorded)
        return
    out = options.out or os.path.join(here, "figures")
    if "kernel" in options.only:
        kernel_figure(options.recorded, out)
    if "why" in options.only:
        why_figure(options.recorded, out)
    if "variants" in options.only:
        variants_figure(options.runs, options.tasks, options.shd_name, out)
    if "speech" in options.only:
        speech = options.speech or os.path.join(options.runs, "shd-30", "learned-dense-0")
        speech_figure(speech, options.data_dir or data.DATA_DIR, out)


if __name__ == "__main__":
    try:
        with train.sentences("figures.py"):
            main()
    except KeyboardInterrupt:
        sys.exit("\nstopped")
