"""FedAvg as a loop written by hand in PyTorch, one process.

A client's data are indexed out of one tensor, its weights copied into one resident model; the mean weighs by examples.
"""

import random

import torch
from common import Clock, arguments, load, make, split, train


def main():
    job, threads, data = arguments(__doc__)
    torch.set_num_threads(threads)
    images, labels = load(data)
    parts = split(labels, job)
    world, local = make(job), make(job)
    rng = random.Random(1)
    clock = Clock()
    for number in range(job.rounds):
        total, examples = None, 0
        for client in rng.sample(range(job.clients), job.per_round):
            indices = torch.from_numpy(parts[client])
            local.load_state_dict(world.state_dict())
            train(local, images[indices], labels[indices], job, seed=number)
            weight = len(indices)
            examples += weight
            scaled = {name: value * weight for name, value in local.state_dict().items()}
            total = scaled if total is None else {name: total[name] + value for name, value in scaled.items()}
        world.load_state_dict({name: value / examples for name, value in total.items()})
        clock.stop(examples)
    clock.report("torch", job.name, threads, ["torch"])


if __name__ == "__main__":
    main()
