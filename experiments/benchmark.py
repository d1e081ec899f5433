"""Time and memory of a training step and of an epoch, here and with the authors' libraries.

    python experiments/benchmark.py                       # made-up spikes of SHD's size
    python experiments/benchmark.py --data-dir DIR        # the epoch on SHD's files
    python experiments/benchmark.py --device cuda

Each contestant runs in a process of its own; the steps of all alternate, and medians are printed.
The authors' libraries (dcls and spikingjelly, from PyPI, with torchvision) are measured where they
can be imported; nothing else here needs them.  An epoch is training and test evaluation, once.
Memory is the peak of the process (on CUDA: of the tensors), after the steps and after the epoch.
"""
import argparse, importlib.util, json, os, platform, resource, statistics, subprocess, sys, time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import torch
from torch import nn
from torch.nn import functional as F
import data
import delays
import train

OURS = ["learned", "fixed", "none"]

def options(a, variant):
    o = train.parse(f"--delays {variant} --hidden {a.hidden} --batch-size {a.batch}".split())[1]
    o.device, o.data_dir = a.device, a.data_dir
    return o

def spikes(a, o):
    """The files of --data-dir, or as many made-up samples as SHD has, 8 % of the inputs active."""
    if a.data_dir:
        return train.load(o, "train", "test")
    torch.manual_seed(0)
    return {split: data.Spikes(
        (torch.rand(n * a.steps, 140) < 0.08).to(torch.uint8).to(a.device),
        *(x.to(a.device) for x in (torch.full((n,), a.steps), torch.arange(n) % 20, torch.ones(n))))
        for split, n in (("train", 8156), ("test", 2264))}

class Peer(nn.Module):
    """The same network of dcls and spikingjelly: [T, B, 140] -> class scores [B, 20]."""
    def __init__(self, hidden, taps=25, tau=1.005, dropout=0.4):
        from DCLS.construct.modules import Dcls1d
        from spikingjelly.activation_based import layer, neuron, surrogate
        super().__init__()
        sizes = [140, hidden, hidden, 20]
        self.taps = taps
        self.conv = nn.ModuleList(
            Dcls1d(i, o, 1, dilated_kernel_size=taps, bias=False, version="gauss")
            for i, o in zip(sizes, sizes[1:]))
        self.norm = nn.ModuleList(layer.BatchNorm1d(hidden, step_mode="m") for _ in range(2))
        self.dropout = nn.ModuleList(layer.Dropout(dropout, step_mode="m") for _ in range(2))
        self.lif = nn.ModuleList(neuron.LIFNode(
            tau=tau, v_threshold=threshold, surrogate_function=surrogate.ATan(alpha=5.0),
            detach_reset=True, step_mode="m", decay_input=False, store_v_seq=True)
            for threshold in (1.0, 1.0, 1e9))
        for conv in self.conv:
            nn.init.constant_(conv.SIG, 12.0).requires_grad_(False)

    def forward(self, x):
        from spikingjelly.activation_based import functional
        functional.reset_net(self)
        for i, conv in enumerate(self.conv):
            x = conv(F.pad(x.permute(1, 2, 0), (self.taps - 1, self.taps // 2))).permute(2, 0, 1)
            if i < 2:
                x = self.dropout[i](self.lif[i](self.norm[i](x.unsqueeze(3)).squeeze(3)))
        self.lif[2](x)
        return self.lif[2].v_seq.softmax(2).sum(0)

    def whole_steps(self):
        for conv in self.conv:
            conv.P.data.round_()
            conv.SIG.data.zero_()
            conv.DCK.version = "max"

def worker(a):
    """Answers the lines "step" and "epoch" on stdin with a line of JSON."""
    peer = a.worker == "peer"
    o = options(a, "learned" if peer else a.worker)
    if not peer:
        train.tune_cpu()
    sets = spikes(a, o)
    if peer:
        net = Peer(a.hidden).to(a.device)
        adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    else:
        net = train.build(o)
        adam = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    def scores(split, indices, longest):
        if not peer:
            return train.predict(net, sets[split], indices, longest)
        x = data.padded(sets[split], indices, longest)
        return net(x.float().transpose(0, 1).contiguous())
    def step(indices, longest):
        loss = F.cross_entropy(scores("train", indices, longest), sets["train"].labels[indices])
        adam.zero_grad()
        loss.backward()
        adam.step()
        for layer in net.conv if peer else net.layers:
            layer.clamp_parameters() if peer else layer.delay.data.clamp_(0, layer.taps - 1)
    def epoch():
        net.train()
        for batch in data.batches(sets["train"], a.batch):
            step(*batch)
        net.eval()
        if peer:
            net.whole_steps()
            with torch.no_grad():
                for batch in data.batches(sets["test"], a.batch, shuffle=False):
                    scores("test", *batch).argmax(1)
        else:
            train.evaluate(net, sets["test"], a.batch)
    some = torch.arange(min(a.batch, len(sets["train"].labels)), device=a.device)
    for line in sys.stdin:
        begun = time.perf_counter()
        step(some, a.steps) if line == "step\n" else epoch()
        if a.device == "cuda":
            torch.cuda.synchronize()
        print(json.dumps({"seconds": time.perf_counter() - begun, "gib": (
            torch.cuda.max_memory_allocated() if a.device == "cuda"
            else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 2**30}), flush=True)

def median(a, call, rounds=7):
    times = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        call()
        if a.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])

def parts(a):
    """Prints the parts of a learned step, forward and backward, and the rate of its products."""
    train.tune_cpu()
    size = torch.randn(2048, 2048, device=a.device)
    rate = 2 * 2048**3 / median(a, lambda: size @ size) / 1e9
    total = {"kernel": 0.0, "convolution": 0.0, "LIF": 0.0}
    steps, flops, taps = a.steps, 0, 25
    backends = {"conv_direct": delays.conv_direct, "ConvFourier": delays.ConvFourier.apply}
    compared = dict.fromkeys(backends, 0.0)
    for i, o in ((140, a.hidden), (a.hidden, a.hidden), (a.hidden, 20)):
        layer = delays.DelayedLinear(i, o, taps).to(a.device)
        layer.sigma = 3.0
        def kernel():
            return delays.gaussian_kernel(layer.weight, layer.delay, layer.sigma, taps)
        first, hidden = i == 140, o == a.hidden
        x = torch.rand(a.batch, steps, i, device=a.device).transpose(0, 1).requires_grad_(not first)
        k = kernel().detach().requires_grad_()
        inputs = (k,) if first else (x, k)  # of which there are gradients
        y = delays.delay_conv(x, k, taps // 2)
        ones, current = torch.ones_like(y), y.detach().requires_grad_()
        total["kernel"] += median(a, lambda: kernel().backward(torch.ones_like(k)))
        for name, backend in backends.items():
            compared[name] += median(a, lambda: torch.autograd.grad(
                backend(x, k, taps // 2), inputs, ones), 3)
        total["convolution"] += median(a, lambda: torch.autograd.grad(
            delays.delay_conv(x, k, taps // 2), inputs, ones))
        if hidden:
            total["LIF"] += median(a, lambda: torch.autograd.grad(
                delays.lif(current, 1.005), current, ones))
        n, f = steps + taps - 1, (steps + taps - 1) // 2 + 1
        passes = 1 if first else 2  # of the backward pass
        transforms = steps * a.batch * i * passes + (steps + taps // 2) * a.batch * o * 2
        transforms += taps * i * o * (1 + passes)
        flops += 4 * f * transforms + 6 * f * a.batch * i * o * (1 + passes)
        steps += taps // 2
    for name, seconds in total.items():
        print(f"    {name:<12}{seconds:8.3f} s")
    for name, seconds in compared.items():
        print(f"    {name:<12}{seconds:8.3f} s   all three delayed sums, forward and backward")
    print(f"    ConvFourier: {flops / compared['ConvFourier'] / 1e9:.0f} GFLOP/s; "
          f"a plain product of 2048 x 2048 matrices: {rate:.0f} GFLOP/s")

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    ap.add_argument("--data-dir", default="", help="SHD's files, for the epoch")
    ap.add_argument("--steps", type=int, default=120, help="of the training step's batch [120]")
    ap.add_argument("--batch", type=int, default=256, help="samples [256]")
    ap.add_argument("--hidden", type=int, default=256, help="neurons in each hidden layer [256]")
    ap.add_argument("--rounds", type=int, default=5, help="steps each, after a first one [5]")
    ap.add_argument("--skip-epoch", action="store_true")
    ap.add_argument("--worker", help=argparse.SUPPRESS)
    a = ap.parse_args()
    if min(a.steps, a.batch, a.hidden, a.rounds) < 1:
        ap.error("--steps, --batch, --hidden and --rounds: expected at least 1")
    if a.data_dir and not os.path.isdir(a.data_dir):
        ap.error(f"--data-dir {a.data_dir} is not there: expected the folder of SHD's files")
    if a.device == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmark.py: --device cuda: torch finds no CUDA card here")
    if a.worker:
        return worker(a)
    card = f"{platform.machine()}, {torch.get_num_threads()} threads"
    card = torch.cuda.get_device_name() if a.device == "cuda" else card
    print(f"{card}, torch {torch.__version__}; {a.steps} steps, "
          f"batch {a.batch}, hidden 2 x {a.hidden}")
    print("parts of a learned step, forward and backward:", flush=True)
    parts(a)
    contestants = list(OURS)
    if all(importlib.util.find_spec(name) for name in ("DCLS", "spikingjelly")):
        contestants.append("peer")
    else:
        print("dcls and spikingjelly are not installed here: they are left out")
    workers = {name: subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--worker", name],
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                      stderr=subprocess.DEVNULL) for name in contestants}
    def ask(name, word):
        print(word, file=workers[name].stdin, flush=True)
        answer = workers[name].stdout.readline()
        if not answer:
            sys.exit(f"benchmark.py: the process of {name} ended early")
        return json.loads(answer)
    steps = {name: [] for name in contestants}
    for _ in range(a.rounds + 1):
        for name in contestants:
            steps[name].append(ask(name, "step"))
    step = {name: statistics.median(r["seconds"] for r in steps[name][1:]) for name in contestants}
    epoch = {name: ask(name, "epoch") for name in contestants if not a.skip_epoch}
    head = f"{'to learned':>12}{'GiB':>7}"
    print(f"{'':<10}{'step':>9}{head}{'epoch':>9}{head}")
    for name in contestants:
        row = f"{name:<10}{step[name]:>7.3f} s{step[name] / step['learned']:>12.2f}"
        row += f"{steps[name][-1]['gib']:>7.2f}"
        if epoch:
            seconds, gib = epoch[name]["seconds"], epoch[name]["gib"]
            row += f"{seconds:>7.1f} s{seconds / epoch['learned']['seconds']:>12.2f}{gib:>7.2f}"
        print(row)
    for process in workers.values():
        process.stdin.close()
        process.wait()

if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped")
