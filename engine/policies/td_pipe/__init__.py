"""Policy td-pipe: the scheduler of the paper, one file per idea."""
