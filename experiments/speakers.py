"""How a run of train.py does on speakers it learned from, and on others it has never heard.

    python experiments/speakers.py runs/shd-learned-0 --data-dir DIR

Judged is the last epoch, on the test set, or on the held-out speakers of a run with --no-test.  A
checkpoint may stand in place of the folder.

"Shifted" is the accuracy if a sample is heard several times, each time moved by some inputs up or
down, and the scores are summed.  --moves are these numbers; 0 is the sample as it is.  Spikes that
leave the range are dropped.

Prints a table, and writes it to speakers.json beside the checkpoint, as shares.
"""

import argparse
import json
import os
import sys

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import data
import train
from delays import DelaySNN

MOVES = [-8, -4, 0, 4, 8]  # chosen on speakers held out of training


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", help="folder of a run, or a checkpoint")
    parser.add_argument("--data-dir", help="folder of the data files; default: that of the run")
    parser.add_argument("--moves", type=moves, default=MOVES, help="default: --moves=-8,-4,0,4,8")
    return parser.parse_args()


def moves(text: str) -> list[int]:
    whole = train.number(int, -(2**31))
    return sorted({whole(move) for move in text.split(",")})


def moved(spikes: data.Spikes, move: int) -> data.Spikes:
    """The samples with all spikes moved by `move` inputs; what leaves the range is dropped."""
    inputs = spikes.counts.shape[1]
    source = torch.arange(inputs) - move
    there = (source >= 0) & (source < inputs)
    counts = torch.zeros_like(spikes.counts)
    counts[:, there] = spikes.counts[:, source[there]]
    return spikes._replace(counts=counts)


@torch.no_grad()
def all_scores(net: DelaySNN, spikes: data.Spikes, size: int) -> Tensor:
    """The class scores of each sample in evaluation, [samples, classes]."""
    parts = data.batches(spikes, size, shuffle=False)
    scores = torch.cat([train.predict(net, spikes, *part) for part in parts])
    order = torch.cat([indices for indices, _ in parts])
    return scores[order.argsort()]


def groups(judged: data.Spikes, learned_from: np.ndarray) -> dict[str, np.ndarray]:
    """Which samples make each row of the table, bool [samples] by its name."""
    names = judged.speakers.astype(str)
    known = np.isin(names, learned_from.astype(str))
    rows = {"all": np.ones_like(known)}
    rows["speakers in training"] = known
    rows["other speakers"] = ~known
    for name in sorted(set(names[~known].tolist())):
        rows[f"speaker {name}"] = names == name
    return {name: which for name, which in rows.items() if which.any()}


def judge(net: DelaySNN, judged: data.Spikes, learned_from, moves, size: int) -> dict[str, dict]:
    """Samples, accuracy, and accuracy of shifted copies together, for each row of the table."""
    scores = {move: all_scores(net, moved(judged, move), size) for move in {0, *moves}}
    right = scores[0].argmax(1) == judged.labels
    right_shifted = sum(scores[move] for move in moves).argmax(1) == judged.labels
    rows = {}
    for name, which in groups(judged, learned_from).items():
        rows[name] = {
            "samples": int(which.sum()),
            "accuracy": right.numpy()[which].mean().item(),
            "shifted": right_shifted.numpy()[which].mean().item(),
        }
    return rows


def main() -> None:
    arguments = parse()
    path = arguments.run
    path = os.path.join(path, "last.pt") if os.path.isdir(path) else path
    train.set_backend()
    saved = train.read_checkpoint(path)
    net, options = train.restore(saved, path)
    options.device = "cpu"
    if arguments.data_dir is not None:
        options.data_dir = arguments.data_dir
    sets = train.load_sets(options)
    judged = sets[train.judged_split(options)]

    learned_from = sets["train"].speakers
    rows = judge(net, judged, learned_from, arguments.moves, options.batch_size)
    print(f"{'':24}{'samples':>8}{'accuracy':>10}{'shifted':>10}")
    for name, row in rows.items():
        print(f"{name:24}{row['samples']:8}{row['accuracy']:10.2%}{row['shifted']:10.2%}")
    content = {"checkpoint": os.path.basename(path), "epoch": len(saved["rows"])}
    content |= {"moves": arguments.moves, "rows": rows}
    train.write(os.path.dirname(path), "speakers.json", json.dumps(content, indent=1))


if __name__ == "__main__":
    try:
        with train.sentences("speakers.py"):
            main()
    except KeyboardInterrupt:
        sys.exit("\nstopped")
