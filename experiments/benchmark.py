"""Do our network and the authors' compute the same, and how long do they take?

    python -m experiments.benchmark --data-dir DIR    # SHD's files, fetched if they are missing

The authors' network, "peer", is built from dcls and spikingjelly (from PyPI), and trained and
evaluated by train.py.  The networks take turns, step by step, and the medians are printed.  A step
trains on a batch of 256; an epoch is training plus test evaluation, timed once.
"""

import argparse
import logging
import platform
import time
from itertools import pairwise
from statistics import median

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import data
import train
from delays import DelaySNN, class_scores


class Peer(nn.Module):
    """The paper's network built from dcls and spikingjelly.

    [B, T, 140] counts -> [B, T + tail, 20] potentials of the readout, as in DelaySNN.
    """

    rates = ()  # train.train_epoch logs those of DelaySNN

    def __init__(self, hidden=256, taps=25, tau=1.005, dropout=0.4):
        from DCLS.construct.modules import Dcls1d
        from spikingjelly.activation_based import layer, neuron, surrogate

        super().__init__()
        self.taps = taps
        self.tail = 3 * (taps // 2)
        self.conv = nn.ModuleList(
            Dcls1d(before, after, 1, dilated_kernel_size=taps, bias=False, version="gauss")
            for before, after in pairwise([data.INPUTS, hidden, hidden, 20])
        )
        for conv in self.conv:
            nn.init.constant_(conv.SIG, 12.0).requires_grad_(False)
        self.norm = nn.ModuleList(layer.BatchNorm1d(hidden, step_mode="m") for _ in range(2))
        self.dropout = nn.ModuleList(layer.Dropout(dropout, step_mode="m") for _ in range(2))
        shared = dict(decay_input=False, detach_reset=True, step_mode="m", store_v_seq=True)
        shared |= dict(tau=tau, surrogate_function=surrogate.ATan(alpha=5.0))
        thresholds = (1.0, 1.0, 1e9)  # the readout never spikes
        self.lif = nn.ModuleList(neuron.LIFNode(v_threshold=at, **shared) for at in thresholds)

    def forward(self, x):
        from spikingjelly.activation_based import functional

        functional.reset_net(self)
        x = x.to(self.norm[0].weight.dtype)
        for i, conv in enumerate(self.conv):
            conv.clamp_parameters()
            x = F.pad(x.transpose(1, 2), (self.taps - 1, self.taps // 2))  # [B, N, taps - 1 + T']
            x = conv(x).permute(2, 0, 1)  # [T', B, N]
            if i < 2:
                x = self.norm[i](x.unsqueeze(3)).squeeze(3)
                x = self.dropout[i](self.lif[i](x))
                x = x.transpose(0, 1)  # [B, T', N]
        self.lif[2](x)
        return self.lif[2].v_seq.transpose(0, 1)  # [B, T', 20]

    def whole_steps(self):
        """Use one nonzero tap per synapse, for evaluation."""
        for conv in self.conv:
            conv.P.data.round_()
            conv.SIG.data.zero_()
            conv.DCK.version = "max"


def compare() -> dict[str, float]:
    """Return the largest differences between the two networks, relative to the largest value.

    Compares scores and gradients in float64, in training on a padded batch; then scores with
    rounded delays.
    """
    torch.manual_seed(0)
    net = DelaySNN(data.INPUTS, [64, 64], 20, dropout=0.0).double()
    peer = Peer(64, dropout=0.0).double()
    for layer, conv in zip(net.layers, peer.conv, strict=True):
        layer.sigma = 2.0
        conv.SIG.data.fill_(2.0 - 0.27)
        conv.weight.data = layer.weight.detach().clone().unsqueeze(2)
        conv.P.data = (layer.taps // 2 - layer.delay.detach())[None, :, :, None]
    counts = (torch.rand(8, 50, data.INPUTS) < 0.08).double()
    counts[::2, 40:] = 0  # the padding of shorter samples
    ours, theirs = [class_scores(each(counts)) for each in (net, peer)]
    for scores in (ours, theirs):
        F.cross_entropy(scores, torch.arange(8)).backward()
    pairs = {"scores": (ours, theirs)}
    for i, (layer, conv) in enumerate(zip(net.layers, peer.conv, strict=True)):
        pairs[f"gradient of weights {i}"] = layer.weight.grad, conv.weight.grad.squeeze(2)
        pairs[f"gradient of delays {i}"] = layer.delay.grad, -conv.P.grad[0, :, :, 0]
    for i, (norm, other) in enumerate(zip(net.norms, peer.norm, strict=True)):
        pairs[f"running mean {i}"] = norm.running_mean, other.running_mean
        pairs[f"running variance {i}"] = norm.running_var, other.running_var
        pairs[f"gradient of norm's weights {i}"] = norm.weight.grad, other.weight.grad
        pairs[f"gradient of norm's biases {i}"] = norm.bias.grad, other.bias.grad
    net.eval()
    peer.eval()
    peer.whole_steps()
    with torch.no_grad():
        pairs["scores in evaluation"] = [class_scores(each(counts)) for each in (net, peer)]
        return {name: float((a - b).abs().max() / b.abs().max()) for name, (a, b) in pairs.items()}


# ------------------------------------------------------------------------------------- the contest


def contest(options: argparse.Namespace) -> None:
    """Let the networks take turns, and print how long they take."""
    train.set_backend()
    everything, test = [
        data.load("shd", split, options.data_dir).to(options.device) for split in ("train", "test")
    ]
    batch = everything.select(np.arange(len(everything.labels)) < 256)
    nets = {}
    for name in ("learned", "fixed", "none", "peer"):
        delays = "learned" if name == "peer" else name
        settings = train.parse(["--delays", delays, "--device", options.device])
        net = Peer() if name == "peer" else train.build(settings)
        optimizer = train.make_optimizer(net.to(options.device), settings)
        train.set_schedules(net, optimizer, 0, settings)
        nets[name] = net, optimizer, settings
    seconds = {(name, task): [] for name in nets for task in ("step", "epoch")}

    for turn in range(options.rounds + 2):  # the first is a warm-up, the last an epoch of each
        for name, (net, optimizer, settings) in nets.items():
            whole = turn > options.rounds
            spikes = everything if whole else batch
            begun = time.perf_counter()
            train.train_epoch(net, optimizer, spikes, 0, settings)
            if whole:
                if name == "peer":
                    net.whole_steps()
                train.evaluate(net, test)
            if options.device == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name, "epoch" if whole else "step"].append(time.perf_counter() - begun)

    print(f"{'':<10}", *(f"{task:>11}{'/ learned':>12}" for task in ("step", "epoch")), sep="")
    for name in nets:
        row = f"{name:<10}"
        for task in ("step", "epoch"):
            own, base = median(seconds[name, task]), median(seconds["learned", task])
            row += f"{own:>9.3f} s{own / base:>12.2f}"
        print(row)


def main() -> None:
    lines = argparse.RawTextHelpFormatter  # keeps the lines of the docstring
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=lines)
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    add("--data-dir", default="data", help="folder of SHD's files")
    add("--rounds", type=train.positive, default=5, help="timed steps of each; default: 5")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # hides a missing Triton, which is not needed
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, difference in compare().items():
        print(f"{name:<24} differs by {difference:.1e}")
    contest(options)


if __name__ == "__main__":
    main()
