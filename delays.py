"""Spiking networks whose synapses learn a transmission delay beside their weight.

The method is that of "Learning Delays in Spiking Neural Networks using Dilated Convolutions with
Learnable Spacings" (DCLS, also the name of the authors' library; Hammouamri, Khalfaoui-Hassani,
Masquelier, ICLR 2024, arXiv 2306.17670).

Time is discrete.  A synapse hands each spike on after its delay, times its weight.  That is a
convolution over time, whose kernel has one tap that is not zero: the weight, at the delay's place.
A place has no gradient.  So in training the tap becomes a Gaussian around the delay, whose width
sigma shrinks during the first quarter of the epochs.  Evaluation uses one tap, at round(delay).

Signals are tensors [B, T, N]: batch, time, neurons.  Delays, sigma and tau are in steps of time.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# ------------------------------------------------------------------------------------- the kernels


def gaussian_kernel(weight: Tensor, delay: Tensor, sigma: float | Tensor, taps: int) -> Tensor:
    """The differentiable kernel of training (section 3.1 of the paper; version "gauss" of DCLS).

        k[o,i,d] = w[o,i] g[d] / (sum_d' g[d'] + 1e-7)
        g[d] = exp(-((d - delay[o,i]) / sigma)^2 / 2)

    The division makes the taps of a synapse sum up to its weight.  The 1e-7, DCLS's own, matters
    only where all g[d] are nearly 0: far outside 0..taps-1, or between two taps if sigma is below
    some 0.1.

    weight: [out, in]; or [count, out, in] for `count` synapses between each pair of neurons, whose
        kernels are added.
    delay: in steps.  It has the weights' shape, or one that broadcasts to it: [1, in] is one delay
        for each axon, which all synapses of an input share, [out, 1] one for each neuron.  Outside
        0..taps-1, the division moves nearly all of the weight to the nearest tap.
    sigma: the Gaussian's width in steps, above 0.  A number, or a tensor that broadcasts as well.
    taps: length of the kernel, for delays of 0..taps-1 steps.
    Returns [out, in, taps], with gradients to weight, delay and sigma.
    """
    weight = weight.reshape(-1, *weight.shape[-2:])  # [count, out, in]
    delay = delay.expand_as(weight)
    d = torch.arange(taps, dtype=delay.dtype, device=delay.device)
    d = d.view(-1, 1, 1, 1)  # taps first: a sigma of the weights' shape broadcasts too
    g = torch.exp(-((d - delay) / sigma).square() / 2)  # [taps, count, out, in]
    kernel = g * (weight / (g.sum(0) + 1e-7))  # [taps, count, out, in]
    return kernel.sum(1).permute(1, 2, 0)  # [out, in, taps]


def integer_kernel(weight: Tensor, delay: Tensor, taps: int) -> Tensor:
    """The kernel of evaluation and of fixed delays: one tap a synapse, its weight at round(delay).

    Arguments and result are as in gaussian_kernel, but delays get no gradient, and torch refuses
    one that is rounded to a step outside 0..taps-1.
    """
    weight = weight.reshape(-1, *weight.shape[-2:])  # [count, out, in]
    position = delay.detach().round().long().expand_as(weight)  # [count, out, in]
    kernel = weight.new_zeros(taps, *weight.shape)
    # kernel[position[c,o,i], c, o, i] = weight[c,o,i]
    kernel = kernel.scatter(0, position.unsqueeze(0), weight.unsqueeze(0))
    return kernel.sum(1).permute(1, 2, 0)  # [out, in, taps]


def shrinking_sigma(epoch: int, epochs: int, taps: int, offset=0.27, last_part=0.23) -> float:
    """Sigma, the Gaussian's width in steps, in an epoch counted from 0.

    Over the first quarter of all epochs the authors' sigma falls exponentially from taps // 2, half
    the range of delays, to `last_part`, and stays there.  DCLS adds `offset` to it.  With 25 taps
    the sum goes from 12.27 to 0.5 steps.
    """
    quarter = epochs // 4
    first_part = max(taps // 2, last_part)  # taps // 2 of a single tap is 0: there sigma is 0.5
    if epoch >= quarter:  # in a run of fewer than four epochs, always
        return offset + last_part
    return offset + first_part * (last_part / first_part) ** (epoch / quarter)


# --------------------------------------------------------------------------------- the delayed sum


def delay_conv(spikes: Tensor, kernel: Tensor, tail: int = 0, method: str = "auto") -> Tensor:
    """What arrives at each neuron: the sum over its synapses, each of which delays its spikes.

        y[b,t,o] = sum_i sum_d k[o,i,d] x[b,t-d,i],   x = 0 before its first step and after its last

    spikes: [B, T, in].  kernel: [out, in, taps].
    tail: by how many steps the output is longer than the input, for spikes that arrive late.
    method: "direct" is torch's convolution, "fourier" the convolution theorem, which gives the same
        numbers up to rounding.  "auto" is fourier on a CPU and direct elsewhere.  On a CPU, name
        direct for samples of many hundred steps: at 1,000 it is faster.
    Returns [B, T + tail, out].  On a GPU, torch may compute in the less exact TF32.  Turn that off,
    as train.set_backend does with two settings.  Under torch.autocast the sums are as coarse as its
    dtype, and spikes may move.
    """
    if spikes.dim() != 3 or kernel.dim() != 3 or spikes.shape[2] != kernel.shape[1]:
        found = f"spikes {list(spikes.shape)}, kernel {list(kernel.shape)}"
        raise ValueError(f"{found}: expected [B, T, in] and [out, in, taps].")
    if method not in ("auto", "direct", "fourier"):
        raise ValueError(f"method is {method!r}: expected auto, direct or fourier.")

    spikes = spikes.to(kernel.dtype)
    if kernel.shape[2] == 1:  # no delays: a linear layer, and zeros for the tail
        return F.pad(F.linear(spikes, kernel[:, :, 0]), (0, 0, 0, tail))
    if method == "fourier" or (method == "auto" and spikes.device.type == "cpu"):
        return conv_fourier(spikes, kernel, tail)
    # taps - 1 zeros in front, so that nothing comes from the future.  A convolution reverses its
    # kernel and torch's conv1d does not: hence the flip.
    x = F.pad(spikes.transpose(1, 2), (kernel.shape[2] - 1, tail))  # [B, in, taps - 1 + T + tail]
    return F.conv1d(x, kernel.flip(2)).transpose(1, 2)  # [B, T + tail, out]


# ------------------------------------------------------------------------------------- the neurons


def spike(x: Tensor, alpha: float = 5.0) -> Tensor:
    """1 where x >= 0, else 0, with a surrogate gradient: for lif_loop, and neurons of one's own.

    A spike is a jump, and beside it the slope is 0: nothing would learn.  So the backward pass
    takes the slope of a smooth rise, arctan(pi/2 alpha x) / pi (SpikingJelly's ATan):

        slope(x) = (alpha/2) / (1 + (pi/2 alpha x)^2)

    x: how far a membrane lies above its threshold, of any shape.
    alpha: how steep that rise is; 5 is the authors' (in the config of their SHD and SSC runs).
    """
    smooth = torch.arctan(math.pi / 2 * alpha * x) / math.pi
    return (x >= 0).to(x.dtype) + (smooth - smooth.detach())  # the bracket is 0 and has that slope


def lif_loop(current: Tensor, tau: float, threshold: float = 1.0, alpha: float = 5.0) -> Tensor:
    """Leaky integrate-and-fire neurons, which sum up their input and spike at the threshold.

        h[t] = (1 - 1/tau) v[t-1] + I[t]
        s[t] = 1 if h[t] >= threshold, else 0
        v[t] = h[t] (1 - s[t])

    current: I, [B, T, N].
    tau: time constant of all membranes in steps, at least 1.
    threshold: of the potential, which is 0 at rest and after a spike.
    alpha: of the surrogate gradient, as in `spike`.
    Returns the spikes s, [B, T, N].  Networks use `lif`, which is the same and faster.  This is the
    one to read, and to copy for other neurons.
    """
    decay = decay_of(tau)
    v = torch.zeros_like(current[:, 0])  # [B, N]
    spikes = []
    for now in current.unbind(1):  # a step of time
        h = decay * v + now
        s = spike(h - threshold, alpha)
        v = h * (1 - s.detach())  # as in the paper, no gradient flows through the reset
        spikes.append(s)
    return torch.stack(spikes, 1)  # [B, T, N]


def leaky_integrator(current: Tensor, tau: float) -> Tensor:
    """The neurons of the readout, which do not spike: their potential is the network's output.

        v[t] = (1 - 1/tau) v[t-1] + I[t] = sum_{u <= t} (1 - 1/tau)^(t-u) I[u]

    current: I, [B, T, N].  tau: in steps, at least 1.  Returns v, [B, T, N].  Nothing resets these
    neurons, so v is a product of I with a matrix, [T, T], which is faster than a loop over time.
    """
    t = torch.arange(current.shape[1], dtype=torch.float64, device=current.device)
    elapsed = t[:, None] - t  # t - u, [T, T]: a row for each t, a column for each u
    # clamp: a power below 0 would overflow, and turn the gradient of a learned tau into nan.
    memory = (decay_of(tau) ** elapsed.clamp(min=0)).tril()  # puts 0 where u is later than t
    return memory.to(current.dtype) @ current


def decay_of(tau: float) -> float:
    """What is left of a membrane's potential after a step, 1 - 1/tau."""
    if not tau >= 1:
        raise ValueError(f"tau is {tau}: expected a number of steps, at least 1.")
    return 1 - 1 / tau


def class_scores(membrane: Tensor, steps: Tensor | None = None) -> Tensor:
    """The score of each class: softmax over the classes at every step, summed over time.

    membrane: of the readout, [B, T, classes].
    steps: [B], how many steps of each sample count: its own and net.tail.  None: all.
    Returns [B, classes].  Training puts these scores through cross-entropy, which is a second
    softmax: the original does so.
    """
    share = membrane.softmax(2)
    if steps is not None:
        t = torch.arange(membrane.shape[1], device=membrane.device)
        own = t < steps.to(membrane.device)[:, None]  # [B, T]
        share = share * own.unsqueeze(2)
    return share.sum(1)


# --------------------------------------------------------------------------------------- the layer


class DelayedLinear(nn.Module):
    """A linear layer whose synapses have delays, without bias: [B, T, in] -> [B, T + taps//2, out].

    taps: delays are 0..taps-1 steps.  The output is taps // 2 steps longer than the input, as in
        the authors' code.  Most late spikes still arrive, though not all.
    count: synapses between each pair of neurons.
    learn_delays: False: the delays, drawn at random, are rounded to whole steps and not trained.
    connections: inputs of each neuron, drawn at random; 0, or more than there are, connects all.
    delay_shape: for a subclass.  None gives each synapse its delay; another shape has to broadcast
        to the weights': (1, in_features) is one for each axon, (out_features, 1) for each neuron.

    .weight: [out, in], or [count, out, in] if count > 1.
    .delay: in steps; a buffer if not learned.
    .mask: [out, in], True where there is a connection: everywhere, if connections reach all inputs.
    .sigma: the Gaussian's width in steps.  The training loop sets it; state_dict does not hold it.
    .whole_steps: True rounds the delays in evaluation; False keeps the Gaussians of training.
    .conv: the method of delay_conv, "auto" at first.
    """

    def __init__(
        self,
        in_features,
        out_features,
        taps,
        count=1,
        learn_delays=True,
        connections=0,
        delay_shape=None,
    ):
        super().__init__()
        fan_in = min(connections or in_features, in_features)
        self.taps = taps
        self.learn_delays = learn_delays
        self.connections = fan_in
        self.sigma = 0.5  # where shrinking_sigma ends
        self.whole_steps = True
        self.conv = "auto"

        shape = (out_features, in_features)
        if count > 1:
            shape = (count, *shape)
        bound = math.sqrt(6 / (fan_in * count))  # Kaiming's uniform distribution for relu
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        delay = torch.empty(shape if delay_shape is None else delay_shape).uniform_(0, taps - 1)
        self.delay = nn.Parameter(delay) if learn_delays else nn.Buffer(delay.round())

        mask = torch.ones(out_features, in_features, dtype=torch.bool)
        if fan_in < in_features:
            # For each neuron, fan_in different inputs.
            chosen = torch.rand(out_features, in_features).argsort(1)[:, :fan_in]
            mask = torch.zeros_like(mask).scatter_(1, chosen, True)
        self.weight.data.mul_(mask)  # missing synapses are saved as 0
        self.mask = nn.Buffer(mask)

    def positions(self):
        """The delays in use, in steps: .delay, or what a subclass computes within 0..taps-1."""
        return self.delay

    def delay_parameters(self):
        """The parameters that are trained at the delays' rate; a subclass may have more."""
        return [self.delay] if self.learn_delays else []

    def kernel(self):
        """The kernel in use, [out, in, taps]: Gaussians in training, one tap in evaluation.

        Fixed delays have one tap in both, and with whole_steps False learned ones have Gaussians.
        """
        weight = self.weight * self.mask  # so the gradients of missing synapses are 0 too
        gaussians = self.training or not self.whole_steps
        if gaussians and self.learn_delays:
            return gaussian_kernel(weight, self.positions(), self.sigma, self.taps)
        return integer_kernel(weight, self.positions(), self.taps)

    def forward(self, spikes):
        return delay_conv(spikes, self.kernel(), self.taps // 2, self.conv)

    def clamp_delays(self):
        """Moves .delay back into 0..taps-1; to be called after each step of the optimizer."""
        self.delay.data.clamp_(0, self.taps - 1)

    def extra_repr(self):
        """What print(net) shows of the layer, and what a checkpoint says of it."""
        sizes = f"weight {list(self.weight.shape)}, delay {list(self.delay.shape)}"
        kind = f"learn_delays={self.learn_delays}, connections={self.connections}"
        return f"{sizes}, taps={self.taps}, {kind}, whole_steps={self.whole_steps}"


# ------------------------------------------------------------------------------------- the network


class DelaySNN(nn.Module):
    """The paper's network: [B, T, in] spikes or counts -> [B, T', classes] membrane of the readout.

    hidden: the sizes of the hidden layers.  Each is a delayed sum, batch norm over batch and time,
    LIF neurons, and dropout that silences a neuron for all of a sample's time.  The readout is a
    delayed sum into leaky integrators.  Every layer adds taps // 2 steps, so T' = T + .tail.

    tau: time constant of the hidden neurons, in steps; tau_readout: of the readout, None: tau.
    dropout: share of the neurons silenced in training.  taps, count, learn_delays and connections
    are those of DelayedLinear; taps=1, learn_delays=False is the network without delays.

    .layers: the DelayedLinear, the readout last.  .norms: the batch norms.
    .tail: how many steps the network goes on for after its input.
    .rates: firing rate of each hidden layer in the last forward pass, before dropout, in spikes per
        neuron and step that counts.  They have gradients, so that a loss may contain them.
    .layer_class: the class of the layers, for which a subclass may name one of its own.
    """

    layer_class = DelayedLinear

    def __init__(
        self,
        in_features,
        hidden,
        classes,
        taps=25,
        tau=1.005,
        dropout=0.4,
        count=1,
        learn_delays=True,
        connections=0,
        tau_readout=None,
    ):
        super().__init__()
        sizes = [in_features, *hidden, classes]
        self.layers = nn.ModuleList(
            self.layer_class(before, after, taps, count, learn_delays, connections)
            for before, after in pairwise(sizes)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in sizes[1:-1])
        self.tau = tau
        self.tau_readout = tau if tau_readout is None else tau_readout
        self.dropout = dropout
        self.rates = []

    @property
    def tail(self):
        return sum(layer.taps // 2 for layer in self.layers)

    def neurons(self, i, current):
        """Spikes of hidden layer i from its current, both [B, T, N]: override for other neurons."""
        return lif(current, self.tau)

    def forward(self, x, steps=None):
        """The membrane of the readout; class_scores(membrane, steps + net.tail) has the scores.

        steps: [B], how many steps each sample has; the rest of T is padding.  None: padding counts
        as a sample's own steps: so the authors train.

        In each sample, a hidden layer runs for taps // 2 steps, its tail, longer than its input.
        After that its output is 0 and counts nowhere: not in batch norm, nor in the rates.
        """
        ends = torch.full(x.shape[:1], x.shape[1]) if steps is None else steps.cpu()
        self.rates = []
        for i, layer in enumerate(self.layers[:-1]):
            current = layer(x)  # [B, T + tails so far, N]
            ends = ends + layer.taps // 2
            own = torch.arange(current.shape[1]) < ends[:, None]  # [B, T], True for what counts
            spikes = self.neurons(i, self.normed(i, current, own))
            # lif is silent without a current, but other neurons need not be.
            x = spikes * own.to(x.device).unsqueeze(2)
            self.rates.append(x.sum() / (own.sum().item() * x.shape[2]))
            if self.training:
                mask = torch.ones_like(x[:, :1])  # [B, 1, N], the same for all steps
                x = x * F.dropout(mask, self.dropout)  # spikes are 0, or 1 / (1 - dropout) high
        return leaky_integrator(self.layers[-1](x), self.tau_readout)

    def normed(self, i, current, own):
        """Batch norm of layer i over the steps that count, own [B, T]; the others become 0."""
        rows = own.flatten().nonzero().squeeze(1).to(current.device)  # their places in [B * T]
        result = torch.zeros_like(current).flatten(0, 1)  # [B * T, N]
        result.index_copy_(0, rows, self.norms[i](current.flatten(0, 1)[rows]))
        return result.view_as(current)

    def extra_repr(self):
        """What print(net) shows beside the layers, and what a checkpoint says of the network."""
        return f"tau={self.tau}, tau_readout={self.tau_readout}, dropout={self.dropout}"


# ------------------------------- the same as above, faster on a CPU: skip this on a first reading


def lif(current: Tensor, tau: float, threshold: float = 1.0, alpha: float = 5.0) -> Tensor:
    """lif_loop with its backward pass written out, which saves a fifth of a step of training.

    It has no second derivative.
    """
    return LIF.apply(current, decay_of(tau), threshold, alpha)


class LIF(torch.autograd.Function):
    """The loop of lif_loop, and its backward pass, a loop back in time.

    unbind(1) turns [B, T, N] into a list of views [B, N], one for each step.
    """

    @staticmethod
    def forward(ctx, current, decay, threshold, alpha):
        potential = torch.empty_like(current)  # h of all steps
        spikes = torch.empty_like(current)
        v = torch.zeros_like(current[:, 0])
        inputs, h, s = current.unbind(1), potential.unbind(1), spikes.unbind(1)
        for t in range(len(h)):  # out=h[t] writes into potential; alpha here is torch.add's
            torch.add(inputs[t], v, alpha=decay, out=h[t])  # h = I + decay v
            torch.ge(h[t], threshold, out=s[t])  # s = 1 if h >= threshold
            torch.addcmul(h[t], h[t], s[t], value=-1, out=v)  # v = h - h s
        ctx.save_for_backward(potential)
        ctx.constants = decay, threshold, alpha
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_spikes):
        """h[t] acts through the spike s[t] and, by way of v[t], through h[t+1]; I[t] through h[t].

            dL/dh[t] = slope(h[t] - threshold) dL/ds[t] + decay (1 - s[t]) dL/dh[t+1]
            dL/dI[t] = dL/dh[t]

        dL/ds[t] is grad_spikes.  In v[t] = h[t] (1 - s[t]) the spike counts as a constant.
        """
        (potential,) = ctx.saved_tensors
        decay, threshold, alpha = ctx.constants
        x = (potential - threshold).mul_(math.pi / 2 * alpha)
        slope = x.square_().add_(1).reciprocal_().mul_(alpha / 2)  # as in spike, but in x's memory
        grad_current = slope.mul_(grad_spikes)
        h, grad = potential.unbind(1), grad_current.unbind(1)
        silent = torch.empty_like(h[0])  # 1 - s[t]
        for t in reversed(range(len(h) - 1)):  # nothing comes after the last step
            torch.lt(h[t], threshold, out=silent)
            grad[t].addcmul_(silent, grad[t + 1], value=decay)
        return grad_current, None, None, None


def conv_fourier(spikes: Tensor, kernel: Tensor, tail: int) -> Tensor:
    """The delayed sum by the convolution theorem: at each frequency f, Y[f] = X[f] K[f].

    At SHD's sizes this takes about an eighth of the multiplications.  The transforms are products
    with a matrix of cosines and sines: at these lengths an FFT takes longer (measured in
    experiments/RESULTS.md).
    """
    steps, taps = spikes.shape[1], kernel.shape[2]
    # Spikes arrive within steps + taps - 1 steps.  In a period of that length, or of the output's
    # if that is longer, none of them wraps around to the beginning.
    period = steps + max(taps - 1, tail)
    f = torch.arange(period // 2 + 1, device=spikes.device)  # F frequencies
    t = torch.arange(period, device=spikes.device)
    turns = torch.outer(f, t) % period  # whole turns left out, so that angles stay small
    angle = turns.double() * (2 * math.pi / period)
    basis = torch.cat([angle.cos(), -angle.sin()]).to(spikes)  # exp(-i angle), [2 F, period]
    # Each frequency stands for its conjugate above period / 2 too, which is not computed; but 0
    # and period / 2 have none.
    twice = (f > 0) & (2 * f < period)
    share = (1 + twice.int()).to(spikes) / period  # [F]

    # Transformed back, y[t] = sum_f share[f] (Re Y[f] cos(angle) - Im Y[f] sin(angle)).  This is a
    # product with the transposed basis.  The factor share is put on the kernel here, because the
    # kernel is smaller than the output.
    x = (basis[:, :steps] @ spikes).transpose(0, 1)  # [2 F, B, in]
    weighted = basis[:, :taps] * share.repeat(2)[:, None]  # [2 F, taps]
    k = weighted @ kernel.transpose(1, 2)  # [out, 2 F, in]
    k = k.permute(1, 2, 0)  # [2 F, in, out]

    # A complex product (a + ib)(c + id) takes three real ones: its imaginary part, ad + bc, is
    # (a + b)(c + d) - ac - bd.
    a, b = x.chunk(2)  # real and imaginary part of X, [F, B, in]
    c, d = k.chunk(2)  # of K, [F, in, out]
    ac, bd = a @ c, b @ d
    y = torch.cat([ac - bd, (a + b) @ (c + d) - ac - bd])  # [2 F, B, out]
    return basis[:, : steps + tail].T @ y.transpose(0, 1)  # [B, T + tail, out]
