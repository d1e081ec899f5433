"""Draws the README's pictures, and a look into any run (needs matplotlib).

    python -m experiments.figures --record    # trains the toy task, a minute at most; then as below
    python -m experiments.figures             # all but run.png; kernel.png of the run of --record
    python -m experiments.figures --run RUN   # run.png: curves, delays and a sample of any run

RUN is a folder of train.py, and the run may be still training.  First come the pictures, then what
reads a run, and last the looks and the options.
"""

import argparse
import os
import sys
from statistics import mean

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn import functional as F

import data
import train
from data import UserError
from delays import (
    DelayedLinear,
    DelaySNN,
    class_scores,
    delay_conv,
    gaussian_kernel,
    integer_kernel,
    leaky_integrator,
    lif,
    shrinking_sigma,
)
from experiments import results

INK = "#222222"
GREY = "#b8b8b8"
PALE = "#dcdcdc"
BLUE = "#2166ac"
RED = "#d6604d"

# ------------------------------------------------------------------------- kernel.png: one synapse


def record(folder: str) -> None:
    """Trains the toy task, and keeps the first layer's delays of every epoch in history.pt.

    They are [1 + epochs, out, in], the first ones of the untrained network.
    """
    if os.path.exists(folder):
        raise UserError(f"{folder} is there already: remove it to record anew")
    options = train.parse(["--dataset", "toy", "--device", "cpu", "--out", folder])
    net = train.build(options)
    history = [net.layers[0].delay.detach().clone()]

    def keep(net, row):
        history.append(net.layers[0].delay.detach().clone())

    train.train(options, net=net, on_epoch=keep)
    torch.save(torch.stack(history), os.path.join(folder, "history.pt"))


def kernel_figure(folder: str) -> Figure:
    """One synapse of the run of record: its kernel in all epochs, and some of these as curves."""
    net, options = train.load_run(folder)
    history = torch.load(os.path.join(folder, "history.pt"), weights_only=True)
    # A strong synapse that moved far, to a whole step amid the range.
    end = history[-1]
    moved = (end - history[0]).abs().clamp(max=8)
    whole = (end - end.round()).abs() < 0.2
    amid = (end - options.taps / 2).abs() < options.taps / 4
    merit = net.layers[0].weight.detach().abs() * moved * whole * amid
    neuron, i = divmod(int(merit.argmax()), merit.shape[1])

    track = history[:, neuron, i]  # [1 + epochs]: at the start of each epoch, and at the end
    shades = kernels(track, options.taps)
    epochs, taps = shades.shape

    figure = Figure(figsize=(7.2, 2.5))
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    left.pcolormesh(range(1, epochs + 1), range(taps), shades.T, cmap="Blues", vmax=1.25)
    left.plot(range(1, epochs + 2), track, color=RED, linewidth=1.8)
    left.text(epochs + 1.3, track[-1], " its delay", color=RED, fontsize=8, va="center")
    left.set_xlim(0.5, epochs + 4)
    title = "toy task: a kernel, each epoch scaled to its peak"
    style(left, title, "epoch", "delay (steps of 10 ms)")
    draw_kernels(right, track.tolist(), shades, epochs=[0, 1, 3, epochs - 1])
    return figure


def kernels(track: Tensor, taps: int) -> Tensor:
    """The kernel of a synapse at the start of each epoch, as a share of its peak: [epochs, taps].

    track: its delay there, and at the end: [1 + epochs].
    """
    epochs = len(track) - 1
    sigma = torch.tensor([shrinking_sigma(epoch, epochs, taps) for epoch in range(epochs)])
    # As if these were so many synapses of one neuron.
    kernel = gaussian_kernel(torch.ones(1, epochs), track[None, :-1], sigma, taps)[0]
    return kernel / kernel.amax(1, keepdim=True)


def draw_kernels(axis, track: list[float], shades: Tensor, epochs: list[int]) -> None:
    """The kernel at the start of some epochs, one above the other; on top that of evaluation."""
    taps = shades.shape[1]
    for level, epoch in enumerate(epochs):
        curve = level + 0.85 * shades[epoch]
        axis.fill_between(range(taps), level, curve, color=BLUE, alpha=0.35, linewidth=0)
        axis.plot(range(taps), curve, color=BLUE, linewidth=1)
        axis.vlines(track[epoch], level, level + 0.85, color=RED, linewidth=1.2)
        axis.text(taps - 0.2, level + 0.25, f"epoch {epoch + 1}", color=INK, fontsize=8)
    top = len(epochs)
    axis.vlines(round(track[-1]), top, top + 0.85, color=INK, linewidth=2)
    axis.text(taps - 0.2, top + 0.25, "evaluation", color=INK, fontsize=8)
    axis.set_yticks([])
    style(axis, "from wide to one tap, each scaled to its peak", "delay (steps of 10 ms)")
    axis.spines["left"].set_visible(False)


# --------------------------------------------------------------------------- why.png: one neuron


def lined_up() -> tuple[Tensor, DelayedLinear, Tensor]:
    """The training of tour.ipynb: each of four neurons learns to fire at a pattern of its own.

    Returns the steps in which inputs spike, [patterns, inputs], the layer, and what arrives at its
    neurons, [patterns, steps, neurons].
    """
    torch.manual_seed(9)
    times = torch.randint(15, (4, 6))
    patterns = F.one_hot(times, 15).transpose(1, 2).float()  # [patterns, steps, inputs]
    hidden, readout = DelayedLinear(6, 4, taps=15), DelayedLinear(4, 4, taps=15)
    hidden.weight.data.fill_(0.3)
    readout.weight.data = 3 * torch.eye(4)
    optimizer = torch.optim.Adam([hidden.delay, readout.delay], lr=0.3)
    for step in range(200):
        hidden.sigma = readout.sigma = shrinking_sigma(step, 200, taps=15)
        membrane = leaky_integrator(readout(lif(hidden(patterns), tau=1.005)), tau=5.0)
        optimizer.zero_grad()
        F.cross_entropy(class_scores(membrane), torch.arange(4)).backward()
        optimizer.step()
        hidden.clamp_delays()
        readout.clamp_delays()
    return times, hidden, hidden.eval()(patterns).detach()


def why_figure() -> Figure:
    """A neuron, its own pattern and another one: spikes that leave, that arrive, and h."""
    times, layer, current = lined_up()
    own, other = 0, 2
    arrivals = times + layer.delay[own].detach().round()  # at the neuron of the pattern `own`

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots(3, 2, sharex=True, sharey="row")
    titles = ["spikes of the pattern that a neuron has learned", "spikes of another pattern"]
    for column, pattern, title in zip(axes.T, (own, other), titles, strict=True):
        for axis, steps in ((column[0], times[pattern]), (column[1], arrivals[pattern])):
            axis.eventplot(steps[:, None], linelengths=0.8, linewidths=3, color=BLUE)
        potential, v = [], 0.0
        for step, now in enumerate(current[pattern, :, own].tolist()):  # as lif computes it
            h = (1 - 1 / 1.005) * v + now
            potential.append(h)
            v = 0.0 if h >= 1 else h
            if h >= 1:
                column[1].axvspan(step - 0.5, step + 0.5, color=PALE, zorder=0)
                column[2].axvspan(step - 0.5, step + 0.5, color=PALE, zorder=0)
        column[2].bar(range(len(potential)), potential, color=INK)
        column[2].axhline(1, color=RED, linewidth=0.8, linestyle="--")
        column[2].text(len(potential) - 1, 1.1, "threshold", color=RED, fontsize=8, ha="right")
        style(column[0], title)
        style(column[1], "as they reach the neuron, each after its delay")
        style(column[2], "its potential; grey: it spikes", "time (steps)")
    for axis in axes[:2, 0]:
        axis.set_ylabel("input", fontsize=8, color=INK)
        axis.set_yticks(range(0, 6, 2))
    return figure


# ------------------------------------------------------- network.png: a synapse, and the network


def network_figure() -> Figure:
    """Two synapses as a kernel each, and the parts of the network in their order."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    upper, lower = figure.subfigures(2, height_ratios=(1.4, 1))
    spikes = torch.zeros(1, 24, 2)
    spikes[0, [2, 7], 0] = spikes[0, [10, 19], 1] = 1
    kernel = integer_kernel(torch.tensor([[1.0, 0.7]]), torch.tensor([[9.0, 1.0]]), taps=12)
    arrived = delay_conv(spikes, kernel, method="direct")[0, :, 0]

    axes = upper.subplots(2, 3, sharey=True)
    for i, (sent, synapse) in enumerate(axes[:, :2]):
        sent.bar(range(24), spikes[0, :, i], color=BLUE)
        style(sent, f"spikes of input {i}", "time (steps)" if i else "")
        synapse.bar(range(12), kernel[0, i], color=RED)
        delay = int(kernel[0, i].argmax())
        weight = float(kernel[0, i].max())
        title = f"its synapse: delay {delay}, weight {weight:.1f}"
        style(synapse, title, "tap (delay in steps)" if i else "")
    axes[0, 2].remove()
    axes[1, 2].bar(range(24), arrived, color=INK)
    style(axes[1, 2], "the delayed sum of both", "time (steps)")

    axis = lower.subplots()
    axis.axis("off")
    hidden = "delayed sum\nbatch norm\nneurons: spikes\ndropout"
    words = ["spike counts", hidden, hidden, "delayed sum\nleaky integrator"]
    words.append("softmax at each step,\nsummed over time")
    names = ["", "hidden layer 1", "hidden layer 2", "readout", "class scores"]
    looks = {"boxstyle": "round", "facecolor": "white", "edgecolor": GREY}
    for x, (text, name) in enumerate(zip(words, names, strict=True)):
        axis.text(x, 0, text, bbox=looks, ha="center", va="center", fontsize=7.5, color=INK)
        axis.text(x, 1, name, ha="center", va="center", fontsize=8, color=BLUE)
        if x:
            axis.annotate("", (x - 0.45, 0), (x - 0.62, 0), arrowprops={"arrowstyle": "->"})
    axis.set_xlim(-0.5, 4.5)
    axis.set_ylim(-0.9, 1.2)
    return figure


# ------------------------------------------------------------------- variants.png: a dot a seed


def variants_figure() -> Figure:
    """Test accuracies in runs.csv on SHD (regenerated) after 30 epochs; no delays stand apart."""
    words = {
        ("learned", ""): "learned delays",
        ("fixed", ""): "fixed random delays",
        ("fixed-wide", ""): "fixed, as many parameters",
        ("none", ""): "no delays",
        ("none", "--tau 100.0 --tau-readout 10.05"): "no delays, membranes of 100 ms",
        ("authors", ""): "learned, the authors' libraries",
    }
    groups = {}
    for row in results.all_rows()[0]:
        kind = [row[column] for column in ("data", "epochs", "connections", "change")]
        variant = row["variant"], row["options"]
        if kind == ["SHD (regenerated)", "30", "", ""] and variant in words:
            how = "padded" if row["padding"] == "yes" else "without padding"
            name = f"{words[variant]}, {how}"
            groups.setdefault(name, []).append(100 * float(row["accuracy"]))
    groups = sorted(groups.items(), key=lambda item: mean(item[1]))
    figure = Figure(figsize=(7.2, 0.4 * len(groups) + 0.6), layout="constrained")
    low, high = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.5))
    for y, (_, values) in enumerate(groups):
        for axis in (low, high):
            axis.plot(values, [y] * len(values), "o", color=BLUE, alpha=0.6, markersize=4)
            axis.plot(mean(values), y, "|", color=INK, markersize=14)
    low.set_yticks(range(len(groups)), [f"{name} (n = {len(values)})" for name, values in groups])
    low.set_xlim(55, 80)
    high.set_xlim(86, 96)
    style(low, "")
    style(high, "", "test accuracy, last epoch (%)")
    heading(figure, "SHD (regenerated), 30 epochs: a dot a seed, a line their mean")
    return figure


# ------------------------------------------------------------------------ run.png: look into a run


def run_figure(folder: str, data_dir: str | None = None, index: int = 0) -> Figure:
    """What there is to see of a run of train.py after its last epoch so far.

    folder: of the run.  data_dir: the data files; None is where the run had them.
    index: of the sample to follow, in the test set, or with --no-test in the validation set.
    Prints a sentence if the delays or the sample cannot be shown, and leaves them out.
    """
    options = argparse.Namespace(**train.read_options(folder))
    options.data_dir = data_dir or options.data_dir
    step_ms = data.DATASETS[options.dataset].step_ms

    # For each panel its height in inches, what draws it, and of what.
    parts = [(1.8, draw_log, [read_log(folder, step_ms), options])]
    try:
        net = train.build(options)
        first = delays_ms(net, step_ms)
        epoch = train.load_checkpoint(folder, "net.pt", net)["epoch"]
        if options.delays != "none":
            parts.append((2.9, draw_delays, [first, delays_ms(net, step_ms), epoch, step_ms]))
        parts.append((3.6, draw_sample, [net.eval(), *read_sample(options, index), step_ms]))
    except (UserError, OSError) as problem:
        print(f"figures.py: a part is left out: {problem}", file=sys.stderr)

    heights = [height for height, _, _ in parts]
    figure = Figure(figsize=(9.2, sum(heights) + 0.2), layout="constrained")
    panels = figure.subfigures(len(parts), height_ratios=heights, squeeze=False)[:, 0]
    for panel, (_, draw, values) in zip(panels, parts, strict=True):
        draw(panel, *values)
    return figure


def draw_log(panel, curves: dict[str, np.ndarray], options: argparse.Namespace) -> None:
    """Loss, accuracies, sigma with the delays' way, and firing rates, by epoch."""
    delays = "no" if options.delays == "none" else options.delays
    kind = f"{options.dataset}, {delays} delays, seed {options.seed}"
    heading(panel, f"{kind}: epoch {len(curves['loss'])} of {options.epochs}")
    accuracies = dict(train_accuracy="training", valid_accuracy="validation", test_accuracy="test")
    rates = [name for name in curves if name.startswith("rate_")]
    names = {
        "loss": {"loss": "training"},
        "accuracy (%)": accuracies,
        "delays (ms)": {"sigma": "sigma", "moved_ms": "moved by, mean"},
        "firing rate (Hz)": {name: f"hidden layer {name[5:]}" for name in rates},
    }
    for axis, (title, words) in zip(panel.subplots(1, 4), names.items(), strict=True):
        draw_curves(axis, curves, words)
        style(axis, title, "epoch")


def draw_curves(axis, curves: dict[str, np.ndarray], names: dict[str, str]) -> None:
    """The curves that there are, under these names; a dot where there is but one epoch."""
    axis.set_prop_cycle(color=[BLUE, RED, INK])  # of the lines that are given no color
    for name, words in names.items():
        if name not in curves:
            continue
        values = curves[name]
        looks = {"color": GREY} if name == "train_accuracy" else {}
        looks["marker"] = "." if len(values) == 1 else ""
        looks["label"] = f"{words}: {values[-1]:.3g}"
        axis.plot(range(1, len(values) + 1), values, linewidth=1.3, **looks)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    if "train_accuracy" in names:
        axis.set_ylim(0, 105)
        legend(axis, "best")
    else:
        room = 1.1 + 0.3 * len(axis.lines)  # for the legend
        axis.set_ylim(0, room * axis.get_ylim()[1])
        legend(axis, "upper right")


def draw_delays(panel, first: list, last: list, epoch: int, step_ms: float) -> None:
    """Above each layer's delays before and after, as whole steps; below how far they moved."""
    heading(panel, "delays of each layer")
    longest = max(layer.max() for layer in first + last)
    steps = np.arange(round(longest / step_ms) + 2)
    bins = (steps - 0.5) * step_ms  # in the middle of each a whole step
    names = [*(f"hidden layer {i}" for i in range(1, len(first))), "readout"]
    axes = panel.subplots(2, len(first), squeeze=False, sharey="row")
    for (above, below), before, after, name in zip(axes.T, first, last, names, strict=True):
        share = np.full(len(after), 100 / len(after))  # of one delay, in %
        looks = {"histtype": "step", "color": BLUE, "label": f"after epoch {epoch}"}
        above.hist(before, bins, weights=share, color=GREY, label="first ones")
        above.hist(after, bins, weights=share, **looks)
        style(above, f"{name}: {len(after):,} delays", "delay (ms)")

        moved = np.abs(after - before)
        below.hist(moved, bins, weights=share, color=BLUE, alpha=0.5)
        below.axvline(moved.mean(), color=RED, linewidth=1)
        style(below, f"moved by {moved.mean():.1f} ms (mean)", "moved by (ms)")
    for axis in axes[:, 0]:
        axis.set_ylabel("% of them", fontsize=8, color=INK)
    axes[0, 0].set_ylim(0, 1.3 * axes[0, 0].get_ylim()[1])
    legend(axes[0, 0], "upper right", columns=2)


def draw_sample(panel, net: DelaySNN, words: str, counts, own: int, step_ms: float) -> None:
    """Input and hidden spikes, the classes' shares at each step, and their sums so far.

    words: what to call the sample.  counts: [1, T, inputs].  own: its class.
    """
    spikes, readout = walk(net, counts)
    share = readout[0].softmax(1)  # [T + net.tail, classes]
    score = share.cumsum(0)
    guess = int(score[-1].argmax())
    heading(panel, f"{words}, of class {own}")
    upper, lower = panel.subfigures(2)
    names = ["input", *(f"hidden layer {i}" for i in range(1, len(spikes) + 1))]
    rasters = upper.subplots(1, len(names), squeeze=False)[0]
    for axis, raster, name in zip(rasters, [counts, *spikes], names, strict=True):
        neurons = raster.shape[2]
        step, neuron = raster[0].nonzero().T
        size = min(max(60 / neurons, 0.9), 2.2)  # of a spike, in points
        axis.scatter(step * step_ms, neuron, size**2, INK, linewidths=0, antialiased=False)
        axis.set_xlim(0, len(share) * step_ms)
        axis.set_ylim(-0.5, neurons - 0.5)
        style(axis, f"{name}: {int(raster.sum()):,} spikes", "time (ms)")
    rasters[0].set_ylabel("neuron", fontsize=8, color=INK)

    shares, sums = lower.subplots(1, 2)
    time = np.arange(len(share)) * step_ms
    for axis, values in ((shares, share), (sums, score)):
        axis.plot(time, values, color=GREY, linewidth=0.7)
        if guess != own:
            wrong = f"class {guess}, wrong"
            axis.plot(time, values[:, guess], color=RED, linewidth=1.6, label=wrong)
        axis.plot(time, values[:, own], color=BLUE, linewidth=1.6, label=f"class {own}, its own")
        axis.set_xlim(0, len(share) * step_ms)
        axis.set_ylim(bottom=0)
    style(shares, "share of each class at each step", "time (ms)", "softmax")
    style(sums, f"score, the sum so far: class {guess} wins", "time (ms)", "score")
    legend(sums, "upper left")


# ---------------------------------------------------------------------------------- reading a run


@torch.no_grad()
def walk(net: DelaySNN, counts: Tensor) -> tuple[list[Tensor], Tensor]:
    """What DelaySNN.forward computes on its way, in evaluation, of samples that all last T steps.

    counts: [B, T, inputs].  Returns the spikes of each hidden layer, [B, T + net.tail, N], and the
    membrane of the readout, [B, T + net.tail, classes].
    """
    steps = counts.shape[1] + net.tail
    spikes = []  # of the hidden layers: what the next one gets
    hooks = []
    for layer in net.layers[1:]:
        hooks.append(layer.register_forward_pre_hook(lambda _, inputs: spikes.append(inputs[0])))
    membrane = net(F.pad(counts, (0, 0, 0, net.tail - net.layers[0].taps // 2)))
    for hook in hooks:
        hook.remove()
    return [layer[:, :steps] for layer in spikes], membrane[:, :steps]


def read_log(folder: str, step_ms: float) -> dict[str, np.ndarray]:
    """The columns of log.csv that have values: accuracies in %, times in ms and rates in Hz."""
    log = np.genfromtxt(os.path.join(folder, "log.csv"), delimiter=",", names=True)
    log = np.atleast_1d(log)  # a row for each epoch, in which nan is no value
    factors = {"sigma": step_ms, "train_accuracy": 100, "valid_accuracy": 100, "test_accuracy": 100}
    factors |= {name: 1000 / step_ms for name in log.dtype.names if name.startswith("rate_")}
    there = [name for name in log.dtype.names if not np.isnan(log[name]).any()]
    return {name: factors.get(name, 1) * log[name] for name in there}


def delays_ms(net: DelaySNN, step_ms: float) -> list[np.ndarray]:
    """The delays of each layer, [n], without those of connections that it lacks."""
    delays = []
    for layer in net.layers:
        there = layer.mask.expand_as(layer.weight)
        delays.append(step_ms * layer.positions().detach()[there].numpy())
    return delays


def read_sample(options: argparse.Namespace, index: int) -> tuple[str, Tensor, int]:
    """A sample of the split that a run is judged by: its name, counts [1, T, inputs] and class.

    For the sake of a picture no file is fetched.
    """
    name = "valid" if options.no_test else "test"
    held_out = options.no_test and options.valid_speakers
    split = "train" if held_out else name  # where the samples lie
    published = any(file.startswith(f"{options.dataset}_{split}.") for file in data.MD5)
    if published and data.find(options.dataset, split, options.data_dir) is None:
        found = f"{options.dataset} {split} is not in {options.data_dir}"
        raise UserError(f"{found}: name the folder of its file by --data-dir")
    spikes = data.load(options.dataset, split, options.data_dir)
    if held_out:
        speakers = options.valid_speakers.split(",")
        spikes = spikes.select(np.isin(spikes.speakers.astype(str), speakers))
    if not 0 <= index < len(spikes.labels):
        rule = f"expected 0..{len(spikes.labels) - 1}"
        raise UserError(f"--sample {index} is not in the {name} set: {rule}")
    counts = data.padded(spikes, torch.tensor([index]), int(spikes.steps[index]))
    return f"sample {index} of the {name} set", counts, int(spikes.labels[index])


# --------------------------------------------------------------------------- looks and options


def style(axis, title: str, x: str = "", y: str = "") -> None:
    axis.set_title(title, fontsize=9, loc="left", color=INK)
    axis.set_xlabel(x, fontsize=8, color=INK)
    axis.set_ylabel(y, fontsize=8, color=INK)
    axis.tick_params(labelsize=7, color=GREY, labelcolor=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["bottom", "left"]].set_color(GREY)


def heading(panel, words: str) -> None:
    panel.suptitle(words, x=0.01, ha="left", fontsize=10, fontweight="bold", color=INK)


def legend(axis, where: str, columns: int = 1) -> None:
    axis.legend(fontsize=7, frameon=False, loc=where, labelcolor=INK, ncols=columns)


def save(figure: Figure, folder: str, name: str) -> None:
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name)
    figure.savefig(path, dpi=130, facecolor="white", bbox_inches="tight")
    print(path)


def main(argv: list[str] | None = None) -> None:
    lines = argparse.RawTextHelpFormatter  # keeps the lines of the docstring
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=lines)
    add = parser.add_argument
    add("--record", action="store_true", help="train the toy task first")
    add("--recorded", default="runs/recorded", help="folder of --record, default: runs/recorded")
    add("--run", help="draw this run, a folder of train.py, instead")
    add("--sample", type=int, default=0, help="with --run, the sample to follow, default: 0")
    add("--data-dir", help="with --run, folder of the data files, default: the run's own")
    add("--out", help="folder of the pictures, default: experiments/figures, or RUN with --run")
    options = parser.parse_args(argv)
    try:
        if options.run:
            figure = run_figure(options.run, options.data_dir, options.sample)
            save(figure, options.out or options.run, "run.png")
            return
        if options.record:
            record(options.recorded)
        if not os.path.exists(os.path.join(options.recorded, "history.pt")):
            raise UserError(f"{options.recorded} holds no run of --record: record one first")
        out = options.out or os.path.join("experiments", "figures")
        save(kernel_figure(options.recorded), out, "kernel.png")
        save(why_figure(), out, "why.png")
        save(network_figure(), out, "network.png")
        save(variants_figure(), out, "variants.png")
    except (UserError, OSError) as problem:
        sys.exit(f"figures.py: {problem}")


if __name__ == "__main__":
    main()
