"""The files that data.py reads and fetches, and the events of your own, offline, one thread."""

import hashlib
import http.server
import json
import math
import os
import threading
import zipfile

import h5py
import numpy as np
import pytest
import torch

import data
from test_delays import each_sample

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


def write_shd(folder, speakers=(2, 12, 112)):
    """Write files of SHD, of 24 and 9 samples.  The speakers take turns."""
    for split, size in (("train", 24), ("test", 9)):
        labels = np.arange(size) % 20
        units = [[20 * label] * 60 for label in labels]
        times = [np.linspace(0.1, 0.4, 60)] * size
        names = np.resize(speakers, size).tolist()
        write_h5(folder / f"shd_{split}.h5", times, units, labels, names)


def counted(steps, channels, inputs):
    """Count the spikes of a sample one by one.  Without spikes, it is one empty step."""
    counts = [[0] * inputs for _ in range(max(steps, default=0) + 1)]
    for step, channel in zip(steps, channels, strict=True):
        counts[step][channel] += 1
    return counts


def test_reading_is_the_loop_over_spikes_and_keeps_every_spike(tmp_path):
    rng = np.random.default_rng(0)
    sizes = [0, *rng.integers(1, 400, 299)]
    times = [rng.uniform(0, 1.4, n).astype(np.float16) for n in sizes]  # in any order
    units = [rng.integers(0, 700, n) for n in sizes]
    labels, speakers = rng.integers(0, 20, 300), ["0a7c", "b555", "çelik"] * 100
    write_h5(tmp_path / "shd_test.h5", times, units, labels, speakers)
    want = []
    for own, channels in zip(times, units, strict=True):
        steps = [math.floor((float(t) - float(min(own))) * 1000 / 10) for t in own]
        want.append(counted(steps, channels // 5, 140))
    got = data.load("shd", "test", tmp_path)
    assert each_sample(got) == list(zip(want, labels, speakers, strict=True))
    assert {sample.dtype for sample in got.counts} == {torch.uint8}


@pytest.mark.parametrize("kind", [np.uint64, list, torch.tensor, np.float32])
def test_events_are_counted_one_by_one(kind):
    rng = np.random.default_rng(0)
    sample, step, channel = rng.integers(0, [[20], [15], [4]], (3, 500))
    keep = (sample != 7) & (sample != 19)  # two samples without a spike, one of them the last
    sample, step, channel = sample[keep], step[keep], channel[keep]
    labels, speakers = rng.integers(0, 3, 20), [f"speaker {i % 5}" for i in range(20)]
    got = data.from_events(sample, kind(step), kind(channel), kind(labels), 4, speakers)
    want = [counted(step[sample == s], channel[sample == s], 4) for s in range(20)]
    assert each_sample(got) == list(zip(want, labels, speakers, strict=True))
    assert got.counts[0].dtype == torch.uint8 and got.labels.dtype == torch.int64
    assert each_sample(got.select(np.arange(20) > 7)) == each_sample(got)[8:]
    silent = data.from_events([], [], [], [1], inputs=3)
    assert each_sample(silent) == [([[0, 0, 0]], 1, -1)]


# ----------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "times, units, sentence",
    [
        ([0.1, np.nan], [3, 4], "a sample lasts nan s: expected times in seconds, not ms"),
        ([100, 1000], [3, 4], "a sample lasts 900 s: expected times in seconds, not ms"),
        ([0.1, 0.2], [3, 700], r"unit 1 is 700: expected a whole number, 0\.\.699"),
        ([0.1], [3, 4], "a sample has 1 times, but 2 units"),
    ],
)
def test_a_file_with_a_mistake_is_refused(tmp_path, times, units, sentence):
    write_h5(tmp_path / "shd_test.h5", [[0.1], times], [[3], units], [0, 1], [0, 0])
    with pytest.raises(data.UserError, match=f"shd_test.h5 could not be read: {sentence}"):
        data.load("shd", "test", tmp_path)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(sample=[0, 2, 3]), r"sample of spike 2 is 3: .*whole number, 0\.\.2"),
        (dict(step=[3, 100_000, 1]), r"step of spike 1 is 100000: .*whole number, 0\.\.99999"),
        (dict(step=[3, 0.5, 1]), r"step of spike 1 is 0\.5: expected a whole number"),
        (dict(channel=[1, 0, 3]), r"channel of spike 2 is 3: .*whole number, 0\.\.2"),
        (dict(step=[3]), "must have the same shape"),
        (dict(labels=[1, 0.7, 1.2]), r"label 1 is 0\.7: expected a whole number"),
        (dict(labels=[1, -1, 0]), "label 1 is -1: expected a whole number"),
        (dict(speakers=[7, 7]), r"\[3, 3, 2\] samples, labels and speakers: expected equal"),
        (dict(sample=[0] * 256, step=[2] * 256, channel=[1] * 256), "256 spikes of one input in"),
    ],
)
def test_events_with_a_mistake_are_refused(change, sentence):
    events = dict(sample=[0, 2, 0], step=[3, 0, 1], channel=[1, 0, 2], labels=[1, 0, 4])
    with pytest.raises(ValueError, match=sentence):
        data.from_events(**(events | change), inputs=3)


def test_a_data_set_unlike_its_row_is_refused_and_with_one_class_labels_are_values(monkeypatch):
    spikes = data.Spikes([np.ones((2, 8))] * 2, [3, 0.5])
    row = data.DATASETS["toy"]._replace(classes=1, read=lambda *given: spikes)
    monkeypatch.setitem(data.DATASETS, "toy", row)
    assert data.load("toy", "test", "").labels.tolist() == [3, 0.5]
    assert data.Spikes(spikes.counts, np.uint16([3, 0])).labels.dtype == torch.int64
    for change, sentence in (
        (dict(inputs=4), r"toy test has \[8\] inputs, its row in DATASETS says 4"),
        (dict(classes=3), r"toy test: label 0 is 3\.0: expected a whole number, 0\.\.2"),
    ):
        monkeypatch.setitem(data.DATASETS, "toy", row._replace(**change))
        with pytest.raises(data.UserError, match=sentence):
            data.load("toy", "test", "")


# ------------------------------------------------------------------------------------- the download


def test_servers_and_checksums_are_the_published_ones():
    table = json.dumps([data.SERVERS, data.MD5]).encode()
    assert hashlib.md5(table).hexdigest() == "968cff27d3478fa55531470b7ea87fdc"


def test_a_missing_file_is_fetched(tmp_path, monkeypatch):
    write_shd(tmp_path)
    want = each_sample(data.load("shd", "test", tmp_path))
    with zipfile.ZipFile(tmp_path / "packed", "w") as archive:
        archive.write(tmp_path / "shd_test.h5", "shd_test.h5")
        archive.writestr("more", bytes(3 << 20))  # the download takes several blocks
    sound = (tmp_path / "packed").read_bytes()
    monkeypatch.setitem(data.MD5, "shd_test.h5.zip", hashlib.md5(sound).hexdigest())
    replies = dict(absent=b"HTTP/1.0 404 gone\r\n\r\n", nonsense=b"what?\r\n\r\n")
    replies["cut"] = b"HTTP/1.0 200 fine\r\n\r\n" + sound[:-1000]
    replies["mirror"] = b"HTTP/1.0 200 fine\r\n\r\n" + sound

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            _, server, name = self.path.split("/")
            assert name == "shd_test.h5.zip" and os.listdir(folder)  # a file system of its own
            self.wfile.write(replies[server])

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "new/d"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(data, "SERVERS", [f"{address}/{kind}" for kind in list(replies)[:3]])
        said = "shd_test.h5 is not in .*404.*what\\?.*sent a file of md5.* try --dataset toy"
        with pytest.raises(data.UserError, match=said):  # in one line
            data.load("shd", "test", str(folder))
        assert os.listdir(folder) == []
        data.SERVERS.append(f"{address}/mirror")
        assert each_sample(data.load("shd", "test", str(folder))) == want
        server.shutdown()
    assert os.listdir(folder) == ["shd_test.h5"]
    for packing in (".zip", ".gz"):  # a file that is there already is not fetched anew
        next(folder.iterdir()).rename(folder / f"shd_test.h5{packing}")
        with pytest.raises(data.UserError, match=rf"shd_test.h5{packing} is there: unpack it"):
            data.load("shd", "test", str(folder))
