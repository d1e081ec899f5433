"""Trains a spiking network with learnable delays on SHD, SSC or a toy task; prints its accuracy.

In reading order: the settings, the network and its optimizer, the schedules, an epoch and an
evaluation, a whole run.  Options and files come last and may be skipped.
"""

import argparse
import ctypes
import io
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
from delays import DelayedLinear, DelaySNN, class_scores, shrinking_sigma

# The paper's settings (SHD and SSC) and those of the toy task.  tau is in ms here, and in steps in
# delays.py.  lr is the peak of the weights' learning rate, delay_lr the delays' initial one.
# fmt: off
DEFAULTS = {
    "shd": dict(hidden=256, layers=2, taps=25, tau=10.05, dropout=0.4, batch_size=256, epochs=150,
                lr=5e-3, delay_lr=0.1, weight_decay=1e-5),
    "ssc": dict(hidden=512, layers=3, taps=31, tau=15.0, dropout=0.25, batch_size=128, epochs=60,
                lr=5e-3, delay_lr=0.1, weight_decay=1e-5),
    "toy": dict(hidden=40, layers=1, taps=33, tau=10.05, dropout=0.0, batch_size=50, epochs=20,
                lr=5e-3, delay_lr=0.1, weight_decay=1e-5),
}
# fmt: on

# ---------------------------------------------------------------------- the network, its optimizer


def build(options: argparse.Namespace, kind: type[DelaySNN] = DelaySNN) -> DelaySNN:
    """The network that the options and their seed describe, on the CPU.  Seeds torch.

    kind: DelaySNN or a subclass of it.
    """
    dataset = data.DATASETS[options.dataset]
    tau_readout = options.tau if options.tau_readout is None else options.tau_readout
    for tau in (options.tau, tau_readout):
        if not tau >= dataset.step_ms:  # and not <, since that lets nan through
            rule = f"expected at least {dataset.step_ms} ms, a step"
            raise UserError(f"--tau or --tau-readout {tau}: {rule}")
    if not 0 <= options.dropout < 1:
        raise UserError(f"--dropout {options.dropout}: expected a share, 0 to below 1")
    torch.manual_seed(options.seed)
    return kind(
        dataset.inputs,
        [options.hidden] * options.layers,
        dataset.classes,
        taps=1 if options.delays == "none" else options.taps,
        tau=options.tau / dataset.step_ms,
        tau_readout=tau_readout / dataset.step_ms,
        dropout=options.dropout,
        count=options.kernel_count,
        learn_delays=options.delays in ("learned", "constant-sigma"),
        connections=options.connections,
    )


def delayed_layers(net: nn.Module) -> list[DelayedLinear]:
    return [module for module in net.modules() if isinstance(module, DelayedLinear)]


def make_optimizer(net: nn.Module, options: argparse.Namespace) -> torch.optim.Adam:
    """Adam for all parameters of the network, in three groups: weights, delays and all others.

    Fixed delays are no parameters, so their group is empty.  set_schedules sets the learning rates
    in each epoch.
    """
    layers = delayed_layers(net)
    weights = [layer.weight for layer in layers]
    delays = [parameter for layer in layers for parameter in layer.delay_parameters()]
    placed = {id(parameter) for parameter in weights + delays}
    others = [parameter for parameter in net.parameters() if id(parameter) not in placed]
    decayed = {"params": weights, "weight_decay": options.weight_decay}
    return torch.optim.Adam([decayed, {"params": delays}, {"params": others}], fused=True)


# ----------------------------------------------------------------------------------- the schedules


def one_cycle(epoch: int, epochs: int, peak: float) -> tuple[float, float]:
    """Learning rate and Adam's beta1 of an epoch, counted from 0.

    Half a cosine leads from peak / 25 up to the peak, at 30 % of the epochs, and half a cosine down
    to peak / 250,000.  beta1 goes from 0.95 to 0.85 and back.  In runs of at least four epochs,
    these are the values of torch's OneCycleLR.  A function of the epoch has no state to save.
    """
    # The epoch of the peak, counted from 0, as OneCycleLR has it: it need not be a whole number.
    top = max(0.3 * epochs - 1, 0)
    if epoch < top:
        low, risen = peak / 25, epoch / top
    else:
        low, risen = peak / 25e4, 1 - (epoch - top) / max(epochs - 1 - top, 1)
    height = (1 - math.cos(math.pi * risen)) / 2  # 0 to 1
    return low + (peak - low) * height, 0.95 - 0.1 * height


def set_sigma(net: nn.Module, epoch: int, options: argparse.Namespace) -> None:
    for layer in delayed_layers(net):
        shrinks = options.delays == "learned"
        layer.sigma = shrinking_sigma(epoch, options.epochs, layer.taps) if shrinks else 0.5


def set_schedules(optimizer, net, epoch: int, options: argparse.Namespace) -> float:
    """Sets the learning rates, Adam's beta1 and sigma of an epoch; returns the weights' rate.

    The delays' rate is a cosine from its first value towards 0, with a constant beta1, as in the
    paper.
    """
    lr, beta1 = one_cycle(epoch, options.epochs, options.lr)
    delay_lr = options.delay_lr * (1 + math.cos(math.pi * epoch / options.epochs)) / 2
    weights, delays, others = optimizer.param_groups
    weights.update(lr=lr, betas=(beta1, 0.999))
    others.update(lr=lr, betas=(beta1, 0.999))
    delays.update(lr=delay_lr, betas=(0.9, 0.999))
    set_sigma(net, epoch, options)
    return lr


# -------------------------------------------------------------------------- an epoch, an evaluation


def cross_entropy(net, counts: Tensor, steps: Tensor, membrane: Tensor, labels: Tensor) -> Tensor:
    """The loss of a batch: the cross-entropy of the class scores, a number.

    counts: [B, T, inputs]; losses of one's own may need them.
    steps: [B], the samples' own, on the CPU; the network goes on for net.tail more.
    membrane: net(counts, steps), [B, T + net.tail, classes].  labels: [B].
    """
    return F.cross_entropy(class_scores(membrane, steps + net.tail), labels)


def train_epoch(net, optimizer, spikes: data.Spikes, options, loss=cross_entropy) -> list[float]:
    """A pass over all samples.  Returns the means of loss, accuracy and each layer's rate."""
    net.train()
    sums = 0  # becomes a tensor that stays on its device: each look at a number makes a GPU wait
    batches = data.batches(spikes, options.batch_size)
    for number, (indices, longest) in enumerate(batches, 1):
        counts = data.padded(spikes, indices, longest)  # [B, T, inputs]
        counts = data.augment(counts, options.shift)
        labels = spikes.labels[indices].to(counts.device)
        # The authors' way is torch.full_like(indices, longest) here: then padding counts as well.
        steps = spikes.steps[indices]  # [B]
        membrane = net(counts, steps)  # [B, T + tail, classes]
        batch_loss = loss(net, counts, steps, membrane, labels)

        optimizer.zero_grad()
        batch_loss.backward()
        check_gradients(net)
        optimizer.step()
        for layer in delayed_layers(net):
            layer.clamp_delays()

        guess = class_scores(membrane.detach(), steps + net.tail).argmax(1)
        accuracy = (guess == labels).to(membrane.dtype).mean()
        sums = sums + torch.stack([batch_loss, accuracy, *net.rates]).detach() * len(labels)
        data.progress(f"batch {number} of {len(batches)}")
    return (sums / len(spikes.labels)).tolist()


def check_gradients(net: nn.Module) -> None:
    """Refuses a parameter that the loss does not reach: Adam would leave it out without a word."""
    for name, parameter in net.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            rule = "if a threshold hides it, use delays.spike; else set requires_grad to False"
            raise UserError(f"{name} gets no gradient from the loss: {rule}")


def predict(net: DelaySNN, spikes: data.Spikes, indices: Tensor, longest: int) -> Tensor:
    """Class scores [B, classes] of some samples, over their own steps and the network's tail.

    In the mode that the network is in: call net.eval() first for whole steps.
    """
    steps = spikes.steps[indices]
    return class_scores(net(data.padded(spikes, indices, longest), steps), steps + net.tail)


@torch.no_grad()
def evaluate(net: DelaySNN, spikes: data.Spikes, batch_size: int) -> float:
    """Correct / total in evaluation; leaves the network in the mode that it was in."""
    was_training = net.training
    net.eval()
    hits = 0
    for indices, longest in data.batches(spikes, batch_size, shuffle=False):
        guess = predict(net, spikes, indices, longest).argmax(1)
        hits = hits + (guess == spikes.labels[indices].to(guess.device)).sum()
    net.train(was_training)
    return hits.item() / len(spikes.labels)


def evaluate_unrounded(net: DelaySNN, spikes: data.Spikes, batch_size: int) -> float:
    """Accuracy with the kernels of training in place of whole steps."""
    layers = [layer for layer in delayed_layers(net) if layer.whole_steps]
    for layer in layers:
        layer.whole_steps = False
    accuracy = evaluate(net, spikes, batch_size)
    for layer in layers:
        layer.whole_steps = True
    return accuracy


# ------------------------------------------------------------------------------------------ a run


def train(options: argparse.Namespace, net=None, loss=None, on_epoch=None) -> dict:
    """Trains, or continues the run that options.resume names, and writes all of its folder.

    options: of parse.
    net: a network of one's own in place of build(options), with the .layers, .rates and .tail of
        DelaySNN.  All of its parameters are trained.
    loss: a function with the arguments of cross_entropy, in place of that.
    on_epoch: a function of (net, row of the log), called after each epoch.
    Returns what result.json holds.  Raises a UserError for what the user can mend.
    """
    set_backend()
    sets = load_sets(options)
    net = (build(options) if net is None else net).to(options.device)
    optimizer = make_optimizer(net, options)
    # As the seed draws them.  In a run that goes on, resume loads later ones afterwards.
    first_delays = [layer.positions().detach().clone() for layer in delayed_layers(net)]
    rows = resume(net, optimizer, options) if options.resume else start(net, sets, options)
    # The set that each epoch ends with.  Where there is a valid, test is judged in finish alone.
    watched = "valid" if "valid" in sets else "test"

    for epoch in range(len(rows), options.epochs):
        begun = time.time()
        # A seed for each epoch: a run that goes on needs no saved state of the generator.  The
        # factor keeps the epochs of one seed from those of the next.
        torch.manual_seed(options.seed + 1_000_003 * (epoch + 1))
        lr = set_schedules(optimizer, net, epoch, options)
        means = train_epoch(net, optimizer, sets["train"], options, loss or cross_entropy)
        if not math.isfinite(means[0]):
            raise UserError(f"the loss of epoch {epoch + 1} is {means[0]}: try a lower --lr")

        accuracy = evaluate(net, sets[watched], options.batch_size)
        row = {
            "epoch": epoch + 1,
            "loss": means[0],
            "train_accuracy": means[1],
            "valid_accuracy": accuracy if watched == "valid" else None,
            "test_accuracy": accuracy if watched == "test" else None,
            "sigma": net.layers[0].sigma if net.layers[0].learn_delays else None,
            "lr": lr,
            "moved_ms": moved_ms(net, first_delays, options),
            **{f"rate_{i}": rate for i, rate in enumerate(means[2:], 1)},
            "seconds": time.time() - begun,
        }
        rows.append(row)
        print_row(row)
        save(net, optimizer, rows, options)
        if on_epoch is not None:
            on_epoch(net, row)

    result = finish(net, sets, rows, options)
    write(options.out, "result.json", json.dumps(result, indent=1))
    return result


def best_epoch(rows: list[dict]) -> int | None:
    """The epoch that validation chooses, the first of the best ones; None without validation."""
    accuracy = [row["valid_accuracy"] for row in rows]
    return None if None in accuracy else accuracy.index(max(accuracy)) + 1


def finish(net: DelaySNN, sets: dict[str, data.Spikes], rows: list[dict], options) -> dict:
    """What result.json holds.  The epoch that counts is validation's best or else the last."""
    best = best_epoch(rows)
    if best is not None:
        load_checkpoint(options.out, "best.pt", net)
    row = rows[-1] if best is None else rows[best - 1]
    set_sigma(net, row["epoch"] - 1, options)  # of that epoch, for the unrounded kernels
    test = sets.get("test")
    judged = sets["valid"] if test is None else test
    size = options.batch_size
    result = {key: vars(options)[key] for key in ("dataset", "delays", "seed", "epochs")}
    return result | {
        "parameters": count_parameters(net),
        "test_accuracy": None if test is None else evaluate(net, test, size),
        "rule": "last epoch" if best is None else f"best on validation, epoch {best}",
        "valid_accuracy": row["valid_accuracy"],
        "best_on_test": max(row["test_accuracy"] for row in rows) if best is None else None,
        "unrounded_accuracy": evaluate_unrounded(net, judged, size),
        "seconds": sum(row["seconds"] for row in rows),
    }


def load_sets(options: argparse.Namespace) -> dict[str, data.Spikes]:
    """The splits that a run needs, as data.Spikes on its device: train, and valid, test or both."""
    splits = data.DATASETS[options.dataset].splits
    if not set(splits) <= {"train", "valid", "test"}:
        raise UserError(f"{options.dataset} has {splits}: expected train, valid and test")
    if options.no_test:
        splits = [split for split in splits if split != "test"]
    sets = {split: data.load(options.dataset, split, options.data_dir) for split in splits}
    if options.valid_speakers:  # in place of a validation set
        everyone = sets["train"]
        names = everyone.speakers.astype(str).tolist()
        wanted = options.valid_speakers.split(",")
        if not set(wanted) < set(names):
            rule = f"expected some, not all, of {sorted(set(names))[:20]}"
            raise UserError(f"--valid-speakers {options.valid_speakers}: {rule}")
        held_out = np.isin(names, wanted)
        sets["train"], sets["valid"] = everyone.select(~held_out), everyone.select(held_out)
    if len(sets) == 1:
        raise UserError("there is no test and no validation set: hold out some --valid-speakers")
    return {split: spikes.to(options.device) for split, spikes in sets.items()}


def moved_ms(net: nn.Module, first_delays: list[Tensor], options: argparse.Namespace) -> float:
    """How far the delays are from the first ones, in ms: the mean over all synapses."""
    ways = []
    for layer, before in zip(delayed_layers(net), first_delays, strict=True):
        way = (layer.positions().detach() - before).abs().expand_as(layer.weight)
        ways.append(way[layer.mask.expand_as(way)])
    return torch.cat(ways).mean().item() * data.DATASETS[options.dataset].step_ms


def count_parameters(net: nn.Module) -> int:
    """All trained numbers, without those of connections that a sparse layer lacks."""
    total = sum(value.numel() for value in net.parameters() if value.requires_grad)
    for layer in delayed_layers(net):
        for value in (layer.weight, *layer.delay_parameters()):
            if value.requires_grad and value.shape == layer.weight.shape:  # one a synapse
                total -= int((~layer.mask).expand_as(value).sum())
    return total


# ------------------------------------ the rest is options and files: skip this on a first reading


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """All options: those given, else those of the saved run, else the defaults of the data set."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser()
    # A first look, for the data set or run whose defaults are meant.  -h would end the program.
    look, _ = parser.parse_known_args([word for word in argv if word not in ("-h", "--help")])
    run = look.resume or look.eval
    saved = read_options(run) if run else {}
    # What a row of one's own leaves out is as in SHD.
    defaults = saved or DEFAULTS["shd"] | DEFAULTS[look.dataset]
    unknown = sorted(defaults.keys() - vars(look).keys())
    if unknown:
        raise UserError(f"{run or f'train.DEFAULTS[{look.dataset!r}]'} has unknown {unknown}")
    parser.set_defaults(**defaults)
    options = parser.parse_args(argv)

    may_differ = {"resume", "eval", "out", "device", "data_dir"}
    if options.eval:
        may_differ.add("batch_size")
    for name in saved.keys() - may_differ:
        if vars(options)[name] != saved[name]:
            rule = "leave the option out, or start a new run"
            raise UserError(f"{run} has --{name.replace('_', '-')} {saved[name]}: {rule}")
    named = f"runs/{options.dataset}-{options.delays}-{options.seed}"
    options.out = options.resume or options.out or named
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; use cpu or auto")
    return options


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="python train.py [option ...]; -h lists the options",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    sets, variants = list(data.DATASETS), ["learned", "constant-sigma", "fixed", "none"]

    add("--dataset", choices=sets, default="shd", help="the defaults shown here are those of it")
    add("--data-dir", default=data.DATA_DIR, help="folder of the files; missing ones are fetched")
    add("--valid-speakers", default="", help="speakers to hold out for validation, as in 3,6")
    add("--no-test", action="store_true", help="leave the test set alone; needs validation")
    add("--shift", type=whole, default=0, help="move each sample by up to so many inputs")

    add("--delays", choices=variants, default="learned", help="constant-sigma: sigma is 0.5 steps")
    add("--hidden", type=positive, help="neurons in a hidden layer")
    add("--layers", type=positive, help="hidden layers")
    add("--taps", type=positive, help="delays are 0 to TAPS - 1 steps")
    add("--kernel-count", type=positive, default=1, help="synapses for each pair of neurons")
    add("--connections", type=whole, default=0, help="inputs of a neuron, drawn at random; 0: all")
    add("--tau", type=float, help="time constant of the membranes, ms")
    add("--tau-readout", type=float, help="of the readout alone, ms; None: as --tau")
    add("--dropout", type=float, help="share of the hidden neurons silenced in training")

    add("--epochs", type=positive, help="passes over the training samples")
    add("--batch-size", type=positive, help="samples")
    add("--lr", type=float, help="peak learning rate of the weights")
    add("--delay-lr", type=float, help="first learning rate of the delays, steps")
    add("--weight-decay", type=float, help="L2 penalty of the weights")
    add("--seed", type=int, default=0, help="of weights, delays, batches and dropout")

    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute")
    add("--out", help="folder of the results; None: runs/DATASET-DELAYS-SEED")
    add("--resume", metavar="RUN", help="continue the run in this folder")
    add("--eval", metavar="RUN", help="only print the accuracy of the run in this folder")
    return parser


def whole(text: str, least: int = 0) -> int:
    """An argparse type: a whole number of at least `least`."""
    if int(text) < least:
        raise argparse.ArgumentTypeError(f"{text}: expected at least {least}")
    return int(text)


def positive(text: str) -> int:
    return whole(text, least=1)


def set_backend() -> None:
    """Full precision on a GPU, and two settings that make a CPU fast.

    Call it before torch computes on several threads, since threads that run keep their settings.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    # Far taps of a Gaussian are denormal numbers, with which some CPUs compute at half the speed.
    torch.set_flush_denormal(True)
    if platform.libc_ver()[0] == "glibc":
        # Big blocks of memory go back to the system when they are freed, and come back as pages
        # that have to be cleared, in each step.  These two settings keep them.
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def start(net: nn.Module, sets: dict[str, data.Spikes], options: argparse.Namespace) -> list:
    """Makes the folder of a new run, with its config.json.  Returns the log, which is empty."""
    paths = [data.find(options.dataset, split, options.data_dir) for split in sets]
    config = {
        "options": vars(options),
        "samples": {split: len(spikes.labels) for split, spikes in sets.items()},
        "md5": {os.path.basename(path): data.md5(path) for path in paths if path},
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
    }
    text = json.dumps(config, indent=1)
    try:
        os.makedirs(options.out)
    except FileExistsError:
        rule = f"go on with --resume {options.out}, or name another --out"
        raise UserError(f"{options.out} is there already: {rule}") from None
    write(options.out, "config.json", text)
    print(f"{options.dataset} {config['samples']}, {count_parameters(net):,} parameters")
    print(f"results in {options.out}; a run that was stopped goes on with --resume {options.out}")
    return []


def resume(net: nn.Module, optimizer, options: argparse.Namespace) -> list[dict]:
    """Loads the state of a run.  Returns its log."""
    if not os.path.exists(os.path.join(options.out, "last.pt")):  # killed in its first epoch
        return []
    saved = load_checkpoint(options.out, "last.pt", net)
    optimizer.load_state_dict(saved["adam"])
    return saved["rows"]


def save(net: nn.Module, optimizer, rows: list[dict], options: argparse.Namespace) -> None:
    """Writes the log and the checkpoint of an epoch; last.pt is last, since --resume reads that."""
    buffer = io.BytesIO()
    state = {"net": net.state_dict(), "adam": optimizer.state_dict(), "rows": rows}
    torch.save(state | {"network": describe(net)}, buffer)
    lines = [rows[0].keys(), *(row.values() for row in rows)]
    texts = [["" if value is None else str(value) for value in line] for line in lines]
    if best_epoch(rows) == len(rows):
        write(options.out, "best.pt", buffer.getvalue())
    write(options.out, "log.csv", "".join(",".join(line) + "\n" for line in texts))
    write(options.out, "last.pt", buffer.getvalue())


def describe(net: nn.Module) -> str:
    """What a network is, beside its weights: its class, its constants and its delayed layers."""
    parts = [net, *delayed_layers(net)]
    return "; ".join(f"{type(part).__name__}({part.extra_repr()})" for part in parts)


def load_checkpoint(folder: str, name: str, net: nn.Module) -> dict:
    """Loads a checkpoint's weights into a network, and returns all that the checkpoint holds.

    Refuses a network that `describe` tells from the one that was trained.
    """
    path = os.path.join(folder, name)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # torch raises many kinds for a broken file
        raise UserError(f"{path} could not be read ({problem}): put a copy back") from problem
    if saved["network"] != describe(net):
        found = f"{path} holds {saved['network']}, and the network here is {describe(net)}"
        raise UserError(f"{found}: hand over the network that was trained")
    net.load_state_dict(saved["net"])
    return saved


def read_options(folder: str) -> dict:
    """The options of a saved run."""
    with open(os.path.join(folder, "config.json")) as file:
        options = json.load(file)["options"]
    if options["dataset"] not in data.DATASETS:
        rule = "use the script that adds its row to data.DATASETS"
        raise UserError(f"{folder} is of the data set {options['dataset']}: {rule}")
    return options


def load_run(folder: str, net: DelaySNN | None = None) -> tuple[DelaySNN, argparse.Namespace]:
    """The network of a run, in evaluation and on the CPU, and the options of the run.

    It is that of the epoch that validation chose, or of the last one where there is no best.pt.
    net: a network of one's own to load it into, made as the one that was trained.
    """
    options = argparse.Namespace(**read_options(folder))
    net = build(options) if net is None else net
    best = os.path.exists(os.path.join(folder, "best.pt"))
    saved = load_checkpoint(folder, "best.pt" if best else "last.pt", net)
    set_sigma(net, len(saved["rows"]) - 1, options)
    return net.eval(), options


def write(folder: str, name: str, content: bytes | str) -> None:
    """A file that appears under its name whole or not at all."""
    path = os.path.join(folder, name)
    with open(path + ".part", "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    os.replace(path + ".part", path)


def print_row(row: dict) -> None:
    """A row of the log, and the names every 25 epochs."""
    if row["epoch"] % 25 == 1:
        print(*(f"{name.replace('accuracy', 'acc'):>9}" for name in row))
    values = ("-" if value is None else round(value, 5) for value in row.values())
    print(*(f"{value:>9}" for value in values), flush=True)


def print_result(result: dict) -> None:
    for key in ("best_on_test", "unrounded_accuracy"):
        if result[key] is not None:
            print(f"{key.replace('_', ' ')} {result[key]:.2%}")
    headline = "valid" if result["test_accuracy"] is None else "test"
    print(f"{headline} accuracy {result[f'{headline}_accuracy']:.2%} ({result['rule']})")


def print_evaluation(options: argparse.Namespace, net: DelaySNN) -> None:
    """Prints the accuracy of the run of --eval: on test, or on valid if it left test alone."""
    set_backend()
    net, _ = load_run(options.eval, net)
    sets = load_sets(options)
    split = "test" if "test" in sets else "valid"
    accuracy = evaluate(net.to(options.device), sets[split], options.batch_size)
    print(f"{split} accuracy {accuracy:.2%} ({options.eval})")


def main(argv=None, net_class: type[DelaySNN] = DelaySNN, loss=None) -> None:
    """The command line, for networks of the class net_class; loss as in train.

    A UserError or OSError becomes a sentence; any other error keeps its traceback.
    """
    try:
        options = parse(argv)
        net = build(options, net_class)
        if options.eval:
            print_evaluation(options, net)
        else:
            print_result(train(options, net, loss))
    except (UserError, OSError) as problem:
        sys.exit(f"train.py: {problem}")


if __name__ == "__main__":
    main()
