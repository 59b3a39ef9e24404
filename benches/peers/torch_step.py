"""A step of local training in PyTorch: forward, loss, backward, plain SGD, batch 32, on batches that are ready.

One round of the report is a block of steps, its examples are those of the block.
"""

import argparse

import torch
import torch.nn.functional as F
from common import CNN, Clock, TwoNN, at_least_one
from torch import nn

BATCH = 32
GROUPS = 2


def norm(channels):
    return nn.GroupNorm(GROUPS, channels)


class Block(nn.Module):
    """Two 3x3 convolutions around which the input is added; the shortcut is a 1x1 convolution where sizes differ."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.c1, self.n1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm(outputs)
        self.c2, self.n2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), norm(outputs)
        self.shortcut = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x):
        y = self.n2(self.c2(F.relu(self.n1(self.c1(x)))))
        return F.relu(self.shortcut(x) + y)


class ResNet20(nn.Module):
    """ResNet-20 with group norm in two groups, 272,474 parameters."""

    def __init__(self):
        super().__init__()
        self.stem, self.n = nn.Conv2d(3, 16, 3, 1, 1, bias=False), norm(16)
        blocks, inputs = [], 16
        for stage, outputs in enumerate([16, 32, 64]):
            for block in range(3):
                blocks.append(Block(inputs, outputs, 2 if stage > 0 and block == 0 else 1))
                inputs = outputs
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.blocks(F.relu(self.n(self.stem(x)))).mean((2, 3)))


# Model, shape of an example, steps in a block.
MODELS = {
    "step-2nn": (TwoNN, (1, 28, 28), 50),
    "step-cnn": (CNN, (1, 28, 28), 4),
    "step-resnet20": (ResNet20, (3, 32, 32), 2),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", choices=MODELS, default="step-2nn")
    parser.add_argument("--rounds", type=at_least_one, default=20, help="blocks of steps")
    parser.add_argument("--threads", type=at_least_one, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    make, shape, steps = MODELS[args.job]
    model = make().train()
    batches = [(torch.randn(BATCH, *shape), torch.randint(10, (BATCH,))) for _ in range(steps)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    clock = Clock()
    for _ in range(args.rounds):
        for x, y in batches:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        clock.stop(steps * BATCH)
    clock.report("torch", args.job, args.threads, ["torch"])


if __name__ == "__main__":
    main()
