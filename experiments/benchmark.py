"""Time and memory of a training step and of an epoch, here and with the authors' libraries.

    python experiments/benchmark.py                       # made-up spikes of SHD's size
    python experiments/benchmark.py --data-dir DIR        # the epoch on SHD's files
    python experiments/benchmark.py --device cuda         # the step with both convolutions
    python experiments/benchmark.py --count               # how many operations a step calls

Each contestant runs in a process of its own.  They take turns, step by step, and medians are
printed.  The network of the authors' libraries, "peer", is measured where dcls and spikingjelly
(from PyPI, with torchvision) are installed.  An epoch is training and test evaluation, once.
Memory is the peak of the process so far, on CUDA of its tensors, after the steps and the epoch.
"""

import argparse
import importlib.util
import json
import logging
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from itertools import pairwise

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import data
import delays
import train

SAMPLES = {"train": 8156, "test": 2264}  # of SHD
ACTIVE = 0.08  # share of its inputs that spike in a step
PRODUCT = 2048  # size of the matrices whose product shows what the processor can do

# --------------------------------------------------------------------------------- the contestants


class Peer(nn.Module):
    """The same network of dcls and spikingjelly: [B, T, 140] -> class scores [B, 20]."""

    def __init__(self, hidden, taps=25, tau=1.005, dropout=0.4):
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


def peer_tasks(options: argparse.Namespace) -> dict:
    train.set_backend()  # the same settings of the processor for all
    logging.disable(logging.WARNING)  # spikingjelly's, of a missing Triton, which is not needed
    net = Peer(options.hidden).to(options.device)
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)

    def train_epoch(spikes):
        net.train()
        for indices, longest in data.batches(spikes, options.batch):
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
        for indices, longest in data.batches(spikes, options.batch, shuffle=False):
            net(data.padded(spikes, indices, longest).float()).argmax(1)

    return tasks_of(options, train_epoch, evaluate)


def our_tasks(options: argparse.Namespace, name: str) -> dict:
    train.set_backend()
    settings = train_options(options, name)
    net = train.build(settings).to(options.device)
    optimizer = train.make_optimizer(net, settings)
    train.set_schedules(optimizer, net, 0, settings)

    def train_epoch(spikes):
        train.train_epoch(net, optimizer, spikes, settings)

    def evaluate(spikes):
        train.evaluate(net, spikes, options.batch)

    return tasks_of(options, train_epoch, evaluate)


def train_options(options: argparse.Namespace, name: str = "learned") -> argparse.Namespace:
    """train.py's options for a contestant: a variant, or as in learned/fourier with a method."""
    variant, _, method = name.partition("/")
    words = ["--delays", variant, "--conv", method or "auto", "--device", options.device]
    words += ["--hidden", str(options.hidden), "--batch-size", str(options.batch)]
    return train.parse([*words, "--data-dir", options.data_dir or data.DATA_DIR])


def tasks_of(options: argparse.Namespace, train_epoch, evaluate) -> dict:
    """What a contestant can be asked for: a step on made-up spikes, and an epoch."""
    batch = made_up(options, options.batch)
    sets = {}
    if not options.skip_epoch:
        for split, samples in SAMPLES.items():
            if options.data_dir:
                sets[split] = data.load("shd", split, options.data_dir).to(options.device)
            else:
                sets[split] = made_up(options, samples)

    def epoch():
        train_epoch(sets["train"])
        evaluate(sets["test"])

    return {"step": lambda: train_epoch(batch), "epoch": epoch}


def made_up(options: argparse.Namespace, samples: int) -> data.Spikes:
    torch.manual_seed(0)
    counts = torch.empty(samples * options.steps, data.INPUTS, dtype=torch.uint8)
    labels = torch.arange(samples) % 20
    steps = torch.full((samples,), options.steps)
    spikes = data.Spikes(counts.bernoulli_(ACTIVE), steps, labels, np.zeros(samples))
    return spikes.to(options.device)


# ----------------------------------------------------------------------------- the parts of a step


def sums_task(options: argparse.Namespace, method: str, device: str):
    """A function that does the delayed sums of a learned step, forward and backward."""
    train.set_backend()
    operands = []
    for x, layer in layers(options, device):
        kernel = layer.kernel().detach().requires_grad_()
        operands.append((x, kernel, layer.taps // 2))

    def step():
        for x, kernel, tail in operands:
            if method == "fft":
                y = conv_fft(x, kernel, tail)
            else:
                y = delays.delay_conv(x, kernel, tail, method)
            wanted = [operand for operand in (x, kernel) if operand.requires_grad]
            torch.autograd.grad(y, wanted, torch.ones_like(y))

    return step


def conv_fft(spikes: Tensor, kernel: Tensor, tail: int) -> Tensor:
    """The delayed sum by torch.fft, to compare."""
    steps, taps = spikes.shape[1], kernel.shape[2]
    period = steps + max(taps - 1, tail)
    x = torch.fft.rfft(spikes, period, dim=1)  # [B, F, in]
    k = torch.fft.rfft(kernel, period, dim=2)  # [out, in, F]
    y = torch.einsum("bfi,oif->bfo", x, k)
    return torch.fft.irfft(y, period, dim=1)[:, : steps + tail]


def part_tasks(options: argparse.Namespace) -> dict:
    """The other parts of a learned step, each for all layers, forward and backward."""
    train.set_backend()
    every = [layer for _, layer in layers(options, options.device)]
    currents = [x for x, _ in layers(options, options.device)][1:]  # as large as what lif gets
    square = torch.randn(PRODUCT, PRODUCT, device=options.device)

    def kernels():
        for layer in every:
            k = layer.kernel()
            torch.autograd.grad(k, [layer.weight, layer.delay], torch.ones_like(k))

    def lif():
        for current in currents:
            spikes = delays.lif(current, 1.005)
            torch.autograd.grad(spikes, current, torch.ones_like(spikes))

    return {"kernels": kernels, "LIF neurons": lif, "product": lambda: square @ square}


def layers(options: argparse.Namespace, device: str) -> list:
    """(input, layer) for each layer of the learned network; the first needs no input gradient."""
    net = train.build(train_options(options)).to(device)
    train.set_sigma(net, 0, train_options(options))
    pairs = []
    steps = options.steps
    for layer in net.layers:
        inputs = layer.weight.shape[1]
        x = torch.rand(options.batch, steps, inputs, device=device) < ACTIVE
        pairs.append((x.float().requires_grad_(len(pairs) > 0), layer))
        steps += layer.taps // 2
    return pairs


def count_flops(options: argparse.Namespace, method: str) -> int:
    """Of the delayed sums of a learned step, forward and backward; nothing is computed."""
    step = sums_task(options, method, "meta")
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


class Counter(TorchDispatchMode):
    """Counts the operations that torch is asked for while it is active, and the views of them."""

    def __init__(self):
        super().__init__()
        self.total = 0
        self.views = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.total += 1
        self.views += func.is_view
        return func(*args, **(kwargs or {}))


def count_operations(options: argparse.Namespace) -> None:
    """Prints the count for a small network: it depends on layers and steps, not on sizes."""
    options.device = "cpu"
    options.hidden = 8
    options.batch = 2
    options.skip_epoch = True
    for method in ("direct", "fourier"):
        step = our_tasks(options, f"learned/{method}")["step"]
        step()  # the first one also sets up Adam
        with Counter() as counter:
            step()
        print(
            f"a learned step of {options.steps} steps, {method}: {counter.total:,} operations, "
            f"{counter.views:,} of them views"
        )


# ----------------------------------------------------------------------------------- the processes


def serve(options: argparse.Namespace) -> None:
    """The side of a child process: answers the name of a task with its time and the peak."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    name = options.worker
    if name == "peer":
        tasks = peer_tasks(options)
    elif name == "parts":
        tasks = part_tasks(options)
    elif name in ("direct", "fourier", "fft"):
        tasks = {"step": sums_task(options, name, options.device)}
    else:
        tasks = our_tasks(options, name)

    for line in sys.stdin:
        begun = time.perf_counter()
        tasks[line.strip()]()
        if options.device == "cuda":
            torch.cuda.synchronize()
        answer = {"seconds": time.perf_counter() - begun, "gib": peak_gib(options.device)}
        print(json.dumps(answer), flush=True)


def peak_gib(device: str) -> float:
    """Peak memory of this process, on CUDA of its tensors; nan where there is no way to tell.

    On Linux a process begins with the peak of its parent.  So the parent computes nothing.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    if os.name == "nt":
        return math.nan
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@contextmanager
def started(names: list[str]):
    """Child processes by name."""
    workers = {}
    try:
        for name in names:
            command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--worker", name]
            pipe = subprocess.PIPE
            workers[name] = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        yield workers
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()


def ask(workers: dict, name: str, task: str) -> dict:
    answer = ""
    with suppress(BrokenPipeError):  # it may have ended before it was asked
        print(task, file=workers[name].stdin, flush=True)
        answer = workers[name].stdout.readline()
    if not answer:
        sys.exit(f"benchmark.py: the process of {name} ended early")
    return json.loads(answer)


def take_turns(workers: dict, names: list[str], task: str, rounds: int) -> dict[str, dict]:
    """Median of the seconds, and the peak at the end, by name.  A first round does not count."""
    answers = {name: [] for name in names}
    for _ in range(rounds + 1):
        for name in names:
            answers[name].append(ask(workers, name, task))
    results = {}
    for name in names:
        seconds = statistics.median(answer["seconds"] for answer in answers[name][1:])
        results[name] = {"seconds": seconds, "gib": answers[name][-1]["gib"]}
    return results


# -------------------------------------------------------------------------------------- the tables


def print_parts(options: argparse.Namespace) -> None:
    """The parts of a learned step, and how near the delayed sums come to a plain product."""
    methods = ["fourier", "direct", "fft"]
    with started(["parts", *methods]) as workers:
        seconds = {}
        for task in ("kernels", "LIF neurons", "product"):
            seconds[task] = take_turns(workers, ["parts"], task, 7)["parts"]["seconds"]
        sums = take_turns(workers, methods, "step", min(options.rounds, 3))

    print("parts of a learned step, all layers, forward and backward:")
    for part in ("kernels", "LIF neurons"):
        print(f"  {part:<22}{seconds[part]:8.3f} s")
    for method, result in sums.items():
        label = f"delayed sums, {method}"
        print(f"  {label:<22}{result['seconds']:8.3f} s{result['gib']:8.2f} GiB")
    for method in ("fourier", "direct"):
        flops = count_flops(options, method)
        rate = flops / sums[method]["seconds"] / 1e9
        print(f"  {method}: {flops / 1e9:.1f} GFLOP, {rate:.0f} GFLOP/s")
    rate = 2 * PRODUCT**3 / seconds["product"] / 1e9
    print(f"  a plain product of {PRODUCT} x {PRODUCT} matrices: {rate:.0f} GFLOP/s", flush=True)


def print_contest(options: argparse.Namespace) -> None:
    names = ["learned", "fixed", "none"]
    if options.device == "cuda":
        names.insert(1, "learned/fourier")
    if all(importlib.util.find_spec(name) for name in ("DCLS", "spikingjelly")):
        names.append("peer")
    else:
        print("dcls and spikingjelly are not installed here: they are left out")

    tables = {}
    with started(names) as workers:
        tables["step"] = take_turns(workers, names, "step", options.rounds)
        if not options.skip_epoch:
            tables["epoch"] = {name: ask(workers, name, "epoch") for name in names}

    print(f"{'':<16}", *(f"{task:>11}{'to learned':>12}{'GiB':>7}" for task in tables), sep="")
    for name in names:
        print(f"{name:<16}", end="")
        for results in tables.values():
            seconds = results[name]["seconds"]
            ratio = seconds / results["learned"]["seconds"]
            print(f"{seconds:>9.3f} s{ratio:>12.2f}{results[name]['gib']:>7.2f}", end="")
        print()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    positive = train.number(int, 1)
    add("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    add("--threads", type=positive, help="of a CPU, default: what torch takes")
    add("--data-dir", help="SHD's files, for the epoch; default: made-up spikes")
    add("--steps", type=positive, default=120, help="of a training step's batch, default: 120")
    add("--batch", type=positive, default=256, help="samples, default: 256")
    add("--hidden", type=positive, default=256, help="neurons in a hidden layer, default: 256")
    add("--rounds", type=positive, default=5, help="steps each, after a first one, default: 5")
    add("--skip-epoch", action="store_true", help="only the steps")
    add("--count", action="store_true", help="only count the operations of a learned step")
    add("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.data_dir and not os.path.isdir(options.data_dir):
        parser.error(f"--data-dir {options.data_dir} is not there: expected SHD's folder")
    return options


def main() -> None:
    options = parse()
    train_options(options)  # refuses a device that is not there
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.worker:
        serve(options)
        return
    if options.count:
        count_operations(options)
        return

    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if options.device == "cuda":
        machine = torch.cuda.get_device_name()
    sizes = f"{options.steps} steps, batch {options.batch}, hidden 2 x {options.hidden}"
    print(f"{machine}, torch {torch.__version__}; {sizes}", flush=True)
    print_parts(options)
    print_contest(options)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as problem:
        sys.exit(f"benchmark.py: {problem}")
    except KeyboardInterrupt:
        sys.exit("\nstopped")
