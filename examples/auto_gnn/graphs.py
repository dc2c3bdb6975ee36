"""Graphs: the digits of scikit-learn, or a citation graph in a file."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch_geometric.nn.conv.gcn_conv import gcn_norm


class Graph(NamedTuple):
    """Nodes with words or pixels, edges in both directions with self-loops, and three splits."""

    x: torch.Tensor
    edges: torch.Tensor
    norm: torch.Tensor
    y: torch.Tensor
    splits: dict[str, torch.Tensor]


def load(data: str) -> Graph:
    """Return a citation graph, or the digits of scikit-learn joined to their nearest neighbours."""
    if data == "digits":
        from sklearn.datasets import load_digits
        from sklearn.neighbors import kneighbors_graph

        pixels, y = load_digits(return_X_y=True)
        x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(y)
        pairs = torch.tensor(np.array(kneighbors_graph(pixels, 5).nonzero()))
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(y)))
        train = torch.cat([order[y[order] == c][:5] for c in range(10)])
        rest = order[~torch.isin(order, train)]
        splits = {"train": train, "val": rest[:500], "test": rest[500:]}
    else:
        file = np.load(data)
        places = torch.from_numpy(np.stack([file["word_node"], file["word"]]).astype(np.int64))
        words = places[0].bincount(minlength=file["shape"][0])
        x = torch.sparse_coo_tensor(places, 1 / words[places[0]], tuple(file["shape"])).coalesce()
        pairs = torch.from_numpy(file["edges"].astype(np.int64))
        y = torch.from_numpy(file["y"].astype(np.int64))
        splits = {k: torch.from_numpy(file[k].astype(np.int64)) for k in ("train", "val", "test")}
    edges = torch.cat([pairs, pairs.flip(0)], 1).unique(dim=1)
    edges, norm = gcn_norm(edges, num_nodes=len(y))  # with self-loops
    return Graph(x, edges, norm, y, splits)
