# A HyperQueue server with its workers, and a client that submits tasks which do nothing. Arguments: how many, and a folder.
import sys
import time

from hyperqueue import Job
from hyperqueue.cluster import LocalCluster, WorkerConfig
from hyperqueue.ffi import get_version

# One worker starts its tasks one after the other; with eight the machine's two cores are busy.
WORKERS, CORES = 8, 2

count, folder = int(sys.argv[1]), sys.argv[2]
with LocalCluster(server_dir=folder, worker_config=WorkerConfig(cores=CORES)) as cluster:
    for _ in range(WORKERS - 1):
        cluster.start_worker(WorkerConfig(cores=CORES))
    client = cluster.client()
    job = Job(max_fails=0)
    for _ in range(count):
        job.program(["/bin/true"], stdout=None, stderr=None)
    print("ready", get_version(), flush=True)
    sys.stdin.readline()
    started = time.monotonic()
    submitted = client.submit(job)
    failed = client.connection.wait_for_jobs([submitted.id], lambda jobs: None)
    if failed:
        sys.exit("tasks failed")
    print("done", time.monotonic() - started, flush=True)
    sys.stdin.readline()
