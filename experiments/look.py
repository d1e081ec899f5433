"""A look into a run of train.py, as numbers, which figures.py --run draws.  No matplotlib here.

As in look.read_run("runs/shd-learned-0").curves["test_accuracy"].
"""

import argparse
import os
import sys
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
from torch import Tensor

import data
import train
from delays import DelaySNN


class Layer(NamedTuple):
    """The delays of a layer in ms, [n] each, without those of connections that it lacks.

    name: of the layer in the network, as in layers.0.
    """

    name: str
    before: Tensor
    after: Tensor

    @property
    def moved(self) -> Tensor:
        return (self.after - self.before).abs()


class Sample(NamedTuple):
    """A sample on its way through the network, over its own steps and the tails of all layers.

    spikes: [T, neurons] of the input, and of each hidden layer.
    share: softmax of the readout at each step, [T, classes].  Its sum over time is the score.
    """

    split: str
    index: int
    label: int
    spikes: list[Tensor]
    share: Tensor


class Run(NamedTuple):
    """What there is to see of a run.

    curves: of curves(rows, step_ms).
    missing: a sentence for each part that could not be read.
    """

    options: argparse.Namespace
    rows: list[dict]
    curves: dict[str, list[float]]
    step_ms: float
    layers: list[Layer]
    sample: Sample | None
    missing: list[str]


def read_run(
    path: str, data_dir: str | None = None, net: DelaySNN | None = None, sample: int = 0
) -> Run:
    """The state of a run after its last epoch so far.

    path: the folder of a run, which means its last.pt, or a checkpoint.
    data_dir: the data files; None is the run's own folder.
    net: a network of one's own, to load the run into.  Without it, the run of another class than
        DelaySNN has no sample.
    sample: its place in the test set, or in the validation set of a run with --no-test.
    """
    path = os.path.join(path, "last.pt") if os.path.isdir(path) else path
    # It is read once: a run that still trains may write the next one at any moment.
    saved = train.read_checkpoint(path)
    options = argparse.Namespace(**train.complete(saved["options"]))
    step_ms = data.DATASETS[options.dataset].step_ms

    layers, journey, missing = [], None, []
    try:
        layers = read_layers(saved, step_ms)
    except ValueError as problem:
        missing.append(f"the delays are left out: {problem}")
    try:
        net, _ = train.restore(saved, path, net)
        split, spikes = read_split(options, data_dir or options.data_dir)
        journey = follow(net, split, spikes, sample)
    except (OSError, ValueError) as problem:
        missing.append(f"the sample is left out: {problem}")
    rows = saved["rows"]
    return Run(options, rows, curves(rows, step_ms), step_ms, layers, journey, missing)


def curves(rows: list[dict], step_ms: float) -> dict[str, list[float]]:
    """What was measured in each epoch, by the names of the log: loss, accuracies in %, sigma and
    moved_ms in ms, and the firing rates of training, padding included, in Hz."""
    factors = {"loss": 1, "train_accuracy": 100, "valid_accuracy": 100, "test_accuracy": 100}
    factors |= {"sigma": step_ms, "moved_ms": 1}
    factors |= {name: 1000 / step_ms for name in rows[0] if name.startswith("rate_")}
    measured = {}
    for name, factor in factors.items():
        values = [row[name] for row in rows]
        if None not in values:
            measured[name] = [factor * value for value in values]
    return measured


def read_layers(saved: dict, step_ms: float) -> list[Layer]:
    """The delays of each layer, from a checkpoint alone, which may be of any network."""
    state, first = saved["net"], saved["first_delays"]
    names = [name.removesuffix(".delay") for name in state if name.endswith(".delay")]
    shapes = [state[f"{name}.delay"].shape for name in names]
    if shapes != [before.shape for before in first]:
        raise ValueError(f"the network has {len(names)} delays, and {len(first)} first ones")
    layers = []
    for name, before in zip(names, first, strict=True):
        mask = state.get(f"{name}.mask")
        after = train.connected(state[f"{name}.delay"], mask)
        layers.append(Layer(name, train.connected(before, mask) * step_ms, after * step_ms))
    return layers


def read_split(options: argparse.Namespace, data_dir: str) -> tuple[str, data.Spikes]:
    """The name and samples of the split that a run is judged by."""
    split = train.judged_split(options)
    held_out = split == "valid" and options.valid_speakers
    spikes = load(options.dataset, "train" if held_out else split, data_dir)
    if held_out:
        spikes = spikes.select(train.is_held_out(spikes, options))
    return split, spikes


def load(dataset: str, split: str, data_dir: str) -> data.Spikes:
    """data.load, which for the sake of a picture or a few figures does not fetch any file."""
    published = [name for name in data.MD5 if name.startswith(f"{dataset}_{split}.")]
    if published and data.find(dataset, split, data_dir) is None:
        raise ValueError(f"{published[0]} is not in {data_dir!r}: name its folder by --data-dir")
    return data.load(dataset, split, data_dir)


@torch.no_grad()
def follow(net: DelaySNN, split: str, spikes: data.Spikes, index: int) -> Sample:
    """A sample's way through a network in evaluation, as train.predict has it."""
    if not 0 <= index < len(spikes.labels):
        last = len(spikes.labels) - 1
        raise ValueError(f"sample {index} is not in the {split} set: expected 0 to {last}")
    tails = [layer.taps // 2 for layer in net.layers]
    steps = int(spikes.steps[index])
    end = steps + sum(tails)
    counts = data.padded(spikes, torch.tensor([index]), steps + sum(tails[1:]))
    counts = counts.to(next(net.parameters()).device)  # [1, T, inputs]

    arriving = {}  # what reaches each layer of net.layers, [1, T, N]

    def keep(layer, inputs):
        arriving[layer] = inputs[0].cpu()

    hooks = [layer.register_forward_pre_hook(keep) for layer in net.layers]
    share = net(counts)[0].softmax(1).cpu()  # [T, classes]
    for hook in hooks:
        hook.remove()
    way = [arriving[layer][0, :end] for layer in net.layers]
    return Sample(split, index, int(spikes.labels[index]), way, share[:end])
