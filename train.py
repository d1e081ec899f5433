"""Trains a spiking network with learnable delays on SHD, SSC or a toy task; prints its accuracy."""
import argparse, ctypes, json, math, os, shlex, sys, time
import torch
from torch.nn import functional as F
import data
from delays import DelaySNN, class_scores, shrinking_sigma

SPLITS = {"shd": ["train", "test"], "ssc": ["train", "valid", "test"], "toy": ["train", "test"]}
LEARNED = ["learned", "constant-sigma"]  # the values of --delays with trained delays
OPTIONS = {  # group: {option: (type or choices, least, default or those of shd, ssc, toy; help)}
    "data": {
        "dataset": (list(SPLITS), 0, "shd", "spoken words as spikes, or a made-up task"),
        "data-dir": (str, 0, "data", "of .h5, .h5.gz or .h5.zip files; what is missing is fetched"),
        "valid-speakers": (str, 0, "", "of shd's train, held out for validation, as in 3,6")},
    "network": {
        "delays": ([*LEARNED, "fixed", "none"], 0, "learned", "fixed: random; none: plain layers"),
        "hidden": (int, 1, (256, 512, 48), "neurons in a hidden layer"),
        "layers": (int, 1, (2, 3, 1), "hidden layers"),
        "taps": (int, 1, (25, 31, 25), "delays are 0 to TAPS - 1 steps of 10 ms"),
        "kernel-count": (int, 1, 1, "synapses per pair of neurons"),
        "connections": (int, 0, 0, "inputs of a neuron, drawn at random; 0: all"),
        "tau": (float, data.STEP_MS, (10.05, 15.0, 10.05), "time constant of the membranes, ms"),
        "dropout": (float, 0, (0.4, 0.25, 0.0), "share of hidden neurons silenced in training")},
    "training": {
        "recipe": (["paper", "fast"], 0, "paper", "fast: a fifth of the epochs; measured on shd"),
        "epochs": (int, 1, (150, 60, 20), "passes over the training samples"),
        "batch-size": (int, 1, (256, 128, 50), "samples"),
        "lr": (float, 0, 5e-3, "peak learning rate of the weights"),
        "delay-lr": (float, 0, 0.1, "first learning rate of the delays, steps of 10 ms"),
        "weight-decay": (float, 0, 1e-5, "L2 penalty of the weights"),
        "seed": (int, 0, 0, "of weights, delays, batches and dropout"),
        "device": (["auto", "cpu", "cuda"], 0, "auto", "where to compute")},
    "output": {
        "out": (str, 0, None, "folder of the results [runs/DATASET-DELAYS-SEED]"),
        "resume": (bool, 0, False, "continue the run in --out"),
        "eval": (str, 0, None, "only print the test accuracy of this checkpoint")}}

def parse(argv=None):
    """-> the options of the command line, and all of them, completed with the defaults."""
    parser = argparse.ArgumentParser(
        "train.py", usage="python train.py [option ...]; -h lists the options", allow_abbrev=False,
        argument_default=argparse.SUPPRESS, description=__doc__ + "  Defaults: [shd/ssc/toy].")
    for title, group in OPTIONS.items():
        section = parser.add_argument_group(title)
        for name, (kind, _, default, text) in group.items():
            how = ({"action": "store_true"} if kind is bool else
                   {"choices": kind} if isinstance(kind, list) else {"type": kind})
            shown = "/".join(map(str, default)) if isinstance(default, tuple) else default
            section.add_argument(f"--{name}", help=text + f" [{shown}]" * bool(default), **how)
    given = vars(parser.parse_args(argv))
    which, options = list(SPLITS).index(given.get("dataset", "shd")), argparse.Namespace(**given)
    for name, (kind, least, default, _) in (item for g in OPTIONS.values() for item in g.items()):
        key = name.replace("-", "_")
        value = given.get(key, default[which] if isinstance(default, tuple) else default)
        if kind in (int, float) and not least <= value < 2**31:
            parser.error(f"--{name} {value}: expected a number of at least {least}, below 2**31")
        setattr(options, key, value)
    options.epochs = given.get("epochs", options.epochs // (5 if options.recipe == "fast" else 1))
    options.out = options.out or f"runs/{options.dataset}-{options.delays}-{options.seed}"
    return given, options

def load(o, *splits):
    """The Spikes of each split, on the training device; speakers held out of train are `valid`."""
    sets = {split: data.load(o.dataset, split, o.data_dir) for split in splits}
    if o.valid_speakers and "train" in sets:
        wanted, every = o.valid_speakers.split(","), sets["train"]
        known = {str(n) for n in every.speakers.tolist()}
        if o.dataset != "shd" or not set(wanted) < known:
            raise ValueError(f"--valid-speakers {o.valid_speakers} for {o.dataset}: expected shd, "
                             f"and some, not all, of its speakers; here are {sorted(known)}")
        held_out = torch.isin(every.speakers, torch.tensor([int(n) for n in wanted]))
        for split, own in (("train", ~held_out), ("valid", held_out)):
            rows = own.repeat_interleave(every.steps)
            sets[split] = data.Spikes(every.counts[rows], *(field[own] for field in every[1:]))
    return {s: data.Spikes(*(field.to(o.device) for field in sets[s])) for s in sets}

def build(o):
    """The network that the options and their seed describe."""
    torch.manual_seed(o.seed)
    return DelaySNN(data.INPUTS[o.dataset], [o.hidden] * o.layers, data.CLASSES[o.dataset],
                    1 if o.delays == "none" else o.taps, o.tau / data.STEP_MS, o.dropout,
                    count=o.kernel_count, learn_delays=o.delays in LEARNED,
                    connections=o.connections).to(o.device)

def predict(net, spikes, indices, longest):
    """Class scores [B, classes]: in training over all steps, as in the paper; in evaluation over a
    sample's own steps and the network's tail, which all layers see, whatever the batch."""
    tails = len(net.layers) * (net.layers[0].taps // 2)
    silence = 0 if net.training else tails - net.layers[0].taps // 2
    membrane = net(data.padded(spikes, indices, longest + silence).transpose(0, 1))
    return class_scores(membrane, None if net.training else spikes.steps[indices] + tails)

@torch.no_grad()
def evaluate(net, spikes, batch_size):
    """Correct / total, with delays of whole steps; leaves the network as it was."""
    training = net.training
    net.eval()
    hits = sum((predict(net, spikes, indices, longest).argmax(1) == spikes.labels[indices]).sum()
               for indices, longest in data.batches(spikes, batch_size, shuffle=False))
    net.train(training)
    return hits.item() / len(spikes.labels)

def one_cycle(epoch, epochs, peak):
    """Learning rate and Adam's beta1 of an epoch: peak / 25, peak at 30 %, nearly 0 at the end."""
    top = max(0.3 * epochs - 1, 0)
    done = epoch / top if epoch < top else 1 + (epoch - top) / max(epochs - 1 - top, 1)
    height, low = (1 - math.cos(math.pi * done)) / 2, peak / (25 if epoch < top else 25e4)
    return low + (peak - low) * height, 0.95 - 0.1 * height

def train(o, saved=None):
    """Trains, or continues a saved run; writes all of o.out -> what result.json holds."""
    by_valid, net = o.dataset == "ssc" or o.valid_speakers != "", build(o)
    sets = load(o, *(s for s in SPLITS[o.dataset] if s != "test" or not by_valid))
    train_set, layers, learn = sets["train"], net.layers, net.layers[0].learn_delays
    first = [layer.delay.detach().clone() for layer in layers]
    adam = torch.optim.Adam([
        {"params": [layer.weight for layer in layers], "weight_decay": o.weight_decay},
        {"params": list(net.norms.parameters())},
        {"params": [layer.delay for layer in layers] * learn}], fused=True)
    if saved:
        net.load_state_dict(saved["net"])
        adam.load_state_dict(saved["adam"])
    rows, best = (saved["rows"], saved["best"]) if saved else ([], 0)
    synapses = sum(x.weight[..., x.mask].numel() for x in layers)  # if the mask is None, all
    parameters = synapses * (1 + learn) + sum(p.numel() for p in net.norms.parameters())
    write(o.out, "config.json", json.dumps(vars(o), indent=1))
    print("data    ", o.dataset, *(f"{len(s.labels)} {n}" for n, s in sets.items()), "samples of",
          f"{train_set.steps.min()}..{train_set.steps.max()} steps of {data.STEP_MS} ms")
    print("network ", *(x.weight.shape[-1] for x in layers), data.CLASSES[o.dataset], "neurons,",
          f"{o.delays} delays, {layers[0].taps} taps, {parameters:,} parameters\ndevice  ",
          o.device, torch.get_num_threads(), "threads, torch", torch.__version__)
    for epoch in range(len(rows), o.epochs):
        begun = time.time()
        torch.manual_seed(o.seed + 1_000_003 * (epoch + 1))  # so no generator needs saving
        lr, beta1 = one_cycle(epoch, o.epochs, o.lr)
        delay_lr = o.delay_lr * (1 + math.cos(math.pi * epoch / o.epochs)) / 2
        for group, rate, beta in zip(adam.param_groups, (lr, lr, delay_lr), (beta1, beta1, 0.9)):
            group["lr"], group["betas"] = rate, (beta, 0.999)
        sigma = shrinking_sigma(epoch, o.epochs, o.taps) if o.delays == "learned" else 0.5
        for layer in layers:
            layer.sigma = sigma
        net.train()
        schedule, sums = data.batches(train_set, o.batch_size), 0  # sums: read after the epoch
        for done, (indices, longest) in enumerate(schedule, 1):
            scores, labels = predict(net, train_set, indices, longest), train_set.labels[indices]
            loss = F.cross_entropy(scores, labels)
            adam.zero_grad()
            loss.backward()
            adam.step()
            for layer in layers:
                layer.delay.data.clamp_(0, layer.taps - 1)
            hit = (scores.detach().argmax(1) == labels).float().mean()
            sums += torch.stack([loss.detach(), hit, *net.rates]) * len(labels)
            if sys.stderr.isatty() and time.time() - begun > 3:
                print(f"\rbatch {done} of {len(schedule)} ", end="\r", file=sys.stderr, flush=True)
        loss, hit, *rates = (sums / len(train_set.labels)).tolist()
        accuracy = {s: evaluate(net, sets[s], o.batch_size) for s in sets if s != "train"}
        moved = sum((x.delay - d).abs().sum() for x, d in zip(layers, first)) / synapses
        rows.append({
            "epoch": epoch + 1, "loss": loss, "train_accuracy": hit,
            **{f"{split}_accuracy": accuracy.get(split) for split in ("valid", "test")},
            "sigma": sigma if learn else None, "lr": lr, "moved_ms": moved.item() * data.STEP_MS,
            **{f"rate_{i}": r for i, r in enumerate(rates, 1)}, "seconds": time.time() - begun})
        if epoch % 25 == 0 or saved:
            saved = print(*(f"{name.replace('accuracy', 'acc'):>9}" for name in rows[0]))
        print(*(f"{'-' if x is None else round(x, 5):>9}" for x in rows[-1].values()), flush=True)
        improved = by_valid and (not best or accuracy["valid"] > rows[best - 1]["valid_accuracy"])
        best = epoch + 1 if improved else best
        state = {"options": vars(o), "net": net.state_dict(), "adam": adam.state_dict(),
                 "rows": rows, "best": best}
        for name in ["best.pt"] * improved + ["last.pt"]:
            write(o.out, name, state)
        write(o.out, "log.csv", "".join(",".join("" if x is None else str(x) for x in line) + "\n"
                                        for line in [rows[0], *(row.values() for row in rows)]))
    if by_valid:
        net.load_state_dict(read_checkpoint(os.path.join(o.out, "best.pt"))["net"])
        sets = load(o, "test")
    result = {key: getattr(o, key) for key in ("dataset", "delays", "seed", "epochs")} | {
        "parameters": parameters, "test_accuracy": evaluate(net, sets["test"], o.batch_size),
        "rule": f"best on validation, epoch {best}" if by_valid else "last epoch",
        "best_on_test": None if by_valid else max(row["test_accuracy"] for row in rows),
        "seconds": sum(row["seconds"] for row in rows)}
    write(o.out, "result.json", json.dumps(result, indent=1))
    return result

def tune_cpu():
    """Without denormal numbers and without returning big blocks of memory after each use."""
    torch.set_flush_denormal(True)  # the far taps of a Gaussian, which halve the speed of some CPUs
    for option, value in ((-4, 0), (-1, 2**31 - 1)) * (sys.platform == "linux"):
        ctypes.CDLL(None).mallopt(option, value)  # glibc: no M_MMAP_MAX, high M_TRIM_THRESHOLD

def write(folder, name, content):
    """A text or a checkpoint, which appears under its name whole or not at all."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name)
    with open(path + ".part", "wb") as file:
        file.write(content.encode()) if isinstance(content, str) else torch.save(content, file)
    os.replace(path + ".part", path)

def read_checkpoint(path):
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key: state[key] for key in ("options", "net", "adam", "rows", "best")}
    except Exception as problem:  # torch has many
        raise ValueError(f"{path!r} is no sound checkpoint of train.py, or not there") from problem

def main(argv=None):
    given, o = parse(argv)
    last, saved, cuda = os.path.join(o.out, "last.pt"), None, torch.cuda.is_available()
    try:
        for folder in filter(os.path.isfile, (o.out, o.data_dir)):
            raise ValueError(f"{folder} is a file: --out and --data-dir are to be folders")
        if o.eval is not None or o.resume:
            saved = read_checkpoint(last if o.eval is None else o.eval)
            for key in saved["options"].keys() - {"out", "device", "resume", "eval"}:
                value = saved["options"][key]
                if given.get(key, value) != value and key != "data_dir":
                    raise ValueError(f"--{key.replace('_', '-')} {given[key]}: the saved run has "
                                     f"{value}; leave it out, or start a new run in another --out")
                setattr(o, key, given.get(key, value))
        elif os.path.exists(last):
            raise ValueError(f"{o.out} holds a run: --resume continues it; or use another --out")
        if o.device == "cuda" and not cuda:
            raise ValueError("--device cuda: torch finds no CUDA card here; use cpu or auto")
        o.device = "cuda" if cuda and o.device != "cpu" else "cpu"
        torch.backends.cudnn.allow_tf32 = False  # the same numbers as on the CPU
        tune_cpu()
        if o.eval is not None:
            net = build(o)
            net.load_state_dict(saved["net"])
            accuracy = evaluate(net, load(o, "test")["test"], o.batch_size)
            print(f"test accuracy {accuracy:.2%} ({o.eval}, epoch {len(saved['rows'])})")
        else:
            result = train(o, saved)
            best = result["best_on_test"]
            print(f"test accuracy {result['test_accuracy']:.2%} ({result['rule']})" + (
                "" if best is None else f", best on test {best:.2%} (no measure: test chose it)"))
    except (OSError, ValueError) as problem:
        sys.exit(f"train.py: {problem}")
    except KeyboardInterrupt:
        sys.exit(f"\nstopped; to continue: python train.py --out {shlex.quote(o.out)} --resume"
                 if os.path.exists(last) else "\nstopped before anything was saved")

if __name__ == "__main__":
    main()
