"""Evaluate a suite on a SLURM cluster: dask-jobqueue asks for the workers, as many as are useful.

    pip install 'lyanet-robustness[dask]' dask-jobqueue
    python slurm_dask.py

Run it where `sbatch` can be called and where it may stay: on a login node, or in a small job. One
process and one thread for each core: the number of threads changes the last bits of a sum.
"""

from dask_jobqueue import SLURMCluster
from distributed import Client

from robustness import evaluate

CORES = 8


def main() -> None:
    """Evaluate, on as many workers as the queue gives."""
    cluster = SLURMCluster(
        queue="standard",
        cores=CORES,
        processes=CORES,
        memory="32GB",
        walltime="04:00:00",
        # A worker whose job ends has its tasks done by another; it leaves before it is killed.
        worker_extra_args=["--lifetime", "230m", "--lifetime-stagger", "5m"],
        job_script_prologue=["export OMP_NUM_THREADS=1"],
    )
    cluster.adapt(minimum=0, maximum=256)
    with Client(cluster) as client:
        board = evaluate("cifar-10", executor=client, quiet=False)
    for model in board.models:
        print(model.name, [f"{b.eps:g}: {b.attacked.value:.1%}" for b in model.brackets])
    cluster.close()


if __name__ == "__main__":
    main()
