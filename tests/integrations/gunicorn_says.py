"""A configuration of gunicorn: each worker says when it is ready."""


def post_worker_init(worker):
    worker.log.info("worker is ready")
