"""Spiking networks in which every synapse learns a transmission delay as well as a weight.

The method is from "Learning Delays in Spiking Neural Networks using Dilated Convolutions with
Learnable Spacings" (Hammouamri, Khalfaoui-Hassani, Masquelier, ICLR 2024, arXiv 2306.17670).

Time is discrete.  A synapse delays each spike and multiplies it by a weight.  This is a convolution
over time.  Its kernel has an entry, or tap, for each possible delay.  In evaluation exactly one tap
is nonzero, that of round(delay): it holds the weight.  Rounding has no gradient, so in training a
Gaussian centred on the delay spreads the weight over the taps.  Its width sigma shrinks over the
first quarter of the epochs.

Signals are tensors [B, T, N]: batch, time, neurons.  Delays, sigma and tau are in time steps.  "The
authors' choice" marks a value for which we know no reason.  experiments/evidence/RESULTS.md
says what each part of the method is worth.  MIT licence; please cite CITATION.cff.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# ------------------------------------------------------------------------------------- the kernels


def gaussian_kernel(weight: Tensor, delay: Tensor, sigma: float | Tensor, taps: int) -> Tensor:
    """Return the differentiable training kernel (version "gauss" of DCLS, the authors' library).

        k[o,i,d] = w[o,i] g[d] / (sum_d' g[d'] + 1e-7)
        g[d] = exp(-((d - delay[o,i]) / sigma)^2 / 2)

    The taps of a synapse add up to its weight, also where the range of delays cuts part of the
    Gaussian off.  The cut moves the kernel's mean inwards.  1e-7 is the authors' choice.

    weight: [out, in].
    delay: in steps, 0..taps-1, [out, in] or a shape that broadcasts to it, such as [1, in] for one
        delay per input.
    sigma: the width of the Gaussian in steps, above 0, a number or a tensor that broadcasts.
    Returns [out, in, taps], with gradients for weight, delay and sigma.
    """
    # The taps come first until the end.
    d = torch.arange(taps, dtype=delay.dtype, device=delay.device)[:, None, None]
    exponent = -((d - delay) / sigma).square() / 2  # [taps, out, in], if delay is [out, in]
    # What is too small to matter is exactly 0: denormal numbers would slow some CPUs down.
    g = exponent.exp() * (exponent > -80)
    kernel = g * (weight / (g.sum(0) + 1e-7))  # [taps, out, in]
    return kernel.permute(1, 2, 0)  # [out, in, taps]


def rounded_kernel(weight: Tensor, delay: Tensor, taps: int) -> Tensor:
    """Return the kernel of evaluation and of fixed delays: one nonzero tap, at round(delay).

    Arguments and result are those of gaussian_kernel, without sigma.  Delays get no gradient.
    torch raises a RuntimeError for a delay that rounds to a step outside 0..taps-1.
    """
    position = delay.round().long().expand_as(weight)  # [out, in]
    # kernel[position[o,i], o, i] = weight[o,i]
    kernel = weight.new_zeros(taps, *weight.shape).scatter(0, position[None], weight[None])
    return kernel.permute(1, 2, 0)  # [out, in, taps]


def shrinking_sigma(epoch: int, epochs: int, taps: int) -> float:
    """Return sigma, the width of the Gaussian in steps, for an epoch counted from 0.

    Over the first epochs // 4 epochs, sigma - 0.27 falls exponentially from taps // 2 to 0.23, and
    stays there.  With 25 taps, sigma goes from 12 + 0.27 to 0.23 + 0.27 = 0.5.

    A wide Gaussian shows a delay which way to go, but not where to stop: at a constant wide sigma,
    even delays that are lined up move away.  A narrow one keeps them, but shows the way only from
    one or two steps off.  So each width brings a delay near enough for the next, as the tour shows.
    DCLS adds 0.27 to every width.  taps // 2, 0.5 and a quarter are the authors' choice.
    """
    quarter = epochs // 4
    if epoch >= quarter:  # always true for a run of fewer than four epochs
        return 0.5
    wide = max(taps // 2, 0.23)  # taps // 2 is 0 for a single tap: then sigma is always 0.5
    return 0.27 + wide * (0.23 / wide) ** (epoch / quarter)


# --------------------------------------------------------------------------------- the delayed sum


def delay_conv(spikes: Tensor, kernel: Tensor, tail: int = 0) -> Tensor:
    """Sum each neuron's inputs, each delayed by its own synapse.

        y[b,t,o] = sum_i sum_d k[o,i,d] x[b,t-d,i],   x = 0 before its first step and after its last

    spikes: x, [B, T, in].  kernel: k, [out, in, taps].
    tail: the number of steps by which the output is longer than the input, for late arrivals.
    Returns [B, T + tail, out].  conv_fourier differs from conv_direct by rounding alone.
    """
    spikes = spikes.to(kernel.dtype)
    if kernel.shape[2] == 1:  # no delays: a linear layer
        return F.pad(F.linear(spikes, kernel[:, :, 0]), (0, 0, 0, tail))
    if spikes.device.type == "cpu" and fourier_is_faster(spikes, kernel):
        return conv_fourier(spikes, kernel, tail)
    return conv_direct(spikes, kernel, tail)


def conv_direct(spikes: Tensor, kernel: Tensor, tail: int) -> Tensor:
    """Compute delay_conv by torch's convolution."""
    # The taps - 1 zeros in front keep the sum causal.  A convolution reverses its kernel, but
    # torch's conv1d does not: hence the flip.
    x = F.pad(spikes.transpose(1, 2), (kernel.shape[2] - 1, tail))  # [B, in, taps - 1 + T + tail]
    return F.conv1d(x, kernel.flip(2)).transpose(1, 2)  # [B, T + tail, out]


# ---------------------------------------------------------------------- the neurons and the scores


def spike(x: Tensor, alpha: float = 5.0) -> Tensor:
    """Return 1 where x >= 0 and 0 elsewhere, with a surrogate gradient.

    A step function has slope 0 except at the jump, so nothing before a spike would learn.  The
    backward pass takes the slope of the smooth step arctan((pi/2) alpha x) / pi (SpikingJelly's):

        slope(x) = (alpha/2) / (1 + ((pi/2) alpha x)^2)

    x: membrane potential minus threshold, of any shape.
    alpha: steepness of the smooth step.  5 is the authors' choice.
    """
    smooth = torch.arctan(math.pi / 2 * alpha * x) / math.pi
    return (x >= 0).to(x.dtype) + (smooth - smooth.detach())  # the bracket is 0, its slope is not


def lif_loop(current: Tensor, tau: float | Tensor, *, alpha: float = 5.0) -> Tensor:
    """Return the spikes of leaky integrate-and-fire neurons, [B, T, N].

        h[t] = (1 - 1/tau) v[t-1] + I[t]
        s[t] = 1 if h[t] >= 1, else 0
        v[t] = h[t] (1 - s[t])

    current: I, [B, T, N].
    tau: time constant of the membrane in steps, at least 1: a number, or a tensor to learn it,
        such as [N], one per neuron.
    v is 0 at first.  Networks use `lif`, at the end of this file, which is the same thing, computed
    faster.  Read this one, and copy it to build other neurons.
    """
    decay = decay_of(tau)
    v = torch.zeros_like(current[:, 0])  # [B, N]
    spikes = []
    for current_now in current.unbind(1):  # one time step, [B, N]
        h = decay * v + current_now
        s = spike(h - 1, alpha)
        # As in the authors' training, no gradient flows through the reset.  It would say what a
        # spike does to later steps.  At a tau near 1 this matters little: hardly any of v is kept.
        v = h * (1 - s.detach())
        spikes.append(s)
    return torch.stack(spikes, 1)  # [B, T, N]


def leaky_integrator(current: Tensor, tau: float | Tensor) -> Tensor:
    """Return the potentials of the readout neurons, which leak but do not spike, [B, T, N].

        v[t] = (1 - 1/tau) v[t-1] + I[t] = sum_{u <= t} (1 - 1/tau)^(t-u) I[u]

    current: I, [B, T, N].  tau: in steps, at least 1: a number, or a tensor of one value.
    Nothing resets them, so v is the product of a [T, T] matrix with I: no loop over time is needed.
    """
    # In float64, since the relative error of a power grows with its exponent.
    t = torch.arange(current.shape[1], dtype=torch.float64, device=current.device)
    # t - u, [T, T].  tril cuts off u > t.  Without the clamp, the powers there overflow if tau is
    # near 1 and T above 133, and the gradient of a learned tau is nan.
    elapsed = (t[:, None] - t).clamp(min=0)
    memory = (decay_of(tau) ** elapsed).tril()
    memory = memory * (memory > 1e-35)  # no denormal numbers, as in gaussian_kernel
    return memory.to(current.dtype) @ current


def decay_of(tau: float | Tensor) -> float | Tensor:
    """Return the fraction of its potential that a membrane keeps from step to step, 1 - 1/tau.

    A learned tau may fall below 1, so a tensor is clamped.  Raises a ValueError for a number.
    """
    if isinstance(tau, Tensor):
        return 1 - 1 / tau.clamp(min=1)
    if not tau >= 1:  # also rejects nan
        raise ValueError(f"tau is {tau}: expected a number of steps, at least 1.")
    return 1 - 1 / tau


def class_scores(membrane: Tensor, steps: Tensor | None = None) -> Tensor:
    """Return the score of each class, [B, classes]: softmax over classes, summed over time.

    membrane: potentials of the readout, [B, T, classes].
    steps: [B], how many steps of each sample to include: its own plus the network's tail.  None
        includes all.
    Summing a softmax of each step, and training with the cross-entropy of the sums, which applies a
    second softmax, are from sparch, the code of Bittar and Garner (2022).  The scores of a sample
    add up to its steps, about a hundred.  So the loss begins above ln(classes), and on SHD the
    second softmax nearly picks the largest: the loss of a wrong sample is about the lead of its
    strongest rival.
    """
    probability = membrane.softmax(2)
    if steps is not None:
        t = torch.arange(membrane.shape[1], device=membrane.device)
        probability = probability * (t < steps[:, None]).unsqueeze(2)  # [B, T, 1]
    return probability.sum(1)


# --------------------------------------------------------------------------------------- the layer


class DelayedLinear(nn.Module):
    """A linear layer whose synapses have delays, without bias: [B, T, in] -> [B, T + taps//2, out].

    taps: delays are 0..taps-1 steps.  The output is taps // 2 steps longer than the input, so that
        most late spikes arrive, the authors' choice.  The others are lost.
    learn_delays: False rounds the random delays to whole steps and does not train them.
    delay_shape: (1, inputs) for a delay per input, (outputs, 1) for one per neuron.  In a network
        a subclass sets it, as AxonLayer in experiments/forks/ideas.py does.

    .weight: [out, in].
    .delay: in steps, [out, in] or delay_shape.  A parameter if it is learned, otherwise a buffer.
    .sigma: the width of the Gaussian in steps.  None until the training loop sets it.
    """

    def __init__(self, inputs, outputs, taps, learn_delays=True, delay_shape=None):
        super().__init__()
        self.taps = taps
        self.learn_delays = learn_delays
        self.sigma = None
        # Kaiming's uniform distribution for relu is the authors' choice.  Batch norm hides the
        # weights' scale, but not from Adam, whose updates are as large for small weights.
        bound = math.sqrt(6 / inputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound))
        delay = torch.empty(delay_shape or (outputs, inputs)).uniform_(0, taps - 1)
        self.delay = nn.Parameter(delay) if learn_delays else nn.Buffer(delay.round())

    def kernel(self):
        """Return the kernel that training and evaluation both use, [out, in, taps].

        It is training_kernel while delays are being trained.  In evaluation, and with fixed delays,
        each synapse has one nonzero tap.  In a subclass, what changes a weight belongs here, such
        as a mask of synapses, and what changes a delay in a property `delay`.
        """
        if self.training and self.learn_delays:
            return self.training_kernel(self.weight)
        return rounded_kernel(self.weight, self.delay, self.taps)

    def training_kernel(self, weight):
        """Return the training kernel, [out, in, taps].  Override this to use another.

        Raises a ValueError if sigma has not been set.
        """
        if self.sigma is None:
            raise ValueError("sigma is None: set it in each epoch, as by shrinking_sigma(...).")
        return gaussian_kernel(weight, self.delay, self.sigma, self.taps)

    def forward(self, x):
        return delay_conv(x, self.kernel(), self.taps // 2)

    def clamp_delays(self):
        """Clamp .delay to 0..taps-1, where there are taps.  Call this after each optimizer step."""
        self.delay.data.clamp_(0, self.taps - 1)


# ------------------------------------------------------------------------------------- the network


class DelaySNN(nn.Module):
    """The paper's network: [B, T, in] counts -> [B, T + tail, classes] potentials of the readout.

    hidden: the sizes of the hidden layers.  Each is a delayed sum, batch norm over all samples and
        steps, in training padding too, LIF neurons, and dropout.  The readout is a delayed sum into
        leaky integrators, without batch norm.
    taps, learn_delays: those of DelayedLinear.
    tau, tau_readout: time constants of the hidden neurons and of the readout, in steps.  If
        tau_readout is None, it is the same as tau.
    dropout: fraction of the neurons that are silenced in training, each for a whole sample: a mask
        drawn anew in each step would partly average out (SpikingJelly, after Lee et al., 2019).
    taps=1, learn_delays=False gives the network without delays.

    .layers: the layers of synapses, the readout last.  .norms: the batch norms.
    .tail: the number of steps by which the output is longer than the input.
    .rates: spikes per neuron and step of each hidden layer in the last forward pass, tails and
        padding included, before dropout, with gradients.
    .layer_class: the class of the layers, which a subclass may replace.
    """

    layer_class = DelayedLinear

    def __init__(
        self,
        inputs,
        hidden,
        classes,
        taps=25,
        tau=1.005,
        dropout=0.4,
        tau_readout=None,
        learn_delays=True,
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            self.layer_class(before, after, taps, learn_delays=learn_delays)
            for before, after in pairwise([inputs, *hidden, classes])
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in hidden)
        self.tau = tau
        self.tau_readout = tau if tau_readout is None else tau_readout
        self.dropout = dropout

    @property
    def tail(self):
        return sum(layer.taps // 2 for layer in self.layers)

    def neurons(self, i, current):
        """Return the spikes of hidden layer i, [B, T, N].  Override this for other neurons."""
        return lif(current, self.tau)

    def readout(self, current):
        """Return the potentials of the readout, [B, T, classes].  Override this for another."""
        return leaky_integrator(current, self.tau_readout)

    def scores(self, membrane, steps=None):
        """Return class_scores, [B, classes]: the loss and all predictions are made of these."""
        return class_scores(membrane, steps)

    def forward(self, x):
        self.rates = []
        *hidden, last = self.layers
        for i, layer in enumerate(hidden):
            current = layer(x)  # [B, T + taps//2, N]
            current = self.norms[i](current.flatten(0, 1)).view_as(current)
            x = self.neurons(i, current)
            self.rates.append(x.mean())
            # dropout1d drops whole rows of [B, N, T].
            x = F.dropout1d(x.transpose(1, 2), self.dropout, self.training).transpose(1, 2)
        return self.readout(last(x))


# -------------------------------------------- the same thing, faster: skip this on a first reading


def lif(current: Tensor, tau: float, *, alpha: float = 5.0) -> Tensor:
    """Return what lif_loop returns, by fewer operations: the backward pass is written out.

    tau is a number and gets no gradient.  Second derivatives are not supported.
    """
    return LIF.apply(current, decay_of(tau), alpha)


class LIF(torch.autograd.Function):
    """The loop of lif_loop, and its backward pass, which is a loop back in time."""

    @staticmethod
    def forward(ctx, current, decay, alpha):
        potential = torch.empty_like(current)  # h of all steps
        spikes = torch.empty_like(current)
        v = torch.zeros_like(current[:, 0])
        inputs, h, s = current.unbind(1), potential.unbind(1), spikes.unbind(1)  # views [B, N]
        for t in range(len(h)):  # out=h[t] writes into potential; alpha= is torch.add's factor
            torch.add(inputs[t], v, alpha=decay, out=h[t])  # h = I + decay v
            torch.ge(h[t], 1, out=s[t])  # s = 1.0 if h >= 1, else 0.0
            torch.addcmul(h[t], h[t], s[t], value=-1, out=v)  # v = h - h s
        ctx.save_for_backward(potential)
        ctx.constants = decay, alpha
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_spikes):
        """The loss L depends on h[t] through the spike s[t] and, by way of v[t], through h[t+1].

            dL/dh[t] = slope(h[t] - 1) dL/ds[t] + decay (1 - s[t]) dL/dh[t+1]
            dL/dI[t] = dL/dh[t]

        dL/ds[t] is grad_spikes.  In v[t] = h[t] (1 - s[t]) the spike counts as a constant.
        """
        (potential,) = ctx.saved_tensors
        decay, alpha = ctx.constants
        slope = (potential - 1).mul_(math.pi / 2 * alpha)
        slope.square_().add_(1).reciprocal_().mul_(alpha / 2)  # as in spike, but in place
        grad_current = slope.mul_(grad_spikes)  # the loop adds the other term, in place too
        h, grad = potential.unbind(1), grad_current.unbind(1)
        silent = torch.empty_like(h[0])  # 1 - s[t]
        for t in reversed(range(len(h) - 1)):  # nothing comes after the last step
            torch.lt(h[t], 1, out=silent)
            grad[t].addcmul_(silent, grad[t + 1], value=decay)
        return grad_current, None, None


def fourier_is_faster(spikes: Tensor, kernel: Tensor) -> bool:
    """Return whether conv_fourier should take less time than conv_direct, on a CPU.

    It does not where batches are small, since it transforms the kernel, or where samples are long:
    its cost grows with the square.  The condition is fitted to times on one thread of an AMD EPYC.
    """
    batch, length, inputs = spikes.shape
    outputs, _, taps = kernel.shape
    return outputs <= 0.7 * batch * taps and length + taps <= (taps - 4) * inputs


def conv_fourier(spikes: Tensor, kernel: Tensor, tail: int) -> Tensor:
    """Compute delay_conv by the convolution theorem: Y[f] = X[f] K[f] at each frequency f.

    The transforms are products with a matrix of cosines and sines: torch.fft takes longer here.
    """
    length, taps = spikes.shape[1], kernel.shape[2]
    # A product of transforms is a circular convolution: what arrives after the period wraps around
    # to step 0.  So the period has room for the last spikes' longest delay, and for the output.
    period = length + max(taps - 1, tail)
    f = torch.arange(period // 2 + 1, device=spikes.device)  # F frequencies
    t = torch.arange(period, device=spikes.device)
    # f * t modulo period leaves out whole turns: large angles are less exact.
    angle = (torch.outer(f, t) % period).double() * (2 * math.pi / period)
    basis = torch.cat([angle.cos(), -angle.sin()]).to(spikes)  # exp(-i angle), [2 F, period]
    # The signals are real, so Y[period - f] is the conjugate of Y[f].  Y[period - f] is left out,
    # and Y[f] counted twice.  Only the frequencies 0 and period / 2 have no such twin.
    twice = (f > 0) & (2 * f < period)
    scale = (1 + twice.int()).to(spikes) / period  # [F], for the basis of K: it has fewest rows

    x = (basis[:, :length] @ spikes).transpose(0, 1)  # [B, 2 F, in], then [2 F, B, in]
    weighted = basis[:, :taps] * scale.repeat(2)[:, None]  # cosines and sines, [2 F, taps]
    k = (weighted @ kernel.transpose(1, 2)).permute(1, 2, 0)  # [out, 2 F, in], [2 F, in, out]

    # A complex product (a + ib)(c + id) takes three real ones: its imaginary part, ad + bc, is
    # (a + b)(c + d) - ac - bd.
    a, b = x.chunk(2)  # real and imaginary part of X, [F, B, in]
    c, d = k.chunk(2)  # of K, [F, in, out]
    ac, bd = a @ c, b @ d
    y = torch.cat([ac - bd, (a + b) @ (c + d) - ac - bd])  # [2 F, B, out]
    # Back to time, with the transposed basis: y[t] = sum_f Re Y[f] cos(angle) - Im Y[f] sin(angle).
    return basis[:, : length + tail].T @ y.transpose(0, 1)  # [B, T + tail, out]
