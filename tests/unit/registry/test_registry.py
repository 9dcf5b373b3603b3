from reca import registry, tracking
from reca.stages.register import register
import time


def test_first(project):
    t = time.time()
    register(project.config, project.root)
    print("first", time.time() - t)
    t = time.time()
    register(project.config, project.root)
    print("second", time.time() - t)
    print(project.registered())
    with tracking.reading(project.store()) as client:
        v = registry.resolve(client, "reca-janus_tiny@champion")
        print(v)
        run = client.get_run(v.run_id)
        print(run.data.metrics, run.inputs, run.info.status)
        print(client.list_artifacts(v.run_id))
