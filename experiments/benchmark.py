"""The same network here and of the authors' libraries: equality, time, memory, operations.

    python -m experiments.benchmark                    # made-up spikes of SHD's size and lengths
    python -m experiments.benchmark --data-dir DIR     # SHD's files
    python -m experiments.benchmark --operations       # how many operations a step calls

The authors' network, "peer", is built of dcls and spikingjelly (from PyPI, with torchvision).  Each
contestant runs in a process of its own, with the same settings of the processor.  They take turns,
step by step, and medians are printed.  A step is one of training on a batch; an epoch is training
and test evaluation, once.  Memory is the peak of the process, on CUDA of its tensors.
"""

import argparse
import json
import logging
import platform
import resource
import statistics
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import data
import train
from delays import DelaySNN, class_scores

SAMPLES = {"train": 8156, "test": 2264}  # of SHD
MEAN_STEPS, LONGEST = 72, 137  # of its training samples
ACTIVE = 0.08  # share of its inputs that spike in a step


class Peer(nn.Module):
    """The paper's network of dcls and spikingjelly: [B, T, 140] -> class scores [B, 20]."""

    def __init__(self, hidden=256, taps=25, tau=1.005, dropout=0.4):
        from DCLS.construct.modules import Dcls1d
        from spikingjelly.activation_based import layer, neuron, surrogate

        super().__init__()
        self.taps = taps
        self.conv = nn.ModuleList(
            Dcls1d(before, after, 1, dilated_kernel_size=taps, bias=False, version="gauss")
            for before, after in pairwise([data.INPUTS, hidden, hidden, 20])
        )
        for conv in self.conv:
            nn.init.constant_(conv.SIG, 12.0).requires_grad_(False)
        self.norm = nn.ModuleList(layer.BatchNorm1d(hidden, step_mode="m") for _ in range(2))
        self.dropout = nn.ModuleList(layer.Dropout(dropout, step_mode="m") for _ in range(2))
        self.lif = nn.ModuleList(
            neuron.LIFNode(
                tau=tau,
                decay_input=False,
                v_threshold=threshold,
                surrogate_function=surrogate.ATan(alpha=5.0),
                detach_reset=True,
                step_mode="m",
                store_v_seq=True,
            )
            for threshold in (1.0, 1.0, 1e9)  # the readout never spikes
        )

    def forward(self, x):
        from spikingjelly.activation_based import functional

        functional.reset_net(self)
        for i, conv in enumerate(self.conv):
            x = F.pad(x.transpose(1, 2), (self.taps - 1, self.taps // 2))  # [B, N, taps - 1 + T']
            x = conv(x).permute(2, 0, 1)  # [T', B, N]
            if i < 2:
                x = self.norm[i](x.unsqueeze(3)).squeeze(3)
                x = self.dropout[i](self.lif[i](x))
                x = x.transpose(0, 1)  # [B, T', N]
        self.lif[2](x)
        return self.lif[2].v_seq.softmax(2).sum(0)

    def whole_steps(self):
        """One tap a synapse, for evaluation."""
        for conv in self.conv:
            conv.P.data.round_()
            conv.SIG.data.zero_()
            conv.DCK.version = "max"


# ---------------------------------------------------------------------------------------- equality


def copied(net: DelaySNN) -> Peer:
    """The peer with the weights, delays and sigma of a network; both without dropout."""
    peer = Peer(len(net.norms[0].weight), dropout=0.0).to(net.layers[0].weight.dtype)
    for conv, layer in zip(peer.conv, net.layers, strict=True):
        conv.weight.data = layer.weight.detach().clone().unsqueeze(2)
        conv.P.data = (layer.taps // 2 - layer.delay.detach())[None, :, :, None]
        conv.SIG.data.fill_(layer.sigma - 0.27)
    return peer


def compare(hidden: int = 64) -> dict[str, float]:
    """The largest differences of scores and gradients, in float64, relative to the largest value.

    All steps of the batch count, as the authors train.
    """
    torch.manual_seed(0)
    net = DelaySNN(data.INPUTS, [hidden, hidden], 20, dropout=0.0).double()
    for layer in net.layers:
        layer.sigma = 2.0
    peer = copied(net)
    counts = (torch.rand(8, 50, data.INPUTS) < ACTIVE).double()
    counts[::2, 40:] = 0  # the padding of shorter samples
    labels = torch.arange(8)
    ours, theirs = class_scores(net(counts)), peer(counts)
    for scores in (ours, theirs):
        F.cross_entropy(scores, labels).backward()
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
        pairs["scores in evaluation"] = class_scores(net(counts)), peer(counts)
        return {name: float((a - b).abs().max() / b.abs().max()) for name, (a, b) in pairs.items()}


# --------------------------------------------------------------------------------- the contestants


def peer_tasks(options: argparse.Namespace) -> dict:
    train.set_backend()
    net = Peer().to(options.device)
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)

    def train_epoch(spikes):
        net.train()
        for indices, longest in data.batches(spikes, 256):
            scores = net(data.padded(spikes, indices, longest).float())
            loss = F.cross_entropy(scores, spikes.labels[indices])
            adam.zero_grad()
            loss.backward()
            adam.step()
            for conv in net.conv:
                conv.clamp_parameters()

    @torch.no_grad()
    def evaluate(spikes):
        net.eval()
        net.whole_steps()
        for indices, longest in data.batches(spikes, 256, shuffle=False):
            net(data.padded(spikes, indices, longest).float()).argmax(1)

    return tasks_of(options, train_epoch, evaluate)


def our_tasks(options: argparse.Namespace, variant: str) -> dict:
    train.set_backend()
    settings = train.parse(["--delays", variant, "--device", options.device])
    net = train.build(settings).to(options.device)
    optimizer = train.make_optimizer(net, settings)
    train.set_schedules(optimizer, net, 0, settings)
    return tasks_of(
        options,
        lambda spikes: train.train_epoch(net, optimizer, spikes, 256),
        lambda spikes: train.evaluate(net, spikes, 256),
    )


def tasks_of(options: argparse.Namespace, train_epoch, evaluate) -> dict:
    """What a contestant can be asked for: a step of training, and an epoch with its evaluation."""
    sets = {}
    for split, samples in SAMPLES.items():
        if options.data_dir:
            sets[split] = data.load("shd", split, options.data_dir).to(options.device)
        else:
            sets[split] = made_up(samples).to(options.device)
    batch = sets["train"].select(np.arange(SAMPLES["train"]) < 256)

    def epoch():
        train_epoch(sets["train"])
        evaluate(sets["test"])

    return {"step": lambda: train_epoch(batch), "epoch": epoch}


def made_up(samples: int) -> data.Spikes:
    rng = np.random.default_rng(0)
    steps = rng.normal(MEAN_STEPS, 15, samples).clip(24, LONGEST).astype(int)
    counts = [rng.random((n, data.INPUTS)) < ACTIVE for n in steps]
    return data.join([own.astype(np.uint8) for own in counts], np.arange(samples) % 20)


class Counter(TorchDispatchMode):
    """Counts the operations that torch is asked for while it is active, and the views of them."""

    def __init__(self):
        super().__init__()
        self.total = self.views = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.total += 1
        self.views += func.is_view
        return func(*args, **(kwargs or {}))


# ----------------------------------------------------------------------------------- the processes


def serve(options: argparse.Namespace) -> None:
    """The side of a child process: answers the name of a task with its time and the peak."""
    tasks = peer_tasks(options) if options.worker == "peer" else our_tasks(options, options.worker)
    for line in sys.stdin:
        begun = time.perf_counter()
        tasks[line.strip()]()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
        if options.device == "cuda":
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() / 2**30
        print(json.dumps({"seconds": time.perf_counter() - begun, "gib": peak}), flush=True)


def take_turns(workers: dict, task: str, rounds: int) -> dict[str, dict]:
    """Median of the seconds, and the peak at the end, by name."""
    answers = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            print(task, file=worker.stdin, flush=True)
            answers[name].append(json.loads(worker.stdout.readline()))
    return {
        name: {"seconds": statistics.median(a["seconds"] for a in own), "gib": own[-1]["gib"]}
        for name, own in answers.items()
    }


def contest(options: argparse.Namespace) -> None:
    names = ["learned", "fixed", "none", "peer"]
    workers = {}
    for name in names:
        command = [sys.executable, "-m", "experiments.benchmark", *sys.argv[1:], "--worker", name]
        pipe = subprocess.PIPE
        workers[name] = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    take_turns(workers, "step", 1)  # a first round does not count
    tables = {"step": take_turns(workers, "step", options.rounds)}
    if not options.skip_epoch:
        tables["epoch"] = take_turns(workers, "epoch", 1)
    for worker in workers.values():
        worker.stdin.close()

    print(f"{'':<10}", *(f"{task:>11}{'to learned':>12}{'GiB':>7}" for task in tables), sep="")
    for name in names:
        cells = ""
        for results in tables.values():
            seconds = results[name]["seconds"]
            ratio = seconds / results["learned"]["seconds"]
            cells += f"{seconds:>9.3f} s{ratio:>12.2f}{results[name]['gib']:>7.2f}"
        print(f"{name:<10}{cells}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    add("--data-dir", help="SHD's files; default: made-up spikes")
    add("--rounds", type=train.positive, default=5, help="steps each, after a first one; 5")
    add("--skip-epoch", action="store_true", help="only the steps")
    add("--operations", action="store_true", help="only count the operations of a learned step")
    add("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # spikingjelly's, of a missing Triton, which is not needed
    if options.worker:
        serve(options)
        return
    if options.operations:
        step = our_tasks(options, "learned")["step"]
        step()  # the first one also sets up Adam
        with Counter() as counter:
            step()
        print(f"{counter.total:,} operations, {counter.views:,} of them views")
        return

    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, difference in compare().items():
        print(f"{name:<24} differs by {difference:.1e}")
    contest(options)


if __name__ == "__main__":
    main()
