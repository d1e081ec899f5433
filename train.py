"""Trains a spiking network with learnable delays on SHD, SSC or a toy task; prints its accuracy."""

import argparse
import ctypes
import io
import json
import math
import os
import platform
import shlex
import sys
import time
from contextlib import contextmanager, suppress

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import data
from delays import DelayedLinear, DelaySNN, class_scores, shrinking_sigma

# The paper's settings, and those of the toy task.  tau is in ms here, and in steps in delays.py.
DEFAULTS = {
    "shd": dict(hidden=256, layers=2, taps=25, tau=10.05, dropout=0.4, batch_size=256, epochs=150),
    "ssc": dict(hidden=512, layers=3, taps=31, tau=15.0, dropout=0.25, batch_size=128, epochs=60),
    "toy": dict(hidden=15, layers=1, taps=25, tau=10.05, dropout=0.0, batch_size=50, epochs=20),
}
# What --recipe changes beside them: settings of data.augment, chosen on speakers held out of train.
RECIPES = {"paper": {}, "augmented": dict(shift=8, mask_inputs=20, mask_steps=0.2)}
# These options may differ from those of the saved run that --resume or --eval takes up.
MAY_DIFFER = {"data_dir", "device", "out", "resume", "eval"}

# ---------------------------------------------------------------------------------------- options


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """All options: those given, else those of the saved run, else the defaults of the data set."""
    # The data set and the recipe decide the defaults, so they are looked for first.
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    early.add_argument("--dataset", default="shd")
    early.add_argument("--recipe")
    chosen = early.parse_known_args(argv)[0]
    parser = make_parser()
    parser.set_defaults(**defaults_of(chosen.dataset, chosen.recipe))
    options = parser.parse_args(argv)
    out = options.out or f"runs/{options.dataset}-{options.delays}-{options.seed}"

    if options.resume or options.eval is not None:
        path = os.path.join(out, "last.pt") if options.eval is None else checkpoint_in(options.eval)
        saved = complete(read_checkpoint(path)["options"])
        unknown = ", ".join(sorted(saved.keys() - vars(options).keys()))
        if unknown:
            rule = "use the program that trained it"
            raise ValueError(f"the saved run has options unknown here, {unknown}: {rule}")
        defaults = {key: saved[key] for key in saved.keys() - MAY_DIFFER}
        defaults["data_dir"] = saved["data_dir"]  # it may differ, but need not be named again
        parser.set_defaults(**defaults)
        options = parser.parse_args(argv)
        check_same(options, saved)

    options.out = out
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU here; use cpu or auto")
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def defaults_of(dataset: str, recipe: str | None = None) -> dict:
    """All options' defaults for a data set; what a row of your own leaves out is as in SHD.

    recipe: one that the command line names; its settings go before those of the row.
    """
    row = DEFAULTS["shd"] | DEFAULTS.get(dataset, {})
    own = RECIPES.get(row.get("recipe"), {})
    row = own | row if recipe is None else row | RECIPES.get(recipe, {})
    # A row is checked as the command line is.
    words = [f"--{name.replace('_', '-')}={value}" for name, value in row.items()]
    parser = make_parser()
    parser.prog = f"train.DEFAULTS[{dataset!r}]"  # which an error names
    return vars(parser.parse_args(words))


def complete(saved: dict) -> dict:
    """The options of a saved run, with defaults for those that were added since."""
    if saved["dataset"] not in data.DATASETS:
        rule = "use it from the script that adds it to data.DATASETS"
        raise ValueError(f"the saved run is of the data set {saved['dataset']}: {rule}")
    return defaults_of(saved["dataset"]) | saved


def check_same(options: argparse.Namespace, saved: dict) -> None:
    """Refuses options that would change a saved run, or that --eval would not heed."""
    may_differ = MAY_DIFFER if options.eval is None else MAY_DIFFER | {"batch_size"}
    for key in saved.keys() - may_differ:
        if vars(options)[key] != saved[key]:
            rule = "leave the option out"
            if options.eval is None:
                rule += ", or start a new run in another --out"
            raise ValueError(f"the saved run has --{key.replace('_', '-')} {saved[key]}: {rule}")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="python train.py [option ...]; -h lists the options",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    whole, positive = number(int, 0), number(int, 1)
    real, share = number(float, 0), number(float, 0, 1)
    variants = ["learned", "constant-sigma", "fixed", "none"]
    meaning = "constant-sigma: learned with sigma 0.5; fixed: random; none: plain linear layers"

    add(
        "--dataset", choices=list(data.DATASETS), default="shd", help="this help shows its defaults"
    )
    add("--data-dir", default=data.DATA_DIR, help="folder of the files; missing ones are fetched")
    add("--valid-speakers", default="", help="speakers to hold out for validation, as in 3,6")
    add("--no-test", action="store_true", help="leave the test set alone; needs validation")

    add("--delays", choices=variants, default="learned", help=meaning)
    add("--hidden", type=positive, help="neurons in a hidden layer")
    add("--layers", type=positive, help="hidden layers")
    add("--taps", type=positive, help="delays are 0 to TAPS - 1 steps")
    add("--kernel-count", type=positive, default=1, help="synapses for each pair of neurons")
    add("--connections", type=whole, default=0, help="inputs of a neuron, drawn at random; 0: all")
    add("--tau", type=real, help="time constant of the membranes, ms")
    add("--dropout", type=share, help="share of the hidden neurons silenced in training")

    add("--epochs", type=positive, help="passes over the training samples")
    add("--batch-size", type=positive, help="samples")
    add("--batches", choices=["random", "similar"], default="random", help="similar: in length")
    add("--recipe", choices=list(RECIPES), default="paper", help="augmented: moves and masks")
    add("--shift", type=whole, default=0, help="augmentation: by how many inputs a sample may move")
    add(
        "--warp",
        type=share,
        default=0.0,
        help="augmentation: by which share the inputs may be stretched",
    )
    add("--mask-inputs", type=whole, default=0, help="augmentation: up to so many inputs silenced")
    add("--mask-steps", type=share, default=0.0, help="augmentation: share of the steps silenced")
    add("--lr", type=real, default=5e-3, help="peak learning rate of the weights")
    add("--delay-lr", type=real, default=0.1, help="first learning rate of the delays, in steps")
    add("--weight-decay", type=real, default=1e-5, help="L2 penalty of the weights")
    add("--seed", type=whole, default=0, help="of weights, delays, batches and dropout")

    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute")
    methods = ["auto", "direct", "fourier"]
    add("--conv", choices=methods, default="auto", help="auto: fourier on a CPU, direct on a GPU")
    add("--out", help="folder of the results; None: runs/DATASET-DELAYS-SEED")
    add("--resume", action="store_true", help="continue the run in --out")
    add("--eval", metavar="CHECKPOINT", help="only print the accuracy of this checkpoint")
    return parser


def number(kind: type, least: float, limit=2**31):
    """An argparse type: a number from `least` to below `limit`; torch takes sizes below 2**31."""

    def convert(text):
        value = kind(text)
        if not least <= value < limit:
            below = "2**31" if limit == 2**31 else limit
            raise argparse.ArgumentTypeError(f"{text}: expected at least {least}, below {below}")
        return value

    convert.__name__ = kind.__name__  # which argparse shows if the text is no number at all
    return convert


# ------------------------------------------------------------------------- what a run starts from


def build(options: argparse.Namespace, kind: type[DelaySNN] = DelaySNN) -> DelaySNN:
    """The network that the options and their seed describe, on the CPU.  Seeds torch.

    kind: DelaySNN or a subclass of it.
    """
    dataset = data.DATASETS[options.dataset]
    if options.tau < dataset.step_ms:
        raise ValueError(f"--tau {options.tau}: expected at least {dataset.step_ms} ms, a step")
    torch.manual_seed(options.seed)
    return kind(
        dataset.inputs,
        [options.hidden] * options.layers,
        dataset.classes,
        taps=1 if options.delays == "none" else options.taps,
        tau=options.tau / dataset.step_ms,
        dropout=options.dropout,
        count=options.kernel_count,
        learn_delays=options.delays in ("learned", "constant-sigma"),
        connections=options.connections,
        conv=options.conv,
    )


def load_sets(options: argparse.Namespace) -> dict[str, data.Spikes]:
    """All samples of each split that the run needs, as data.Spikes, on its device."""
    splits = data.DATASETS[options.dataset].splits
    if not {"train"} <= set(splits) <= {"train", "valid", "test"}:
        rule = "expected train, and with it valid, test or both"
        raise ValueError(f"the row of {options.dataset} has the splits {splits}: {rule}")
    if options.no_test:
        splits = [split for split in splits if split != "test"]
    if options.valid_speakers:  # in place of a validation set
        splits = [split for split in splits if split != "valid"]
    elif "valid" not in splits and "test" not in splits:
        raise ValueError("there is no test and no validation set: hold out some --valid-speakers")
    sets = {split: data.load(options.dataset, split, options.data_dir) for split in splits}
    dataset = data.DATASETS[options.dataset]
    for split, spikes in sets.items():
        inputs, classes = spikes.counts.shape[1], int(spikes.labels.max()) + 1
        if inputs != dataset.inputs or classes > dataset.classes:
            rule = f"expected {dataset.inputs} inputs and {dataset.classes} classes, as in its row"
            raise ValueError(f"{split} has {inputs} inputs and {classes} classes: {rule}")
    for name, value in {"shift": options.shift, "mask-inputs": options.mask_inputs}.items():
        if value >= dataset.inputs:
            found = f"--{name} {value} (recipe {options.recipe})"
            raise ValueError(f"{found}: expected less than the {dataset.inputs} inputs")

    if options.valid_speakers:
        everyone = sets["train"]
        held_out = is_held_out(everyone, options)
        sets["train"], sets["valid"] = everyone.select(~held_out), everyone.select(held_out)
    return {split: spikes.to(options.device) for split, spikes in sets.items()}


def is_held_out(spikes: data.Spikes, options: argparse.Namespace) -> np.ndarray:
    """bool [samples], True for those of --valid-speakers."""
    names = spikes.speakers.astype(str)
    wanted = [name.strip() for name in options.valid_speakers.split(",")]
    known = sorted(set(names.tolist()))
    if not set(wanted) < set(known):  # a part of them, and not all
        rule = f"expected some, not all, of its {len(known)} speakers, as {known[:20]}"
        raise ValueError(f"--valid-speakers {options.valid_speakers}: {rule}")
    return np.isin(names, wanted)


def judged_split(options: argparse.Namespace) -> str:
    """test; or valid, where the run leaves the test set alone or there is none."""
    has_test = "test" in data.DATASETS[options.dataset].splits
    return "test" if has_test and not options.no_test else "valid"


def delayed_layers(net: nn.Module) -> list[DelayedLinear]:
    return [module for module in net.modules() if isinstance(module, DelayedLinear)]


def make_optimizer(net: nn.Module, options: argparse.Namespace) -> torch.optim.Adam:
    """Adam for all parameters of the network, in three groups: weights, delays and all others.

    Their learning rates are set by set_schedules in each epoch.
    """
    weights = [layer.weight for layer in delayed_layers(net)]
    delays = [layer.delay for layer in delayed_layers(net) if layer.learn_delays]
    placed = {id(parameter) for parameter in weights + delays}
    others = [parameter for parameter in net.parameters() if id(parameter) not in placed]
    decayed = {"params": weights, "weight_decay": options.weight_decay}
    return torch.optim.Adam([decayed, {"params": delays}, {"params": others}], fused=True)


def connected(values: Tensor, mask: Tensor | None) -> Tensor:
    """A layer's weights or delays as a vector, without those of connections that it lacks."""
    if mask is None or values.shape[-2:] != mask.shape:
        return values.flatten()  # nothing is missing; or shared delays, which have no mask
    return values[..., mask].flatten()


def count_parameters(net: nn.Module) -> int:
    """All trained numbers, without those of connections that a sparse layer lacks."""
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    total = sum(parameter.numel() for parameter in trained)
    for layer in delayed_layers(net):
        for values in (layer.weight, layer.delay):
            if values.requires_grad:
                total -= values.numel() - connected(values, layer.mask).numel()
    return total


# ---------------------------------------------------------------------------- training, evaluation


def one_cycle(epoch: int, epochs: int, peak: float) -> tuple[float, float]:
    """Learning rate and Adam's beta1 of an epoch, counted from 0.

    Half a cosine leads from peak / 25 up to the peak, at 30 % of the epochs, and half a cosine down
    to peak / 250,000.  beta1 goes from 0.95 to 0.85 and back.  From four epochs on, these are the
    values of torch's OneCycleLR, but as a function of the epoch they need not be saved.
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


def train_epoch(net, optimizer, spikes: data.Spikes, options: argparse.Namespace) -> list[float]:
    """A pass over all samples.  Returns the means of loss, accuracy and each layer's rate."""
    net.train()
    sums = 0  # becomes a tensor that stays on its device: each look at a number makes a GPU wait
    parts = data.batches(spikes, options.batch_size, similar=options.batches == "similar")
    for done, (indices, longest) in enumerate(parts, 1):
        counts = data.padded(spikes, indices, longest)  # [B, T, inputs]
        labels = spikes.labels[indices]
        settings = options.shift, options.warp, options.mask_inputs, options.mask_steps
        counts = data.augment(counts, spikes.steps[indices], *settings)
        scores = class_scores(net(counts))  # over all steps, those of padding too, as in the paper
        loss = F.cross_entropy(scores, labels)

        optimizer.zero_grad()
        loss.backward()
        check_gradients(net)
        optimizer.step()
        for layer in delayed_layers(net):
            layer.clamp_delays()

        accuracy = (scores.argmax(1) == labels).to(loss.dtype).mean()
        sums = sums + torch.stack([loss, accuracy, *net.rates]).detach() * len(labels)
        data.progress(f"batch {done} of {len(parts)}")
    return (sums / len(spikes.labels)).tolist()


def check_gradients(net: nn.Module) -> None:
    """Refuses a parameter that the loss does not reach: Adam would leave it out without a word."""
    for name, parameter in net.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            rule = "build neurons with delays.spike, or set its requires_grad to False"
            raise ValueError(f"{name} gets no gradient from the loss: {rule}")


def check_finite(net: nn.Module, loss: float, epoch: int) -> None:
    """Refuses to save what could not be loaded.  A loss may stay finite where a neuron is NaN."""
    if not math.isfinite(loss):
        raise ValueError(f"the loss of epoch {epoch} is {loss}: try a lower --lr")
    state = net.state_dict()
    broken = torch.stack([~value.isfinite().all() for value in state.values()])
    if broken.any():  # one look at a number, for which a GPU has to wait
        name = list(state)[broken.int().argmax()]
        rule = "try a lower --lr, and look for a slope that is infinite in neurons of your own"
        raise ValueError(f"{name} is not finite after epoch {epoch}: {rule}")


def predict(net: DelaySNN, spikes: data.Spikes, indices: Tensor, longest: int) -> Tensor:
    """Class scores [B, classes] in evaluation, which do not depend on the other samples.

    A sample's scores sum up its own steps and the tails of all layers.  Over all these steps each
    layer has to be computed: a neuron may spike in silence, since batch norm gives it a constant
    current.  So zeros follow the input, as many as the tails of all layers but the first, which
    adds its own.  Later layers go on for longer, but that does not count.
    """
    tails = [layer.taps // 2 for layer in net.layers]
    counts = data.padded(spikes, indices, longest + sum(tails[1:]))
    return class_scores(net(counts), spikes.steps[indices] + sum(tails))


@torch.no_grad()
def evaluate(net: DelaySNN, spikes: data.Spikes, batch_size: int) -> float:
    """Correct / total in evaluation; leaves the network in the mode that it was in."""
    was_training = net.training
    net.eval()
    hits = 0
    for indices, longest in data.batches(spikes, batch_size, shuffle=False):
        guess = predict(net, spikes, indices, longest).argmax(1)
        hits = hits + (guess == spikes.labels[indices]).sum()
    net.train(was_training)
    return hits.item() / len(spikes.labels)


def evaluate_unrounded(net: DelaySNN, spikes: data.Spikes, batch_size: int) -> float | None:
    """Accuracy with the kernels of training in place of whole steps; None if they are the same."""
    layers = [layer for layer in delayed_layers(net) if layer.learn_delays and layer.whole_steps]
    for layer in layers:
        layer.whole_steps = False
    accuracy = evaluate(net, spikes, batch_size) if layers else None
    for layer in layers:
        layer.whole_steps = True
    return accuracy


# ------------------------------------------------------------------------------------------ a run


def train(options: argparse.Namespace, net: DelaySNN | None = None, on_epoch=None) -> dict:
    """Trains, or continues the run in options.out, and writes all of that folder.

    options: of parse.
    net: a network of one's own in place of build(options), with the .layers and .rates of DelaySNN.
        All of its parameters are trained.
    on_epoch: a function of (net, row of the log), called after each epoch.
    Returns what result.json holds.
    """
    with claimed_run(options) as saved:
        set_backend()
        net = (build(options) if net is None else net).to(options.device)
        sets = load_sets(options)
        config = describe(net, sets, options)
        optimizer = make_optimizer(net, options)
        first_delays = [layer.delay.detach().clone() for layer in delayed_layers(net)]
        rows = []
        if saved is not None:
            compare_config(config, options.out)
            load_weights(net, saved, options.out, optimizer)
            first_delays = [delay.to(options.device) for delay in saved["first_delays"]]
            rows = saved["rows"]
            write_again(rows, options.out)
        write(options.out, "config.json", json.dumps(config, indent=1))
        print(f"{options.dataset} {config['samples']}, {config['parameters']:,} parameters")
        print(f"{config['processor']}, {config['threads']} threads; results in {options.out}")

        first = len(rows)
        for epoch in range(first, options.epochs):
            begun = time.time()
            # A seed for each epoch: a run that goes on needs no saved state of the generator.  The
            # factor keeps the epochs of one seed from those of the next.
            torch.manual_seed(options.seed + 1_000_003 * (epoch + 1))
            lr = set_schedules(optimizer, net, epoch, options)
            loss, accuracy, *rates = train_epoch(net, optimizer, sets["train"], options)
            check_finite(net, loss, epoch + 1)

            # With a validation set, the test set is read once, at the end.
            valid = test = None
            if "valid" in sets:
                valid = evaluate(net, sets["valid"], options.batch_size)
            else:
                test = evaluate(net, sets["test"], options.batch_size)
            row = {
                "epoch": epoch + 1,
                "loss": loss,
                "train_accuracy": accuracy,
                "valid_accuracy": valid,
                "test_accuracy": test,
                "sigma": net.layers[0].sigma if net.layers[0].learn_delays else None,
                "lr": lr,
                "moved_ms": moved_ms(net, first_delays, options),
                **{f"rate_{i}": rate for i, rate in enumerate(rates, 1)},
                "seconds": time.time() - begun,
            }
            rows.append(row)
            print_row(row, options, is_first=epoch == first)

            save(net, optimizer, first_delays, rows, options)
            if on_epoch is not None:
                on_epoch(net, row)

        result = finish(net, sets, rows, options)
        write(options.out, "result.json", json.dumps(result, indent=1))
        return result


def save(net, optimizer, first_delays: list[Tensor], rows: list[dict], options) -> None:
    """Writes the checkpoint of the last epoch so far, and the log."""
    state = {
        "options": vars(options),
        "network": type(net).__name__,
        "net": net.state_dict(),
        "adam": optimizer.state_dict(),
        "first_delays": first_delays,
        "rows": rows,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    # First of all last.pt: from it, a run that goes on makes the other two again.
    write(options.out, "last.pt", buffer.getvalue())
    if best_epoch(rows) == len(rows):
        write(options.out, "best.pt", buffer.getvalue())
    write_log(options.out, rows)


def write_again(rows: list[dict], folder: str) -> None:
    """What save writes after last.pt: the run may have been killed in between."""
    best = best_epoch(rows)
    if best == len(rows):
        with open(os.path.join(folder, "last.pt"), "rb") as file:
            write(folder, "best.pt", file.read())
    elif best is not None:
        read_checkpoint(os.path.join(folder, "best.pt"))  # refused now, not after hours
    write_log(folder, rows)


def best_epoch(rows: list[dict]) -> int | None:
    """The epoch that validation chooses, the first of the best ones; None without validation."""
    accuracy = [row["valid_accuracy"] for row in rows]
    return None if None in accuracy else accuracy.index(max(accuracy)) + 1


def finish(net: DelaySNN, sets: dict[str, data.Spikes], rows: list[dict], options) -> dict:
    """What result.json holds: the accuracy by the rule, and what stands beside it."""
    best = best_epoch(rows)
    if best is not None:
        load_weights(net, read_checkpoint(os.path.join(options.out, "best.pt")), options.out)
    row = rows[-1] if best is None else rows[best - 1]
    # Unrounded kernels need the sigma of that epoch, which a checkpoint does not hold.
    set_sigma(net, row["epoch"] - 1, options)
    test, size = sets.get("test"), options.batch_size
    judged = sets["valid"] if test is None else test
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


def moved_ms(net: nn.Module, first_delays: list[Tensor], options: argparse.Namespace) -> float:
    """How far the delays are from the first ones, mean in ms; a shared delay counts once."""
    ways = []
    for layer, before in zip(delayed_layers(net), first_delays, strict=True):
        ways.append(connected((layer.delay.detach() - before).abs(), layer.mask))
    return torch.cat(ways).mean().item() * data.DATASETS[options.dataset].step_ms


def set_backend() -> None:
    """Full precision on a GPU, and two settings that make a CPU fast.

    Call it before torch computes on several threads: those that run already keep their denormals.
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


# ----------------------------------------------------------------------------- files and terminal


@contextmanager
def claimed_run(options: argparse.Namespace):
    """Keeps other processes from the folder of a run; yields its saved state to resume, or None."""
    last = os.path.join(options.out, "last.pt")
    try:
        os.makedirs(options.out, exist_ok=True)
    except OSError as problem:
        found = f"--out {options.out} cannot be made a folder ({problem.strerror})"
        raise OSError(f"{found}: name another one") from problem
    with data.claimed(os.path.join(options.out, "claim"), "trains in this folder"):
        for name in ("config.json", "last.pt", "best.pt", "log.csv", "result.json"):
            path = os.path.join(options.out, name)
            if os.path.exists(path + ".part"):  # half-written by a process that was killed
                os.remove(path + ".part")
            # A run that ended in its first epoch leaves a config.json alone: it may begin anew.
            if os.path.exists(path) and name != "config.json" and not os.path.exists(last):
                rule = "it belongs to another run: use another --out, or move it away"
                raise ValueError(f"{path} is there without a last.pt: {rule}")
        saved = read_checkpoint(last) if options.resume or os.path.exists(last) else None
        if options.resume:
            check_same(options, saved["options"])  # they may have been changed after parse
        elif saved is not None:
            named = "{dataset}, {delays} delays, seed {seed}, {epochs} epochs"
            rule = "--resume continues it; or use another --out"
            raise ValueError(
                f"{options.out} holds a run ({named.format(**saved['options'])}): {rule}"
            )
        yield saved


def write(folder: str, name: str, content: bytes | str) -> None:
    """A file that appears under its name whole or not at all."""
    path = os.path.join(folder, name)
    try:
        with open(path + ".part", "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
        os.replace(path + ".part", path)
    except OSError as problem:
        rule = "mend that and repeat the command (a run with a last.pt: with --resume)"
        raise OSError(f"{path} could not be written ({problem.strerror}): {rule}") from problem
    finally:  # after Ctrl-C too
        with suppress(OSError):
            os.remove(path + ".part")  # it would keep a full disk full


def write_log(folder: str, rows: list[dict]) -> None:
    lines = [rows[0].keys(), *(row.values() for row in rows)]
    texts = [["" if value is None else str(value) for value in line] for line in lines]
    write(folder, "log.csv", "".join(",".join(line) + "\n" for line in texts))


def read_checkpoint(path: str) -> dict:
    if not os.path.isfile(path):
        rule = "mend the name, or put it back; a run saves its first one after an epoch"
        raise ValueError(f"{path!r} is not there: {rule}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        epochs = [row["epoch"] for row in state["rows"]]
        if not epochs or epochs != list(range(1, len(epochs) + 1)):
            raise ValueError("it has no log, or one with gaps")
        if not {"dataset", "data_dir"} <= state["options"].keys():
            raise ValueError("made by another program")
        keys = ("options", "network", "net", "adam", "rows", "first_delays")
        return {key: state[key] for key in keys}
    except Exception as problem:  # torch raises many kinds
        if isinstance(problem, (MemoryError, PermissionError)):  # not the checkpoint's fault
            raise
        rule = "put a copy of it back, or train again in another --out"
        raise ValueError(f"{path!r} is no sound checkpoint of train.py: {rule}") from problem


def load_weights(net: nn.Module, saved: dict, path: str, optimizer=None) -> None:
    """Loads a checkpoint into a network, and into its optimizer if there is one."""
    kind = saved["network"]
    here = type(net).__name__
    if kind != here:
        rule = "use the program that trained it, or hand over such a network as net, from Python"
        raise ValueError(f"the checkpoint of {path} is of class {kind}, and not {here}: {rule}")
    try:
        net.load_state_dict(saved["net"])
        first_delays = [delay.shape for delay in saved["first_delays"]]
        if first_delays != [layer.delay.shape for layer in delayed_layers(net)]:
            raise ValueError("its first delays are of other shapes")
        if optimizer is not None:
            optimizer.load_state_dict(saved["adam"])
            for parameter, state in optimizer.state.items():
                # torch does not check this, and a step on moments that are too short crashes.
                if not state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape:
                    raise ValueError("Adam's moments are of other shapes")
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as problem:
        words = " ".join(str(problem).split())  # torch puts them on several lines
        raise ValueError(f"the checkpoint of {path} is of another network: {words}") from problem
    if not all(value.isfinite().all() for value in saved["net"].values()):
        raise ValueError(f"the checkpoint of {path} has weights or delays that are not finite")


def load_run(path: str, net: DelaySNN | None = None) -> tuple[DelaySNN, argparse.Namespace]:
    """The network of a run, in evaluation, and the options of the run.

    path: a checkpoint, or the folder of a run, which then means best.pt, where validation chose an
        epoch, and else last.pt.
    net: a network of one's own to load it into.  Its whole_steps are not saved: set them again.
    """
    path = checkpoint_in(path)
    return restore(read_checkpoint(path), path, net)


def restore(saved: dict, path: str, net: DelaySNN | None = None):
    """load_run for a checkpoint that has been read, from `path`."""
    options = argparse.Namespace(**complete(saved["options"]))
    net = build(options) if net is None else net
    load_weights(net, saved, path)
    set_sigma(net, len(saved["rows"]) - 1, options)
    return net.eval(), options


def checkpoint_in(path: str) -> str:
    """The path itself; of a folder that of its best.pt, or of last.pt where nothing was chosen."""
    if not os.path.isdir(path):
        return path
    best, last = os.path.join(path, "best.pt"), os.path.join(path, "last.pt")
    if os.path.exists(best):
        return best
    if os.path.exists(last) and best_epoch(read_checkpoint(last)["rows"]) is not None:
        rule = f"put it back, or name {last} for the last epoch"
        raise ValueError(f"{best!r}, which validation chose, is not there: {rule}")
    return last


def compare_config(config: dict, folder: str) -> None:
    """Refuses to go on with other data than those that the run in `folder` began with.

    config: of describe.  Where the run was on another machine before, it gets an "earlier", a list
        of what was different in each part.
    The same data packed otherwise has another name, and is not compared; of data of your own only
    the numbers of samples are.
    """
    path = os.path.join(folder, "config.json")
    if not os.path.exists(path):
        return
    try:
        with open(path) as file:
            before = json.load(file)
        if not isinstance(before, dict):
            raise ValueError("a list, a number or null")
    except ValueError:
        raise ValueError(f"{path} is broken: remove that file to go on without it") from None
    if before.get("samples", config["samples"]) != config["samples"]:
        rule = "they have to be those that the run began with"
        raise ValueError(f"samples {config['samples']}, before {before['samples']}: {rule}")
    for name, digest in config["md5"].items():
        if before.get("md5", {}).get(name, digest) != digest:
            rule = "name the folder of the former one by --data-dir"
            raise ValueError(f"{name} is not the file that the run began with: {rule}")
    names = ("torch", "processor", "threads")
    changed = [name for name in names if before.get(name, config[name]) != config[name]]
    earlier = before.get("earlier", [])
    if changed:
        earlier = [*earlier, {name: before[name] for name in changed}]
    if earlier:
        config["earlier"] = earlier
    for part in earlier:
        for name, value in part.items():
            rule = "expect other roundings than in a run that was never stopped"
            print(f"the run was made with {name} {value} before, now {config[name]}: {rule}")


def describe(net: nn.Module, sets: dict[str, data.Spikes], options: argparse.Namespace) -> dict:
    """What config.json holds: the options, and what was run on what."""
    read = [split for split in sets if split != "valid" or not options.valid_speakers]
    paths = [data.find(options.dataset, split, options.data_dir) for split in read]
    on_gpu = options.device == "cuda"
    return vars(options) | {
        "parameters": count_parameters(net),
        "samples": {split: len(spikes.labels) for split, spikes in sets.items()},
        "md5": {os.path.basename(path): data.md5(path) for path in paths if path},
        "torch": torch.__version__,
        "processor": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def print_row(row: dict, options: argparse.Namespace, is_first: bool) -> None:
    """A row of the log, with the column names every 25 epochs, and how long the rest will take."""
    if is_first or row["epoch"] % 25 == 1:
        print(*(f"{name.replace('accuracy', 'acc'):>9}" for name in row))
    values = ("-" if value is None else round(value, 5) for value in row.values())
    print(*(f"{value:>9}" for value in values), flush=True)
    rest = options.epochs - row["epoch"]
    if is_first and rest:
        print(f"the other {rest} epochs will take about {rest * row['seconds'] / 60:.0f} minutes")


def print_result(result: dict) -> None:
    for key in ("best_on_test", "unrounded_accuracy"):
        if result[key] is not None:
            print(f"{key.replace('_', ' ')} {result[key]:.2%}")
    headline = "valid" if result["test_accuracy"] is None else "test"
    print(f"{headline} accuracy {result[f'{headline}_accuracy']:.2%} ({result['rule']})")


def evaluate_saved(options: argparse.Namespace, net: DelaySNN | None = None) -> None:
    """Prints the accuracy of the run or checkpoint that --eval names; net: as in load_run."""
    set_backend()
    path = checkpoint_in(options.eval)
    saved = read_checkpoint(path)
    net, _ = restore(saved, path, net)
    split = judged_split(options)
    if split == "test":
        spikes = data.load(options.dataset, "test", options.data_dir).to(options.device)
    else:
        spikes = load_sets(options)["valid"]  # it may be a part of the training samples
    accuracy = evaluate(net.to(options.device), spikes, options.batch_size)
    epoch = f"epoch {len(saved['rows'])} of {options.epochs}"
    print(f"{split} accuracy {accuracy:.2%} ({options.eval}, {epoch})")


@contextmanager
def sentences(program: str):
    """Ends the program with one sentence for what is no mistake of its own."""
    try:
        yield
    except (OSError, ValueError) as problem:
        sys.exit(f"{program}: {problem}")
    except (MemoryError, RuntimeError) as problem:
        # torch says of a GPU "CUDA out of memory ... allocate", of a CPU "can't allocate memory".
        if not isinstance(problem, MemoryError) and "allocate" not in str(problem):
            raise
        sys.exit(f"{program}: out of memory: a smaller --batch-size or a smaller network may fit")


def main(argv: list[str] | None = None) -> None:
    options = None
    try:
        with sentences("train.py"):
            options = parse(argv)
            if options.eval is None:
                print_result(train(options))
                return
            evaluate_saved(options)
    except KeyboardInterrupt:
        if options and not options.eval and os.path.exists(os.path.join(options.out, "last.pt")):
            program = shlex.quote(sys.argv[0])  # a script of one's own may call main too
            again = f"python {program} --out {shlex.quote(options.out)} --resume"
            sys.exit(f"\nstopped; to continue: {again}")
        sys.exit("\nstopped; no epoch was saved")


if __name__ == "__main__":
    main()
