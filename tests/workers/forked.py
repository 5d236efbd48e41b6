"""Processes that are forked from one that has imported torch and ours: that takes seconds."""

import multiprocessing

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["tests.workers.neighbours", "tests.workers.comm.test_all_gather"])
