"""Data-parallel training with pseudo-labels for the batches and banks of all processes together.

Each process holds some of the samples. One more argument, ``group``, makes `PseudoLabeler` solve
one problem over all of them, of which only sums and the rows of neighbours travel; at the end
`ssot.solve` labels the whole data set, where each process gives and gets its own rows.

    torchrun --standalone --nproc-per-node 2 examples/distributed/data_parallel.py
"""

import gc

import numpy as np
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score
from torch import nn
from torch.nn.functional import dropout
from torch.nn.parallel import DistributedDataParallel

import ssot
from ssot.training import PseudoLabeler, soft_cross_entropy

CLASSES, EPOCHS, BATCH, NEIGHBOURS = 10, 15, 64, 20


def train(images: torch.Tensor, graph: object, rows: slice) -> nn.Module:
    """Train a classifier without labels; this process brings some rows of the images (N, D)."""
    own = torch.arange(len(images))[rows]
    # Of all that are there, so that every process takes part in every step.
    steps = len(images) // dist.get_world_size() // BATCH
    torch.manual_seed(0)
    network = DistributedDataParallel(nn.Linear(images.shape[1], CLASSES))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    labeler = PseudoLabeler(EPOCHS * steps, capacity=4 * BATCH, graph=graph, group=dist.group.WORLD)
    draw = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(EPOCHS):
        for ids in own[torch.randperm(len(own), generator=draw)].split(BATCH)[:steps]:
            logits = network(dropout(images[ids], 0.2))
            with torch.no_grad():
                labels = labeler(network(images[ids]), ids)
            loss = soft_cross_entropy(logits, labels.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network


@torch.no_grad()
def labels_of(network: nn.Module, images: torch.Tensor, graph: object, rows: slice) -> torch.Tensor:
    """Label all samples by one plan over all processes; return the labels of the own rows."""
    solution = ssot.solve(
        logits=network(images[rows]), graph=graph[rows], kl_weight=1.0, group=dist.group.WORLD
    )
    if dist.get_rank() == 0:
        found = solution.certificate
        print(f"{solution.status.name} with gap {found.stationarity_gap:.1e} on all processes")
    return solution.labels


def main() -> None:
    """Train on scikit-learn's digits, and compare the labels with the true classes."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank, size = dist.get_rank(), dist.get_world_size()
    digits = load_digits()
    images = torch.as_tensor(digits.data / 16, dtype=torch.float32)
    graph = ssot.knn_graph(images.numpy(), NEIGHBOURS)
    rows = slice(rank * len(images) // size, (rank + 1) * len(images) // size)
    network = train(images, graph, rows)
    labels = labels_of(network, images, graph, rows)
    parts: list[np.ndarray] = [np.empty(0)] * size
    dist.all_gather_object(parts, labels.numpy())
    if rank == 0:
        agreement = normalized_mutual_info_score(digits.target, np.concatenate(parts))
        print(f"{size} processes label {len(images)} digits: NMI {agreement:.2f}")
    del network
    gc.collect()  # a network that outlives its group may abort or hang the process at its end
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
