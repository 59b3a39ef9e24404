"""FedAvg in Flower's simulation on Ray, one processor a client, `--threads` clients at a time.

Processor time and memory are those of all its processes; memory is the largest sum of proportional shares (PSS) seen
at the end of a round.
"""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_DISABLE_DOCKER_CPU_WARNING", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch
from common import Clock, arguments, kilobytes, load, make, split, train
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

JOB, THREADS, DATA = arguments(__doc__)
TICKS = os.sysconf("SC_CLK_TCK")
loaded = None


def descendants():
    """Process numbers and processor ticks of this process and all that it started, as far as they live."""
    parents, ticks = {}, {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue  # It has ended since.
        parents[pid] = int(fields[1])
        # User and system time, its own and that of its children that ended.
        ticks[pid] = sum(map(int, fields[11:15]))
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return {pid: ticks[pid] for pid in ours if pid in ticks}


def processor():
    """Processor seconds of all processes."""
    return sum(descendants().values()) / TICKS


def memory():
    """Memory of all processes in MiB, shared pages divided among those that share them."""
    shares = (kilobytes(f"/proc/{pid}/smaps_rollup", "Pss") for pid in descendants())
    return sum(share for share in shares if share)


client = ClientApp()


@client.train()
def fit(message, context):
    """Trains one client; a worker process reads the data once."""
    global loaded
    torch.set_num_threads(1)
    if loaded is None:
        images, labels = load(DATA)
        loaded = images, labels, split(labels, JOB)
    images, labels, parts = loaded
    model = make(JOB)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    indices = torch.from_numpy(parts[context.node_config["partition-id"]])
    train(model, images[indices], labels[indices], JOB)
    metrics = MetricRecord({"num-examples": len(indices)})
    return Message(content=RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


class Counted(FedAvg):
    """FedAvg that counts the examples of each round."""

    examples = 0

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        failed = [reply for reply in replies if reply.has_error()]
        if failed:
            raise SystemExit(f"{len(failed)} clients failed: {failed[0].error}")
        self.examples = sum(reply.content["metrics"]["num-examples"] for reply in replies)
        return super().aggregate_train(server_round, replies)


server = ServerApp()


@server.main()
def main(grid, context):
    """Plays the rounds; the evaluation hook, which evaluates nothing, is what stops the clock."""
    strategy = Counted(
        fraction_train=JOB.per_round / JOB.clients,
        fraction_evaluate=0.0,
        min_available_nodes=JOB.clients,
        min_train_nodes=JOB.per_round,
    )
    clock, peaks = Clock(processor), []

    def after(number, arrays):
        if number == 0:
            clock.start()
        else:
            clock.stop(strategy.examples)
            peaks.append(memory())
            clock.start()

    strategy.start(
        grid=grid, initial_arrays=ArrayRecord(make(JOB).state_dict()), num_rounds=JOB.rounds, evaluate_fn=after
    )
    clock.report("flower", JOB.name, THREADS, ["flwr", "ray", "torch"], max(peaks))


if __name__ == "__main__":
    resources = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": THREADS, "include_dashboard": False},
    }
    run_simulation(server, client, num_supernodes=JOB.clients, backend_config=resources)
