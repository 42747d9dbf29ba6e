"""A configuration of gunicorn in which each worker logs that it is ready."""


def post_worker_init(worker):
    worker.log.info("worker is ready")
