"""Look into a run: draw it as run.png, and print its errors and how much it spikes.

    python -m experiments.tools.look RUN
    python -m experiments.tools.look RUN --out picture.png

Also works while RUN is still training.  It needs matplotlib.
"""

import argparse
import csv
import os
import sys
from collections import Counter

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

import data
import train
from data import UserError
from experiments.tools.export import load
from experiments.tools.style import BLUE, GREY, INK, RED, heading, style


def draw(run: str, net=None, out: str = "") -> Figure:
    """Draw a run, print its errors and spikes, and save and return the picture.

    net: a network of your own, with .layers as DelaySNN has them, built like the one that was
        trained.  Default: see export.load.
    out: the file of the picture.  Default: run.png in the folder of the run.
    """
    net, options = load(run, net)
    options.device = "cpu"
    options.eval = run  # then load_sets leaves out the training set, if it can
    sets = train.load_sets(options)
    split = "test" if "test" in sets else "valid"
    spikes = sets[split]
    dataset = data.DATASETS[options.dataset]
    names = [f"class {label}" for label in range(dataset.classes)]
    if options.dataset in ("shd", "shd-regenerated"):
        names = data.WORDS

    print_errors(spikes.labels, train.predict(net, spikes).argmax(1), spikes.speakers, names)
    for i, number in enumerate(hidden_spikes(net, spikes), 1):
        print(f"hidden layer {i}: {number:,.1f} spikes per sample")

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1)
    kind = f"delays: {options.delays}, seed {options.seed}"
    heading(top, f"{type(net).__name__}, {options.dataset}, {kind}")
    draw_log(top, run, dataset.step_ms)
    own = int(spikes.labels[0])
    heading(bottom, f"first sample of the {split} set: {names[own]} (dotted: the sample ends)")
    draw_sample(bottom, net, spikes.counts[0], own, names, dataset.step_ms)
    path = out or os.path.join(run, "run.png")
    figure.savefig(path, dpi=130, facecolor="white")
    print(path)
    return figure


def hidden_spikes(net, spikes: data.Spikes, batch_size: int = 256) -> list[float]:
    """Return the spikes per sample of each hidden layer, of the network with rounded delays.

    A layer's output is counted as long as it lasts for an unpadded sample: the sample's own steps,
    and the tails up to this layer.
    """
    counted = dict.fromkeys(net.layers[1:], 0.0)  # by the layer that the spikes go to

    def count(layer, inputs):
        end = inputs[0].shape[1] - net.tail  # without the zeros that predict appends
        counted[layer] += inputs[0][:, :end].double().sum().item()

    hooks = [layer.register_forward_pre_hook(count) for layer in counted]
    for steps in spikes.steps.unique():  # samples of one length, so there is no padding
        train.predict(net, spikes.select((spikes.steps == steps).numpy()), batch_size)
    for hook in hooks:
        hook.remove()
    return [total / len(spikes.labels) for total in counted.values()]


def print_errors(labels: Tensor, guess: Tensor, speakers: np.ndarray, names: list[str]) -> None:
    """Print the most frequent errors, and the accuracy by speaker where there are speakers."""
    answers = zip(labels.tolist(), guess.tolist(), strict=True)
    counts = Counter((own, heard) for own, heard in answers if own != heard)
    print(f"{counts.total():,} of {len(labels):,} samples are errors, most frequently:")
    for (own, heard), count in counts.most_common(5):
        print(f"{count:>5} x {names[own]}, heard as {names[heard]}")
    right = (guess == labels).numpy()
    for speaker in np.unique(speakers):
        if speaker != -1:  # of data without speakers
            own = right[speakers == speaker]
            print(f"speaker {speaker}: {own.mean():.2%} of {len(own)} right")


def draw_log(panel, run: str, step_ms: float) -> None:
    """Draw the columns of log.csv that have values."""
    with open(os.path.join(run, "log.csv")) as file:
        log = list(csv.DictReader(file))
    shown = {  # by title, what the names of columns contain, and a factor
        "loss": ("loss", 1),
        "accuracy (%)": ("accuracy", 100),
        f"sigma (steps of {step_ms:g} ms)": ("sigma", 1),
        "delays have moved (ms)": ("moved_ms", 1),
        "spikes per second": ("rate_", 1000 / step_ms),
    }
    for axis, (title, (part, factor)) in zip(panel.subplots(1, 5), shown.items(), strict=True):
        style(axis, title, "epoch")
        names = [name for name in log[0] if part in name and log[0][name]]
        for name, color in zip(names, [BLUE, RED, INK, GREY], strict=False):
            values = [float(row[name]) * factor for row in log]
            axis.plot(range(1, len(log) + 1), values, ".-", color=color, markersize=2, label=name)
        axis.set_yscale("log" if part == "loss" else "linear")
        axis.tick_params(which="minor", labelsize=7)
        if len(names) > 1:
            axis.legend(fontsize=7, frameon=False)


@torch.no_grad()
def draw_sample(panel, net, counts: Tensor, own: int, names: list[str], step_ms: float) -> None:
    """Draw the spikes of a sample in each layer, and its scores so far."""
    reached = []  # what comes into each layer, [1, T, neurons]
    hooks = [x.register_forward_pre_hook(lambda _, x: reached.append(x[0])) for x in net.layers]
    end = len(counts) * step_ms
    counts = F.pad(counts, (0, 0, 0, net.tail))[None]
    steps = counts.shape[1]  # those whose scores count
    membrane = net(counts)
    for hook in hooks:
        hook.remove()
    score = torch.cat([net.scores(membrane, torch.tensor([t + 1])) for t in range(steps)])
    *axes, sums = panel.subplots(1, len(reached) + 1)
    for i, (axis, raster) in enumerate(zip(axes, reached, strict=True)):
        spikes = raster[0, :steps].T.numpy()  # [neurons, steps]
        look = dict(aspect="auto", origin="lower", interpolation="nearest")
        axis.imshow(spikes > 0, "Greys", extent=(0, steps * step_ms, 0, len(spikes)), **look)
        name = f"hidden layer {i}" if i else "input"
        style(axis, f"{name}: {int(spikes.sum()):,} spikes", "time (ms)")
    time = np.arange(steps) * step_ms
    guess = int(score[-1].argmax())
    sums.plot(time, score, color=GREY, linewidth=0.7)
    sums.lines[0].set_label(f"the other {len(names) - len({guess, own})} classes")
    for c, color in ({guess: RED} | {own: BLUE}).items():
        sums.plot(time, score[:, c], color=color, linewidth=1.6, label=names[c])
    style(sums, f"scores so far: {names[guess]} wins", "time (ms)")
    sums.legend(fontsize=7, frameon=False, loc="upper left")
    for axis in (*axes, sums):
        axis.axvline(end, color=RED, linewidth=0.8, linestyle=":")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("look.py", description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="folder of a run of train.py or ideas.py")
    parser.add_argument("--out", default="", help="file of the picture; default: run.png in RUN")
    options = parser.parse_args(argv)
    try:
        draw(options.run, None, options.out)
    except (UserError, OSError) as problem:
        sys.exit(f"look.py: {problem}")


if __name__ == "__main__":
    main(sys.argv[1:])
