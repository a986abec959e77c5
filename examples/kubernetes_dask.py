"""Evaluate a suite on Kubernetes: dask-kubernetes starts a scheduler and workers as pods.

    pip install 'lyanet-robustness[dask]' dask-kubernetes
    helm install --repo https://helm.dask.org --create-namespace -n dask-operator \
        --generate-name dask-kubernetes-operator
    python kubernetes_dask.py REGISTRY/IMAGE

The image has this package and `distributed`, of the versions that are installed here: a worker of
others refuses in one line. Models and images are sent to it; no volume is needed.
"""

import sys

from dask_kubernetes.operator import KubeCluster
from distributed import Client

from robustness import evaluate


def main(image: str) -> None:
    """Evaluate, on pods of an image."""
    cluster = KubeCluster(
        name="robustness",
        image=image,
        n_workers=4,
        env={"OMP_NUM_THREADS": "1"},
        worker_command=["dask", "worker", "--nthreads", "1"],
        resources={"requests": {"cpu": "1", "memory": "4Gi"}, "limits": {"memory": "4Gi"}},
    )
    cluster.adapt(minimum=4, maximum=256)
    with Client(cluster) as client:
        board = evaluate("cifar-10", executor=client, quiet=False)
    for model in board.models:
        print(model.name, [f"{b.eps:g}: {b.attacked.value:.1%}" for b in model.brackets])
    cluster.close()


if __name__ == "__main__":
    main(sys.argv[1])
