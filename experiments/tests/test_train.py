"""Files, runs and mistakes: everything around the method and the training, offline, one thread."""

import gzip
import hashlib
import http.server
import json
import math
import os
import platform
import re
import runpy
import sys
import threading
import zipfile
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import h5py
import numpy as np
import pytest
import torch

import data
import test_delays as oracle
import train
from delays import DelaySNN, shrinking_sigma, spike
from experiments import ideas
from test_delays import LITTLE, each_sample, log_of, options_of, parsed, result_of

FOLDER = Path(__file__).resolve().parent.parent
NAME = "shd_test.h5.gz"
little, asked = oracle.little, oracle.asked  # fixtures

# ------------------------------------------------------------------------- reading files and events


def write_h5(path, times, units, labels, speakers):
    """Write a file in the layout of SHD and SSC; speakers are numbers or names."""
    with h5py.File(path, "w") as file:
        for name, ragged, kind in (("times", times, np.float16), ("units", units, np.uint16)):
            column = file.create_dataset(f"spikes/{name}", (len(ragged),), h5py.vlen_dtype(kind))
            for i, values in enumerate(ragged):
                column[i] = np.asarray(values, kind)
        file["labels"] = labels
        file["extra/speaker"] = speakers


def write_words(folder, dataset, sizes, classes, speakers):
    """Write files in the layout of SHD and SSC.  A class is a band of channels: it can be learned.

    sizes: how many samples each split has.  speakers: they take turns.
    """
    rng = np.random.default_rng(0)
    band = 700 // classes
    for split, size in sizes.items():
        labels, spikes = np.arange(size) % classes, rng.integers(60, 120, size)
        times = [rng.uniform(0.01, rng.uniform(0.1, 0.3), n) for n in spikes]
        units = [band * k + rng.integers(0, band, n) for k, n in zip(labels, spikes, strict=True)]
        names = np.resize(speakers, size).tolist()
        write_h5(folder / f"{dataset}_{split}.h5", times, units, labels, names)


def write_shd(folder, speakers=(2, 12, 112)):
    """Write files of SHD.  Each of the three speakers has 8 of the 24 training samples."""
    write_words(folder, "shd", {"train": 24, "test": 9}, 20, speakers)


def pack(path, packing):
    """Replace an .h5 file by its packed form, .gz or .zip."""
    if packing == ".gz":
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
    else:
        with zipfile.ZipFile(f"{path}.zip", "w") as archive:
            archive.write(path, path.name)
    path.unlink()


def test_reading_is_the_loop_over_spikes_and_keeps_every_spike(tmp_path):
    rng = np.random.default_rng(0)
    sizes = [0, *rng.integers(1, 400, 299)]  # a sample without spikes is one empty step
    times = [rng.uniform(0, 1.4, n).astype(np.float16) for n in sizes]  # in any order
    units = [rng.integers(0, 700, n) for n in sizes]
    labels = rng.integers(0, 20, 300)
    write_h5(tmp_path / "shd_test.h5", times, units, labels, ["0a7c", "b555", "çelik"] * 100)
    assert data.load("shd", "test", tmp_path).speakers[2] == "çelik"
    pack(tmp_path / "shd_test.h5", ".zip")
    got = data.load("shd", "test", tmp_path)
    assert {sample.dtype for sample in got.counts} == {torch.uint8}
    assert got.labels.tolist() == labels.tolist()
    assert got.speakers.tolist() == ["0a7c", "b555", "çelik"] * 100
    for s in range(300):
        want, steps = np.zeros((150, 140)), [0]
        for t, u in zip(times[s], units[s], strict=True):
            steps.append(math.floor((float(t) - float(min(times[s]))) * 1000 / 10))
            want[steps[-1], u // 5] += 1
        assert got.steps[s] == max(steps) + 1
        assert (got.counts[s].numpy() == want[: max(steps) + 1]).all()


@pytest.mark.parametrize("kind", [np.asarray, list, torch.tensor, np.float32])
def test_events_are_counted_one_by_one(kind):
    rng = np.random.default_rng(0)
    sample, step, channel = rng.integers(0, [[20], [15], [4]], (3, 500))
    keep = (sample != 7) & (sample != 19)  # two samples without a spike, one of them the last
    sample, step, channel = sample[keep], step[keep], channel[keep]
    labels = rng.integers(0, 3, 20)
    speakers = [f"speaker {i % 5}" for i in range(20)]
    got = data.from_events(kind(sample), kind(step), kind(channel), kind(labels), 4, speakers)
    want = np.zeros((20, 15, 4))
    steps = np.ones(20, int)
    for s, t, c in zip(sample, step, channel, strict=True):
        want[s, t, c] += 1
        steps[s] = max(steps[s], t + 1)
    counts = [want[s, : steps[s]].tolist() for s in range(20)]
    assert each_sample(got) == list(zip(counts, labels, speakers, strict=True))
    assert got.counts[0].dtype == torch.uint8 and got.labels.dtype == torch.int64
    assert each_sample(got.select(np.arange(20) > 7)) == each_sample(got)[8:]


# ------------------------------------------------------------------------------------- the download


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Serve the files of tmp_path on this machine.  Returns the address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path.startswith("/nonsense/"):
                self.wfile.write(b"what?\r\n\r\n")
            else:
                super().do_GET()

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = partial(Handler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_servers_and_checksums_are_the_published_ones():
    table = json.dumps([data.SERVERS, data.MD5]).encode()
    assert hashlib.md5(table).hexdigest() == "8928a1953235f2fb467d818f154f4a0a"


def test_a_missing_file_is_fetched_once(served, tmp_path, monkeypatch, capfd):
    write_shd(tmp_path)
    pack(tmp_path / "shd_test.h5", ".gz")
    want = data.load("shd", "test", tmp_path)
    sound = (tmp_path / NAME).read_bytes() + bytes(3 << 20)  # several blocks; gzip skips zeros
    (tmp_path / NAME).write_bytes(sound)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / NAME).write_bytes(sound[:1000])
    troubles = dict(absent="404", cut="sent a file of md5", nonsense="what?")
    bad = [f"{served}/{kind}" for kind in troubles]
    folder, asked, urlopen = tmp_path / "new/d", [], data.urlopen

    def watched(url, timeout):
        assert timeout == 30
        # In a folder of its own, so that programs that download at once do not meet.
        (own,) = os.listdir(folder)
        assert os.listdir(folder / own) == [NAME]
        asked.append(url)
        return urlopen(url, timeout=timeout)

    monkeypatch.setattr(data, "urlopen", watched)
    monkeypatch.setitem(data.MD5, NAME, data.md5(tmp_path / NAME))
    monkeypatch.setattr(data, "SERVERS", bad)
    with pytest.raises(data.UserError) as caught:
        data.load("shd", "test", str(folder))
    for words in (*bad, *troubles.values(), f"{NAME} is not in", "put it there", "--dataset toy"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(folder) == []

    monkeypatch.setattr(data, "SERVERS", [*bad, served])
    for _ in range(2):  # nothing is fetched that is already there
        assert each_sample(data.load("shd", "test", str(folder))) == each_sample(want)
    assert os.listdir(folder) == [NAME]
    assert asked == [f"{server}/{NAME}" for server in (*bad, *bad, served)]
    assert f"fetching {served}/{NAME}" in capfd.readouterr().err


# ---------------------------------------------------------------------- from files to the last line


def test_speech_commands_from_files_to_the_last_line(tmp_path, monkeypatch, capsys):
    samples = {"train": 70, "valid": 21, "test": 35}
    write_words(tmp_path, "ssc", samples, 35, ["c50f55b8", "1e9b215e", "0ff728b5"])
    for split in samples:
        pack(tmp_path / f"ssc_{split}.h5", ".zip")
    sizes = "--dataset ssc --hidden 24 --layers 1 --connections 20 --taps 5 --dropout 0 --epochs 1"
    command = ["train.py", *sizes.split(), "--batch-size", "10", "--lr", "0.05", "--device", "cpu"]
    command += ["--data-dir", str(tmp_path), "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(FOLDER / "train.py"), run_name="__main__")
    result = result_of(tmp_path / "run")
    accuracy = f"test accuracy {result['test_accuracy']:.2%}"
    printed = capsys.readouterr().out
    assert "\n2,408 parameters, 1,180 of them delays\n" in printed  # 2 (24 + 35) 20 + 2 24
    assert f"\n{accuracy} ({result['rule']}; " in printed
    _, options = train.load_run(tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["samples"] == samples
    names = [f"ssc_{split}.h5.zip" for split in samples]
    assert config["md5"] == {name: data.md5(tmp_path / name) for name in names}
    assert config["torch"] == torch.__version__ and config["threads"] == 1
    assert config["device"] == platform.machine() and config["options"] == vars(options)
    names = dict(network="DelaySNN", loss="cross_entropy", augment="NoneType")
    assert (names | {"before_epoch": "NoneType"}).items() <= config.items()
    for name in ("ssc_train.h5.zip", "run/last.pt"):  # evaluation does not read them
        (tmp_path / name).unlink()
    train.main(["--eval", str(tmp_path / "run"), "--device", "cpu"])
    assert f"{accuracy} (" in capsys.readouterr().out


PAPER = {
    "shd": dict(epochs=150, batch_size=256, hidden=256, layers=2, taps=25, tau=10.05, dropout=0.4),
    "ssc": dict(epochs=60, batch_size=128, hidden=512, layers=3, taps=31, tau=15, dropout=0.25),
    "toy": dict(epochs=20, batch_size=50, hidden=40, layers=1, taps=33, tau=10.05, dropout=0),
}
PAPER["shd-regenerated"] = PAPER["shd"]


@pytest.mark.paper
@pytest.mark.parametrize("dataset", PAPER)
def test_defaults_are_the_papers_and_a_gpu_if_there_is_one(dataset, monkeypatch, capsys):
    options = vars(parsed("--dataset", dataset))
    want = PAPER[dataset] | dict(lr=5e-3, delay_lr=0.1, weight_decay=1e-5, delays="learned", seed=0)
    want |= dict(kernel_count=1, connections=None, tau_readout=None, no_test=False)
    want |= dict(valid_speakers="", valid_share=None, out=None)
    assert {key: options[key] for key in want} == want
    for found, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found)
        assert parsed("--dataset", dataset).device == device
        assert parsed("--dataset", dataset, "--device", "cpu").device == "cpu"
    for word in ("-h", "--help"):
        with pytest.raises(SystemExit):
            train.main(["--dataset", dataset, word])
        said = " ".join(capsys.readouterr().out.split())
        for key in PAPER[dataset]:
            assert f"(default: {options[key]})" in said


# ------------------------------------------------------------------ runs: continued, seeded, loaded


def quiet_loss(net, counts, membrane, labels):
    return train.cross_entropy(net, counts, membrane, labels) + sum(net.rates)


def delayed(counts, labels, steps):
    return counts.roll(steps, 1)


def prune(net, optimizer, epoch, options):
    """Change the network, and the rates and sigma that are set already, from the third epoch."""
    net.layers[0].weight.data[0, 0] = epoch + 1  # training hardly changes it
    if epoch >= 2:
        net.layers[0].mask[:, ::2] = False
        net.layers[0].sigma *= 2
        optimizer.param_groups[0]["lr"] /= 2


def test_a_run_may_end_before_any_of_its_files_has_its_name(asked, tmp_path, monkeypatch):
    sizes = "--dataset validated --epochs 4 --hidden 4 --batch-size 22 --device cpu"
    words = [*sizes.split(), "--out"]
    fork = dict(loss=quiet_loss, augment=partial(delayed, steps=1), before_epoch=prune)
    rename, names = os.replace, []

    def rename_some(source, target):
        names.append(os.path.basename(target))
        if len(names) > allowed:
            raise KeyboardInterrupt  # as a kill does, it ends the run past any handler of errors
        rename(source, target)

    monkeypatch.setattr(os, "replace", rename_some)
    allowed = math.inf
    whole = tmp_path / "whole"
    train.main([*words, str(whole)], **fork)
    assert [names.count(name) for name in ("last.pt", "log.csv", "net.pt")] == [4, 4, 2]
    for end in range(1, len(names)):  # without config.json there is no run yet
        names, allowed, cut = [], end, tmp_path / f"cut{end}"
        with pytest.raises(KeyboardInterrupt):
            train.main([*words, str(cut)], **fork)
        allowed = math.inf
        train.main(["--resume", str(cut)], **fork)
        for name in ("last.pt", "net.pt"):  # the same run, bit for bit, all but its seconds
            first, second = (torch.load(run / name) for run in (cut, whole))
            assert oracle.same_bits(first["net"], second["net"])
            assert first["epoch"] == second["epoch"] and first["sigma"] == second["sigma"]
        rows, others = ([*log_of(run), result_of(run)] for run in (cut, whole))
        for row, same in zip(rows, others, strict=True):
            assert row | {"seconds": 0} == same | {"seconds": 0}
        assert result_of(cut)["seconds"] == sum(float(row["seconds"]) for row in log_of(cut))
    saved = torch.load(whole / "last.pt")
    assert saved["before_epoch"] == "prune" and not saved["net"]["layers.0.mask"].all()
    sigmas = [shrinking_sigma(e, 4, LITTLE["taps"]) * (1 + (e >= 2)) for e in range(4)]
    assert [float(row["sigma"]) for row in log_of(whole)] == sigmas
    peak, _ = train.one_cycle(2, 4, 5e-3)
    assert float(log_of(whole)[2]["lr"]) == peak / 2


def test_the_same_command_takes_the_next_free_folder(little, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "little", "--epochs", "1", "--hidden", "3", "--device", "cpu"]
    os.makedirs("runs/little-learned-0-3")
    for folder in ("runs/little-learned-0", "runs/little-learned-0-2", "runs/little-learned-0-4"):
        train.main(words)
        assert f"continue with --resume {folder}\n" in capsys.readouterr().out
        assert json.loads(Path(folder, "config.json").read_text())["options"]["out"] == folder
    assert os.listdir("runs/little-learned-0-3") == []


@pytest.fixture
def short_run(little, tmp_path):
    words = "--dataset little --epochs 2 --kernel-count 2 --valid-speakers 1,2"
    train.train(options_of(tmp_path / "run", *words.split()))
    (tmp_path / "run/result.json").unlink()  # or it could not be resumed


def test_a_saved_run_keeps_its_options(short_run, tmp_path):
    run = tmp_path / "run"
    config = json.loads((run / "config.json").read_text())
    del config["options"]["weight_decay"]  # as if the option were newer than the run
    (run / "config.json").write_text(json.dumps(config))
    others = (
        "--epochs 3,--seed 1,--lr 0.001,--delay-lr 0.2,--weight-decay 0,--batch-size 9,--hidden 8,"
        "--layers 1,--taps 7,--tau 16,--tau-readout 9,--dropout 0.5,--delays fixed,--no-test,"
        "--kernel-count 1,--connections 2,--valid-speakers 1,--valid-share 0.1,--dataset toy"
    )
    for words in others.split(","):
        name = words.split()[0][2:].replace("-", "_")
        for saved in ("--resume", "--eval"):
            with pytest.raises(data.UserError, match=f"run used {name} .*: leave it out, or start"):
                parsed(saved, run, *words.split())
    again = parsed("--resume", run, "--epochs", 2, "--data-dir", "elsewhere", "--device", "auto")
    assert (again.out, again.data_dir, again.epochs) == (str(run), "elsewhere", 2)
    with pytest.raises(data.UserError, match=f"{run} exists: continue it by --resume, or choose"):
        train.train(options_of(run, "--dataset", "little"))
    moved = run.rename(tmp_path / "moved")
    assert parsed("--resume", moved).out == str(moved)


def test_a_run_is_loaded_without_a_gpu_or_running_code(short_run, tmp_path, monkeypatch):
    """It sets the flags of the backend as well."""
    load, flags = Mock(wraps=torch.load), (torch.backends.cudnn, torch.backends.cuda.matmul)
    monkeypatch.setattr(torch, "load", load)
    for words in ("--resume", "--eval"):
        for flag in flags:
            flag.allow_tf32 = True
        torch.set_flush_denormal(False)
        train.main([words, str(tmp_path / "run")])
        assert [flag.allow_tf32 for flag in flags] == [False, False]
        assert (torch.tensor([1e-30]) * 1e-10).item() == 0  # a denormal number is taken as 0
        assert not torch.backends.cudnn.benchmark  # it would tune again for each batch's length
    safe = dict(map_location="cpu", weights_only=True)
    assert [call.kwargs for call in load.call_args_list] == [safe] * 3  # last.pt, net.pt twice


# --------------------------------------------------------------------------- a network of one's own


FORKING = (FOLDER / "experiments/FORKING.md").read_text()
STRENGTH, RESIDUAL, PRUNE, TONIC, LOAD = re.findall(r"```python\n(.*?)```", FORKING, re.S)
exec(RESIDUAL, page := {})
Residual = page["AxonAndResidual"]  # a delay for each axon, and what each synapse adds to it


class Own(DelaySNN):
    """Neurons of one's own: they have a threshold to learn, and hear their echo one axon late."""

    layer_class = Residual

    def __init__(self):
        super().__init__(oracle.LITTLE_INPUTS, [7, 7], oracle.LITTLE_CLASSES, taps=6, tau=3)
        self.threshold = torch.nn.Parameter(torch.full((7,), 0.8))
        self.echo = Residual(7, 7, 6)

    def neurons(self, i, current):
        early = spike(current - self.threshold)
        late = self.echo(early)[:, : current.shape[1]]
        return super().neurons(i, early + late - 0.1 * self.threshold)

    def readout(self, current):
        return super().readout(current) + 100


def test_every_parameter_of_a_network_is_trained_at_its_rate(little, tmp_path):
    words = "--dataset little --epochs 2 --delay-lr 5"  # which moves delays beyond their bounds
    options = options_of(tmp_path / "run", *words.split())
    net = Own()
    layers = {name: part for name, part in net.named_modules() if isinstance(part, Residual)}
    start = oracle.state_of(net)
    names = {parameter: name for name, parameter in net.named_parameters()}
    groups = train.make_optimizer(net, options).param_groups  # which the slow trainer checks
    weights, moving, others = ([names[own] for own in group["params"]] for group in groups)
    assert sorted(weights) == sorted(f"{layer}.weight" for layer in layers)
    parts = ("axon_delay", "residual_delay")
    assert sorted(moving) == sorted(f"{layer}.{part}" for layer in layers for part in parts)
    assert sorted(weights + moving + others) == sorted(names.values())

    result = train.train(options, net)
    for name, parameter in net.named_parameters():
        assert not torch.equal(parameter, start[name]), name
    for layer in layers.values():  # of the nested one too
        assert layer.sigma == shrinking_sigma(1, 2, 6) and not layer.training
        assert layer.axon_delay.min() >= 0 and layer.axon_delay.max() <= 5
        assert layer.residual_delay.abs().max() == 2  # its own bound
    assert result["parameters"] == sum(parameter.numel() for parameter in net.parameters())
    sparse = Residual(6, 5, 4, connections=2)
    assert train.count_parameters(sparse) == 2 * 5 * 2 + 6  # of the synapses there are
    sparse.axon_delay.requires_grad_(False)
    assert train.count_parameters(sparse) == 2 * 5 * 2
    assert not any(layer._forward_pre_hooks for layer in layers.values())  # of counting spikes
    assert (net(torch.zeros(1, 9, 5)) > 50).all()  # that is the readout of its own
    modes = []  # of the nested layer: True where it has the training kernel
    net.echo.register_forward_hook(lambda layer, *given: modes.append(layer.training))
    for rounded in (True, False):
        train.predict(net, data.load("little", "test", ""), rounded=rounded)
    assert modes == [False] * 2 + [True] * 2  # each hidden layer has an echo


def test_a_fork_has_the_command_line_and_is_not_taken_for_the_papers(little, tmp_path, capsys):
    run = str(tmp_path / "run")
    fork = dict(net_class=ideas.Adaptive, loss=quiet_loss, before_epoch=prune)
    fork["augment"] = partial(delayed, steps=2)
    words = ["--dataset", "little", "--epochs", "2", "--device", "cpu", "--out"]
    train.main([*words, run], **fork)
    with pytest.raises(SystemExit, match=f"has ended and cannot be resumed: --eval {run} prints"):
        train.main(["--resume", run], **fork)
    (tmp_path / "run/result.json").unlink()

    for option, part, other, said in (
        ("--eval", "net_class", DelaySNN, "network is Adaptive, not DelaySNN: use the"),
        ("--resume", "loss", None, "loss is quiet_loss, not cross_entropy: use the"),
        ("--resume", "augment", None, "augment is delayed, not NoneType: use the"),
        ("--resume", "before_epoch", None, "before_epoch is prune, not NoneType: use the"),
    ):
        with pytest.raises(SystemExit, match=re.escape(said)):
            train.main([option, run], **fork | {part: other})
    config = json.loads((tmp_path / "run/config.json").read_text())
    del config["before_epoch"]  # as in runs of earlier versions
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    saved = torch.load(tmp_path / "run/last.pt")
    name, _ = saved["net"].popitem()
    torch.save(saved, tmp_path / "run/last.pt")
    with pytest.raises(SystemExit, match=f"cannot be loaded: .*Missing key.*{name}"):
        train.main(["--resume", run], **fork)
    with pytest.raises(ValueError, match="invalid literal"):  # a mistake keeps its traceback
        train.main([*words, run + "-2"], loss=lambda *given: int("a mistake of the fork"))
    with pytest.raises(SystemExit, match="the loss is not finite after epoch 1: try a lower --lr"):
        train.main([*words, run + "-3"], loss=lambda net, *given: sum(net.rates) + math.inf)


# ----------------------------------------------------------------------------- mistakes of the user


@pytest.mark.parametrize(
    "argv, sentence",
    [
        ("--epochs 0", "argument --epochs: 0: expected at least 1"),
        ("--epoch 1", "unrecognized arguments: --epoch 1"),  # options are not abbreviated
        ("--tau nan", "--tau nan, --tau-readout nan: expected at least 10 ms, one step"),
        ("--tau-readout 9.9", "--tau 10.05, --tau-readout 9.9: expected at least 10 ms"),
        ("--dropout 1", "argument --dropout: 1: expected a fraction from 0 to below 1"),
        ("--valid-share nan", "argument --valid-share: nan: expected a fraction from 0 to below 1"),
        ("--tau 9 --tau-readout 20", "--tau 9.0, --tau-readout 20.0: expected at least 10 ms"),
        ("--dataset toy --no-test", "no test and no validation set: hold out samples, as by --val"),
        ("--dataset toy --valid-share 0", "--valid-share 0.0 leaves no sample on one of the sides"),
        ("--dataset toy --seed -1 --valid-share 0.9999", "0.9999 leaves no sample on one of the"),
        ("--resume torn --eval torn", "argument --eval: not allowed with argument --resume"),
        ("--device cuda", "--device cuda: torch finds no GPU here"),
        ("--resume none", "No such file or directory: 'none/config.json'"),
        ("--eval=", "No such file or directory: 'config.json'"),
        ("--resume=", "No such file or directory: 'config.json'"),
        ("--eval text", "text/config.json is not that of a run: JSONDecodeError"),
        ("--resume bare", "bare/config.json is not that of a run: KeyError('options')"),
        ("--resume cut", "cut/config.json is not that of a run: TypeError"),
        ("--resume other", "other read another shd_test.h5: give its folder by --data-dir"),
        ("--resume torn", "torn/last.pt cannot be loaded"),
        ("--dataset toy --out text/shd_train.h5/x", "Not a directory: 'text/shd_train.h5/x'"),
        ("--data-dir cut", "cut/shd_train.h5.gz could not be read: Compressed file ended before"),
        ("--data-dir bare", "bare/shd_train.h5 could not be read: "),  # it has no labels
        ("--data-dir text", "text/shd_train.h5 could not be read: Unable to"),
        ("--valid-share 0.2 --valid-speakers 2", "not allowed with argument --valid-share"),
        ("--data-dir good --valid-speakers 2,x", "of ['112', '12', '2']"),
        ("--data-dir good --valid-speakers 2,12,112", "expected some, not all, of ['112', '12', "),
    ],
)
def test_a_mistake_gets_a_line_and_leaves_no_file(workplace, monkeypatch, capsys, argv, sentence):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = set(os.listdir())
    with pytest.raises(SystemExit) as stop:
        train.main(["--device", "cpu", *argv.split()])
    said = stop.value.code
    if said == 2:  # argparse's
        said = f"train.py: {capsys.readouterr().err.splitlines()[-1]}"
    assert said.startswith("train.py: ") and sentence in said and "\n" not in said
    assert set(os.listdir()) == before


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with all that can be wrong with files."""
    place = tmp_path_factory.mktemp("workplace")
    for name in ("good", "cut", "bare", "text", "torn", "other"):
        (place / name).mkdir()
    write_shd(place / "good")
    packed = gzip.compress(b"x" * 1000)
    (place / "cut/shd_train.h5.gz").write_bytes(packed[:-20])
    h5py.File(place / "bare/shd_train.h5", "w").close()
    (place / "text/shd_train.h5").write_text("<html>gone</html>")
    (place / "torn/last.pt").write_bytes(packed)
    torn = {"options": vars(parsed("--dataset", "toy")), "md5": {}}
    md5 = {"shd_train.h5.gz": "0", "shd_test.h5": "0"}  # the first is not there, so it may differ
    other = {"options": vars(parsed("--data-dir", place / "good")), "md5": md5}
    for name, config in dict(torn=torn, other=other, bare={}, cut=[]).items():
        (place / name / "config.json").write_text(json.dumps(config))
    (place / "text/config.json").write_text("<html>gone</html>")
    return place


@pytest.mark.parametrize(
    "column, sample, values, sentence",
    [
        ("times", 130, [[0.1, np.nan, 0.3]], "a sample lasts nan s: expected times in seconds"),
        ("times", 130, [[100, 200, 500]], "a sample lasts 400 s: .* seconds, not ms"),
        ("units", 130, [[3, 4, 700]], r"unit 2 is 700: expected a whole number, 0\.\.699"),
        ("times", 130, [[0.1, 0.2]], "a sample has 2 times, but 3 units"),
        ("labels", 1, [-1], "label 1 is -1: expected a whole number"),
        ("times", 139, [], r"zip\(\) argument 2 is longer"),
    ],
)
def test_a_mistake_in_a_file_is_refused(tmp_path, column, sample, values, sentence):
    content = dict(times=[[0.1, 0.2, 0.3]] * 140, units=[[3, 4, 5]] * 140, labels=[0, 1] * 70)
    content[column][sample : sample + 1] = values
    write_h5(tmp_path / "shd_test.h5", **content, speakers=[0] * 140)
    with pytest.raises(data.UserError, match=rf"shd_test.h5 could not be read: {sentence}"):
        data.load("shd", "test", tmp_path)


def test_events_with_a_mistake_are_refused():
    events = dict(sample=[0, 2, 0], step=[3, 0, 1], channel=[1, 0, 2], labels=[1, 0, 4])
    for change, sentence in (
        (dict(sample=[0, 2, 3]), r"sample of spike 2 is 3: .*whole number, 0\.\.2"),
        (dict(step=[3, 100_000, 1]), r"step of spike 1 is 100000: .*whole number, 0\.\.99999"),
        (dict(step=[3, 0.5, 1]), r"step of spike 1 is 0\.5: expected a whole number"),
        (dict(channel=[1, 0, 3]), r"channel of spike 2 is 3: .*whole number, 0\.\.2"),
        (dict(step=[3, 0]), "must have the same shape"),
        (dict(speakers=[7, 7]), r"\[3, 3, 2\] samples, labels and speakers: expected equal"),
        (dict(sample=[0] * 256, step=[2] * 256, channel=[1] * 256), "256 spikes of one input in"),
    ):
        with pytest.raises(ValueError, match=sentence):
            data.from_events(**(events | change), inputs=3)
    assert data.join([np.ones((2, 3))] * 2, [70_000, 0]).labels.dtype == torch.int64


def test_a_data_set_unlike_its_row_and_a_wrong_row_are_refused(short_run, tmp_path, monkeypatch):
    row, samples = data.DATASETS["little"], oracle.read_little("train", "")
    mixed = samples._replace(counts=[torch.ones(2, 5), torch.ones(2, 4)])
    from_one = samples._replace(labels=samples.labels + 1)
    for change, found, rule in (
        (dict(classes=2), "[5] inputs and 3", "5 and 2"),
        (dict(inputs=4), "[5] inputs and 3", "4 and 3"),
        (dict(read=lambda *given: mixed), "[4, 5] inputs and 3", "5 and 3"),
        (dict(read=lambda *given: from_one), "[5] inputs and 4", "5 and 3"),
    ):
        monkeypatch.setitem(data.DATASETS, "little", row._replace(**change))
        sentence = f"little train has {found} classes, its row in DATASETS says {rule}"
        with pytest.raises(data.UserError, match=re.escape(sentence)):
            train.train(options_of(tmp_path / "new", "--dataset", "little"))
        assert not (tmp_path / "new").exists()
    monkeypatch.setitem(train.DEFAULTS, "little", LITTLE | {"hiden": 14})
    with pytest.raises(data.UserError, match=r"train.DEFAULTS has options of another .*'hiden'"):
        parsed("--dataset", "little")
    monkeypatch.delitem(data.DATASETS, "little")
    with pytest.raises(data.UserError, match="run was trained on little: use the script of"):
        train.load_run(tmp_path / "run")


# --------------------------------------------------- the included data and network, edited programs


@pytest.mark.paper
def test_the_included_data_are_those_that_their_page_lists(tmp_path, monkeypatch):
    page = (FOLDER / "experiments/shd-regenerated/README.md").read_text()
    listed = re.findall("[0-9a-f]{32}", page)  # of each array, in train and in test
    for k, split in enumerate(("train", "test")):
        spikes = data.load("shd-regenerated", split, "")
        steps = spikes.steps.numpy().astype(np.int16)
        arrays = [torch.cat(spikes.counts), steps, spikes.labels.byte(), spikes.speakers]
        md5 = [hashlib.md5(np.asarray(array).tobytes()).hexdigest() for array in arrays]
        assert md5 == listed[k::2]
    monkeypatch.setattr(data, "__file__", str(tmp_path / "data.py"))
    with pytest.raises(data.UserError, match=r"regenerated/test.npz could not be read .*No such"):
        data.load("shd-regenerated", "test", "")


@pytest.mark.paper
def test_the_included_network_has_its_accuracy_anywhere(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    folder = FOLDER / "experiments/trained/shd-learned"
    train.main(["--eval", str(folder), "--device", "cpu"])
    printed, errors = capfd.readouterr()
    accuracy = float(re.fullmatch(r"test accuracy (\S+)% .*\n", printed)[1])
    assert accuracy == pytest.approx(93.15, rel=0, abs=0.3) and errors == ""
    assert result_of(folder)["test_accuracy"] == pytest.approx(0.9315, rel=0, abs=5e-5)


def test_an_edited_program_is_named_when_its_run_is_read(short_run, tmp_path, capsys):
    run, path = tmp_path / "run", tmp_path / "run/config.json"
    config = json.loads(path.read_text())
    names = ["delays.py", "data.py", "train.py"]
    assert config["program"] == {name: data.md5(FOLDER / name) for name in names}
    train.load_run(run)
    assert capsys.readouterr().err == ""
    config["program"]["delays.py"] = "0"
    path.write_text(json.dumps(config))
    for read in (train.load_run, lambda folder: parsed("--eval", folder)):
        read(run)
        assert capsys.readouterr().err == f"delays.py changed since the run in {run} began\n"
    del config["program"]  # as in runs of earlier versions
    path.write_text(json.dumps(config))
    train.load_run(run)
    assert capsys.readouterr().err == ""


def test_a_stride_is_refused(little):
    net = train.build(parsed("--dataset", "little"))
    whole, net.readout = net.readout, lambda current: whole(current)[:, ::2]
    with pytest.raises(data.UserError, match=r"returned \d+ steps for \d+: expected at least as"):
        train.predict(net, data.load("little", "test", ""))


def test_the_other_programs_of_the_page_on_forking_run(little, tmp_path, monkeypatch):
    for name in ("make_parser", "RUNS"):
        monkeypatch.setattr(train, name, getattr(train, name))  # to undo it
    exec(STRENGTH + PRUNE + TONIC, fork := {"__name__": "fork"})
    words = ["--dataset", "little", "--strength", 0.5, "--epochs", 3, "--out", tmp_path / "run"]
    mine = type("Mine", (DelaySNN,), {"layer_class": Residual})
    net = train.build(parsed(*words), mine)
    train.train(parsed(*words), net, loss=fork["penalty"], before_epoch=fork["set_strength"])
    assert net.strength == 0.5
    exec("import argparse\n" + LOAD, space := dict(train=train, run=tmp_path / "run", Mine=mine))
    assert oracle.same_bits(space["net"].state_dict(), net.state_dict())
    fork["prune"](net, None, 1, parsed(*words))
    kept = [layer.mask.double().mean().item() for layer in net.layers]
    assert kept == pytest.approx([0.2] * 3, rel=0, abs=0.05)

    kind = [("t", np.int64), ("x", np.int16), ("y", np.int16), ("p", np.int8)]
    one = np.array([(50_000, 3, 99, 1), (70_001, 0, 0, 0)], kind)
    spikes = fork["from_tonic"]([(one, 1), (one[:1], 0)], height=100, width=200)
    found = [sample.nonzero().tolist() for sample in spikes.counts]
    assert found == [[[0, (100 + 99) * 200 + 3], [2, 0]], [[0, (100 + 99) * 200 + 3]]]
