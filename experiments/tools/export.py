"""Export a trained network from torch as plain arrays that any simulator can read.

    python -m experiments.export RUN --out net.npz

RUN is the folder of a run.  The command writes the arrays, simulates them on all test samples and
prints their accuracy next to the network's.  At commit 1756d9e this program could also run the
arrays in the simulator Brian2 (2.9.0): every hidden spike was equal, 12,030 in 20 samples of the
toy task and 19,644 in 5 of SHD.

The file is read with numpy.load and holds no pickle.  For the whole network:

    dataset             name of the data set in data.py
    inputs              number of inputs
    channels_per_input  channels of the recording that one input sums up
    step_ms             length of a step of time
    tau_steps           time constant of the hidden neurons, in steps
    tau_readout_steps   time constant of the readout, in steps
    threshold           of the hidden neurons
    taps                delays are 0..taps-1 steps
    layers              number of layers, of which the readout is the last
    tail_steps          how many steps the network runs beyond the sample's own

and for layer i = 0, 1, ...:

    pre_i, post_i       int32 [synapses], sending and receiving neuron; a pair may have several
    weight_i            float32 [synapses]
    delay_i             int32 [synapses], whole steps
    current_i           float32 [neurons], flows into each neuron in each step

Batch norm is part of weight and current.  A spike of the recording that comes `time` ms after the
first is in step floor(time / step_ms) and input floor(channel / channels_per_input).  x[t, input]
counts the spikes there.  The sample's own steps end with its last spike, and x is 0 after it.

Every layer runs for these steps and tail_steps more, with v = 0 and no spikes before.  A delay of 0
acts within the same step, so the layers are computed one after the other:

    I[t, o] = current[o] + sum over synapses onto o of weight * x[t - delay, pre]
    h[t] = (1 - 1 / tau_steps) v[t-1] + I[t]
    s[t] = 1 if h[t] >= threshold, else 0;   v[t] = h[t] (1 - s[t])

s is the x of the next layer.  The readout has one neuron per class that neither spikes nor resets:
v[t] = h[t], with tau_readout_steps.  The answer is the class with the largest sum of softmax(v[t])
over all these steps.
"""

import argparse
import sys
from itertools import zip_longest

import h5py
import numpy as np
import torch
from torch import nn

import data
import train
from data import UserError
from delays import DelaySNN, delay_conv, leaky_integrator, lif
from experiments import regenerate

SPOKEN = ("shd", "shd-regenerated", "ssc")  # data sets whose inputs are groups of channels

# ------------------------------------------------------------------------------------- the arrays


def arrays_of(net: DelaySNN, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Return the arrays of the file, from the network and options of train.load_run.

    They leave out what a subclass adds, such as neurons or kernels of its own.
    """
    dataset = data.DATASETS[options.dataset]
    arrays = {
        "dataset": np.array(options.dataset),
        "inputs": np.int32(dataset.inputs),
        "channels_per_input": np.int32(data.GROUP if options.dataset in SPOKEN else 1),
        "step_ms": np.float64(dataset.step_ms),
        "tau_steps": np.float64(net.tau),
        "tau_readout_steps": np.float64(net.tau_readout),
        "threshold": np.float64(1.0),  # of lif
        "taps": np.int32(max(layer.taps for layer in net.layers)),
        "layers": np.int32(len(net.layers)),
        "tail_steps": np.int32(net.tail),
    }
    for i, (layer, norm) in enumerate(zip_longest(net.layers, net.norms)):
        factor = torch.ones(len(layer.mask), dtype=torch.float64)  # [out]
        current = torch.zeros_like(factor)
        if norm is not None:  # the readout has none
            factor = norm.weight.detach() / (norm.running_var.double() + norm.eps).sqrt()
            current = norm.bias.detach() - factor * norm.running_mean

        weight = layer.weight.detach() * factor[:, None]  # [out, kernel_count * in]
        delay = layer.delay.detach().round().expand_as(weight)
        connected = layer.mask
        post, pre = connected.nonzero(as_tuple=True)
        pre = pre % (weight.shape[1] // net.kernel_count)  # a layer sees its inputs repeatedly
        arrays[f"pre_{i}"] = pre.int().numpy()
        arrays[f"post_{i}"] = post.int().numpy()
        arrays[f"weight_{i}"] = weight[connected].float().numpy()
        arrays[f"delay_{i}"] = delay[connected].int().numpy()
        arrays[f"current_{i}"] = current.float().numpy()
    return arrays


def class_names(dataset: str, split: str, data_dir: str) -> list[str]:
    """Return the words in extra/keys of a split's file, or "class 0", "class 1", ... without it."""
    if dataset == "shd-regenerated":
        return regenerate.WORDS.split()
    names = [f"class {label}" for label in range(data.DATASETS[dataset].classes)]
    # With held-out speakers, "valid" is a part of the train file.
    path = data.find(dataset, split, data_dir) or data.find(dataset, "train", data_dir)
    if path is None:  # the toy task has no file
        return names
    source = path if path.endswith(".h5") else data.open_packed(path)
    with h5py.File(source) as file:
        if "extra/keys" in file:
            words = file["extra/keys"].asstr()[:]
            names[: len(words)] = words
    return names


# ---------------------------------------------------------------------------- the arrays in torch


class ArrayNetwork(nn.Module):
    """The network that the arrays describe, for train.predict and train.evaluate."""

    def __init__(self, arrays: dict):
        super().__init__()
        self.arrays = arrays
        self.tail = int(arrays["tail_steps"])

    def forward(self, x):
        """Return the membrane of the readout, [B, T, classes], from counts [B, T, inputs]."""
        arrays = self.arrays
        for i in range(arrays["layers"]):
            constant = torch.from_numpy(arrays[f"current_{i}"])
            kernel = np.zeros((len(constant), x.shape[2], arrays["taps"]), np.float32)
            where = tuple(arrays[f"{name}_{i}"] for name in ("post", "pre", "delay"))
            np.add.at(kernel, where, arrays[f"weight_{i}"])  # synapses of a pair may share a tap
            current = delay_conv(x, torch.from_numpy(kernel)) + constant  # [B, T, out]
            x = lif(current, float(arrays["tau_steps"]))
        return leaky_integrator(current, float(arrays["tau_readout_steps"]))  # of the last layer


# ------------------------------------------------------------------------------------ the program


@torch.no_grad()
def main(argv: list[str] | None = None, net_class: type[DelaySNN] = DelaySNN) -> None:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("export.py", description=__doc__, formatter_class=kind)
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a finished run")
    add("--out", metavar="NPZ", required=True, help="write the arrays to this file")
    add("--data-dir", help="folder of the data set's files; default: that of the run")
    options = parser.parse_args(argv)
    train.set_backend()
    try:
        of_run = argparse.Namespace(**train.read_options(options.run))
        net, _ = train.load_run(options.run, train.build(of_run, net_class))
        arrays = arrays_of(net, of_run)
        np.savez(options.out, **arrays)
        samples = data.load(of_run.dataset, "test", options.data_dir or of_run.data_dir)
    except (UserError, OSError) as problem:
        sys.exit(f"export.py: {problem}")
    print(f"test accuracy of the arrays {train.evaluate(ArrayNetwork(arrays), samples):.2%}")
    print(f"test accuracy of the network {train.evaluate(net, samples):.2%}")


if __name__ == "__main__":
    main()
