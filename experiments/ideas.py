"""Ideas from the literature, each a short piece of code on the seams of delays.py, to copy.

    python -m experiments.ideas recurrent --dataset toy
    python -m experiments.ideas base --dataset shd-opened --data-dir DIR --epochs 30 --seed 1

The first word names the idea, and all options of train.py may follow:

    base          the network of delays.py, one delay per synapse
    axonal        one delay per input of a layer
    dendritic     one delay per neuron
    recurrent     the spikes of a hidden layer come back to it after a learned delay
    adaptive      neurons that adapt to their own activity, with learned time constants
    whole-steps   in the last fifth of the epochs, weights learn with rounded delays
    shift         training samples are shifted along the inputs by a random amount
    shift-smooth  the same, with labels smoothed by 0.1

--dataset shd-opened is SHD in the steps of time of the paper's experiments (see open_steps).

Results go to runs/DATASET-IDEA-DELAYS-SEED unless --out names another folder.  From Python, to
train and to load a run again:

    options = train.parse(["--dataset", "toy", "--out", "runs/mine"])
    result = train.train(options, net=train.build(options, Recurrent))
    net, options = train.load_run("runs/mine", net=train.build(options, Recurrent))
"""

import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import data
import train
from delays import DelayedLinear, DelaySNN, class_scores, integer_kernel, spike

# ---------------------------------------------------------------------- axonal and dendritic delays


class Axonal(DelaySNN):
    """Fewer delays, one per axon: is a delay per synapse worth its price?

    "Sparse Axonal and Dendritic Delays Enable Competitive SNNs for Keyword Classification"
    (Bouhadjar, Neftci, 2026, arXiv 2602.09746) asks this about the same method.

    As in its code, a Gaussian of weight 1 delays each input before the product with the weights, or
    each neuron's sum after it, in all layers.  It makes no difference whether a spike is delayed or
    weighted first.  Unlike there, delays are not pruned, and a step of training takes as long as
    with one delay per synapse, since the kernel is still [out, in, taps].
    """

    def __init__(self, *sizes, **others):
        super().__init__(*sizes, delay_per="axon", **others)


class Dendritic(DelaySNN):
    """Like Axonal, with one delay per neuron instead of one per input.

    A neuron therefore delays all its inputs alike.
    """

    def __init__(self, *sizes, **others):
        super().__init__(*sizes, delay_per="dendrite", **others)


# -------------------------------------------------------------------------------- recurrent delays


class Echo(DelayedLinear):
    """The synapses of a layer with itself: [N, N] weights and one delay per axon.

    A spike returns one step later than its delay, after 1..taps steps, because within its own step
    it would come too late to have an effect.

    It is not called like a layer: Recurrent.neurons uses its spread and its weights.
    """

    def spread(self):
        """Return how much of a spike has arrived d + 1 steps later, [taps, N]."""
        return self.kernel(torch.ones_like(self.delay))[0].T


class Recurrent(DelaySNN):
    """The spikes of a hidden layer come back to it, each axon's after a learned delay.

        r[t,o] = sum_n w[o,n] sum_d g[d,n] s[t-1-d,n]
        h[t] = (1 - 1/tau) v[t-1] + I[t] + r[t]

    From "DelRec: learning delays in recurrent spiking neural networks" (Queant, Rançon, Cottereau,
    Masquelier, 2025, arXiv 2509.24852).

    As in its code for SHD, each axon has a delay of at least one step, weights connect all pairs
    (or some, with --connections), and what comes back is added after the batch norm.

    Unlike there, g is the Gaussian of delays.py and not a triangle that shrinks over all epochs,
    delays end at `taps` steps, weights are drawn uniformly, nothing is dropped from what comes
    back, and the synapses between the layers keep their delays.

    With one delay per synapse, which DelRec has too, the product would be `taps` times as large.
    --delays none is the usual recurrent network: all spikes come back after one step.
    --kernel-count does not apply to the echoes.
    """

    def __init__(
        self, in_features, hidden, classes, *, taps=25, learn_delays=True, connections=0, **others
    ):
        hidden = list(hidden)
        named = dict(taps=taps, learn_delays=learn_delays, connections=connections)
        super().__init__(in_features, hidden, classes, **named, **others)
        # Drawn last, so that a seed gives the layers the same weights as in the base.
        self.echoes = nn.ModuleList(Echo(size, size, delay_per="axon", **named) for size in hidden)

    def neurons(self, i, current):
        echo = self.echoes[i]
        weight = echo.weight * echo.mask
        spread = echo.spread()[:, None]  # [taps, 1, N]

        v = torch.zeros_like(current[:, 0])  # [B, N]
        nothing = v[None]
        coming = nothing.repeat(echo.taps, 1, 1)  # what each axon delivers d steps from now
        spikes = []
        for current_now in current.unbind(1):
            arrived, coming = coming.split([1, echo.taps - 1])
            h = (1 - 1 / self.tau) * v + current_now + F.linear(arrived[0], weight)
            s = spike(h - 1)
            v = h * (1 - s.detach())  # as in lif_loop, no gradient flows through the reset
            spikes.append(s)
            # A step passes: what has arrived goes, and the longest delay gets an empty place.
            coming = torch.addcmul(torch.cat([coming, nothing]), spread, s)
        return torch.stack(spikes, 1)


# -------------------------------------------------------------------------------- adaptive neurons


class AdaptiveNeurons(nn.Module):
    """Leaky neurons inhibited by a second variable w that grows with their own activity (adLIF).

        h[t] = m v[t-1] + I[t] - w[t-1],   s[t] = 1 if h[t] >= 1 else 0,   v[t] = h[t] (1 - s[t])
        w[t] = k w[t-1] + a v[t] + b s[t]

    Each neuron learns its own m, k, a and b.  A sigmoid keeps them within 0..1, where v and w decay
    without input.
    """

    def __init__(self, size):
        super().__init__()
        # For steps of 10 ms: a potential decays within a few steps, and w lasts longer.
        self.m = nn.Parameter(torch.empty(size).uniform_(0.01, 0.5).logit())
        self.k = nn.Parameter(torch.empty(size).uniform_(0.5, 0.99).logit())
        self.a = nn.Parameter(torch.empty(size).uniform_(0.01, 0.1).logit())
        self.b = nn.Parameter(torch.empty(size).uniform_(0.01, 0.2).logit())

    def forward(self, current):
        m, k = torch.sigmoid(self.m), torch.sigmoid(self.k)  # [N]
        a, b = torch.sigmoid(self.a), torch.sigmoid(self.b)  # [N]
        v = torch.zeros_like(current[:, 0])  # [B, N]
        w = torch.zeros_like(v)
        spikes = []
        for current_now in current.unbind(1):
            h = m * v + current_now - w
            s = spike(h - 1)
            v = h * (1 - s.detach())  # as in lif_loop, no gradient flows through the reset
            w = k * w + a * v + b * s
            spikes.append(s)
        return torch.stack(spikes, 1)


class Adaptive(DelaySNN):
    """Neurons that have a memory besides that of the delays.

    w, and constants that each neuron learns, are from "A surrogate gradient spiking baseline for
    speech command recognition" (Bittar, Garner, Frontiers in Neuroscience 2022).  The order within
    a step, and an a that is not negative, are from SE-adLIF: "Advancing spatio-temporal processing
    through adaptation in spiking neural networks" (Baronig, Ferrand, Sabathiel, Legenstein, Nature
    Communications 2025).

    Unlike in either, I and w are not multiplied by 1 - m, a sigmoid replaces clamping, the bounds
    and first values are others, and there are delays before the neurons.

    tau applies to the readout only.
    """

    def __init__(self, in_features, hidden, classes, **others):
        hidden = list(hidden)
        super().__init__(in_features, hidden, classes, **others)
        # Drawn last, so that a seed gives the layers the same weights as in the base.
        self.adaptive = nn.ModuleList(AdaptiveNeurons(size) for size in hidden)

    def neurons(self, i, current):
        return self.adaptive[i](current)


# ------------------------------------------------------------------------- whole steps at the end


class LateSteps(DelayedLinear):
    """A layer whose delays can be frozen at whole steps while the weights go on learning."""

    frozen = False

    def soft_kernel(self, weight):
        if self.frozen:
            return integer_kernel(weight, self.positions(), self.taps)
        return super().soft_kernel(weight)


class WholeSteps(DelaySNN):
    """In the last fifth of the epochs, weights learn with the kernels of evaluation.

    Rounding then costs no accuracy, which matters where timing has to be exact.  Do not resume a
    run within that fifth: its first epoch would have Gaussians again.
    """

    layer_class = LateSteps


def freeze_late(epochs: int):
    """Return the on_epoch of WholeSteps for a run of so many epochs."""

    def on_epoch(net, row):
        for layer in net.layers:
            layer.frozen = row["epoch"] >= 0.8 * epochs

    return on_epoch


# --------------------------------------------------------------------- augmentation, data, a loss


def shift(counts, labels):
    """Shift each sample along the inputs by a random amount, up to 8 either way.

    This is a little like another speaker.  What leaves the range is dropped.

    counts: uint8 [B, T, inputs].  Returns the same shape.
    """
    samples, steps, inputs = counts.shape
    move = torch.randint(-8, 9, (samples, 1, 1), device=counts.device)
    source = torch.arange(inputs, device=counts.device) - move  # [B, 1, inputs]
    inside = (source >= 0) & (source < inputs)
    source = source.clamp(0, inputs - 1).expand(-1, steps, -1)
    return counts.gather(2, source) * inside


def smoothed(net, counts, membrane, labels):
    """Return the loss of train.cross_entropy, with labels smoothed by 0.1."""
    return F.cross_entropy(class_scores(membrane), labels, label_smoothing=0.1)


def open_steps(times, units, name="the sample"):
    """Count spikes as SpikingJelly did before 2024, when the paper was written.

    A step of 10 ms opens at the first spike after the end of the last step, so the silence between
    them is dropped.  The arguments and the result are those of data.bin_sample.
    """
    order = np.argsort(times, kind="stable")
    ms = times[order].astype(np.float32) * 1000
    step = np.zeros(len(ms), np.int64)
    first, number = 0, 0
    while first < len(ms):
        after = np.searchsorted(ms, ms[first] + data.STEP_MS, side="right")
        step[first:after] = number
        first, number = after, number + 1
    return data.count_spikes(step, units[order] // data.GROUP, data.INPUTS)


def add_datasets() -> None:
    """Add the row of shd-opened to the tables of data sets."""

    def read(split, data_dir):
        return data.read_published("shd", split, data_dir, open_steps)

    data.DATASETS["shd-opened"] = data.DATASETS["shd"]._replace(read=read)
    train.DEFAULTS["shd-opened"] = train.DEFAULTS["shd"]


# ------------------------------------------------------------------------------------ command line

IDEAS = {  # what train.main gets
    "base": {},
    "axonal": dict(net_class=Axonal),
    "dendritic": dict(net_class=Dendritic),
    "recurrent": dict(net_class=Recurrent),
    "adaptive": dict(net_class=Adaptive),
    "whole-steps": dict(net_class=WholeSteps),
    "shift": dict(augment=shift),
    "shift-smooth": dict(augment=shift, loss=smoothed),
}


def main(argv: list[str]) -> None:
    """Run the command line of train.py, after the name of an idea."""
    idea, *words = argv or ["none"]
    if idea not in IDEAS:
        sys.exit(f"the first word is {idea}: expected one of {', '.join(IDEAS)}")
    add_datasets()
    try:
        options = train.parse(words)
    except (data.UserError, OSError) as problem:
        sys.exit(f"ideas.py: {problem}")
    seams = dict(IDEAS[idea])
    if idea == "whole-steps":
        seams["on_epoch"] = freeze_late(options.epochs)
    if not any(word.split("=")[0] in ("--out", "--resume", "--eval") for word in words):
        out = f"runs/{options.dataset}-{idea}-{options.delays}-{options.seed}"
        words = [*words, "--out", out]
    train.main(words, **seams)


if __name__ == "__main__":
    main(sys.argv[1:])
