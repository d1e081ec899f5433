"""Ideas from the literature, each a short piece of code on the seams of delays.py, to copy.

    python -m experiments.ideas recurrent --dataset toy
    python -m experiments.ideas shift --dataset shd --data-dir DIR --epochs 30 --seed 1

The first word names the idea, and all options of train.py may follow:

    base       the network of delays.py, one delay per synapse
    axonal     one delay per input of a layer
    dendritic  one delay per neuron
    recurrent  the spikes of a hidden layer come back to it after a learned delay
    adaptive   neurons that adapt to their own activity, with learned time constants
    shift      training samples are shifted along the inputs by a random amount

Results go to runs/DATASET-IDEA-DELAYS-SEED unless --out names another folder.  From Python, to
train and to load a run again:

    options = train.parse(["--dataset", "toy", "--out", "runs/mine"])
    result = train.train(options, net=train.build(options, Recurrent))
    net, options = train.load_run("runs/mine", net=train.build(options, Recurrent))
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F

import train
from delays import DelayedLinear, DelaySNN, spike

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
    """The spikes of a hidden layer come back to it, each axon's after a delay that is learned.

        r[t,o] = sum_n w[o,n] sum_d g[d,n] s[t-1-d,n]
        h[t] = (1 - 1/tau) v[t-1] + I[t] + r[t]

    From "DelRec: learning delays in recurrent spiking neural networks" (Queant, Rançon, Cottereau,
    Masquelier, 2025, arXiv 2509.24852).

    As there, in its code for SHD: a delay for each axon, of at least one step; weights between all
    pairs (with --connections, between some); what comes back is added behind the batch norm; whole
    steps in evaluation.

    Not as there: g is the Gaussian of delays.py, with its sigma, in place of a triangle that
    shrinks over all epochs; delays end at `taps` steps; the weights are drawn uniformly, not
    orthogonal; no dropout on what comes back; and the synapses between the layers keep their
    delays, which its program for SHD leaves out.

    With a delay for each synapse, which DelRec has too, the product would be `taps` times as large.
    --delays none is the usual recurrent network: all spikes come back after one step.
    --kernel-count does not reach the echoes, which have one delay in any case.
    """

    def __init__(
        self, in_features, hidden, classes, *, taps=25, learn_delays=True, connections=0, **others
    ):
        hidden = list(hidden)
        named = dict(taps=taps, learn_delays=learn_delays, connections=connections)
        super().__init__(in_features, hidden, classes, **named, **others)
        # Drawn last, so that a seed gives the layers the weights that they have in the base.
        self.echoes = nn.ModuleList(Echo(size, size, delay_per="axon", **named) for size in hidden)

    def neurons(self, i, current):
        echo = self.echoes[i]
        weight = echo.weight * echo.mask
        spread = echo.spread()[:, None]  # [taps, 1, N]

        v = torch.zeros_like(current[:, 0])  # [B, N]
        nothing = v[None]
        coming = nothing.repeat(echo.taps, 1, 1)  # what each axon delivers d steps from now
        spikes = []
        for now in current.unbind(1):
            arrived, coming = coming.split([1, echo.taps - 1])
            h = (1 - 1 / self.tau) * v + now + F.linear(arrived[0], weight)
            s = spike(h - 1)
            v = h * (1 - s.detach())  # as in lif_loop, no gradient flows through the reset
            spikes.append(s)
            # A step passes: what came is gone, and a place for the longest delay is free.
            coming = torch.addcmul(torch.cat([coming, nothing]), spread, s)
        return torch.stack(spikes, 1)


# -------------------------------------------------------------------------------- adaptive neurons


class AdaptiveNeurons(nn.Module):
    """Leaky neurons that a second variable w inhibits, which grows with their own activity (adLIF).

        h[t] = m v[t-1] + I[t] - w[t-1],   s[t] = 1 if h[t] >= 1 else 0,   v[t] = h[t] (1 - s[t])
        w[t] = k w[t-1] + a v[t] + b s[t]

    m, k, a and b are learned, one of each for each neuron, by way of a sigmoid.  So all lie in
    0..1, where v and w die away without input.
    """

    def __init__(self, size):
        super().__init__()
        # Drawn for steps of 10 ms.  A potential is gone after some steps, and w stays longer.
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
        for now in current.unbind(1):
            h = m * v + now - w
            s = spike(h - 1)
            v = h * (1 - s.detach())  # as in lif_loop, no gradient flows through the reset
            w = k * w + a * v + b * s
            spikes.append(s)
        return torch.stack(spikes, 1)


class Adaptive(DelaySNN):
    """Neurons with a memory of their own, beside that of the delays.

    From "A surrogate gradient spiking baseline for speech command recognition" (Bittar, Garner,
    Frontiers in Neuroscience 2022): w, which the potential and the spikes feed, and constants of
    each neuron, which are learned.  From "Advancing spatio-temporal processing through adaptation
    in spiking neural networks" (Baronig, Ferrand, Sabathiel, Legenstein, Nature Communications
    2025), whose neuron is SE-adLIF: the order within a step, where w takes up the new potential
    after a reset to 0; and that a is not negative.

    Not as in either: I and w are not multiplied by 1 - m, just as lif does not; a sigmoid keeps the
    constants within bounds, in place of clamping, and the bounds and first values are others; and
    there are delays in front of the neurons.

    tau is that of the readout alone.
    """

    def __init__(self, in_features, hidden, classes, **others):
        hidden = list(hidden)
        super().__init__(in_features, hidden, classes, **others)
        # Drawn last, so that a seed gives the layers the weights that they have in the base.
        self.adaptive = nn.ModuleList(AdaptiveNeurons(size) for size in hidden)

    def neurons(self, i, current):
        return self.adaptive[i](current)


# ------------------------------------------------------------------------------------ augmentation


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


# ------------------------------------------------------------------------------------ command line

IDEAS = {  # what train.main gets
    "base": {},
    "axonal": dict(net_class=Axonal),
    "dendritic": dict(net_class=Dendritic),
    "recurrent": dict(net_class=Recurrent),
    "adaptive": dict(net_class=Adaptive),
    "shift": dict(augment=shift),
}


def main(argv: list[str]) -> None:
    """Run the command line of train.py, after the name of an idea."""
    idea, *words = argv or ["none"]
    if idea not in IDEAS:
        sys.exit(f"the first word is {idea}: expected one of {', '.join(IDEAS)}")
    if not any(word.split("=")[0] in ("--out", "--resume", "--eval") for word in words):
        options = train.parse(words)
        out = f"runs/{options.dataset}-{idea}-{options.delays}-{options.seed}"
        words = [*words, "--out", out]
    train.main(words, **IDEAS[idea])


if __name__ == "__main__":
    main(sys.argv[1:])
