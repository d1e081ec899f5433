"""The whole method in one file: a spiking network that learns a delay for every synapse.

    python experiments/one_file.py       trains the toy task
    python experiments/one_file.py DIR   trains SHD from its two files in DIR, .h5 or .h5.gz

Everything else in this repository is speed (on SHD this file takes 4.6 times as long on AMD's Zen 5
and 6 to 7 on Zen 4), options, resuming and checks.  The losses are those of train.py, until float
rounding moves a spike.  Signals are [B, T, N]: batch, time, neurons.  Delays and tau are in steps.
"""

import gzip
import io
import math
import sys
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

# A pattern of the toy task lasts 32 steps, so 33 taps are enough to bring its ends together.
TOY = dict(hidden=[40], taps=33, tau=1.005, dropout=0.0, batch_size=50, epochs=20)
SHD = dict(hidden=[256, 256], taps=25, tau=1.005, dropout=0.4, batch_size=256, epochs=150)


def make_kernel(weight: Tensor, delay: Tensor, taps: int, sigma: float | None) -> Tensor:
    """k[d] = w g[d] / (sum_d' g[d'] + 1e-7),  g[d] = exp(-((d - delay) / sigma)^2 / 2)"""
    d = torch.arange(taps)
    if sigma is None:  # evaluation: the whole weight at the rounded delay
        fraction = d == delay.round()[:, :, None]  # [out, in, taps]
    else:  # training: a Gaussian around the delay, since rounding has no gradient
        g = torch.exp(-(((d - delay[:, :, None]) / sigma) ** 2) / 2)  # [out, in, taps]
        fraction = g / (g.sum(2, keepdim=True) + 1e-7)  # the 1e-7 prevents 0 / 0
    return weight[:, :, None] * fraction  # [out, in, taps]


def delayed_sum(x: Tensor, kernel: Tensor) -> Tensor:
    """y[b,t,o] = sum_i sum_d k[o,i,d] x[b,t-d,i],  x = 0 before its first step, after its last"""
    taps = kernel.shape[2]
    x = x.to(kernel.dtype).mT  # [B, in, T]
    x = F.pad(x, (taps - 1, taps // 2))  # y is longer by a tail, so most late spikes count
    return F.conv1d(x, kernel.flip(2)).mT  # [B, T + taps//2, out]; conv1d itself does not flip


def spike(x: Tensor, alpha: float = 5.0) -> Tensor:
    """1 where x >= 0, else 0, with the gradient (alpha/2) / (1 + ((pi/2) alpha x)^2)"""
    smooth = torch.arctan(math.pi / 2 * alpha * x) / math.pi
    return (x >= 0).to(x.dtype) + (smooth - smooth.detach())  # the bracket is 0, its slope is not


def lif(current: Tensor, tau: float) -> Tensor:
    """h[t] = (1 - 1/tau) v[t-1] + I[t],  s[t] = 1 if h[t] >= 1 else 0,  v[t] = h[t] (1 - s[t])"""
    v = torch.zeros_like(current[:, 0])  # [B, N]
    spikes = []
    for current_now in current.unbind(1):
        h = (1 - 1 / tau) * v + current_now  # at a tau of 1.005 steps, 0.5 % of v is left
        s = spike(h - 1)
        v = h * (1 - s.detach())  # else the gradient would also say that a spike wipes out h
        spikes.append(s)
    return torch.stack(spikes, 1)  # [B, T, N]


def leaky_integrator(current: Tensor, tau: float) -> Tensor:
    """v[t] = (1 - 1/tau) v[t-1] + I[t]"""
    v = torch.zeros_like(current[:, 0])  # [B, N]
    potentials = []
    for current_now in current.unbind(1):
        v = (1 - 1 / tau) * v + current_now
        potentials.append(v)
    return torch.stack(potentials, 1)  # [B, T, N]


class Network(nn.Module):
    """Counts of spikes [B, T, inputs] -> potentials of the readout [B, T + tail, classes]."""

    def __init__(self, inputs, hidden, classes, taps, tau, dropout):
        super().__init__()
        self.taps = taps
        self.tau = tau
        self.dropout = dropout
        self.weights = nn.ParameterList()
        self.delays = nn.ParameterList()
        for before, after in pairwise([inputs, *hidden, classes]):
            bound = math.sqrt(6 / before)  # Kaiming's for relu
            weight = torch.empty(after, before).uniform_(-bound, bound)
            delay = torch.empty(after, before).uniform_(0, taps - 1)
            self.weights.append(nn.Parameter(weight))
            self.delays.append(nn.Parameter(delay))
        self.norms = nn.ModuleList(nn.BatchNorm1d(neurons) for neurons in hidden)
        self.tail = len(self.weights) * (taps // 2)

    def forward(self, x: Tensor, sigma: float | None = None) -> Tensor:
        synapses = zip(self.weights, self.delays, strict=True)
        kernels = [make_kernel(weight, delay, self.taps, sigma) for weight, delay in synapses]
        for norm, kernel in zip(self.norms, kernels[:-1], strict=True):
            current = delayed_sum(x, kernel)
            current = norm(current.flatten(0, 1)).view_as(current)  # over batch and time
            x = lif(current, self.tau)
            x = F.dropout1d(x.mT, self.dropout, self.training).mT  # neurons, for a whole sample
        return leaky_integrator(delayed_sum(x, kernels[-1]), self.tau)


# -------------------------------------------------------------------------- training and evaluation


def shrinking_sigma(epoch: int, epochs: int, taps: int) -> float:
    """Return sigma, which finds the way of a delay while it is wide, and its place once narrow."""
    wide, quarter = taps // 2, epochs // 4
    if epoch >= quarter:
        return 0.5
    # From taps // 2 + 0.27 to 0.23 + 0.27.  The authors' library adds 0.27 to every width.
    return 0.27 + wide * (0.23 / wide) ** (epoch / quarter)


def train(train_set, test_set, hidden, taps, tau, dropout, batch_size, epochs, seed=0):
    """Return the trained network, and for each epoch the loss, training and test accuracy."""
    train_counts, train_labels = train_set  # a list of [T, inputs], and [samples]
    test_counts, test_labels = test_set
    inputs, classes = train_counts[0].shape[1], int(train_labels.max()) + 1
    torch.manual_seed(seed)
    net = Network(inputs, hidden, classes, taps, tau, dropout)
    weights = {"params": net.weights, "weight_decay": 1e-5}
    norms = {"params": net.norms.parameters()}
    adam = torch.optim.Adam([weights, norms])
    delay_adam = torch.optim.Adam(net.delays, lr=0.1)
    # The rate rises from 0.0002 to 0.005, at 30 % of the epochs, and falls to nearly 0.  Meanwhile
    # beta1 goes from 0.95 to 0.85 and back.
    one_cycle = OneCycleLR(adam, max_lr=0.005, total_steps=epochs)
    cosine = CosineAnnealingLR(delay_adam, T_max=epochs)  # from 0.1 to 0

    history = []
    for epoch in range(epochs):
        torch.manual_seed(seed + 1_000_003 * (epoch + 1))  # no two runs share the draws of an epoch
        sigma = shrinking_sigma(epoch, epochs, taps)
        net.train()
        loss_sum, correct = 0, 0
        for indices in torch.randperm(len(train_counts)).split(batch_size):
            counts = pad_sequence([train_counts[i] for i in indices], batch_first=True)
            labels = train_labels[indices]  # [B]
            scores = net(counts, sigma).softmax(2).sum(1)  # [B, classes]; padding counts too
            loss = F.cross_entropy(scores, labels)  # a second softmax, as in the authors' loss

            net.zero_grad()
            loss.backward()
            adam.step()
            delay_adam.step()
            for delay in net.delays:
                delay.data.clamp_(0, taps - 1)
            loss_sum += loss.item() * len(labels)
            correct += (scores.argmax(1) == labels).sum().item()
        one_cycle.step()
        cosine.step()

        mean_loss, train_accuracy = loss_sum / len(train_labels), correct / len(train_labels)
        right = predict(net, test_counts, batch_size).argmax(1) == test_labels
        test_accuracy = right.sum().item() / len(test_labels)
        history.append((mean_loss, train_accuracy, test_accuracy))
        accuracies = f"train accuracy {train_accuracy:.2%}, test accuracy {test_accuracy:.2%}"
        print(f"epoch {epoch + 1} of {epochs}: loss {mean_loss:.5f}, {accuracies}", flush=True)
    return net, history


@torch.no_grad()
def predict(net: Network, counts: list[Tensor], batch_size: int) -> Tensor:
    """Return the class scores of all samples, with rounded delays: [samples, classes]."""
    net.eval()
    scores = []
    for start in range(0, len(counts), batch_size):
        samples = counts[start : start + batch_size]
        padded = pad_sequence(samples, batch_first=True)
        # A layer's output ends soon after its input does.  Zeros give the longest sample of a batch
        # as much time after its end as padding gives the others, so batches do not matter.
        padded = F.pad(padded, (0, 0, 0, net.tail))
        for sample, potentials in zip(samples, net(padded), strict=True):
            own = potentials[: len(sample) + net.tail]  # padding does not count here
            scores.append(own.softmax(1).sum(0))
    return torch.stack(scores)


# ----------------------------------------------------------------------------------------- the data


def toy(samples: int, seed: int) -> tuple[list[Tensor], Tensor]:
    """Return a set of the toy task: in which of ten orders do eight inputs fire?"""
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(8), (10, 1)), axis=1)  # [10, 8]
    labels = np.arange(samples) % 10
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, 80 - 8 * 4 + 1, samples)
    bursts = rng.random((samples, 80, 8)) < 0.02  # True where a burst starts: at first, only noise
    for sample in range(samples):
        for place, channel in enumerate(orders[labels[sample]]):
            bursts[sample, starts[sample] + 4 * place, channel] = True
    counts = bursts.copy()
    for later in (1, 2, 3):  # a burst lasts four steps
        counts[:, later:] |= bursts[:, :-later]
    return list(torch.from_numpy(counts)), torch.from_numpy(labels)


def read_shd(folder: str, split: str) -> tuple[list[Tensor], Tensor]:
    """Return a set of SHD: counts in steps of 10 ms, with groups of 5 channels as inputs."""
    paths = [Path(folder, f"shd_{split}.h5{packing}") for packing in ("", ".gz")]
    path = next(filter(Path.exists, paths), None)
    if path is None:
        sys.exit(f"{folder} has no {paths[0].name} or {paths[1].name}: expected SHD's two files")
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)

    counts = []
    with h5py.File(io.BytesIO(content)) as h5:
        labels = torch.from_numpy(h5["labels"][:].astype(np.int64))
        for times, units in zip(h5["spikes/times"], h5["spikes/units"], strict=True):
            ms = times.astype(np.float32) * 1000  # in float16, late spikes would move
            step = ((ms - ms.min()) / 10).astype(np.int64)  # time starts at the first spike
            sample = np.zeros((step.max() + 1, 140), np.uint8)
            np.add.at(sample, (step, units // 5), 1)  # adds up the spikes of a step and input
            counts.append(torch.from_numpy(sample))
    return counts, labels


if __name__ == "__main__":
    if len(sys.argv) == 1:
        train(toy(2000, seed=1), toy(1000, seed=2), **TOY)
    else:
        train(read_shd(sys.argv[1], "train"), read_shd(sys.argv[1], "test"), **SHD)
