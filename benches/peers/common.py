"""What every peer shares: the jobs, the data and their split, the models, local training, and the clock.

Each job is FedAvg on Fashion-MNIST, the same that `benches/experiments` describes for fedburn. A script plays it and
prints one line of JSON with what it measured.
"""

import argparse
import gzip
import json
import os
import platform
import struct
import sys
import time
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

DEBIAN = "/usr/share/datasets/fashion-mnist"


@dataclass(frozen=True)
class Job:
    """A federation: its model, its clients, their training and how many rounds are played."""

    name: str
    model: str
    clients: int = 100
    per_round: int = 10
    batch: int = 32
    lr: float = 0.05
    alpha: float | None = 0.5  # Dirichlet over labels; None for equal parts at random
    hidden: int = 200
    rounds: int = 20


JOBS = {
    "2nn": Job("2nn", "2nn"),
    "cnn": Job("cnn", "cnn", rounds=4),
    "flute": Job("flute", "softmax", clients=1000, batch=10, lr=0.03, alpha=None, rounds=100),
}


def arguments(description):
    """The job and the number of threads that the command line asks for, and the folder of the data."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--job", choices=JOBS, default="2nn")
    parser.add_argument("--rounds", type=at_least_one, help="rounds to play instead of the job's own number")
    parser.add_argument("--per-round", type=at_least_one, help="clients a round instead of the job's own number")
    parser.add_argument("--hidden", type=at_least_one, help="hidden units of the 2NN instead of 200")
    parser.add_argument("--threads", type=at_least_one, default=1)
    parser.add_argument("--data", default=folder(), help="folder of Fashion-MNIST's IDX files [%(default)s]")
    args = parser.parse_args()
    given = {name: value for name in ("rounds", "per_round", "hidden") if (value := getattr(args, name))}
    job = replace(JOBS[args.job], **given)
    if job.per_round > job.clients:
        parser.error(f"--per-round is {job.per_round}, but the job has {job.clients} clients")
    return job, args.threads, args.data


def at_least_one(text):
    """A positive whole number."""
    if (value := int(text)) < 1:
        raise ValueError
    return value


def folder():
    """Where fedburn looks for Fashion-MNIST too."""
    own = os.path.join(os.environ.get("FEDBURN_DATA", ""), "fashion-mnist")
    return own if "FEDBURN_DATA" in os.environ and os.path.isdir(own) else DEBIAN


def load(data):
    """Training images `[60000, 1, 28, 28]`, standardised, and their labels."""

    def idx(name):
        path = os.path.join(data, name)
        try:
            with gzip.open(path) as file:
                raw = file.read()
        except FileNotFoundError:
            sys.exit(f"{path} is missing: install Debian's dataset-fashion-mnist, or name a folder with --data")
        dims = raw[3]
        shape = struct.unpack(">" + "I" * dims, raw[4 : 4 + 4 * dims])
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)

    images = torch.from_numpy(idx("train-images-idx3-ubyte.gz").copy()).float()
    labels = torch.from_numpy(idx("train-labels-idx1-ubyte.gz").astype(np.int64))
    return images.div_(255).sub_(0.2860).div_(0.3530).unsqueeze(1), labels


def split(labels, job, seed=42):
    """Indices of each client's examples."""
    rng = np.random.default_rng(seed)
    if job.alpha is None:
        return [np.sort(part) for part in np.array_split(rng.permutation(len(labels)), job.clients)]
    parts = [[] for _ in range(job.clients)]
    for label in range(10):
        indices = rng.permutation(np.flatnonzero(labels.numpy() == label))
        cuts = (np.cumsum(rng.dirichlet([job.alpha] * job.clients)) * len(indices)).astype(int)[:-1]
        for part, more in zip(parts, np.split(indices, cuts)):
            part.extend(more.tolist())
    return [np.array(part if len(part) >= 2 else [0, 1]) for part in parts]


class CNN(nn.Module):
    """The FedAvg paper's CNN, 1,663,370 parameters."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 32, 5, padding=2), nn.Conv2d(32, 64, 5, padding=2)
        self.f1, self.f2 = nn.Linear(3136, 512), nn.Linear(512, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.max_pool2d(F.relu(self.c2(x)), 2)
        return self.f2(F.relu(self.f1(x.flatten(1))))


class TwoNN(nn.Module):
    """The FedAvg paper's 2NN, 199,210 parameters with 200 hidden units."""

    def __init__(self, hidden=200):
        super().__init__()
        self.f1, self.f2, self.f3 = nn.Linear(784, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 10)

    def forward(self, x):
        return self.f3(F.relu(self.f2(F.relu(self.f1(x.flatten(1))))))


class Softmax(nn.Module):
    """Softmax regression, 7,850 parameters."""

    def __init__(self):
        super().__init__()
        self.f = nn.Linear(784, 10)

    def forward(self, x):
        return self.f(x.flatten(1))


def make(job):
    """The job's model, the same weights every time."""
    torch.manual_seed(0)
    return {"2nn": lambda: TwoNN(job.hidden), "cnn": CNN, "softmax": Softmax}[job.model]()


def train(model, x, y, job, seed=0):
    """One epoch of plain SGD."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.SGD(model.parameters(), lr=job.lr)
    model.train()
    for batch in order.split(job.batch):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()


class Clock:
    """Wall-clock and processor seconds of each round, and the examples that were trained on in it."""

    def __init__(self, processor=time.process_time):
        self.processor = processor
        self.rounds = []
        self.start()

    def start(self):
        """The next round begins now."""
        self.now = time.perf_counter(), self.processor()

    def stop(self, examples):
        """A round ended, and the next begins."""
        wall, processor = self.now
        self.start()
        self.rounds.append((self.now[0] - wall, self.now[1] - processor, int(examples)))

    def report(self, peer, job, threads, packages, memory=None):
        """Prints the measurements; `memory` in MiB is this process's own peak by default."""
        seconds, processor, examples = zip(*self.rounds)
        line = {
            "peer": peer,
            "job": job,
            "threads": threads,
            "seconds": seconds,
            "processor_seconds": processor,
            "examples": examples,
            "peak_memory_mib": memory or own_peak(),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        }
        print(json.dumps(line), flush=True)


def own_peak():
    """Peak resident memory of this process in MiB; None where the kernel does not tell it."""
    return kilobytes("/proc/self/status", "VmHWM")


def kilobytes(path, field):
    """A field of one of the kernel's tables, in MiB."""
    try:
        with open(path) as table:
            return next(int(line.split()[1]) / 1024 for line in table if line.startswith(field + ":"))
    except (OSError, StopIteration):
        return None
