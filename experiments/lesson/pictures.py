"""Draw the pictures of the pages, and any run of train.py or ideas.py.

    python -m experiments.figures
    python -m experiments.figures --run RUN   # RUN: the folder of a run

The second writes run.png and confusions.png to RUN, also while RUN is still training, and prints
its most frequent errors.  It needs matplotlib and pandas, the first also scipy.
"""

import argparse
import json
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

import data
import train
from data import UserError
from delays import (
    DelayedLinear,
    DelaySNN,
    class_scores,
    gaussian_kernel,
    leaky_integrator,
    lif,
    rounded_kernel,
    shrinking_sigma,
)
from experiments import ideas
from experiments.export import class_names

INK, GREY, PALE = "#222222", "#b8b8b8", "#dcdcdc"
BLUE, PALE_BLUE, RED = "#2166ac", "#92b9dd", "#d6604d"


def loss_by_hand(current: Tensor, readout: DelayedLinear) -> Tensor:
    """Return the loss of the network of tour.ipynb, for which pattern c is of class c."""
    fired = lif(current, tau=1.005)  # [patterns, steps, neurons]
    scores = class_scores(leaky_integrator(readout(fired), tau=5.0))
    return F.cross_entropy(scores, torch.arange(4))


def by_hand(sigmas: list[float]) -> tuple[Tensor, Tensor, Tensor, tuple, int]:
    """Train the network of tour.ipynb: each of four neurons has to fire at a pattern of its own.

    sigmas: the width of the kernels in each step of training.
    Returns the steps in which inputs spike, [patterns, inputs]; the hidden delays at the start and
    after each step of training, [1 + len(sigmas), neurons, inputs]; what reaches the neurons in
    evaluation, [patterns, steps, neurons]; the patterns and both layers; and how many patterns make
    only their own neuron fire.
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
        optimizer.zero_grad()
        loss_by_hand(hidden(patterns), readout).backward()
        optimizer.step()
        hidden.clamp_delays()
        readout.clamp_delays()
        delays.append(hidden.delay.detach().clone())
    current = hidden.eval()(patterns).detach()
    fired = lif(current, tau=1.005).any(1)  # [patterns, neurons]
    right = int((fired == torch.eye(4)).all(1).sum())
    return times, torch.stack(delays), current, (patterns, hidden, readout), right


def shrinking() -> list[float]:
    """Return the sigmas of the tour, which are those of a run of 200 epochs."""
    return [shrinking_sigma(step, 200, taps=15) for step in range(200)]


def learning_gif(path: str) -> None:
    """Write an animation of the tour's training, with sigma shrinking and with sigma always 0.5."""
    figure = Figure(figsize=(7.2, 4.2))
    figure.subplots_adjust(left=0.1, right=0.98, top=0.8, bottom=0.12, wspace=0.08)
    heading(figure, "Each neuron has to gather the six spikes of its pattern into one step")
    counter = figure.text(0.1, 0.88, "", fontsize=9, color=INK)
    settings = {"sigma shrinks": shrinking(), "sigma stays small": [0.5] * 200}
    sides = []
    for axis, (name, sigmas) in zip(figure.subplots(1, 2), settings.items(), strict=True):
        sides.append((axis, name, sigmas, *by_hand(sigmas)))
    marks = "tick: a spike is sent, dot: it arrives, blue: its kernel"
    weight = torch.ones(4, 6)

    def draw(step):
        counter.set_text(f"update {step + 1} of 200 ({marks})")
        for axis, name, sigmas, times, delays, *_, right in sides:
            title = f"{name}: {sigmas[min(step, 199)]:.1f}"
            if step < 200:
                kernels = gaussian_kernel(weight, delays[step], sigmas[step], taps=15)
                draw_arrivals(axis, title, times, delays[step], kernels)
            else:
                counter.set_text(f"after training, with rounded delays ({marks})")
                title += f", {right} of 4 patterns right"
                kernels = rounded_kernel(weight, delays[step], taps=15)
                draw_arrivals(axis, title, times, delays[step].round(), kernels)

    # Most of the movement is at the start.  The last picture stays for four seconds.
    steps = [*range(30), *range(30, 60, 2), *range(69, 200, 10), *[200] * 32]
    FuncAnimation(figure, draw, steps).save(path, PillowWriter(fps=8), dpi=100)
    print(path)


def draw_arrivals(axis, title: str, sent: Tensor, delay: Tensor, kernels: Tensor) -> None:
    """Draw the spikes of each neuron's pattern: sent and delay [4, 6], kernels [4, 6, 15]."""
    axis.clear()
    rows = torch.zeros(4, 8, 29)  # six for each neuron, and an empty one on either side
    rows[:, 1:7].scatter_(2, sent[:, :, None] + torch.arange(15), kernels)
    shades = (5 * rows.sqrt()).round().view(32, 29, 1) / 5  # few colors make a small file
    colors = 1 - shades * torch.tensor([0.7, 0.45, 0.2])  # from white to blue
    box = (-0.5, 28.5, 3.5, -0.5)
    axis.imshow(colors.numpy(), extent=box, aspect="auto", interpolation="nearest")
    heights = torch.arange(4)[:, None] + (torch.arange(6) - 2.5) / 8
    axis.plot(sent.flatten(), heights.flatten(), "|", color=INK, markersize=5)
    axis.plot((sent + delay).flatten(), heights.flatten(), "o", color=RED, markersize=4.5)
    axis.hlines([0.5, 1.5, 2.5], -0.5, 28.5, color=PALE, linewidth=0.8)
    style(axis, title, "step")
    axis.set_yticks(range(4), [f"neuron {c}" for c in range(4)])
    axis.label_outer()


def kernel_figure() -> Figure:
    """Draw the kernel of a synapse of the training by hand, in some updates and in evaluation."""
    sigmas = shrinking()
    _, delays, _, (_, hidden, _), _ = by_hand(sigmas)
    i = int((delays[-1] - delays[0])[0].abs().argmax())  # of neuron 0, what moves farthest
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axis = figure.subplots()
    rows = {f"update {k + 1}: sigma {sigmas[k]:.1f}": k for k in (0, 10, 25, 199)}
    for level, (name, k) in enumerate(reversed((rows | {"evaluation": 200}).items())):
        hidden.delay.data, hidden.sigma = delays[k], sigmas[min(k, 199)]
        kernel = hidden.train(k < 200).kernel()[0, i].detach() / 0.3  # divided by the weight
        heights = 0.85 * kernel / kernel.max()
        axis.bar(range(15), heights.tolist(), bottom=level, color=PALE_BLUE)
        axis.vlines(delays[k, 0, i], level, level + 0.85, color=RED, linewidth=1.5)
        words = f"{name}\ndelay {delays[k, 0, i]:.1f}, peak {kernel.max():.2f}"
        axis.text(15, level + 0.4, words, fontsize=8, va="center")
    heading(figure, "The kernel of the synapse whose delay moves farthest, of one neuron's six")
    style(axis, "weight 1, drawn with equal peaks (red: the delay)", "tap (delay in steps)")
    axis.set_yticks([])
    return figure


def gradient_by_parts(sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return what makes up the gradient of one delay, which is six steps too short.

    The network is that of by_hand, after training and with its hidden delays rounded.  Then the
    delay of input 3 at neuron 0 is set to 5 steps instead of 11.
    Returns for neuron 0 in each step, [patterns, steps]: its current I; what the loss L asks of it,
    -dL/dI; and the slope, with respect to the delay, of the tap through which the spike arrives.
    """
    times, delays, _, (patterns, hidden, readout), _ = by_hand(shrinking())
    hidden, readout = hidden.double().train(), readout.double().train()
    hidden.sigma = readout.sigma = sigma
    hidden.delay.data = delays[-1].double().round()
    hidden.delay.data[0, 3] -= 6
    current = hidden(patterns)  # [patterns, steps, neurons]
    (asked,) = torch.autograd.grad(-loss_by_hand(current, readout), current)
    weight, delay = hidden.weight[:1, 3:4], hidden.delay[:1, 3:4]
    kernel_of = partial(gaussian_kernel, weight, sigma=sigma, taps=15)
    slopes = torch.autograd.functional.jacobian(kernel_of, delay).flatten()  # [taps]
    slope = torch.zeros(4, 29, dtype=slopes.dtype)
    for pattern, sent in enumerate(times[:, 3]):
        slope[pattern, sent : sent + 15] = slopes
    return current.detach()[:, :, 0], asked[:, :, 0], slope[:, : current.shape[1]]


def gradient_figure() -> Figure:
    """Draw how the loss reaches a delay that is six steps too short, with two widths."""
    figure = Figure(figsize=(7.6, 7.6), layout="constrained")
    heading(figure, "How the loss moves a delay six steps too short (blue: right way, red: wrong)")
    columns = figure.subplots(5, 2, height_ratios=(3, 3, 3, 3, 4)).T
    names = ["current", "what the loss asks", "slope of the tap", "asked x slope", "sum of steps"]
    for column, sigma in zip(columns, (3.0, 0.5), strict=True):
        current, asked, slope = gradient_by_parts(sigma)
        moves = asked * slope  # [patterns, steps]
        panels = [parts[0].tolist() for parts in (current, asked, slope, moves)]
        panels.append([moves[0].sum().item(), moves[1:].sum().item(), moves.sum().item()])
        for row, (axis, values, name) in enumerate(zip(column, panels, names, strict=True)):
            colors = [BLUE if value > 0 else RED for value in values]
            axis.bar(range(len(values)), values, color=GREY if row < 3 else colors)
            axis.axhline(0, color=GREY, linewidth=0.8)
            style(axis, "" if row else f"sigma {sigma:g}, pattern 0 (its own)", y=name)
            axis.locator_params(axis="y", nbins=4)
            axis.ticklabel_format(axis="y", scilimits=(-2, 2))
            axis.yaxis.offsetText.set_fontsize(7)
        for axis in column[:4]:
            axis.axvline(7, color=INK, linewidth=0.8, linestyle=":")
            axis.axvline(13, color=PALE, linewidth=12, zorder=0)
        column[3].set_xlabel("step (dotted: it arrives; grey: the other five arrive)", fontsize=8)
        column[4].bar_label(column[4].containers[0], fmt="{:+.1e}", fontsize=7, padding=2)
        column[4].margins(y=0.2)
        column[4].set_xticks(range(3), ["pattern 0", "the other three", "all four"])
    return figure


def why_figure() -> Figure:
    """Draw the paths of the spikes of two patterns to a trained neuron, and their sums."""
    _, delays, current, (patterns, *_), _ = by_hand(shrinking())
    delay = delays[-1, 0].round()  # of the inputs of neuron 0
    scattered = 1 + int((current[1:, :, 0] > 0.1).sum(1).argmax())  # arrives in the most steps
    figure = Figure(figsize=(7.2, 4.1), layout="constrained")
    heading(figure, "One of the four neurons after training (weights 0.3; dashed: threshold)")
    axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(5, 3))
    panels = {"its own pattern": 0, "of the other three patterns, the most scattered": scattered}
    for (paths, summed), (name, pattern) in zip(axes.T, panels.items(), strict=True):
        for step, i in patterns[pattern].nonzero().tolist():
            paths.plot([step, step + delay[i].item()], [i, -2], color=BLUE, linewidth=2)
            paths.plot(step, i, "|", color=INK, markersize=5)
        summed.bar(range(current.shape[1]), current[pattern, :, 0].tolist(), 1, color=INK)
        summed.axhline(1, color=RED, linewidth=0.8, linestyle="--")
        style(paths, name, y="input")
        paths.set_yticks([-2, *range(6)], ["neuron", *range(6)])
        style(summed, "what arrives, summed", "time (steps)")
    return figure


def delays_figure() -> Figure:
    """Draw how the delays of the included network are spread, before and after training."""
    net, options = train.load_run(str(Path(__file__).parent / "trained" / "shd-learned"))
    first = train.build(options)
    figure = Figure(figsize=(7.2, 2.1), layout="constrained")
    heading(figure, "The delays of a network trained on SHD (regenerated); line: before training")
    names = ["hidden layer 1", "hidden layer 2", "readout"]
    axes = figure.subplots(1, 3, sharey=True)
    for axis, name, after, before in zip(axes, names, net.layers, first.layers, strict=True):
        steps = [layer.delay.detach().round().flatten() for layer in (before, after)]
        looks = dict(color=INK, histtype="step"), dict(color=PALE_BLUE, rwidth=0.8, zorder=0)
        for delay, look in zip(steps, looks, strict=True):
            axis.hist(delay, np.arange(after.taps + 1) - 0.5, density=True, **look)
        style(axis, f"{name}: {len(delay):,} synapses", "delay (steps of 10 ms)")
    axes[0].set_ylabel("fraction of synapses", fontsize=8)
    return figure


# The rows of results.png: for each data set, a side of a comparison and its name.
ROWS = {
    "shd": {
        "learned": "learned delays",
        "learned --hidden 165": "learned, 165 neurons a layer",
        "fixed": "fixed delays",
        "fixed --hidden 388": "fixed, 388 neurons a layer",
        "none": "no delays, tau 10.05 ms",
        "none --tau 400.0 --tau-readout 10.05": "no delays, tau 400 ms",
        "shift": "learned, shifted samples",
        "recipe --dropout 0.2 --delay-lr 0.3": "learned, the recipe",
        "recipe --delays fixed --hidden 388 --dropout 0.2 --delay-lr 0.3": "fixed, 388, the recipe",
    },
    "toy": {
        "learned": "learned delays",
        "learned --hidden 21": "learned, 21 neurons",
        "fixed": "fixed delays",
        "fixed --hidden 76": "fixed, 76 neurons",
        "none --tau 100.0": "no delays, tau 100 ms",
    },
}


def results_figure() -> Figure:
    """Draw the accuracy of each run of ROWS, and the means over seeds."""
    from experiments import results

    rows = results.all_rows().query("speakers == '' and seed < 10")
    figure = Figure(figsize=(9.2, 4.6), layout="constrained")
    heading(figure, "Test accuracy: each dot is a run with another seed, each number a mean")
    shd, toy = figure.subplots(1, 2, sharex=True)
    draw_runs(shd, rows[rows["data"] == results.SHD], ROWS["shd"], {150: BLUE, 30: PALE_BLUE})
    # README's runs of the toy task.  Another processor ran some of these seeds again.
    toy_rows = rows.query("data == 'toy' and processor == 'Intel Xeon'")
    draw_runs(toy, toy_rows, ROWS["toy"], {20: BLUE})
    style(shd, f"{results.SHD}: after 150 epochs (dark) and 30 (pale)", "test accuracy (%)")
    style(toy, "toy task: after 20 epochs", "test accuracy (%)")
    return figure


def draw_runs(axis, rows, sides: dict[str, str], colors: dict[int, str]) -> None:
    """Draw the accuracy of each run of some sides, in the color of its epochs."""
    for (side, epochs), runs in rows.groupby(["side", "epochs"]):
        if side in sides and epochs in colors:
            accuracy, height = 100 * runs["accuracy"], list(sides).index(side)
            height += (len(colors) - 1) * (0.2 if epochs == 30 else -0.2)
            aside = 0.06 * (np.arange(len(accuracy)) % 5 - 2)  # equal values would hide each other
            axis.plot(accuracy, height + aside, "o", color=colors[epochs], markersize=4)
            words = f"   {accuracy.mean():.2f} (n = {len(accuracy)})"
            axis.text(accuracy.max(), height, words, fontsize=8, va="center", color=INK)
    axis.set_yticks(range(len(sides)), sides.values())
    axis.set(xlim=(40, 112), xticks=range(40, 101, 10), ylim=(len(sides) - 0.5, -0.5))


# ---------------------------------------------------- run.png and confusions.png: look into a run


def run_figures(folder: str, data_dir=None, index: int = 0, net=None) -> dict[str, Figure]:
    """Return pictures of a run by file name, run.png and confusions.png, and print its errors.

    data_dir: the folder of the data files; None: where the run had them.
    index: of the sample to show, in the test set (with --no-test, in the validation set).
    net: a network of your own, built like the one that was trained; None: that of an idea.
    """
    options = argparse.Namespace(**train.read_options(folder))
    if net is None:
        config = json.loads(Path(folder, "config.json").read_text())
        net_class = ideas.IDEAS[ideas.find(config)].get("net_class", DelaySNN)
        net = train.build(options, net_class)
    net, _ = train.load_run(folder, net)
    options.data_dir, options.device = data_dir or options.data_dir, "cpu"
    sets = train.load_sets(options)
    split = "test" if "test" in sets else "valid"
    names = class_names(options.dataset, split, options.data_dir)
    step_ms = data.DATASETS[options.dataset].step_ms

    figure = Figure(figsize=(9.2, 3.8), layout="constrained")
    top, bottom = figure.subfigures(2, 1)
    kind = f"{options.delays} delays, seed {options.seed}"
    heading(top, f"{type(net).__name__}, {options.dataset}, {kind}")
    import pandas  # the tour and the exercises do without it

    log = pandas.read_csv(os.path.join(folder, "log.csv"), index_col="epoch")
    shown = ("loss", "accuracy", "sigma", "moved_ms", "rate_")
    for axis, name in zip(top.subplots(1, 5), shown, strict=True):
        columns = log.filter(like=name).dropna(axis=1)
        if columns.size:  # fixed delays have no sigma
            columns.plot(ax=axis, color=[BLUE, RED, INK], logy=name == "loss")
            axis.legend(fontsize=7, frameon=False)
        style(axis, f"sigma (steps of {step_ms} ms)" if name == "sigma" else "", "epoch")
    labels, guess = sets[split].labels, train.predict(net, sets[split]).argmax(1)
    print_errors(labels, guess, sets[split].speakers, names)
    heading(bottom, f"sample {index} of the {split} set: {names[labels[index]]}")
    draw_sample(bottom, net, sets[split].counts[index], int(labels[index]), names, step_ms)
    return {"run.png": figure, "confusions.png": confusion_figure(labels, guess, split, names)}


@torch.no_grad()
def draw_sample(panel, net, counts: Tensor, own: int, names: list[str], step_ms: float) -> None:
    """Draw the spikes of a sample in each layer, and its scores so far.  Dotted: its last step."""
    reached = []  # what comes into each layer, [1, T, neurons]
    layers = train.delayed_layers(net)
    hooks = [x.register_forward_pre_hook(lambda _, x: reached.append(x[0])) for x in layers]
    end = len(counts) * step_ms
    counts = F.pad(counts, (0, 0, 0, net.tail))[None]
    steps = counts.shape[1]  # those whose scores count
    score = net(counts)[0, :steps].softmax(1).cumsum(0)  # [steps, classes]
    for hook in hooks:
        hook.remove()
    *axes, sums = panel.subplots(1, len(reached) + 1)
    for i, (axis, raster) in enumerate(zip(axes, reached, strict=True)):
        spikes = raster[0, :steps].T.numpy()  # [neurons, steps]
        box = (0, steps * step_ms, 0, len(spikes))
        axis.imshow(spikes > 0, "Greys", aspect="auto", origin="lower", extent=box)
        name = f"hidden layer {i}" if i else "input"
        style(axis, f"{name}: {int(spikes.sum()):,} spikes", "time (ms)")
    time, guess = np.arange(steps) * step_ms, int(score[-1].argmax())
    sums.plot(time, score, color=GREY, linewidth=0.7)
    for c, color in ({guess: RED} | {own: BLUE}).items():
        sums.plot(time, score[:, c], color=color, linewidth=1.6, label=names[c])
    style(sums, f"scores so far: {names[guess]} wins", "time (ms)")
    sums.legend(fontsize=7, frameon=False)
    for axis in (*axes, sums):
        axis.axvline(end, color=RED, linewidth=0.8, linestyle=":")


def print_errors(labels: Tensor, guess: Tensor, speakers: np.ndarray, names: list[str]) -> None:
    """Print the most frequent errors, and the accuracy by speaker where there are speakers."""
    errors = zip(labels.tolist(), guess.tolist(), strict=True)
    counts = Counter((own, heard) for own, heard in errors if own != heard)
    print(f"{counts.total():,} of {len(labels):,} samples are errors, most frequently:")
    for (own, heard), count in counts.most_common(5):
        print(f"{count:>5} x {names[own]}, heard as {names[heard]}")
    right = (guess == labels).numpy()
    for speaker in np.unique(speakers):
        if speaker != -1:  # of data without speakers
            own = right[speakers == speaker]
            print(f"speaker {speaker}: {own.mean():.2%} of {len(own)} right")


def confusion_figure(labels: Tensor, guess: Tensor, split: str, names: list) -> Figure:
    """Draw how many samples of each class (rows) got which answer (columns).  Errors are red."""
    classes = len(names)
    counts = torch.bincount(labels * classes + guess, minlength=classes**2).view(classes, classes)
    errors = counts.clone().fill_diagonal_(0)
    shades = errors.double().masked_fill(errors == 0, torch.nan)  # nan stays white
    figure = Figure(figsize=[1.4 + 0.26 * classes] * 2, layout="constrained")
    heading(figure, f"{split} samples: {errors.sum():,} of {len(labels):,} are errors (red)")
    axis = figure.subplots()
    axis.imshow(shades.numpy(), cmap="Reds", vmin=0, vmax=max(2 * errors.max(), 1))
    for own, heard in counts.nonzero().tolist():
        axis.text(heard, own, int(counts[own, heard]), ha="center", va="center", fontsize=7)
    halves = " (English, then German)" if "neun" in names else ""
    style(axis, "", f"the network's answer{halves}", f"what was said{halves}")
    axis.set_xticks(range(classes), names, rotation=90)
    axis.set_yticks(range(classes), names)
    if halves:  # of ten words each
        axis.axhline(9.5, color=INK, linewidth=0.8)
        axis.axvline(9.5, color=INK, linewidth=0.8)
    return figure


def style(axis, title: str, x: str = "", y: str = "") -> None:
    axis.set_title(title, fontsize=9, loc="left", color=INK)
    axis.set_xlabel(x, fontsize=8, color=INK)
    axis.set_ylabel(y, fontsize=8, color=INK)
    axis.tick_params(labelsize=7, color=GREY, labelcolor=INK)
    axis.spines[["top", "right"]].set_visible(False)


def heading(panel, words: str) -> None:
    panel.suptitle(words, x=0.01, ha="left", fontsize=10, fontweight="bold", color=INK)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="folder of a run to draw instead")
    parser.add_argument("--sample", type=int, default=0, help="with --run: which one; default: 0")
    parser.add_argument("--data-dir", help="with --run: folder of the data; default: the run's own")
    options = parser.parse_args(argv)
    folder = options.run or os.path.join("experiments", "figures")
    try:
        if options.run:
            figures = run_figures(options.run, options.data_dir, options.sample)
        else:
            learning_gif(os.path.join(folder, "learning.gif"))
            drawn = [why_figure, gradient_figure, kernel_figure, delays_figure, results_figure]
            figures = {f"{draw.__name__[:-7]}.png": draw() for draw in drawn}
    except (UserError, OSError) as problem:
        sys.exit(f"figures.py: {problem}")
    for name, figure in figures.items():
        path = os.path.join(folder, name)
        figure.savefig(path, dpi=130, facecolor="white", bbox_inches="tight")
        print(path)


if __name__ == "__main__":
    main()
