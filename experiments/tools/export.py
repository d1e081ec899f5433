"""Export a trained network as plain arrays, which any simulator can read with numpy.load.

    python -m experiments.tools.export RUN net.npz

The file has the number of `layers`, of which the readout is the last, and for layer i = 0, 1, ...:

    weight_i   float64 [out, in]
    delay_i    int64 [out, in], in steps of step_ms
    current_i  float64 [out], flows into each neuron in each step

Batch norm is part of weight and current.  x[t, i] counts the spikes of input i in step t, as
data.py reads them.  After the sample's own steps, x is 0 and the network runs for tail_steps more.
At first v = 0, and there were no spikes before:

    I[t,o] = current[o] + sum_i weight[o,i] x[t - delay[o,i], i]
    h[t] = (1 - 1/tau) v[t-1] + I[t],   s[t] = 1 if h[t] >= 1 else 0,   v[t] = h[t] (1 - s[t])

tau is tau_steps, and s is the x of the next layer.  The readout has tau_readout_steps, and neither
spikes nor resets: v[t] = h[t].  The answer is the class with the largest sum of softmax(v[t]) over
all steps.
"""

import argparse
import json
import sys
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch

import data
import train
from data import UserError
from delays import DelayedLinear, DelaySNN
from experiments.forks.ideas import IDEAS


def load(run: str, net: DelaySNN | None = None) -> tuple[DelaySNN, argparse.Namespace]:
    """Return what train.load_run does, also of a network of ideas.py, found by its name."""
    name = json.loads(Path(run, "config.json").read_text())["network"]
    for idea in IDEAS.values():
        net_class = idea.get("net_class", DelaySNN)
        if net is None and net_class.__name__ == name:
            net = train.build(argparse.Namespace(**train.read_options(run)), net_class)
    return train.load_run(run, net)


@torch.no_grad()
def arrays_of(net: DelaySNN, step_ms: float) -> dict[str, np.ndarray]:
    """Return the arrays of the file.  Raises a UserError if they cannot hold the network."""
    kind = type(net)
    if (kind.neurons, kind.readout) != (DelaySNN.neurons, DelaySNN.readout):
        raise UserError(f"{kind.__name__} has neurons that the arrays' equations leave out")
    arrays = {"step_ms": step_ms, "tau_steps": net.tau, "tau_readout_steps": net.tau_readout}
    arrays |= {"tail_steps": net.tail, "layers": len(net.layers)}
    for i, (layer, norm) in enumerate(zip_longest(net.layers, net.norms)):
        kernel = layer.kernel().double().numpy()  # [out, in, taps]
        taps = kernel != 0
        if taps.sum(2).max() > 1 or type(layer).forward != DelayedLinear.forward:
            raise UserError(f"{kind.__name__} has more than one synapse for a pair of neurons")
        weight, current = kernel.sum(2), np.zeros(len(kernel))
        if norm is not None:  # the readout has none
            factor = norm.weight / (norm.running_var.double() + norm.eps).sqrt()
            weight = weight * factor.numpy()[:, None]
            current = (norm.bias - factor * norm.running_mean).numpy()
        arrays |= {f"weight_{i}": weight, f"current_{i}": current}
        arrays[f"delay_{i}"] = taps.argmax(2)  # 0 where there is no synapse
    return arrays


def simulate(arrays: dict[str, np.ndarray], counts: np.ndarray) -> np.ndarray:
    """Return the class scores of one sample, [classes], from its counts, [steps, inputs]."""
    x = np.pad(counts, ((0, int(arrays["tail_steps"])), (0, 0))).astype(float)
    last = int(arrays["layers"]) - 1
    for i in range(last + 1):
        weight, delay, current = [arrays[f"{name}_{i}"] for name in ("weight", "delay", "current")]
        current = np.tile(current, (len(x), 1))  # [steps, out]
        for d in np.unique(delay):
            current[d:] += x[: len(x) - d] @ (weight * (delay == d)).T
        decay = 1 - 1 / arrays["tau_readout_steps" if i == last else "tau_steps"]
        v, x = np.zeros(len(weight)), np.zeros_like(current)
        for t, now in enumerate(current):
            h = decay * v + now
            x[t] = h if i == last else h >= 1
            v = h if i == last else h * (1 - x[t])
    e = np.exp(x - x.max(1, keepdims=True))
    return (e / e.sum(1, keepdims=True)).sum(0)


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        sys.exit(__doc__)
    run, out = argv
    try:
        net, options = load(run)
        arrays = arrays_of(net, data.DATASETS[options.dataset].step_ms)
        samples = data.load(options.dataset, "test", options.data_dir).select(np.arange(20))
        np.savez(out, **arrays)
    except (UserError, OSError) as problem:
        sys.exit(f"export.py: {problem}")
    want = train.predict(net, samples).numpy()
    got = np.stack([simulate(arrays, counts.numpy()) for counts in samples.counts])
    same = (got.argmax(1) == want.argmax(1)).sum()
    print(f"{same} of {len(want)} test samples get the network's answer from {out}")
    print(f"their scores differ by at most {np.abs(got - want).max():.1g}")


if __name__ == "__main__":
    main(sys.argv[1:])
