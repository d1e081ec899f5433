"""Train a spiking network with learnable delays on SHD, SSC or a toy task, and print its accuracy.

The settings come first, then the network, its schedules, training, and a whole run.  Options and
files come last and may be skipped.
"""

import argparse
import ctypes
import json
import math
import os
import platform
import sys
import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import data
from data import UserError
from delays import DelayedLinear, DelaySNN, shrinking_sigma

# Options and their defaults, which are the paper's for SHD.  The type of an option is that of its
# default; None stands for a float.  A script may add lines of its own.
OPTIONS = {
    "dataset": ("shd", "the data set"),
    "data_dir": ("data", "folder of the files; missing ones are fetched"),
    "valid_speakers": ("", "speakers to hold out for validation: 3,6"),
    "valid_share": (0.0, "fraction to hold out for validation, from all speakers"),
    "no_test": (False, "do not read the test set; needs a validation set"),
    "delays": ("learned", "with constant-sigma, sigma is always 0.5 steps"),
    "hidden": (256, "neurons in each hidden layer"),
    "layers": (2, "number of hidden layers"),
    "taps": (25, "delays are 0 to TAPS - 1 steps"),
    "tau": (10.05, "time constant of the membranes, ms; with steps of 10 ms they forget at once"),
    "tau_readout": (None, "time constant of the readout, ms; None: same as --tau"),
    "dropout": (0.4, "fraction of the hidden neurons silenced in training"),
    "epochs": (150, "passes over the data; fewer than 4 skip the wide start"),
    "batch_size": (256, "samples in a batch"),
    "lr": (5e-3, "peak learning rate of the weights"),
    "delay_lr": (0.1, "initial rate of the delays, in steps"),
    "weight_decay": (1e-5, "L2 penalty of the weights"),
    "seed": (0, "seed of all random numbers"),
    "device": ("auto", "auto is a GPU if there is one"),
    "out": ("", "new folder for the results; without it: runs/DATASET-DELAYS-SEED, if free"),
    "resume": ("", "continue the run in this folder"),
    "eval": ("", "only print the accuracy of the run in this folder"),
}
# What a data set has instead.  SSC's are the paper's.  SHD in steps of 20 ms is the quick way.
STEPS_20_MS = dict(taps=13, tau=20.1, batch_size=128, epochs=20)
DEFAULTS = {
    "shd-20ms": STEPS_20_MS,
    "shd-regenerated-20ms": STEPS_20_MS,
    "ssc": dict(hidden=512, layers=3, taps=31, tau=15.0, dropout=0.25, batch_size=128, epochs=60),
    "toy": dict(hidden=40, layers=1, taps=33, dropout=0.0, batch_size=50, epochs=20),
}
# The folder of a run without --out.  If it exists, -2, -3, ... is added.
RUNS = "runs/{dataset}-{delays}-{seed}"

# ---------------------------------------------------------------------- the network, its optimizer


def build(options: argparse.Namespace, net_class: type[DelaySNN] = DelaySNN) -> DelaySNN:
    """Return the network that the options and their seed describe, on the CPU.  Seeds torch."""
    dataset = data.DATASETS[options.dataset]
    tau_readout = options.tau if options.tau_readout is None else options.tau_readout
    torch.manual_seed(options.seed)
    return net_class(
        dataset.inputs,
        [options.hidden] * options.layers,
        dataset.classes,
        taps=1 if options.delays == "none" else options.taps,
        tau=options.tau / dataset.step_ms,
        tau_readout=tau_readout / dataset.step_ms,
        dropout=options.dropout,
        learn_delays=options.delays in ("learned", "constant-sigma"),
    )


def delayed_layers(net: nn.Module) -> list[DelayedLinear]:
    """Return every DelayedLinear in a network, however deeply nested."""
    return [module for module in net.modules() if isinstance(module, DelayedLinear)]


def make_optimizer(net: nn.Module, options: argparse.Namespace) -> torch.optim.Adam:
    """Return Adam for all parameters of the network, in three groups: weights, delays, others.

    Weights are those of DelayedLinear layers.  Delays are what has a name that ends in "delay";
    with fixed delays there are none.  Only the weights decay, which is the authors' choice.
    """
    weights = [layer.weight for layer in delayed_layers(net)]
    delays = [value for name, value in net.named_parameters() if name.endswith("delay")]
    grouped = {*weights, *delays}
    others = [parameter for parameter in net.parameters() if parameter not in grouped]
    decayed = {"params": weights, "weight_decay": options.weight_decay}
    return torch.optim.Adam([decayed, {"params": delays}, {"params": others}], fused=True)


# ----------------------------------------------------------------------------------- the schedules


def one_cycle(epoch: int, epochs: int, peak: float) -> tuple[float, float]:
    """Return the learning rate and Adam's beta1 of an epoch, counted from 0.

    The rate rises along half a cosine from peak / 25 to the peak, at epoch 0.3 epochs - 1, and
    falls along half a cosine to peak / 250,000.  beta1 goes from 0.95 to 0.85 and back.  These are
    the values of torch's OneCycleLR, except that runs of up to three epochs begin at the peak.
    """
    # nearness goes from 0 in the first epoch to 1 at the peak and back to 0 in the last epoch.
    peak_at = max(0.3 * epochs - 1, 0)
    if epoch < peak_at:
        lowest, nearness = peak / 25, epoch / peak_at
    else:
        lowest, nearness = peak / 25e4, 1 - (epoch - peak_at) / max(epochs - 1 - peak_at, 1)
    height = (1 - math.cos(math.pi * nearness)) / 2  # the same, along half a cosine
    return lowest + (peak - lowest) * height, 0.95 - 0.1 * height


def set_schedules(net: nn.Module, optimizer, epoch: int, options: argparse.Namespace) -> None:
    """Set the learning rates, Adam's beta1 and each layer's sigma for an epoch, counted from 0.

    The delays' rate is delay_lr (1 + cos(pi epoch / epochs)) / 2, with a constant beta1.
    """
    lr, beta1 = one_cycle(epoch, options.epochs, options.lr)
    weights, delays, others = optimizer.param_groups
    weights.update(lr=lr, betas=(beta1, 0.999))
    others.update(lr=lr, betas=(beta1, 0.999))
    delays["lr"] = options.delay_lr * (1 + math.cos(math.pi * epoch / options.epochs)) / 2

    shrinks = options.delays == "learned"  # constant-sigma: always 0.5; fixed: not used
    for layer in delayed_layers(net):
        layer.sigma = shrinking_sigma(epoch, options.epochs, layer.taps) if shrinks else 0.5


# -------------------------------------------------------------------------- training and evaluation


def cross_entropy(net, counts: Tensor, membrane: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of a batch, a number: the cross-entropy of its class scores.

    counts: [B, T, inputs], for a loss of your own.  membrane: net(counts), [B, T + net.tail,
    classes].  labels: [B].  All steps count, as in the authors' training: also the zeros that
    follow the shorter samples.
    """
    return F.cross_entropy(net.scores(membrane), labels)


def train_epoch(net, optimizer, spikes, epoch, options, loss=cross_entropy, augment=None) -> list:
    """Train on all samples once.  Returns the means of loss, accuracy and each firing rate."""
    net.train()
    sums = 0  # accumulates on the device; the tolist() below is the only wait for a GPU
    for number, (indices, counts) in enumerate(data.batches(spikes, options.batch_size), 1):
        labels = spikes.labels[indices]  # [B]
        if augment is not None:
            counts = augment(counts, labels)
        membrane = net(counts)  # [B, T + tail, classes]
        batch_loss = loss(net, counts, membrane, labels)

        optimizer.zero_grad()
        batch_loss.backward()
        optimizer.step()
        for layer in delayed_layers(net):
            layer.clamp_delays()

        guess = net.scores(membrane.detach()).argmax(1)
        accuracy = (guess == labels).double().mean()
        sums = sums + torch.stack([batch_loss, accuracy, *net.rates]).detach() * len(labels)
        data.progress(f"epoch {epoch + 1} of {options.epochs}, batch {number}")
    return (sums / len(spikes.labels)).tolist()


@torch.no_grad()
def predict(net: DelaySNN, spikes: data.Spikes, batch_size: int = 256, rounded=True) -> Tensor:
    """Return the class scores of all samples, [samples, classes], in the order of the samples.

    A sample's scores are summed over its own steps and the tail, so they do not depend on the rest
    of its batch.  The network runs in evaluation mode, and its mode is restored.
    rounded: False uses the training kernels instead of rounded delays.
    """
    was_training = net.training
    net.eval()
    for layer in delayed_layers(net):
        layer.train(not rounded)  # a layer in training mode has its training kernel
    steps = spikes.steps.to(spikes.labels.device)
    order, scores = [], []
    for indices, counts in data.batches(spikes, batch_size, shuffle=False):
        # In training, hidden layers run on in the padding that follows most samples, and their late
        # spikes count.  These zeros follow every sample.
        counts = F.pad(counts, (0, 0, 0, net.tail))
        membrane = net(counts)
        if membrane.shape[1] < counts.shape[1]:  # then scores would depend on the batch
            found = f"the network returned {membrane.shape[1]} steps for {counts.shape[1]}"
            raise UserError(f"{found}: expected at least as many (a stride belongs in the reader)")
        scores.append(net.scores(membrane, steps[indices] + net.tail))
        order.append(indices)
    net.train(was_training)
    return torch.cat(scores)[torch.cat(order).argsort()]  # back from the order of the batches


def evaluate(net: DelaySNN, spikes: data.Spikes, batch_size: int = 256, rounded=True) -> float:
    """Return the accuracy, correct / total.  The arguments are those of predict."""
    guess = predict(net, spikes, batch_size, rounded).argmax(1)
    return (guess == spikes.labels).sum().item() / len(spikes.labels)


# ------------------------------------------------------------------------------------- a whole run


def train(options, net=None, loss=None, augment=None, before_epoch=None, after_epoch=None) -> dict:
    """Train a network, or resume the run in options.resume, and write all files of its folder.

    options: from parse.
    net: a network to train instead of build(options), with .rates, .tail and .scores as DelaySNN.
        All of its parameters are trained.  Build it from the same seed to resume its run.
    loss: a function to use instead of cross_entropy, with the same arguments.
    augment: a function of (counts [B, T, inputs], labels [B]) that returns the counts to train on.
    before_epoch: a function of (net, optimizer, epoch from 0, options), called in each epoch after
        its learning rates and sigma are set.  It may change them, and the network.
    after_epoch: a function of (net, row of the log), called before the epoch is saved.  It may add
        numbers to the row.  It must not change the network, whose accuracies the row has.
    These functions have to draw from torch's generator: NumPy's is not seeded.
    Returns the content of result.json, and leaves the network in evaluation mode.
    """
    set_backend()
    datasets = load_sets(options)
    net = (build(options) if net is None else net).to(options.device)
    loss = loss or cross_entropy
    optimizer = make_optimizer(net, options)
    layers = delayed_layers(net)
    # Copy the initial delays now: in a resumed run, its trained ones will overwrite them.
    first_delays = [layer.delay.detach().clone() for layer in layers]
    # config.json names the parts of a run, and --resume checks that its script has the same.
    parts = dict(network=type(net), loss=loss, augment=augment, before_epoch=before_epoch)
    names = {part: name_of(own) for part, own in parts.items()}

    rows = []  # of the log
    if options.resume:
        check_names(options.out, names)
    else:
        start(net, optimizer, datasets, names, options)
    if os.path.exists(os.path.join(options.out, "last.pt")):  # else no epoch has ended yet
        saved = load_checkpoint(options.out, "last.pt", net)
        optimizer.load_state_dict(saved["adam"])
        rows = saved["rows"]
    # With a validation set, the test set is not evaluated until the last epoch has ended.
    monitored = "valid" if "valid" in datasets else "test"

    for epoch in range(len(rows), options.epochs):
        begun = time.time()
        # Each epoch has its own seed, so a resumed run needs no state of the generator.  Without
        # the factor, the second epoch of seed 0 would draw the numbers of the first of seed 1.
        torch.manual_seed(options.seed + 1_000_003 * (epoch + 1))
        set_schedules(net, optimizer, epoch, options)
        if before_epoch is not None:
            before_epoch(net, optimizer, epoch, options)
        means = train_epoch(net, optimizer, datasets["train"], epoch, options, loss, augment)
        # A nan silences its neuron (nan >= 1 is False), so the loss alone may stay finite.
        for name, value in {"the loss": torch.tensor(means[0]), **net.state_dict()}.items():
            if not value.isfinite().all():
                raise UserError(f"{name} is not finite after epoch {epoch + 1}: try a lower --lr")

        accuracy = evaluate(net, datasets[monitored], options.batch_size)
        row = {
            "epoch": epoch + 1,
            "loss": means[0],
            "train_accuracy": means[1],
            "valid_accuracy": accuracy if monitored == "valid" else None,
            "test_accuracy": accuracy if monitored == "test" else None,
            "sigma": layers[0].sigma if layers[0].learn_delays else None,
            "lr": optimizer.param_groups[0]["lr"],
            "moved_ms": moved_ms(layers, first_delays, options),
            **{f"rate_{i}": rate for i, rate in enumerate(means[2:], 1)},
            "seconds": time.time() - begun,
        }
        if after_epoch is not None:
            after_epoch(net, row)
        rows.append(row)
        save(net, optimizer, rows, options)
        print_row(row)

    return finish(net, datasets, rows, options)


def reported_epoch(rows: list[dict], options: argparse.Namespace) -> int:
    """Return the reported epoch: the first of the best on validation, or else the last."""
    accuracy = [row["valid_accuracy"] for row in rows]
    if None in accuracy or options.valid_speakers:  # which are held out to compare ideas
        return len(rows)
    return accuracy.index(max(accuracy)) + 1


def finish(net: DelaySNN, datasets: dict[str, data.Spikes], rows: list[dict], options) -> dict:
    """Evaluate the network of the reported epoch, print its accuracy and write result.json."""
    load_checkpoint(options.out, "net.pt", net)  # the network of the reported epoch
    net.eval()
    epoch = reported_epoch(rows, options)
    chosen = "valid" in datasets and not options.valid_speakers  # by its validation accuracy
    split = "test" if "test" in datasets else "valid"
    accuracy = evaluate(net, datasets[split], options.batch_size)
    result = {
        **{name: vars(options)[name] for name in ("dataset", "delays", "seed", "epochs")},
        "parameters": count(net.parameters()),
        "test_accuracy": accuracy if split == "test" else None,
        "rule": f"best on validation, epoch {epoch}" if chosen else "last epoch",
        "valid_accuracy": rows[epoch - 1]["valid_accuracy"],
        "unrounded_accuracy": evaluate(net, datasets[split], options.batch_size, rounded=False),
        "seconds": sum(row["seconds"] for row in rows),
    }
    write(options.out, "result.json", json.dumps(result, indent=1))

    unrounded = f"{result['unrounded_accuracy']:.2%} with the training kernels"
    print(f"{split} accuracy {accuracy:.2%} ({result['rule']}; {unrounded})")
    return result


# ------------------------------------ the rest is options and files: skip this on a first reading


def parse(argv: list[str]) -> argparse.Namespace:
    """Return all options: those given, else the saved run's, else the data set's defaults.

    Raises a UserError for options that are out of range or do not fit the saved run.
    """
    parser = argparse.ArgumentParser(
        usage="python train.py [option ...]; -h lists the options",
        description="Defaults are SHD's.  DEFAULTS, in train.py, has what other data sets take.",
        argument_default=argparse.SUPPRESS,  # leaves out what is not given
        allow_abbrev=False,
    )
    choices = dict(dataset=list(data.DATASETS), device=["auto", "cpu", "cuda"])
    choices["delays"] = ["learned", "constant-sigma", "fixed", "none"]
    for name, (default, text) in OPTIONS.items():
        kind = float if default is None else type(default)
        words = dict(type=kind, choices=choices.get(name))
        if default is False:
            words = dict(action="store_true")
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, help=f"{text} (default: {default!r})", **words)
    given = vars(parser.parse_args(argv))

    folders = {name: given[name] for name in ("out", "resume", "eval") if name in given}
    if len(folders) > 1 or "" in folders.values():
        raise UserError(f"{folders}: expected a folder, for one of --out, --resume and --eval")
    run = given.get("resume") or given.get("eval")
    own = read_options(run) if run else defaults(given.get("dataset", "shd"))
    if unknown := sorted(own.keys() - OPTIONS.keys()):
        raise UserError(f"{run or 'train.DEFAULTS'} has options of another script, {unknown}")
    for name in sorted(given.keys() - {"resume", "eval", "device", "data_dir"}):
        if run and given[name] != own[name]:
            raise UserError(f"{run} used {name} {own[name]}: leave it out, or start a new run")
    options = argparse.Namespace(**own | given)
    options.out = options.resume or options.out
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    check(options)
    return options


def defaults(dataset: str = "shd") -> dict:
    """Return the default of each option for a data set."""
    return {name: default for name, (default, _) in OPTIONS.items()} | DEFAULTS.get(dataset, {})


def check(options: argparse.Namespace) -> None:
    """Raise a UserError for an option that is out of range, or that another one excludes."""
    own = vars(options)
    limits = dict.fromkeys(["hidden", "layers", "taps", "epochs", "batch_size"], (1, math.inf))
    limits |= dict.fromkeys(["dropout", "valid_share"], (0, 1))
    step = data.DATASETS[options.dataset].step_ms
    limits |= dict.fromkeys(["tau", "tau_readout"], (step, math.inf))
    for name, (low, high) in limits.items():
        if own[name] is not None and not low <= own[name] < high:  # also rejects nan
            found = f"{name} {own[name]} ({OPTIONS[name][1]})"
            raise UserError(f"{found}: expected at least {low} and below {high}")
    if options.valid_speakers and options.valid_share:
        raise UserError("valid_speakers and valid_share: expected one of them at most")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: torch finds no GPU here; use cpu or auto")
    if options.resume and os.path.exists(os.path.join(options.resume, "result.json")):
        run = options.resume
        raise UserError(f"{run} has ended and cannot be resumed: --eval {run} prints its accuracy")


def set_backend() -> None:
    """Set full precision on a GPU, and two settings that make a CPU fast."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_flush_denormal(True)  # denormal numbers, which slow some CPUs down, become 0
    if platform.libc_ver()[0] == "glibc":
        # Otherwise big blocks of memory go back to the system when they are freed, and have to be
        # cleared again in every step: up to a third of its time.
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block is mapped on its own
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: freed memory is kept


def load_sets(options: argparse.Namespace) -> dict[str, data.Spikes]:
    """Return the splits that a run needs, on its device."""
    holds_out = options.valid_speakers or options.valid_share
    unread = ["test"] if options.no_test else []
    if options.eval and not holds_out:  # else train is read, since what it holds out is evaluated
        unread.append("train")
    splits = [split for split in data.DATASETS[options.dataset].splits if split not in unread]
    datasets = {split: data.load(options.dataset, split, options.data_dir) for split in splits}
    if holds_out:  # replaces the data set's own validation set
        everyone = datasets["train"]
        which = held_out(everyone, options)
        datasets["train"], datasets["valid"] = everyone.select(~which), everyone.select(which)
    if datasets.keys() == {"train"}:
        raise UserError("no test and no validation set: hold out samples, as by --valid-share 0.2")
    return {split: spikes.to(options.device) for split, spikes in datasets.items()}


def held_out(spikes: data.Spikes, options: argparse.Namespace) -> np.ndarray:
    """Return which training samples the options hold out for validation, bool [samples]."""
    if options.valid_speakers:
        speakers = spikes.speakers.astype(str)
        found = sorted(set(speakers.tolist()))
        wanted = options.valid_speakers.split(",")
        if not set(wanted) < set(found):  # a proper subset
            raise UserError(f"--valid-speakers {wanted}: expected some, not all, of {found[:20]}")
        return np.isin(speakers, wanted)
    # With a generator of its own, a seed holds out the same samples for every variant.
    rank = np.random.default_rng([abs(options.seed), 1]).permutation(len(spikes.labels))
    return rank < options.valid_share * len(rank)


def moved_ms(layers: list[DelayedLinear], first_delays: list[Tensor], options) -> float:
    """Return how far the delays have moved, in ms: the mean over all synapses."""
    moved = [
        (layer.delay.detach() - first).abs().expand_as(layer.weight).flatten()
        for layer, first in zip(layers, first_delays, strict=True)
    ]
    return torch.cat(moved).mean().item() * data.DATASETS[options.dataset].step_ms


def count(parameters) -> int:
    """Return how many numbers are trained."""
    return sum(own.numel() for own in parameters if own.requires_grad)


def start(net: nn.Module, optimizer, datasets: dict[str, data.Spikes], names: dict, options):
    """Make the folder of a new run, set options.out to it, and write its config.json."""
    if options.out and os.path.exists(options.out):
        raise UserError(f"{options.out} exists: continue it by --resume, or choose another --out")
    usual = options.out or RUNS.format(**vars(options))
    options.out, number = usual, 1
    while os.path.exists(options.out):
        number += 1
        options.out = f"{usual}-{number}"
    os.makedirs(options.out)

    config = names | {
        "options": vars(options),
        "samples": {split: len(spikes.labels) for split, spikes in datasets.items()},
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
    }
    write(options.out, "config.json", json.dumps(config, indent=1))
    print(options.dataset, config["samples"])
    delays = count(optimizer.param_groups[1]["params"])
    print(f"{count(net.parameters()):,} parameters, {delays:,} of them delays")
    print(f"results in {options.out}; if stopped, continue with --resume {options.out}")


def check_names(folder: str, names: dict) -> None:
    """Raise a UserError unless the network and functions of a run have these names."""
    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)
    for part, name in names.items():
        if config[part] != name:
            raise UserError(f"{part} is {config[part]}, not {name}: use the script of the run")


def save(net: nn.Module, optimizer, rows: list[dict], options) -> None:
    """Write an epoch's checkpoints and log: last.pt comes last, since --resume reads it."""
    sigmas = [float(layer.sigma) for layer in delayed_layers(net)]
    state = {"net": net.state_dict(), "sigma": sigmas}
    if reported_epoch(rows, options) == len(rows):  # so far, this epoch would be reported
        write(options.out, "net.pt", state)
    lines = [rows[0].keys(), *(row.values() for row in rows)]
    texts = [["" if value is None else str(value) for value in line] for line in lines]
    write(options.out, "log.csv", "".join(",".join(line) + "\n" for line in texts))
    write(options.out, "last.pt", state | {"adam": optimizer.state_dict(), "rows": rows})


def name_of(part) -> str | None:
    """Return the name of a part of a run; of a functools.partial, that of its function."""
    part = getattr(part, "func", part)
    return None if part is None else getattr(part, "__name__", type(part).__name__)


def load_checkpoint(folder: str, name: str, net: nn.Module) -> dict:
    """Load the weights and sigma of a checkpoint into a network.  Returns all that it holds."""
    saved = torch.load(os.path.join(folder, name), map_location="cpu", weights_only=True)
    net.load_state_dict(saved["net"])
    for layer, sigma in zip(delayed_layers(net), saved["sigma"], strict=True):
        layer.sigma = sigma
    return saved


def read_options(folder: str) -> dict:
    """Return the options of a saved run.  An option that the run lacks has its default."""
    with open(os.path.join(folder, "config.json")) as file:
        options = json.load(file)["options"]
    if options["dataset"] not in data.DATASETS:
        raise UserError(f"{folder} was trained on {options['dataset']}: use the script of the run")
    return defaults() | options


def load_run(folder: str, net: DelaySNN | None = None) -> tuple[DelaySNN, argparse.Namespace]:
    """Return the network of a run at its reported epoch, in evaluation mode, and its options.

    net: a network of your own, built like the one that was trained.  Default: build(options).
    """
    options = argparse.Namespace(**read_options(folder))
    net = build(options) if net is None else net
    check_names(folder, {"network": type(net).__name__})
    load_checkpoint(folder, "net.pt", net)
    return net.eval(), options


def write(folder: str, name: str, content: dict | str) -> None:
    """Write a file atomically, with torch.save if the content is a dict."""
    path = os.path.join(folder, name)
    with open(path + ".part", "wb") as file:
        if isinstance(content, dict):
            torch.save(content, file)
        else:
            file.write(content.encode())
    os.replace(path + ".part", path)


def print_row(row: dict) -> None:
    """Print a row of the log, and the names of its columns every 25 epochs."""
    if row["epoch"] % 25 == 1:
        print(*(f"{name.replace('accuracy', 'acc'):>9}" for name in row))
    values = ("-" if value is None else round(value, 5) for value in row.values())
    print(*(f"{value:>9}" for value in values), flush=True)


def main(argv=None, net_class=DelaySNN, **hooks) -> None:
    """Run the command line, for networks of the class net_class, with the hooks of train.

    A UserError or OSError is printed as one line; any other error keeps its traceback.
    """
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
        net = build(options, net_class)
        if not options.eval:
            train(options, net, **hooks)
            return
        set_backend()
        load_run(options.eval, net)
        datasets = load_sets(options)
        split = "test" if "test" in datasets else "valid"
        accuracy = evaluate(net.to(options.device), datasets[split], options.batch_size)
        print(f"{split} accuracy {accuracy:.2%} ({options.eval})")
    except (UserError, OSError) as problem:
        sys.exit(f"train.py: {problem}")


if __name__ == "__main__":
    main()
