"""Draw the pictures of the README, and any run of train.py.

This needs matplotlib, and parts.png also pandas and scipy.

    python -m experiments.figures
    python -m experiments.figures --run RUN   # RUN: the folder of a run

The second writes run.png and confusions.png to RUN, also while RUN is still training.
"""

import argparse
import os
import sys
import tempfile

import numpy as np
import torch
from matplotlib.animation import PillowWriter
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import data
import train
from data import UserError
from delays import (
    DelayedLinear,
    class_scores,
    gaussian_kernel,
    integer_kernel,
    leaky_integrator,
    lif,
    shrinking_sigma,
)
from experiments.export import class_names

INK = "#222222"
GREY = "#b8b8b8"
PALE = "#dcdcdc"
BLUE = "#2166ac"
PALE_BLUE = "#92b9dd"
RED = "#d6604d"

# ---------------------------------------------------- learning.gif and why.png: a training by hand


def by_hand(sigmas: list[float]) -> tuple[Tensor, Tensor, Tensor, int]:
    """Train the network of tour.ipynb: each of four neurons has to fire at a pattern of its own.

    sigmas: the width of the kernels in each step of training.
    Returns the steps in which inputs spike, [patterns, inputs]; the hidden delays at the start and
    after each step of training, [1 + len(sigmas), neurons, inputs]; and in evaluation, what reaches
    the neurons, [patterns, steps, neurons], and how many patterns make only their own neuron fire.
    """
    torch.manual_seed(9)
    times = torch.randint(15, (4, 6))
    patterns = F.one_hot(times, 15).transpose(1, 2).float()  # [patterns, steps, inputs]
    hidden, readout = DelayedLinear(6, 4, taps=15), DelayedLinear(4, 4, taps=15)
    hidden.weight.data.fill_(0.3)
    readout.weight.data = 3 * torch.eye(4)
    optimizer = torch.optim.Adam([hidden.delay, readout.delay], lr=0.3)

    delays = [hidden.delay.detach().clone()]
    for sigma in sigmas:
        hidden.sigma = readout.sigma = sigma
        fired = lif(hidden(patterns), tau=1.005)
        scores = class_scores(leaky_integrator(readout(fired), tau=5.0))
        optimizer.zero_grad()
        F.cross_entropy(scores, torch.arange(4)).backward()
        optimizer.step()
        hidden.clamp_delays()
        readout.clamp_delays()
        delays.append(hidden.delay.detach().clone())
    current = hidden.eval()(patterns).detach()
    fired = lif(current, tau=1.005).any(1)  # [patterns, neurons]
    right = (fired == torch.eye(4)).all(1).sum()
    return times, torch.stack(delays), current, int(right)


def shrinking() -> list[float]:
    """Return the sigmas of the tour, which are those of a run of 200 epochs."""
    return [shrinking_sigma(step, 200, taps=15) for step in range(200)]


def learning_gif(path: str) -> None:
    """Write an animation of the tour's training, with sigma shrinking and with sigma always 0.5."""
    figure = Figure(figsize=(7.2, 4.2))
    figure.subplots_adjust(left=0.1, right=0.98, top=0.75, bottom=0.13, wspace=0.08)
    words = "Can four neurons learn delays that line up their own patterns?"
    figure.text(0.1, 0.94, words, fontsize=13, fontweight="bold", color=INK)
    for c in range(4):
        figure.text(0.015, 0.66 - 0.155 * c, f"neuron {c}", fontsize=9, color=INK)
    settings = {"sigma shrinks": shrinking(), "sigma is constant": [0.5] * 200}
    sides = []
    for axis, (name, sigmas) in zip(figure.subplots(1, 2), settings.items(), strict=True):
        sides.append((axis, name, sigmas, *by_hand(sigmas)))
    # Most of the movement is at the start.
    shown = [*range(30), *range(30, 60, 2), *range(60, 200, 10)]

    writer = PillowWriter(fps=8)
    with writer.saving(figure, path, dpi=100):
        for step in shown:
            for axis, name, sigmas, times, delays, _, _ in sides:
                title = f"{name}: {sigmas[step]:.1f}"
                draw_arrivals(axis, title, times + delays[step], sigmas[step])
            writer.grab_frame()
        for axis, name, _, times, delays, _, right in sides:
            draw_arrivals(axis, name, times + delays[-1].round())
            words, color = f"{right} of 4 patterns right", BLUE if right == 4 else RED
            axis.text(0, -0.6, words, fontsize=13, fontweight="bold", color=color)
        for _ in range(32):  # four seconds
            writer.grab_frame()
    print(path)


def draw_arrivals(axis, title: str, arrivals: Tensor, sigma: float = 0.0) -> None:
    """Draw the arrivals of each neuron's pattern, [neurons, inputs], and Gaussians around them."""
    axis.clear()
    steps = np.linspace(0, 28, 281)
    if sigma:
        rows = np.zeros((4, 8, len(steps)))  # six for each neuron, and an empty one on either side
        rows[:, 1:7] = np.exp(-(((steps - arrivals[:, :, None].numpy()) / sigma) ** 2) / 2)
        shades = np.round(6 * rows.reshape(32, -1, 1)) / 6  # few colors, which make a small file
        colors = 1 - shades * (0.45, 0.25, 0.1)  # [32, steps, 3]: from white to blue
        box = (-0.05, 28.05, 3.5, -0.5)
        axis.imshow(colors, extent=box, aspect="auto", interpolation="nearest")
    heights = torch.arange(4)[:, None] + (torch.arange(6) - 2.5) / 8
    axis.plot(arrivals.flatten(), heights.flatten(), "o", color=BLUE, markersize=4.5)
    axis.hlines([0.5, 1.5, 2.5], 0, 28, color=PALE, linewidth=0.8)
    style(axis, "", "step of arrival")
    axis.set_title(title, fontsize=12, loc="left", pad=24, color=INK)
    axis.tick_params(labelsize=9)
    axis.xaxis.label.set_size(10)
    axis.set(xlim=(0, 28), ylim=(3.5, -0.5), yticks=[])


def why_figure() -> Figure:
    """Draw what one trained neuron receives from its own pattern and from another."""
    times, delays, current, _ = by_hand(shrinking())
    own, other = 0, 2
    arrivals = times + delays[-1, own].round()  # at the neuron of the pattern `own`

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    heading(figure, "One of four trained neurons")
    axes = figure.subplots(3, 2, sharex=True, sharey="row")
    titles = ["its own pattern, as sent", "another pattern, as sent"]
    for (sent, arrived, summed), pattern, title in zip(axes.T, (own, other), titles, strict=True):
        sent.eventplot(times[pattern][:, None], linelengths=0.8, linewidths=3, color=BLUE)
        arrived.eventplot(arrivals[pattern][:, None], linelengths=0.8, linewidths=3, color=BLUE)
        summed.bar(range(current.shape[1]), current[pattern, :, own].tolist(), color=INK)
        summed.axhline(1, color=RED, linewidth=0.8, linestyle="--")
        summed.text(current.shape[1] - 1, 1.1, "threshold", color=RED, fontsize=8, ha="right")
        for step in lif(current, tau=1.005)[pattern, :, own].nonzero().flatten().tolist():
            arrived.axvspan(step - 0.5, step + 0.5, color=PALE, zorder=0)
            summed.axvspan(step - 0.5, step + 0.5, color=PALE, zorder=0)
        style(sent, title, y="input")
        style(arrived, "as it arrives, each spike after its delay", y="input")
        style(summed, "the weighted sum (grey: the neuron fires)", "time (steps)")
    words = "Seed 9 of twelve. Four spikes that arrive together make a neuron fire."
    figure.supxlabel(words, x=0.01, ha="left", fontsize=8, color=INK)
    return figure


# ----------------------------------------------------------- toy.png: a neuron of a trained network


@torch.no_grad()
def hidden_input(net: nn.Module, counts: Tensor) -> Tensor:
    """Return the input of the first hidden neurons, after batch norm, [B, T, neurons]."""
    current = net.layers[0](counts)
    return net.norms[0](current.flatten(0, 1)).view_as(current)


def chosen_neuron(net: nn.Module) -> tuple[int, int, int, Tensor]:
    """Return a hidden neuron, the class of the toy task for which it fires most, and fires least.

    Each class's pattern is sent without noise.  The neuron is the one whose number of spikes for
    one class is furthest above that for the second.  The last value returned has its spikes for
    each class.
    """
    patterns = torch.stack(data.toy("test", noise=0.0).counts[:10])  # sample c is of class c
    fired = net.neurons(0, hidden_input(net, patterns)).sum(1)  # [classes, neurons]
    first, second = fired.topk(2, 0).values
    neuron = int((first - second).argmax())
    spikes = fired[:, neuron]
    return neuron, int(spikes.argmax()), int(spikes.argmin()), spikes


@torch.no_grad()
def toy_figure(net: nn.Module) -> Figure:
    """Draw what a hidden neuron of a trained network receives from two samples of the toy task."""
    neuron, own, other, spikes = chosen_neuron(net.eval())
    layer = net.layers[0]
    delay = layer.delay[neuron].round().numpy()
    weight = layer.weight[neuron] * net.norms[0].weight[neuron]  # batch norm can change the sign
    heights = (0.9 * weight.abs() / weight.abs().max()).numpy()
    colors = np.where(weight < 0, RED, BLUE)
    later = net.layers[1].delay[own, neuron].round()  # on the way to the readout
    noisy, clean = data.toy("test").counts, data.toy("test", noise=0.0).counts

    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    heading(figure, f"A hidden neuron that fires most for class {own} of the toy task")
    axes = figure.subplots(4, 2, sharex=True, sharey="row", height_ratios=(5, 5, 4, 4))
    for (sent, arrived, summed, sums), c in zip(axes.T, (own, other), strict=True):
        for counts, alpha in ((noisy[c], 0.25), (clean[c], 1)):  # sample c is of class c
            step, i = counts.nonzero().T.numpy()
            left = step - 0.5
            sent.barh(i, 1, 0.6, left, color=INK, alpha=alpha)
            arrived.barh(i, 1, heights[i], left + delay[i], color=colors[i], alpha=alpha)
        counts = F.pad(noisy[c], (0, 0, 0, net.tail))[None]
        current = hidden_input(net, counts)
        fired = net.neurons(0, current)[0, :, neuron].nonzero().flatten()  # the steps
        summed.bar(range(current.shape[1]), current[0, :, neuron].tolist(), width=1, color=INK)
        summed.axhline(1, color=RED, linewidth=0.8, linestyle="--")
        score = net(counts)[0].softmax(1).cumsum(0)  # [steps, classes]
        for step in (fired + later).tolist():
            sums.axvspan(step - 0.5, step + 0.5, color=PALE_BLUE, alpha=0.5, linewidth=0)
        sums.plot(score, color=GREY, linewidth=0.7)
        sums.plot(score[:, own], color=BLUE, linewidth=1.6)
        sums.plot(score[:, other], color=INK, linewidth=1.6)
        style(sent, f"a sample of class {c} (grey: noise)", y="input")
        style(arrived, "the same at the neuron, each burst after its delay", y="input")
        style(summed, "the sum, after batch norm (dashed: threshold)")
        style(sums, f"scores so far of class {own} (blue), {other} (black)", "time (steps)")
    axes[0, 0].set(xlim=(0, 120), yticks=range(8))
    axes[1, 0].set_yticks(range(8))
    most, least = int(spikes.max()), int(spikes.min())
    words = f"""Blue bursts excite the neuron, red ones inhibit it; the height is the weight.
The blue bands: its spikes reach the readout of class {own}, after another delay.
The neuron: sent patterns without noise, neuron {neuron} fires {most} times for class {own},
and least for class {other}, {least} times.  Of all neurons, it has the largest difference
between its first and its second class."""
    figure.supxlabel(words, x=0.01, ha="left", fontsize=8, color=INK)
    return figure


# --------------------------------------------------------------------------------- other pictures


def kernel_figure() -> Figure:
    """Draw the kernel of a synapse of the training by hand, in some updates and in evaluation."""
    sigmas = shrinking()
    delays = by_hand(sigmas)[1][:, 0]  # of one neuron, [1 + steps, inputs]
    delays = delays[:, (delays[-1] - delays[0]).abs().argmax()]  # the one that moves farthest
    one = torch.ones(1, 1)
    rows = []
    for step in (0, 10, 25, 199):
        kernel = gaussian_kernel(one, delays[step] * one, sigmas[step], 15)
        rows.append((f"update {step + 1}: sigma {sigmas[step]:.1f}", kernel, delays[step]))
    rows.append(("evaluation", integer_kernel(one, delays[-1] * one, 15), delays[-1].round()))

    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axis = figure.subplots()
    for level, (name, kernel, delay) in enumerate(reversed(rows)):
        peak = kernel.max()
        heights = 0.85 * kernel.flatten() / peak
        axis.bar(range(15), heights.tolist(), bottom=level, color=PALE_BLUE)
        axis.vlines(delay, level, level + 0.85, color=RED, linewidth=1.5)
        axis.text(15, level + 0.45, name, fontsize=8)
        axis.text(15, level + 0.1, f"delay {delay:.1f}, peak {peak:.2f}", fontsize=8)
    title = "the kernel of a synapse of weight 1 (each row is scaled to its own peak)"
    style(axis, title, "tap (delay in steps)")
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    return figure


def parts_figure() -> Figure:
    """Draw how accuracy changes without each part of the method, with 95 % intervals."""
    from experiments import results

    parts = results.parts(results.all_rows().query("list == 2"))
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for axis, task in zip(axes, results.TASKS, strict=True):
        for level, difference in enumerate(parts[task]):
            axis.hlines(level, difference.low, difference.high, color=BLUE, linewidth=1.6)
            axis.plot(difference.points, level, "o", color=BLUE, markersize=4.5)
        axis.axvline(0, color=GREY, linewidth=0.8)
        axis.locator_params("x", nbins=6)
        style(axis, task, "points, compared with the unchanged method")
    axes[0].set_yticks(range(len(parts)), parts["part"])
    axes[0].invert_yaxis()
    return figure


# ----------------------------------------------------------------------- results.png: the findings

# The rows of results.png: sides and claims of results.py, and how they are called.
ON_SHD = {
    "learned": "learned delays",
    "shift": "learned delays, inputs shifted",
    "learned --hidden 165": "learned delays, half the parameters",
    "fixed": "fixed random delays",
    "control": "control: Gaussians narrow,\nbut delays stay where they are",
    "none --tau 400.0 --tau-readout 10.05": "no delays (membrane 400 ms)",
}
ON_TOY = {
    "learned": "learned delays",
    "fixed --hidden 76": "fixed delays, as many parameters",
    "learned --hidden 21": "learned delays, half the parameters",
    "fixed": "fixed random delays",
    "none --tau 100.0": "no delays (membrane 100 ms)",
}
CLAIMS = {
    "1. learned against fixed": "learned over fixed delays (150 epochs)",
    "2. learned against fixed, equal parameters": "the same at equal parameters (150)",
    "a. learned against the control": "learned over the control (30)",
    "e. shrinking against constant sigma": "wide start over narrow start (30)",
    "d. learned against fixed, held-out speakers": "learned over fixed, new speakers (30)",
}
TEN_INPUTS = {
    "b. ten inputs: learned against fixed": "learned over fixed,\nten inputs per neuron (60)"
}


def results_figure() -> Figure:
    """Draw the accuracy of each run of the main comparisons, and claims with their intervals."""
    from experiments import results

    rows = results.all_rows()
    first, second = rows.query("list == 1"), rows.query("list == 2")
    figure = Figure(figsize=(9.2, 6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[5, 4])
    heading(top, "A. Test accuracy: each dot is a run with another seed, each number a mean")
    on_shd, on_toy = top.subplots(1, 2)
    draw_runs(on_shd, rows.query("speakers == ''"), results.SHD, ON_SHD, {150: BLUE, 30: PALE_BLUE})
    draw_runs(on_toy, first, "toy", ON_TOY, {20: BLUE})

    heading(bottom, "B. How many points better, on SHD (regenerated), with 95 % intervals")
    most, last = bottom.subplots(2, 1, height_ratios=[5, 1])
    draw_claims(most, rows, CLAIMS)
    draw_claims(last, rows, TEN_INPUTS)
    pairs = [
        results.runs_of(second, results.SHD, 30, side, [0], results.PAIRS)["accuracy"]
        for side in ("learned", "fixed")
    ]
    most.plot(100 * (pairs[0] - pairs[1]), [4.4] * 5, "o", color=PALE_BLUE, markersize=4.5)
    kinds = {
        "claim written after some of its runs": most.lines[0],
        "claim written before its runs": most.lines[2],
        "one pair of held-out speakers": most.lines[-1],
    }
    look = {"fontsize": 7, "frameon": False, "labelcolor": INK}
    most.legend(kinds.values(), kinds.keys(), loc="upper left", **look)
    most.set_xlim(-3.2)
    last.set_xlabel("points", fontsize=8, color=INK)
    return figure


def draw_claims(axis, rows, claims: dict[str, str]) -> None:
    """Draw the difference of each claim, filled if the claim was written before its runs."""
    from experiments import results

    for level, claim in enumerate(claims):
        planned = claim in results.SECOND_CLAIMS
        sides = (results.FIRST_CLAIMS | results.SECOND_CLAIMS)[claim]
        found = results.versus(rows[rows["list"] == 1 + planned], *sides)
        axis.hlines(level, found.low, found.high, color=BLUE, linewidth=1.6)
        fill = BLUE if planned else "white"
        axis.plot(found.points, level, "o", color=BLUE, markerfacecolor=fill, markersize=7)
        axis.text(found.high, level, f"  {found.points:+.1f}", fontsize=8, va="center", color=INK)
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.set_yticks(range(len(claims)), claims.values())
    axis.set_ylim(len(claims) - 0.3, -0.5)
    style(axis, "")


def draw_runs(axis, rows, name: str, sides: dict[str, str], colors: dict[int, str]) -> None:
    """Draw the accuracy of each run by side, with a color for each number of epochs."""
    for level, side in enumerate(sides):
        runs = rows[(rows["data"] == name) & (rows["side"] == side)]
        for k, (epochs, color) in enumerate(colors.items()):
            accuracy = 100 * runs["accuracy"][runs["epochs"] == epochs]
            height = level + 0.4 * k - 0.2 * (len(colors) - 1)
            label = f"{epochs} epochs" if level == 0 else None
            look = {"color": color, "markersize": 4.5, "label": label}
            axis.plot(accuracy, [height] * len(accuracy), "o", **look)
            if len(accuracy):  # some ran with one number of epochs only
                words = f"   {accuracy.mean():.1f}"
                axis.text(accuracy.max(), height, words, fontsize=8, va="center", color=INK)
    axis.set_yticks(range(len(sides)), sides.values())
    axis.invert_yaxis()
    axis.margins(x=0.1)
    style(axis, "toy task" if name == "toy" else name, "test accuracy (%)")
    legend(axis, "lower right")


# ---------------------------------------------------- run.png and confusions.png: look into a run


def run_figures(folder: str, data_dir: str | None = None, index: int = 0) -> dict[str, Figure]:
    """Return pictures of a run by file name: run.png, and confusions.png if there are test samples.

    run.png has the curves of training, how far the delays moved, and how a sample passes through
    the network.
    data_dir: the folder of the data files; None: where the run had them.
    index: the sample's, in the test set (with --no-test, in the validation set).
    Prints a sentence if the delays or the samples cannot be shown, and leaves them out.
    """
    options = argparse.Namespace(**train.read_options(folder))
    options.data_dir = data_dir or options.data_dir
    options.device = "cpu"
    step_ms = data.DATASETS[options.dataset].step_ms

    # The function that draws each panel, and its arguments.
    parts = [(draw_log, [folder, step_ms, options])]
    figures = {}
    try:
        net = train.build(options)
        first = [layer.delay.detach().clone() for layer in net.layers]
        train.load_checkpoint(folder, "net.pt", net)
        if net.layers[0].learn_delays:
            parts.append((draw_moves, [net, first]))
        sets = train.load_sets(options)
        split = "test" if "test" in sets else "valid"
        names = class_names(options.dataset, split, options.data_dir)
        parts.append((draw_sample, [net.eval(), sets[split], index, split, names, step_ms]))
        guess = train.predict(net, sets[split]).argmax(1)
        figures["confusions.png"] = confusion_figure(sets[split].labels, guess, split, names)
    except (UserError, OSError) as problem:
        print(f"figures.py: a part is left out: {problem}", file=sys.stderr)

    figure = Figure(figsize=(9.2, 1.9 * len(parts)), layout="constrained")
    panels = figure.subfigures(len(parts), 1, squeeze=False)[:, 0]
    for panel, (draw, values) in zip(panels, parts, strict=True):
        draw(panel, *values)
    return {"run.png": figure} | figures


def draw_log(panel, folder: str, step_ms: float, options: argparse.Namespace) -> None:
    """Draw loss, accuracies, sigma, the mean move of the delays, and firing rates, by epoch.

    step_ms: the length of a time step in ms.
    """
    log = np.genfromtxt(os.path.join(folder, "log.csv"), delimiter=",", names=True, ndmin=1)
    delays = "no" if options.delays == "none" else options.delays
    kind = f"{options.dataset}, {delays} delays, seed {options.seed}"
    heading(panel, f"{kind}: epoch {len(log)} of {options.epochs}")
    splits = {"train": "training", "valid": "validation", "test": "test"}
    rates = [name for name in log.dtype.names if name.startswith("rate_")]
    # For each column of the log, its name and its factor.
    panels = {
        "loss": {"loss": ("training", 1)},
        "accuracy (%)": {f"{split}_accuracy": (name, 100) for split, name in splits.items()},
        "delays (steps)": {"sigma": ("sigma", 1), "moved_ms": ("mean move", 1 / step_ms)},
        "firing rate (Hz)": {rate: (f"hidden layer {rate[5:]}", 1000 / step_ms) for rate in rates},
    }
    for axis, (title, columns) in zip(panel.subplots(1, 4), panels.items(), strict=True):
        axis.set_prop_cycle(color=[BLUE, RED, INK])
        for column, (name, factor) in columns.items():
            values = factor * log[column]
            if not np.isnan(values).any():  # an empty column, such as sigma of fixed delays
                label = f"{name}: {values[-1]:.3g}"
                axis.plot(range(1, len(values) + 1), values, ".-", label=label, markersize=2)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_ylim(0, 1.15 * axis.get_ylim()[1])
        style(axis, title, "epoch")
        legend(axis, "best")


def draw_moves(panel, net: nn.Module, first: list[Tensor]) -> None:
    """Draw how far the delays of each layer moved, in steps.

    first: the delays of each layer before training, in steps.  Shuffled among the synapses, they
        show how far delays would be from their start if training had kept nothing of it.
    """
    heading(panel, "how far training moved the delays")
    axes = panel.subplots(1, len(first), squeeze=False, sharey=True)[0]
    names = [*(f"hidden layer {i}" for i in range(1, len(first))), "readout"]
    for axis, layer, before, name in zip(axes, net.layers, first, names, strict=True):
        after = layer.delay.detach().expand_as(layer.weight)[layer.mask]
        before = before.expand_as(layer.weight)[layer.mask]  # [synapses]
        distance = (after - before).abs()
        chance = (after - before[torch.randperm(len(before))]).abs()
        share = np.full(len(before), 100 / len(before))  # of one synapse, in %
        looks = {"bins": np.arange(layer.taps), "weights": share}
        axis.hist(distance, color=PALE_BLUE, label="from its own start", **looks)
        axis.hist(chance, histtype="step", color=GREY, label="from another's start", **looks)
        axis.axvline(distance.mean(), color=RED, linewidth=1.2)
        style(axis, f"{name}: mean {distance.mean():.2f} steps (red)", "distance (steps)", "%")
    axes[0].set_ylim(0, 1.3 * axes[0].get_ylim()[1])
    legend(axes[0], "upper right")


@torch.no_grad()
def draw_sample(
    panel, net: nn.Module, spikes: data.Spikes, index: int, split: str, names: list, step_ms: float
) -> None:
    """Draw the spikes of a sample in each layer, and the class scores as they accumulate."""
    reached = []  # what comes into each layer, [1, T, neurons]
    for layer in net.layers:
        layer.register_forward_pre_hook(lambda _, inputs: reached.append(inputs[0]))
    counts = F.pad(spikes.counts[index], (0, 0, 0, net.tail))[None]
    steps = counts.shape[1]  # those whose scores count
    score = net(counts)[0, :steps].softmax(1).cumsum(0)  # [steps, classes]
    own = int(spikes.labels[index])
    guess, second = score[-1].topk(2).indices.tolist()
    rival = second if guess == own else guess  # the best of the wrong classes

    heading(panel, f"sample {index} of the {split} set: {names[own]}")
    *axes, sums = panel.subplots(1, len(reached) + 1)
    layers = ["input", *(f"hidden layer {i}" for i in range(1, len(reached)))]
    for axis, raster, layer_name in zip(axes, reached, layers, strict=True):
        step, neuron = raster[0, :steps].nonzero().T
        size = min(max(60 / raster.shape[2], 0.9), 2.2)  # of a spike, in points
        axis.scatter(step * step_ms, neuron, size**2, INK, linewidths=0, antialiased=False)
        axis.set(xlim=(0, steps * step_ms), ylim=(-0.5, raster.shape[2] - 0.5))
        title = f"{layer_name}: {int(raster[0, :steps].sum()):,} spikes"
        style(axis, title, "time (ms)", "input" if layer_name == "input" else "neuron")
    time = np.arange(steps) * step_ms
    sums.plot(time, score, color=GREY, linewidth=0.7)
    sums.plot(time, score[:, rival], color=RED, linewidth=1.6, label=names[rival])
    sums.plot(time, score[:, own], color=BLUE, linewidth=1.6, label=f"{names[own]}, correct")
    sums.set_ylim(0, 1.3 * sums.get_ylim()[1])
    style(sums, f"scores so far: {names[guess]} wins", "time (ms)")
    legend(sums, "upper left")


def confusion_figure(labels: Tensor, guess: Tensor, split: str, names: list) -> Figure:
    """Draw how often samples of each class (rows) got which answer (columns).  Errors are red."""
    classes = len(names)
    counts = torch.bincount(labels * classes + guess, minlength=classes**2).view(classes, classes)
    errors = counts.clone().fill_diagonal_(0)
    shades = errors.double().masked_fill(errors == 0, torch.nan)  # nan stays white

    side = 1.4 + 0.26 * classes
    figure = Figure(figsize=(side, side), layout="constrained")
    heading(figure, f"{split} set: {errors.sum():,} errors in {len(labels):,} samples")
    axis = figure.subplots()
    darkest = max(2 * errors.max(), 1)  # twice the largest, which stays readable
    axis.imshow(shades.numpy(), cmap="Reds", vmin=0, vmax=darkest)
    for own, heard in counts.nonzero().tolist():
        words = {"ha": "center", "va": "center", "fontsize": 7}
        words["color"] = "#808080" if own == heard else INK
        axis.text(heard, own, int(counts[own, heard]), **words)
    style(axis, "", "the answer of the network", "correct")
    axis.set_xticks(range(classes), names, rotation=90)
    axis.set_yticks(range(classes), names)
    between = np.arange(classes - 1) + 0.5
    axis.hlines(between, -0.5, classes - 0.5, color=PALE, linewidth=0.4)
    axis.vlines(between, -0.5, classes - 0.5, color=PALE, linewidth=0.4)
    return figure


# ------------------------------------------------------------------------------- looks and options


def style(axis, title: str, x: str = "", y: str = "") -> None:
    axis.set_title(title, fontsize=9, loc="left", color=INK)
    axis.set_xlabel(x, fontsize=8, color=INK)
    axis.set_ylabel(y, fontsize=8, color=INK)
    axis.tick_params(labelsize=7, color=GREY, labelcolor=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["bottom", "left"]].set_color(GREY)


def heading(panel, words: str) -> None:
    panel.suptitle(words, x=0.01, ha="left", fontsize=10, fontweight="bold", color=INK)


def legend(axis, where: str) -> None:
    axis.legend(fontsize=7, frameon=False, loc=where, labelcolor=INK)


def save(figure: Figure, folder: str, name: str) -> None:
    path = os.path.join(folder, name)
    figure.savefig(path, dpi=130, facecolor="white", bbox_inches="tight")
    print(path)


def main(argv: list[str] | None = None) -> None:
    form = argparse.RawTextHelpFormatter  # keeps the lines of the docstring
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--run", help="folder of a run to draw instead")
    add("--sample", type=int, default=0, help="with --run: the sample to follow, default: 0")
    add("--data-dir", help="with --run: folder of the data files, default: the run's own")
    options = parser.parse_args(argv)
    folder = os.path.join("experiments", "figures")
    try:
        if options.run:
            figures = run_figures(options.run, options.data_dir, options.sample)
            for name, figure in figures.items():
                save(figure, options.run, name)
            return
        learning_gif(os.path.join(folder, "learning.gif"))
        save(why_figure(), folder, "why.png")
        with tempfile.TemporaryDirectory() as scratch:
            options = train.parse(["--dataset", "toy", "--out", os.path.join(scratch, "toy")])
            net = train.build(options)
            train.train(options, net)
        save(toy_figure(net), folder, "toy.png")
        save(kernel_figure(), folder, "kernel.png")
        save(parts_figure(), folder, "parts.png")
        save(results_figure(), folder, "results.png")
    except (UserError, OSError) as problem:
        sys.exit(f"figures.py: {problem}")


if __name__ == "__main__":
    main()
