"""Policy td-pipe: the paper's scheduler, one file for each of its ideas."""
