"""Trains a spiking network with learnable delays and ends with its accuracy: SHD, SSC or a toy task."""
import argparse
import csv
import ctypes
import io
import json
import math
import os
import sys
import time
from argparse import Namespace

import torch
from torch.nn import functional as F

import data
from delays import DelaySNN, class_scores, shrinking_sigma

RECIPES = {  # for shd and ssc the paper's
    "shd": dict(epochs=150, batch_size=256, hidden=256, layers=2, taps=25, tau=10.05, dropout=0.4),
    "ssc": dict(epochs=60, batch_size=128, hidden=512, layers=3, taps=31, tau=15.0, dropout=0.25),
    "toy": dict(epochs=30, batch_size=100, hidden=32, layers=1, taps=25, tau=10.05, dropout=0.0)}
COMMON = dict(dataset="shd", data_dir="data", valid_speakers="", delays="learned", kernel_count=1,
              connections=None, lr=5e-3, weight_decay=1e-5, delay_lr=0.1, length_block=8, seed=0,
              device="auto", tf32=False)
HEADLINE = {False: "last epoch", True: "best epoch on validation"}


def parse(argv):
    """-> the options that were given, out, resume, checkpoint to evaluate, parser."""
    def number(kind, low, below=math.inf):
        def convert(text):
            try:
                value = kind(text)
            except ValueError:
                value = math.nan
            if not low <= value < below:
                raise argparse.ArgumentTypeError(
                    f"{text} is not a {'whole ' if kind is int else ''}number of at least {low}"
                    + (f" and below {below}" if below < math.inf else ""))
            return value
        return dict(type=kind and convert, metavar="N" if kind is int else "X")

    def option(name, text, **how):
        key = name.replace("-", "_")
        of_recipes = " | ".join(str(recipe[key]) for recipe in RECIPES.values() if key in recipe)
        default = of_recipes or COMMON.get(key)
        group.add_argument("--" + name, help=text + (f" [{default}]" if default not in (None, "", False)
                                                     else ""), default=None, **how)

    parser = argparse.ArgumentParser(
        "train.py", description=f"{__doc__} In brackets: the default, or those of shd | ssc | toy.",
        usage="python train.py [--dataset {shd,ssc,toy}] [options]; -h lists them", allow_abbrev=False)
    group = parser.add_argument_group("data")
    option("dataset", "spoken words as spikes (shd, ssc) or a made-up task (toy)", choices=RECIPES)
    option("data-dir", "folder of .h5, .h5.gz or .h5.zip files; missing ones are fetched", metavar="DIR")
    option("valid-speakers", "of shd's train, held out for validation, such as 3,6", metavar="N,N")
    group = parser.add_argument_group("network")
    option("delays", "learned with a shrinking or a constant sigma, fixed at random, or none",
           choices=["learned", "constant-sigma", "fixed", "none"])
    option("hidden", "neurons in a hidden layer", **number(int, 1))
    option("layers", "hidden layers", **number(int, 1))
    option("taps", "delays are 0..N-1 steps of 10 ms", **number(int, 1))
    option("kernel-count", "synapses per pair of neurons", **number(int, 1))
    option("connections", "inputs of a neuron, drawn at random [all]", **number(int, 1))
    option("tau", "time constant of the membranes, ms", **number(float, data.STEP_MS))
    option("dropout", "share of hidden neurons silenced in training", **number(float, 0, 1))
    group = parser.add_argument_group("training")
    option("epochs", "passes over the training samples", **number(int, 1))
    option("batch-size", "samples", **number(int, 1))
    option("lr", "peak learning rate of the weights", **number(float, 0))
    option("weight-decay", "L2 penalty of the weights", **number(float, 0))
    option("delay-lr", "first learning rate of the delays, steps", **number(float, 0))
    option("length-block", "batches among which samples are sorted by length, 0: none", **number(int, 0))
    option("seed", "of weights, delays, batches and dropout", **number(int, 0))
    option("device", "where to compute", choices=["auto", "cpu", "cuda"])
    option("tf32", "products rounded to TF32 on CUDA: faster, less exact", action="store_true")
    group = parser.add_argument_group("output")
    option("out", "folder of the results [runs/DATASET-DELAYS-SEED]", metavar="DIR")
    option("resume", "continue the run in --out", action="store_true")
    option("eval", "print the test accuracy of a saved network instead", metavar="CHECKPOINT")
    given = {key: value for key, value in vars(parser.parse_args(argv)).items() if value is not None}
    out = given.pop("out", "runs/{dataset}-{delays}-{seed}".format(**{**COMMON, **given}))
    return given, out, given.pop("resume", False), given.pop("eval", None), parser


def settle(given, saved, parser):
    """Options as a Namespace: those of a saved run, where given agrees, or else given over recipe."""
    recipe = {**COMMON, **RECIPES[given.get("dataset", COMMON["dataset"])]}
    changed = [key for key in given if saved and given[key] != saved[key]
               and key not in ("data_dir", "device")]
    if changed:
        parser.error("; ".join(f"--{key.replace('_', '-')} is {given[key]}, but {saved[key]} in the "
                               "saved run" for key in changed) + ": leave it out, or start a new run")
    options = Namespace(**{**(saved or recipe), **given})
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch sees no CUDA device here: use --device cpu")
    if options.valid_speakers and (options.dataset != "shd" or not
                                   all(n.isdecimal() for n in options.valid_speakers.split(","))):
        parser.error(f"--valid-speakers {options.valid_speakers} with {options.dataset}: expected shd "
                     "and the numbers of speakers, such as 3,6")
    return options


def load(options, splits):
    """{split: Spikes} on the training device; held-out speakers of train become "valid"."""
    loaded = {split: data.load(options.dataset, split, options.data_dir) for split in splits}
    if options.valid_speakers and "train" in loaded:
        wanted = torch.tensor([int(n) for n in options.valid_speakers.split(",")])
        missing = wanted[~torch.isin(wanted, loaded["train"].speakers)].tolist()
        held_out = torch.isin(loaded["train"].speakers, wanted)
        if missing or held_out.all():
            raise ValueError(f"--valid-speakers {options.valid_speakers}: train has the speakers "
                             f"{loaded['train'].speakers.unique().tolist()}; name some of them, not all")
        loaded["valid"] = loaded["train"].select(held_out)
        loaded["train"] = loaded["train"].select(~held_out)
    return {split: spikes.to(device(options)) for split, spikes in loaded.items()}


def device(options):
    cuda = torch.cuda.is_available() and options.device != "cpu"
    return torch.device("cuda" if cuda else "cpu")


def build(options):
    """The network of the options, its weights and delays drawn from their seed."""
    torch.manual_seed(options.seed)
    none = options.delays == "none"
    return DelaySNN(data.INPUTS[options.dataset], [options.hidden] * options.layers,
                    data.CLASSES[options.dataset], taps=1 if none else options.taps,
                    count=options.kernel_count, tau=options.tau / data.STEP_MS, dropout=options.dropout,
                    learn_delays=options.delays in ("learned", "constant-sigma"),
                    connections=options.connections).to(device(options))


def one_cycle(epoch, epochs, peak):
    """Learning rate and Adam's beta1 of an epoch: up to the peak at 30 %, down to nearly 0 at the end."""
    top = max(0.3 * epochs - 1, 0)
    if epoch <= top:
        (lr, lr_to), (beta, beta_to), done = (peak / 25, peak), (0.95, 0.85), epoch / top if top else 1
    else:
        (lr, lr_to), (beta, beta_to), done = (peak, peak / 25e4), (0.85, 0.95), (epoch - top) / (epochs - 1 - top)
    mix = (1 + math.cos(math.pi * done)) / 2
    return lr_to + (lr - lr_to) * mix, beta_to + (beta - beta_to) * mix


def predict(net, spikes, index, longest):
    """Class scores [B, classes] of samples padded to `longest` steps, each over its own steps only."""
    membrane = net(spikes.counts[:, :longest][index].transpose(0, 1).contiguous().float())
    return class_scores(membrane, spikes.steps[index] + (len(membrane) - longest))


@torch.no_grad()
def evaluate(net, spikes, batch_size):
    """Correct / total; delays in whole steps.  The network is left as it was."""
    training = net.training
    net.eval()
    batches = data.in_batches(spikes, batch_size, shuffle=False)
    hits = sum((predict(net, spikes, index, longest).argmax(1) == spikes.labels[index]).sum()
               for index, longest in batches)
    net.train(training)
    return hits.item() / len(spikes.labels)


def train(options, out, saved=None, say=print):
    """Trains, writes out/{config.json, log.csv, last.pt, best.pt, result.json}; returns the result.

    saved: a checkpoint (last.pt) of the same options to continue from.
    """
    started = time.time()
    chosen = options.dataset == "ssc" or bool(options.valid_speakers)  # by validation
    sets = load(options, [s for s in data.SPLITS[options.dataset] if s != "test" or not chosen])
    net = build(options)
    first_delays = [layer.delay.detach().clone() for layer in net.layers]
    learn = net.layers[0].learn_delays
    groups = [dict(params=[layer.weight for layer in net.layers], weight_decay=options.weight_decay),
              dict(params=list(net.norms.parameters()))]
    if learn:
        groups.append(dict(params=[layer.delay for layer in net.layers]))
    optimizer = torch.optim.Adam([g for g in groups if g["params"]], fused=True)
    rows, best = [], None
    if saved:
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        rows, best = saved["rows"], saved["best"]
    else:
        write(out, "config.json", json.dumps(vars(options), indent=1))
    say(header(options, out, sets, net))
    for epoch in range(len(rows), options.epochs):
        torch.manual_seed(1_000_003 * (options.seed + 1) + epoch)  # so resuming needs no generator state
        begun = time.time()
        sigma = ((shrinking_sigma(epoch, options.epochs, options.taps) if options.delays == "learned"
                  else 0.5) if learn else None)
        net.set_sigma(sigma)
        lr, beta1 = one_cycle(epoch, options.epochs, options.lr)
        for group in optimizer.param_groups:
            group.update(lr=lr, betas=(beta1, 0.999))
        if learn:
            delay_lr = options.delay_lr * (1 + math.cos(math.pi * epoch / options.epochs)) / 2
            optimizer.param_groups[-1].update(lr=delay_lr, betas=(0.9, 0.999))
        net.train()
        total = torch.zeros(2 + options.layers, device=device(options))  # loss, hits, rates
        batches = data.in_batches(sets["train"], options.batch_size, options.length_block)
        for done, (index, longest) in enumerate(batches):
            scores = predict(net, sets["train"], index, longest)
            labels = sets["train"].labels[index]
            loss = F.cross_entropy(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if learn:
                net.clamp_delays()
            hits = (scores.argmax(1) == labels).sum()
            total += torch.stack([loss.detach() * len(labels), hits, *(r * len(labels) for r in net.rates)])
            if sys.stderr.isatty() and time.time() - begun > 3:
                print(f"\r{done + 1} of {len(batches)} batches", end="\r", file=sys.stderr, flush=True)
        loss, hits, *rates = (total / len(sets["train"].labels)).tolist()
        moved = torch.cat([(layer.delay - start).abs().flatten() for layer, start in zip(net.layers, first_delays)])
        accuracy = {split: evaluate(net, sets[split], options.batch_size) for split in sets if split != "train"}
        rows.append(dict(epoch=epoch + 1, loss=loss, train_accuracy=hits, valid_accuracy=accuracy.get("valid"),
                         test_accuracy=accuracy.get("test"), sigma=sigma, learning_rate=lr,
                         delay_moved_ms=moved.mean().item() * data.STEP_MS,
                         **{f"rate_{i + 1}": rate for i, rate in enumerate(rates)}, seconds=time.time() - begun))
        say(row_text(rows[-1]))
        checkpoint = dict(options=vars(options), net=net.state_dict(), optimizer=optimizer.state_dict(),
                          rows=rows, best=best)
        if chosen and (best is None or accuracy["valid"] > rows[best - 1]["valid_accuracy"]):
            checkpoint["best"] = best = epoch + 1
            write(out, "best.pt", checkpoint)
        write(out, "last.pt", checkpoint)
        write(out, "log.csv", table(rows))
    if chosen:
        net.load_state_dict(torch.load(os.path.join(out, "best.pt"), weights_only=True)["net"])
        sets["test"] = load(Namespace(**{**vars(options), "valid_speakers": ""}), ["test"])["test"]
    test = evaluate(net, sets["test"], options.batch_size) if chosen else rows[-1]["test_accuracy"]
    result = dict(dataset=options.dataset, delays=options.delays, seed=options.seed, epochs=options.epochs,
                  parameters=parameters(net), test_accuracy=test, rule=HEADLINE[chosen],
                  best_epoch=best, valid_accuracy=rows[best - 1]["valid_accuracy"] if chosen else None,
                  best_on_test=None if chosen else max(row["test_accuracy"] for row in rows),
                  seconds=sum(row["seconds"] for row in rows))
    write(out, "result.json", json.dumps(result, indent=1))
    return result


def parameters(net):
    """Trainable numbers; of a masked layer those of its remaining synapses."""
    synapses = sum(layer.weight.numel() if layer.mask is None else
                   int(layer.mask.sum()) * layer.weight[..., 0, 0].numel() for layer in net.layers)
    return synapses * (1 + net.layers[0].learn_delays) + sum(p.numel() for p in net.norms.parameters())


def header(options, out, sets, net):
    samples = " / ".join(f"{len(spikes.labels)} {split}" for split, spikes in sets.items())
    some = sets["train"]
    sizes = "-".join(map(str, [some.counts.shape[2], *[options.hidden] * options.layers, net.layers[-1].weight.shape[-2]]))
    place = torch.cuda.get_device_name() if device(options).type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    rates = "".join(f"  rate {i + 1}" for i in range(options.layers))
    return (f"data     {options.dataset}: {samples} samples, {some.steps.min()} to {some.steps.max()} steps of "
            f"{data.STEP_MS} ms, {some.counts.sum(dtype=torch.int64).item() / len(some.labels):.0f} spikes a sample\n"
            f"network  {sizes}, {net.layers[0].taps} taps, {options.delays} delays, {parameters(net):,} parameters\n"
            f"device   {place}, torch {torch.__version__}\nout      {out}\n"
            f"epoch    loss   train  valid   test  sigma       lr  moved{rates}  seconds")


def row_text(row):
    def percent(name):
        return "      -" if row[name] is None else f"{100 * row[name]:6.2f}%"
    rates = "".join(f"{value:8.4f}" for name, value in row.items() if name.startswith("rate_"))
    sigma = "     -" if row["sigma"] is None else f"{row['sigma']:6.2f}"
    return (f"{row['epoch']:5d} {row['loss']:7.4f} {percent('train_accuracy')}{percent('valid_accuracy')}"
            f"{percent('test_accuracy')} {sigma} {row['learning_rate']:8.6f} {row['delay_moved_ms']:6.2f}{rates} {row['seconds']:8.1f}")


def table(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write(folder, name, content):
    """A file appears under its name whole or not at all."""
    os.makedirs(folder, exist_ok=True)
    part = os.path.join(folder, name + ".part")
    if isinstance(content, str):
        with open(part, "w") as file:
            file.write(content)
    else:
        torch.save(content, part)
    os.replace(part, os.path.join(folder, name))


def keep_freed_memory():
    """glibc hands each large block back to the system when it is freed, which clears it again, page by
    page, for the next tensor: a third of a training step.  Elsewhere there is nothing to do."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-4, 0)  # M_MMAP_MAX
            libc.mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD


def main(argv=None):
    given, out, resume, checkpoint, parser = parse(argv)
    saved = None
    try:
        if resume or checkpoint:
            saved = torch.load(checkpoint or os.path.join(out, "last.pt"), weights_only=True, map_location="cpu")
        elif os.path.exists(os.path.join(out, "last.pt")):
            parser.error(f"{out} holds a run already: continue it with --resume, or name another --out")
        options = settle(given, saved and saved["options"], parser)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
        keep_freed_memory()
        if checkpoint:
            net = build(options)
            net.load_state_dict(saved["net"])
            spikes = load(options, ["test"])["test"]
            print(f"test accuracy {100 * evaluate(net, spikes, options.batch_size):.2f} % ({len(spikes.labels)} samples), {checkpoint}")
        else:
            result = train(options, out, saved)
            print(f"test accuracy {100 * result['test_accuracy']:.2f} % ({result['rule']})" +
                  ("" if result["best_on_test"] is None else f"; best on test {100 * result['best_on_test']:.2f} % (for comparison only: it was chosen by the test set)"))
    except (OSError, ValueError) as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        sys.exit(f"\nstopped; continue with: python train.py --out {out} --resume")


if __name__ == "__main__":
    main()
