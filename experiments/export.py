"""Takes a trained network out of torch: plain arrays, which any simulator can read.

    python experiments/export.py RUN --out net.npz                    # writes the arrays
    python experiments/export.py --hardware net.npz --data-dir DIR    # figures for hardware
    python experiments/export.py --brian2 net.npz --data-dir DIR --samples 20

--brian2 runs the hidden layers in the simulator Brian2 (pip install brian2; needed here alone), and
compares every spike with torch.  There torch runs the arrays as well, with the functions of
delays.py.  With RUN in front, it runs the trained network itself, batch norm and all.

A run of another class than DelaySNN is exported from Python, as that of Axonal in ideas.py:

    options = train.parse(["--dataset", "toy"])  # those that it was trained with
    export.export(RUN, "net.npz", net=train.build(options, Axonal))

That takes delays and connections of any kind.  Neurons or kernels of a network's own, as those of
Recurrent and Adaptive, are refused.

The file is read with numpy.load and holds no pickle.  For the whole network:

    dataset             name of the data set in data.py
    inputs              number of inputs
    channels_per_input  channels of the recording that one input sums up
    step_ms             length of a step of time
    tau_steps           time constant of all membranes, in steps
    threshold           of the hidden neurons
    taps                delays are 0..taps-1 steps
    tail_steps          how many steps all layers go on after the sample's own

and for layer i = 0, 1, ..., of which the readout is the last:

    pre_i, post_i       int32 [synapses], from which neuron to which; a pair may have several
    weight_i            float32 [synapses]
    delay_i             int32 [synapses], whole steps
    current_i           float32 [neurons], flows into each neuron in each step

Batch norm is in weight and current: it does nothing else in evaluation.

A sample is binned thus: a spike comes `time` ms after the sample's first one.  It is in step
floor(time / step_ms) and in input floor(channel / channels_per_input), and x[t, input] counts the
spikes there, which may be more than one.  The sample's own steps end with its last spike.  (The toy
task and data of one's own come in steps, and have one channel an input.)

The network then runs for the sample's own steps and tail_steps more, with v = 0 and no spikes
before.  A delay of 0 acts within the same step, so the layers are computed one after the other:

    I[t, o] = current[o] + sum over synapses onto o of weight * x[t - delay, pre]
    h[t] = (1 - 1 / tau_steps) v[t-1] + I[t]
    s[t] = 1 if h[t] >= threshold, else 0;   v[t] = h[t] (1 - s[t])

s is the x of the next layer.  The readout has a neuron for each class, which neither spikes nor
resets: v[t] = h[t].  The answer is the class with the largest sum, over all steps of the run, of
softmax(v[t]).

NIR, the exchange format of neuromorphic tools, is not written: its Delay has one delay for each
element of a signal and none for each synapse.  Of these networks it could hold only those whose
synapses share one delay an input.
"""

import argparse
import io
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import torch
from torch import Tensor

import data
import train
from delays import DelayedLinear, DelaySNN, class_scores, delay_conv, leaky_integrator, lif
from experiments import look

THRESHOLD = 1.0  # lif's default, which DelaySNN uses
NUMBERS = {
    "dataset",
    "inputs",
    "channels_per_input",
    "step_ms",
    "tau_steps",
    "threshold",
    "taps",
    "tail_steps",
}
NETX_LONGEST = 62  # steps; Loihi's NetX clips delays above
ROUNDING = 1e-5  # two programs that sum up in another order may differ so much in h

# ------------------------------------------------------------------------------------- the arrays


def arrays(net: DelaySNN, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """What the file holds.

    net: on the CPU.  options: of its run; train.load_run returns both.
    """
    refuse_unfit(net)
    dataset = data.DATASETS[options.dataset]
    taps = net.layers[0].taps
    exported = {
        "dataset": np.array(options.dataset),
        "inputs": np.int32(dataset.inputs),
        "channels_per_input": np.int32(data.GROUP if options.dataset in ("shd", "ssc") else 1),
        "step_ms": np.float64(dataset.step_ms),
        "tau_steps": np.float64(net.tau),
        "threshold": np.float64(THRESHOLD),
        "taps": np.int32(taps),
        "tail_steps": np.int32(len(net.layers) * (taps // 2)),
    }
    for i, layer in enumerate(net.layers):
        scale = torch.ones(layer.weight.shape[-2], dtype=torch.float64)  # of the readout
        current = torch.zeros_like(scale)
        if i < len(net.norms):
            scale, current = folded(net.norms[i])
        exported |= {f"{name}_{i}": array for name, array in synapses(layer, scale).items()}
        exported[f"current_{i}"] = current.float().numpy()
    check(exported)
    return exported


def refuse_unfit(net: DelaySNN) -> None:
    """A ValueError unless the arrays can say all of what the network does."""
    kind = type(net)
    if not isinstance(net, DelaySNN):
        raise ValueError(f"a {kind.__name__} cannot be exported: expected a DelaySNN")
    if kind.neurons is not DelaySNN.neurons or kind.forward is not DelaySNN.forward:
        rule = "the arrays describe LIF neurons in layers alone"
        raise ValueError(f"a {kind.__name__} has neurons or connections of its own: {rule}")
    for layer in net.layers:
        cls = type(layer)
        if cls.kernel is not DelayedLinear.kernel or cls.forward is not DelayedLinear.forward:
            rule = "the arrays have one weight and one delay a synapse"
            raise ValueError(f"a {cls.__name__} has a kernel of its own: {rule}")
        if layer.learn_delays and not layer.whole_steps:
            rule = "the arrays hold delays of whole steps"
            raise ValueError(f"whole_steps is False, so delays are not rounded: {rule}")
    if len({layer.taps for layer in net.layers}) > 1:
        raise ValueError("the layers have different taps: the arrays hold one number for all")
    for norm in net.norms:
        if type(norm) is not torch.nn.BatchNorm1d or not norm.affine or norm.running_var is None:
            rule = "expected BatchNorm1d with weight, bias and running statistics"
            raise ValueError(f"{norm} cannot be folded into the weights: {rule}")


def folded(norm: torch.nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Batch norm of evaluation as a factor and a constant for each neuron, float64 [neurons]."""
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    factor = norm.weight.detach().double() / deviation
    return factor, norm.bias.detach().double() - factor * norm.running_mean.double()


def synapses(layer: DelayedLinear, scale: Tensor) -> dict[str, np.ndarray]:
    """The synapses of a layer, with their weights times scale, [neurons] in float64."""
    weight = layer.weight.detach().double() * scale[:, None]  # [out, in] or [count, out, in]
    weight = weight.view(-1, *weight.shape[-2:])  # [count, out, in]
    delay = layer.delay.detach().round().expand_as(weight)  # half steps to even, as in evaluation
    there = torch.ones_like(weight).bool()
    if layer.mask is not None:
        there = layer.mask.expand_as(weight)
    _, post, pre = there.nonzero(as_tuple=True)
    return {
        "pre": pre.int().numpy(),
        "post": post.int().numpy(),
        "weight": weight[there].float().numpy(),
        "delay": delay[there].int().numpy(),
    }


def layer_count(net: dict) -> int:
    return sum(name.startswith("weight_") for name in net)


def layer_sizes(net: dict) -> list[int]:
    """Number of inputs, and of the neurons of each layer."""
    return [int(net["inputs"])] + [len(net[f"current_{i}"]) for i in range(layer_count(net))]


def check(net: dict) -> None:
    """A ValueError unless all is there and each synapse leads from a neuron to a neuron."""
    missing = NUMBERS - net.keys()
    if missing:
        raise ValueError(f"it lacks {sorted(missing)}")
    for name in sorted(NUMBERS):
        if net[name].size != 1:
            raise ValueError(f"{name} has {net[name].size} values: expected one")
    for name, least in {"step_ms": 1e-6, "tau_steps": 1, "taps": 1, "tail_steps": 0}.items():
        if not net[name] >= least:
            raise ValueError(f"{name} is {net[name]}: expected at least {least}")
    sizes = layer_sizes(net)
    if len(sizes) < 3:
        raise ValueError(f"{len(sizes) - 1} layers: expected hidden layers and a readout")
    for i in range(len(sizes) - 1):
        limits = {"pre": sizes[i], "post": sizes[i + 1], "delay": int(net["taps"])}
        for name, limit in limits.items():
            values = net[f"{name}_{i}"]
            if values.shape != net[f"weight_{i}"].shape or values.dtype != np.int32:
                raise ValueError(f"{name}_{i} is no int32 for each synapse")
            if not ((values >= 0) & (values < limit)).all():
                raise ValueError(f"{name}_{i} goes beyond 0..{limit - 1}")
        for name in (f"weight_{i}", f"current_{i}"):
            if not np.isfinite(net[name]).all():
                raise ValueError(f"{name} is not finite")


def save(exported: dict[str, np.ndarray], path: str) -> None:
    """Writes the arrays; the file is there whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **exported)
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", exist_ok=True)
    train.write(folder, name, buffer.getvalue())


def export(checkpoint: str, out: str, net: DelaySNN | None = None) -> None:
    """Writes the arrays of a run.  checkpoint, net: path and net of train.load_run."""
    net, options = train.load_run(checkpoint, net)
    exported = arrays(net, options)
    save(exported, out)
    count = sum(len(exported[f"weight_{i}"]) for i in range(layer_count(exported)))
    print(f"{out}: layers of {layer_sizes(exported)} neurons, {count:,} synapses")


def same_network(net: dict, checkpoint: str) -> DelaySNN:
    """The network of a checkpoint; a ValueError unless the arrays were made of it."""
    trained, options = train.load_run(checkpoint)
    exported = arrays(trained, options)
    same = exported.keys() == net.keys()
    if not same or not all(np.array_equal(net[name], exported[name]) for name in net):
        raise ValueError(f"{checkpoint} is not what the arrays were made of: write them anew")
    return trained


def read(path: str) -> dict[str, np.ndarray]:
    """The arrays of a file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            net = dict(file)
        check(net)
        return net
    except FileNotFoundError:
        raise
    except Exception as problem:  # NumPy and zipfile raise many kinds
        raise ValueError(f"{path} was not written by --out, or is broken ({problem})") from problem


def load_test(net: dict, data_dir: str) -> data.Spikes:
    """The test samples of the network's data set."""
    name = str(net["dataset"])
    if name not in data.DATASETS:
        raise ValueError(f"the network is of the data set {name}, which data.py does not have")
    spikes = look.load(name, "test", data_dir)
    found, wanted = spikes.counts.shape[1], int(net["inputs"])
    if found != wanted:
        raise ValueError(f"{name} has {found} inputs here, and the network {wanted}")
    return spikes


# --------------------------------------------------------------------------- the arrays in torch


def run(net: dict, counts: Tensor) -> tuple[list[Tensor], Tensor]:
    """Simulates the arrays: spikes of the hidden layers, each [B, T, N], and the readout.

    counts: [B, T, inputs], with T for the samples' own steps and tail_steps more.
    Returns the membrane of the readout as [B, T, classes].
    """
    tau = float(net["tau_steps"])
    sizes = layer_sizes(net)
    hidden = []
    x = counts
    for i in range(layer_count(net)):
        kernel = torch.zeros(sizes[i + 1], sizes[i], int(net["taps"]))  # [out, in, taps]
        where = [torch.from_numpy(net[f"{name}_{i}"]).long() for name in ("post", "pre", "delay")]
        weight = torch.from_numpy(net[f"weight_{i}"])
        # Synapses of one pair may have the same delay: their weights add up.
        kernel.index_put_(tuple(where), weight, accumulate=True)
        current = delay_conv(x, kernel) + torch.from_numpy(net[f"current_{i}"])  # [B, T, out]
        if i < layer_count(net) - 1:
            x = lif(current, tau, float(net["threshold"]))
            hidden.append(x)
    return hidden, leaky_integrator(current, tau)


def measure(net: dict, samples: data.Spikes, batch_size: int = 256) -> tuple[float, list[Tensor]]:
    """Accuracy, and how many spikes each input and each hidden neuron emits in all samples.

    Returns a tensor of counts for the inputs and for each hidden layer, [neurons].
    """
    tail = int(net["tail_steps"])
    hits = 0
    emitted = [torch.zeros(size, dtype=torch.float64) for size in layer_sizes(net)[:-1]]
    for indices, longest in data.batches(samples, batch_size, shuffle=False):
        steps = samples.steps[indices] + tail
        counts = data.padded(samples, indices, longest + tail)  # [B, T, inputs]
        hidden, membrane = run(net, counts)
        hits += int((class_scores(membrane, steps).argmax(1) == samples.labels[indices]).sum())
        own = torch.arange(longest + tail) < steps[:, None]  # [B, T]
        for total, x in zip(emitted, [counts, *hidden], strict=True):
            total += (x * own[:, :, None]).sum((0, 1))
    return hits / len(samples.labels), emitted


# ------------------------------------------------------------------------- figures for hardware


def rounded(net: dict, bits: int) -> dict:
    """The network with weights of so many bits, sign included, that share a scale in each layer.

    Whole numbers from -(2^(bits-1) - 1) to 2^(bits-1) - 1 times the scale; the largest weight gets
    the last one.  The constant currents stay as they are.
    """
    steps = 2 ** (bits - 1) - 1
    result = dict(net)
    for i in range(layer_count(net)):
        weight = net[f"weight_{i}"]
        scale = np.abs(weight).max() / steps
        if scale > 0:
            result[f"weight_{i}"] = (weight / scale).round() * scale
    return result


def hardware(net: dict, samples: data.Spikes) -> None:
    """Prints the figures, over all test samples with their tails."""
    accuracy, emitted = measure(net, samples)
    layers = range(layer_count(net))
    count = [len(net[f"weight_{i}"]) for i in layers]
    # Each spike is an event at all synapses of its neuron, even if the sample ends before it has
    # passed their delay.  A count of 3 is three spikes.
    events = []
    for i in layers:
        fan_out = np.bincount(net[f"pre_{i}"], minlength=len(emitted[i]))
        events.append(float(emitted[i].numpy() @ fan_out) / len(samples.labels))
    print(f"{sum(count):,} synapses, {sum(events):,.0f} synaptic events a sample")

    step_s = float(net["step_ms"]) / 1000
    total = samples.steps + int(net["tail_steps"])  # [samples]
    print(f"a sample lasts {total.double().mean() * step_s:.2f} s on average, tail included")
    print(f"{'layer':>7}{'neurons':>9}{'synapses':>10}{'events':>11}   spikes/neuron/s")
    names = [str(i + 1) for i in layers[:-1]] + ["readout"]
    sizes = layer_sizes(net)
    for i in layers:
        rate = "-"
        if i + 1 < len(emitted):
            rate = f"{emitted[i + 1].sum() / sizes[i + 1] / (total.sum() * step_s):.2f}"
        print(f"{names[i]:>7}{sizes[i + 1]:>9}{count[i]:>10,}{events[i]:>11,.0f}{rate:>18}")
    rate = emitted[0].sum() / sizes[0] / (samples.steps.sum() * step_s)
    print(f"an input has {rate:.2f} spikes/s in the sample's own steps")

    print_delays(net, names)
    print(f"test accuracy {accuracy:.2%}, with float32 weights")
    for bits in (8, 4):
        accuracy, _ = measure(rounded(net, bits), samples)
        print(f"test accuracy {accuracy:.2%}, with weights of {bits} bits")


def print_delays(net: dict, names: list[str]) -> None:
    """The distribution of the delays, and what Loihi would make of the largest one."""
    shares = (0, 10, 25, 50, 75, 90, 100)
    print("delays in steps: so many % of the synapses have at most")
    print(f"{'layer':>7}" + "".join(f"{share:>6}%" for share in shares))
    for i, name in enumerate(names):
        values = np.percentile(net[f"delay_{i}"], shares, method="lower")
        print(f"{name:>7}" + "".join(f"{value:>7}" for value in values))

    every = np.concatenate([net[f"delay_{i}"] for i in range(len(names))])
    beyond = int((every > NETX_LONGEST).sum())
    print(f"largest delay: {every.max()} steps of {net['step_ms']:g} ms")
    limit = f"Loihi's NetX clips delays above {NETX_LONGEST} steps"
    print(f"{limit}: here {beyond:,} of {len(every):,}")


# -------------------------------------------------------------------------------------- Brian2


def import_brian2():
    try:
        import brian2
    except (AttributeError, ImportError) as problem:  # it may be too old for the NumPy there
        rule = "pip install brian2 (2.9.0 needs numpy<2.4)"
        raise ValueError(f"Brian2 cannot be imported ({problem}): {rule}") from problem
    brian2.prefs.codegen.target = "numpy"  # needs no compiler
    return brian2


def simulate_brian2(net: dict, counts: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Spikes (bool) and potentials h of the hidden layers in Brian2, each [T, N].

    counts: [T, inputs] of one sample, with its tail.
    """
    brian2 = import_brian2()
    step = float(net["step_ms"]) * brian2.ms
    brian2.defaultclock.dt = step

    before, copies = input_cells(brian2, counts, step)
    network = brian2.Network(before)
    monitors = []
    for i in range(layer_count(net) - 1):
        group, arrivals = brian2_layer(brian2, net, i, before, copies, step)
        spikes = brian2.SpikeMonitor(group, when="end")
        potential = brian2.StateMonitor(group, "h", record=True, when="end")
        network.add(group, arrivals, spikes, potential)
        monitors.append((spikes, potential))
        before, copies = group, 1
    network.run(len(counts) * step)

    fired, potentials = [], []
    for spikes, potential in monitors:
        h = np.array(potential.h.T)  # [T, N]
        s = np.zeros(h.shape, bool)
        s[np.rint(spikes.t / step).astype(int), spikes.i] = True
        fired.append(s)
        potentials.append(h)
    return fired, potentials


def brian2_layer(brian2, net: dict, i: int, before, copies: int, step):
    """The neurons of hidden layer i and the synapses onto them.

    By default Brian2 updates all groups, then all thresholds, synapses and resets, so that a layer
    would act on the next one a step late.  Here all parts are in one slot of the schedule, in an
    order of their own: layer after layer, and within each synapses, neurons, threshold, reset.
    """
    group = brian2.NeuronGroup(
        len(net[f"current_{i}"]),
        "v : 1\n h : 1\n arriving : 1\n current : 1",
        threshold="h >= threshold",
        reset="v = 0",
        namespace={"decay": 1 - 1 / float(net["tau_steps"]), "threshold": float(net["threshold"])},
    )
    group.current = net[f"current_{i}"]
    neurons = group.run_regularly("h = decay * v + current + arriving\n v = h\n arriving = 0")
    arrivals = connect(brian2, net, i, before, group, copies, step)

    parts = [arrivals.pre, neurons, group.thresholder["spike"], group.resetter["spike"]]
    for place, part in enumerate(parts):
        part.when = "groups"
        part.order = len(parts) * i + place
    return group, arrivals


def input_cells(brian2, counts: np.ndarray, step):
    """A generator that emits the counts, and how many cells it has for each input.

    A cell emits one spike a step.  So an input has as many cells as the largest count, and a count
    of 3 is a spike of the first three of them.  Cell k * inputs + i is the k-th one of input i.
    """
    copies = max(int(counts.max()), 1)
    inputs = counts.shape[1]
    t, cell = np.nonzero(np.concatenate([counts > k for k in range(copies)], 1))
    generator = brian2.SpikeGeneratorGroup(copies * inputs, cell, t * step, when="groups", order=-1)
    return generator, copies


def connect(brian2, net: dict, i: int, before, group, copies: int, step):
    """The synapses of layer i, once for each copy of the cells before it."""
    arrivals = brian2.Synapses(before, group, "weight : 1", on_pre="arriving_post += weight")
    size = layer_sizes(net)[i]
    pre = np.concatenate([net[f"pre_{i}"] + k * size for k in range(copies)])
    arrivals.connect(i=pre, j=np.tile(net[f"post_{i}"], copies))
    arrivals.weight = np.tile(net[f"weight_{i}"], copies)
    arrivals.delay = np.tile(net[f"delay_{i}"], copies) * step
    return arrivals


def hidden_spikes(net: DelaySNN, counts: Tensor) -> list[Tensor]:
    """Spikes of the hidden layers of a network in torch, each [B, T, N]."""
    arriving = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: arriving.append(inputs[0]))
        for layer in net.layers[1:]
    ]
    net(counts)
    for hook in hooks:
        hook.remove()
    return [spikes[:, : counts.shape[1]] for spikes in arriving]


def differences(net: dict, ours: list, theirs: list, potentials: list) -> tuple[list[tuple], int]:
    """What differs between two simulations of a sample, whose spikes are ours and theirs.

    ours, theirs: bool, for each hidden layer [T, N].  potentials: h, [T, N], of theirs.
    Returns the neurons that differ by themselves, each as (layer, neuron, step, h) of its first
    spike that differs, and how many neurons differ only after such a spike had reached them.
    """
    own, following = [], 0
    never = len(ours[0])
    first = None
    for i in range(len(ours)):
        reached = np.full(ours[i].shape[1], never)  # when a spike that differs arrives
        if i > 0:
            np.minimum.at(reached, net[f"post_{i}"], first[net[f"pre_{i}"]] + net[f"delay_{i}"])
        differs = ours[i] != theirs[i]
        first = np.where(differs.any(0), differs.argmax(0), never)  # [N]
        for neuron in np.flatnonzero(first < never):
            t = first[neuron]
            if reached[neuron] <= t:
                following += 1
            else:
                own.append((i, int(neuron), int(t), float(potentials[i][t, neuron])))
    return own, following


def compare_brian2(net: dict, samples: data.Spikes, number: int, trained: DelaySNN | None) -> None:
    """Compares all hidden spikes of the first test samples; a ValueError if they do not agree.

    trained: the network itself in torch; None takes its arrays.
    """
    number = min(number, len(samples.labels))
    total, unequal, following = 0, 0, 0
    apart = []  # |h - threshold| of the neurons that differ first
    for b in range(number):
        data.progress(f"sample {b + 1} of {number}")
        steps = int(samples.steps[b]) + int(net["tail_steps"])
        counts = data.padded(samples, torch.tensor([b]), steps)  # [1, T, inputs]
        spikes = run(net, counts)[0] if trained is None else hidden_spikes(trained, counts)
        ours = [layer[0].bool().numpy() for layer in spikes]  # [T, N]
        theirs, potentials = simulate_brian2(net, counts[0].numpy())

        total += sum(int(layer.sum()) for layer in ours)
        for here, there in zip(ours, theirs, strict=True):
            unequal += int((here != there).sum())
        own, after = differences(net, ours, theirs, potentials)
        following += after
        for layer, neuron, t, h in own:
            apart.append(abs(h - float(net["threshold"])))
            print(f"sample {b}, hidden layer {layer + 1}, neuron {neuron}, step {t}: h = {h:.9f}")

    print(f"{number} samples, {total:,} hidden spikes in torch, {unequal} that only one of the two")
    print(f"has; {len(apart)} neurons differ by themselves, {following} because of these")
    if apart:
        print(f"largest |h - threshold| where a neuron first differs by itself: {max(apart):.1e}")
    wrong = sum(distance >= ROUNDING for distance in apart)
    if wrong:
        raise ValueError(f"{wrong} neurons differ by more than rounding, which is {ROUNDING:g}")


# ------------------------------------------------------------------------------------ the program


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    beside = "with --brian2: compare with this trained network, not with the arrays in torch"
    add("checkpoint", nargs="?", help=f"a checkpoint, or the folder of a run, for --out;\n{beside}")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--out", metavar="NPZ", help="write the arrays of the checkpoint")
    task.add_argument("--hardware", metavar="NPZ", help="print the figures that hardware asks for")
    task.add_argument("--brian2", metavar="NPZ", help="compare hidden spikes in Brian2 and torch")
    add("--data-dir", default=data.DATA_DIR, help="the data set's files, default: data")
    number = train.number(int, 1)
    add("--samples", type=number, default=20, help="first test samples to compare, default: 20")
    options = parser.parse_args(argv)
    if options.out and not options.checkpoint:
        parser.error("--out needs a run or a checkpoint: export.py RUN --out net.npz")
    if options.out is not None and not options.out.endswith(".npz"):
        parser.error(f"--out {options.out!r}: expected a name that ends in .npz")
    if options.hardware and options.checkpoint:
        parser.error("--hardware takes the arrays alone, no checkpoint")
    return options


@torch.no_grad()
def perform(options: argparse.Namespace) -> None:
    train.set_backend()
    if options.out:
        export(options.checkpoint, options.out)
        return
    net = read(options.hardware or options.brian2)
    samples = load_test(net, options.data_dir)
    if options.hardware:
        hardware(net, samples)
        return
    trained = None
    if options.checkpoint:
        trained = same_network(net, options.checkpoint)
    compare_brian2(net, samples, options.samples, trained)


def main(argv: list[str] | None = None) -> None:
    try:
        with train.sentences("export.py"):
            perform(parse(argv))
    except KeyboardInterrupt:
        sys.exit("\nstopped")


if __name__ == "__main__":
    main()
