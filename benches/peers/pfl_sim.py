"""FedAvg in Apple's pfl-research, its simulation with PyTorch, one process.

Its mean weighs every client alike: the work is the same, the accuracy is not comparable.
"""

import torch
import torch.nn.functional as F
from common import Clock, arguments, load, make, split
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel


class Module(torch.nn.Module):
    """The job's model with the two methods that pfl asks for."""

    def __init__(self, job):
        super().__init__()
        self.net = make(job)

    def forward(self, x):
        return self.net(x)

    def loss(self, x, y, is_eval=False):
        self.eval() if is_eval else self.train()
        return F.cross_entropy(self(x), y.long())

    @torch.no_grad()
    def metrics(self, x, y, is_eval=True):
        self.eval()
        return {"loss": Weighted(F.cross_entropy(self(x), y.long(), reduction="sum").item(), len(y))}


class Rounds(TrainingProcessCallback):
    """Stops the clock after each round with the examples of the clients that were read since."""

    def __init__(self, clock):
        self.clock = clock
        self.examples = 0

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.clock.stop(self.examples)
        self.examples = 0
        return False, Metrics()


def main():
    job, threads, data = arguments(__doc__)
    torch.set_num_threads(threads)
    images, labels = load(data)
    parts = split(labels, job)
    clock = Clock()
    rounds = Rounds(clock)

    def client(name):
        indices = torch.from_numpy(parts[int(name)])
        rounds.examples += len(indices)
        return Dataset(raw_data=[images[indices], labels[indices]], user_id=name)

    module = Module(job)
    server = torch.optim.SGD(module.parameters(), 1.0)
    model = PyTorchModel(model=module, local_optimizer_create=torch.optim.SGD, central_optimizer=server)
    sampler = get_user_sampler("random", [str(number) for number in range(job.clients)])
    backend = SimulatedBackend(training_data=FederatedDataset(client, sampler), val_data=None, postprocessors=[])
    params = NNAlgorithmParams(
        central_num_iterations=job.rounds,
        evaluation_frequency=10**9,
        train_cohort_size=job.per_round,
        val_cohort_size=0,
    )
    local = NNTrainHyperParams(local_learning_rate=job.lr, local_num_epochs=1, local_batch_size=job.batch)
    clock.start()
    FederatedAveraging().run(
        algorithm_params=params,
        backend=backend,
        model=model,
        model_train_params=local,
        model_eval_params=NNEvalHyperParams(local_batch_size=1000),
        callbacks=[rounds],
    )
    clock.report("pfl", job.name, threads, ["pfl", "torch"])


if __name__ == "__main__":
    main()
